#!/bin/sh
# RUSTC_WRAPPER of the fuzz build: coverage for libFuzzer in our own crates only, and everything else as fast as it is
# built anywhere. (`cargo fuzz` instruments all of it in one codegen unit each, which takes ten times as long.)
rustc=$1
shift
previous=
for argument in "$@"; do
    if [ "$previous" = --crate-name ]; then
        case $argument in
            isobar_*)
                exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0
                ;;
        esac
    fi
    previous=$argument
done
exec "$rustc" "$@"
