#!/usr/bin/env bash
# Isobar against Apache Kafka, in turn, on this machine; writes benches/produce/results.md. `run.sh --help` says what can
# be chosen; `run.sh --short` tries everything once in a few minutes and writes elsewhere.
. "$(dirname "$0")/../../tests/lib/common.sh"
here=$REPO/benches/produce
RDKAFKA_CRATE=4.10.0+2.12.1 # of rdkafka-sys, whose package holds librdkafka's whole source with its generator

# librdkafka and rdkafka_performance, built once.
librdkafka() {
    local dir=$CACHE/librdkafka-${RDKAFKA_CRATE#*+} fetch source
    [ -x "$dir/examples/rdkafka_performance" ] && { echo "$dir"; return; }
    say "building librdkafka ${RDKAFKA_CRATE#*+} (two minutes)"
    fetch=$(mktemp -d)
    mkdir "$fetch/src" && touch "$fetch/src/lib.rs"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[workspace]\n[dependencies]\nrdkafka-sys = "=%s"\n' \
        "${RDKAFKA_CRATE%+*}" >"$fetch/Cargo.toml"
    cargo fetch -q --manifest-path "$fetch/Cargo.toml" >&2
    source=$(compgen -G "${CARGO_HOME:-$HOME/.cargo}/registry/src/*/rdkafka-sys-$RDKAFKA_CRATE/librdkafka")
    rm -rf "$fetch" "$dir" && cp -r "$source" "$dir"
    (
        cd "$dir" && chmod +x configure lds-gen.py mklove/*
        ./configure --disable-ssl --disable-sasl --disable-curl --disable-zstd --enable-static
        make -j"$(nproc)" -C src librdkafka.a && make -C examples rdkafka_performance
    ) >"$CACHE/librdkafka.log" 2>&1 || { tail -20 "$CACHE/librdkafka.log" >&2; return 1; }
    echo "$dir"
}

debian javac=openjdk-17-jdk-headless
rdkafka=$(librdkafka)
load=$CACHE/bench-load
mkdir -p "$rdkafka/include/librdkafka" && cp "$rdkafka/src/rdkafka.h" "$rdkafka/include/librdkafka/"
cc -O2 -Wall -Wextra -Werror -isystem "$rdkafka/include" -o "$load" "$here/load.c" \
    "$rdkafka/src/librdkafka.a" -lm -lz -ldl -lrt -lpthread
KAFKA_LIBS=$(kafka_jars)
if [ -z "${ISOBAR_BIN:-}" ] && [[ " $* " != *" --without-isobar "* ]]; then
    (cd "$REPO" && cargo build -q --release -p isobar)
    ISOBAR_BIN=$CARGO_TARGET_DIR/release/isobar
fi
export KAFKA_LIBS ISOBAR_BIN=${ISOBAR_BIN:-} LOAD=$load RDKAFKA_PERFORMANCE=$rdkafka/examples/rdkafka_performance
exec "$(venv confluent confluent-kafka==2.16.0)/bin/python" "$here/bench.py" "$@"
