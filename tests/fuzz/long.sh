#!/usr/bin/env bash
# Hours of fuzzing: `long.sh SECONDS [TARGET…]` runs each target (all of them) for so long, one after the other, niced, on one
# core (CPU, 1), and appends what came of it to results.jsonl: commit, target, seconds, seconds of the processor, executions, coverage, result. Goes on
# with the inputs of earlier runs ($ISOBAR_CACHE/fuzz).
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
here=$REPO/tests/fuzz
seconds=$1
shift
# A copy: the next build must not change what runs.
built=$("$here/build.sh")
bin=$(mktemp -d "${TMPDIR:-/tmp}/isobar-fuzz-XXXXXX")
trap 'rm -rf "$bin"' EXIT
commit=$(git -C "$REPO" describe --always --dirty)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <("$here/targets.sh")
for target in "${targets[@]}"; do cp "$built/$target" "$bin/"; done
failed=0
# Where sessions share the processor evenly, being nice within one's own is not enough.
echo 19 >"/proc/$$/autogroup" 2>/dev/null || true
for target in "${targets[@]}"; do
    line=$(nice -n 19 taskset -c "${CPU:-1}" "$here/one.sh" "$bin/$target" "$seconds" "$CACHE/fuzz/$target" -reload=0) || failed=1
    line="{\"commit\":\"$commit\",\"date\":\"$(date -u +%F)\",${line#\{}"
    echo "$line"
    echo "$line" >>"${RESULTS:-$here/results.jsonl}"
done
exit "$failed"
