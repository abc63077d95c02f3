#!/usr/bin/env bash
# Three nodes of Isobar beside three of Apache Kafka (RF 3, min.insync.replicas 2), in turn in one run, each node a zone with its own
# network: acknowledgements, throughput, bytes between zones, and what clients feel of a `kill -9`; writes
# benches/cluster/results.md. `run.sh --help` says what can be chosen; `run.sh --short` tries everything once and writes elsewhere.
. "$(dirname "$0")/../../tests/lib/common.sh"
. "$REPO/tests/lib/stores.sh"
. "$REPO/benches/lib/librdkafka.sh"
here=$REPO/benches/cluster
debian javac=openjdk-17-jdk-headless ip=iproute2 iptables-restore=iptables unshare=util-linux
load=$CACHE/bench-load
against_librdkafka "$load" "$REPO/benches/produce/load.c"
KAFKA_LIBS=$(kafka_jars)
VERSITYGW=$(versitygw)
if [ -z "${ISOBAR_BIN:-}" ]; then
    (cd "$REPO" && cargo build -q --release -p isobar)
    ISOBAR_BIN=$CARGO_TARGET_DIR/release/isobar
fi
export KAFKA_LIBS VERSITYGW VERSITYGW_VERSION ISOBAR_BIN LOAD=$load RDKAFKA_PERFORMANCE=$RDKAFKA/examples/rdkafka_performance
exec "$(venv confluent confluent-kafka==2.16.0)/bin/python" "$here/bench.py" "$@"
