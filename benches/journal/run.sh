#!/bin/sh
# The journal beside the bare disk: benches/journal/run.sh [DIR] writes benches/journal/results.md.
# DIR lies on the disk to measure (default: here); about 700 MiB are written there and removed again.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${1:-$here}/run.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
cd "$here/../.."
cargo build --profile ci -q -p isobar-journal --example bench
target=${CARGO_TARGET_DIR:-target}
{
    echo "# Journal beside the bare disk"
    echo
    echo "Written by \`benches/journal/run.sh\`; what is measured stands at the head of \`crates/journal/examples/bench.rs\`."
    echo
    echo "- date: $(date -u +%Y-%m-%dT%H:%MZ), commit $(git rev-parse --short HEAD)"
    echo "- machine: $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r), load before $(cut -d' ' -f1-3 /proc/loadavg)"
    echo "- disk: $(df -PT "$work" | awk 'NR==2 {print $2 " on " $1}'), $(rustc --version)"
    echo
    "$target/ci/examples/bench" "$work" "${ROUNDS:-5}"
} >"$work/results.md"
cp "$work/results.md" "$here/results.md"
cat "$here/results.md"
