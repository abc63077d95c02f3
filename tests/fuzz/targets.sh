#!/usr/bin/env bash
# The names of the targets, but for the one that is there to fail.
cd "$(dirname "${BASH_SOURCE[0]}")/targets"
for file in *.rs; do
    [ "$file" = canary.rs ] || echo "${file%.rs}"
done
