#!/usr/bin/env bash
# Isobar against Apache Kafka, in turn, on this machine; writes benches/produce/results.md. `run.sh --help` says what can
# be chosen; `run.sh --short` tries everything once in a few minutes and writes elsewhere.
. "$(dirname "$0")/../../tests/lib/common.sh"
here=$REPO/benches/produce
. "$REPO/benches/lib/librdkafka.sh"
debian javac=openjdk-17-jdk-headless
load=$CACHE/bench-load
against_librdkafka "$load" "$here/load.c"
KAFKA_LIBS=$(kafka_jars)
if [ -z "${ISOBAR_BIN:-}" ] && [[ " $* " != *" --without-isobar "* ]]; then
    (cd "$REPO" && cargo build -q --release -p isobar)
    ISOBAR_BIN=$CARGO_TARGET_DIR/release/isobar
fi
export KAFKA_LIBS ISOBAR_BIN=${ISOBAR_BIN:-} LOAD=$load RDKAFKA_PERFORMANCE=$RDKAFKA/examples/rdkafka_performance
exec "$(venv confluent confluent-kafka==2.16.0)/bin/python" "$here/bench.py" "$@"
