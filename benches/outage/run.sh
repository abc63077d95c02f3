#!/usr/bin/env bash
# The store away for ten minutes while clients write and read, and a node lost for good meanwhile; then a storm of 503s; writes
# benches/outage/results.md. `run.sh --help` says what can be chosen; `run.sh --short` tries everything once and writes elsewhere.
. "$(dirname "$0")/../../tests/lib/common.sh"
. "$REPO/tests/lib/stores.sh"
. "$REPO/benches/lib/librdkafka.sh"
here=$REPO/benches/outage
debian ip=iproute2 iptables-restore=iptables unshare=util-linux
load=$CACHE/bench-load
against_librdkafka "$load" "$REPO/benches/produce/load.c"
VERSITYGW=$(versitygw)
if [ -z "${ISOBAR_BIN:-}" ]; then
    (cd "$REPO" && cargo build -q --release -p isobar)
    ISOBAR_BIN=$CARGO_TARGET_DIR/release/isobar
fi
export VERSITYGW VERSITYGW_VERSION ISOBAR_BIN LOAD=$load RDKAFKA_PERFORMANCE=$RDKAFKA/examples/rdkafka_performance
exec "$(venv confluent confluent-kafka==2.16.0)/bin/python" "$here/bench.py" "$@"
