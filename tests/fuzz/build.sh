#!/usr/bin/env bash
# Builds the fuzz targets and prints the directory of their binaries. With the versions of the main workspace's lock file.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
cd "$REPO/tests/fuzz"
debian g++=g++ >&2
cp "$REPO/Cargo.lock" Cargo.lock
target=$CARGO_TARGET_DIR/fuzz
RUSTC_WRAPPER=$PWD/rustc.sh CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$target cargo build -q --release --bins >&2
echo "$target/release"
