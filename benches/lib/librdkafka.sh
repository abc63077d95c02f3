# Sourced by benches, after tests/lib/common.sh: librdkafka and rdkafka_performance, built once. Sets RDKAFKA to where they lie,
# with its header under include/.
RDKAFKA_CRATE=4.10.0+2.12.1 # of rdkafka-sys, whose package holds librdkafka's whole source with its generator
RDKAFKA=$CACHE/librdkafka-${RDKAFKA_CRATE#*+}

librdkafka() {
    local fetch source
    [ -x "$RDKAFKA/examples/rdkafka_performance" ] && return
    say "building librdkafka ${RDKAFKA_CRATE#*+} (two minutes)"
    fetch=$(mktemp -d)
    mkdir "$fetch/src" && touch "$fetch/src/lib.rs"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\n[workspace]\n[dependencies]\nrdkafka-sys = "=%s"\n' \
        "${RDKAFKA_CRATE%+*}" >"$fetch/Cargo.toml"
    cargo fetch -q --manifest-path "$fetch/Cargo.toml" >&2
    source=$(compgen -G "${CARGO_HOME:-$HOME/.cargo}/registry/src/*/rdkafka-sys-$RDKAFKA_CRATE/librdkafka")
    rm -rf "$fetch" "$RDKAFKA" && cp -r "$source" "$RDKAFKA"
    (
        cd "$RDKAFKA" && chmod +x configure lds-gen.py mklove/*
        ./configure --disable-ssl --disable-sasl --disable-curl --disable-zstd --enable-static
        make -j"$(nproc)" -C src librdkafka.a && make -C examples rdkafka_performance
    ) >"$CACHE/librdkafka.log" 2>&1 || { tail -20 "$CACHE/librdkafka.log" >&2; return 1; }
    mkdir -p "$RDKAFKA/include/librdkafka" && cp "$RDKAFKA/src/rdkafka.h" "$RDKAFKA/include/librdkafka/"
}

# A C program of ours on it: `against_librdkafka OUT SOURCE`.
against_librdkafka() {
    cc -O2 -Wall -Wextra -Werror -isystem "$RDKAFKA/include" -o "$1" "$2" "$RDKAFKA/src/librdkafka.a" -lm -lz -ldl -lrt -lpthread
}

librdkafka
