#!/usr/bin/env bash
# Old data read cold by several groups at once: GETs per GiB, throughput beside a plain download of the same objects, and the
# tail's latency with and without; writes benches/coldread/results.md. `run.sh --help` says what can be chosen; `run.sh --gib 2
# --out /tmp/coldread.md` is a quick one.
. "$(dirname "$0")/../../tests/lib/common.sh"
here=$REPO/benches/coldread
. "$REPO/benches/lib/librdkafka.sh"
against_librdkafka "$CACHE/bench-tail" "$here/tail.c"
if [[ " $* " != *"--stores directory "* ]]; then
    . "$REPO/tests/lib/stores.sh"
    VERSITYGW=$(versitygw)
    export VERSITYGW VERSITYGW_VERSION
fi
if [ -z "${ISOBAR_BIN:-}" ]; then
    (cd "$REPO" && cargo build -q --release -p isobar && cargo build -q --release -p isobar-store --example download)
    ISOBAR_BIN=$CARGO_TARGET_DIR/release/isobar
fi
export ISOBAR_BIN TAIL=$CACHE/bench-tail DOWNLOAD=${DOWNLOAD:-$(dirname "$ISOBAR_BIN")/examples/download}
export RDKAFKA_PERFORMANCE=$RDKAFKA/examples/rdkafka_performance
exec "$(venv confluent confluent-kafka==2.16.0)/bin/python" "$here/bench.py" "$@"
