#!/usr/bin/env bash
# Runs one fuzz target: `one.sh BINARY SECONDS DIR [libFuzzer's options…]`. Inputs are kept in DIR/corpus, an input that breaks
# a promise in DIR/found. Prints one line of JSON: target, seconds, cpu_seconds, executions, result; exit code 0 only if nothing was found.
set -euo pipefail
binary=$1 seconds=$2 dir=$3
shift 3
target=$(basename "$binary")
mkdir -p "$dir/corpus" "$dir/found"
ISOBAR_FUZZ_SEEDS=$dir/corpus "$binary" >/dev/null 2>&1
log=$dir/log started=$SECONDS code=0
TIMEFORMAT=%U
{
    time "$binary" "$dir/corpus" -max_total_time="$seconds" -max_len=8192 -timeout=30 -rss_limit_mb=3072 -print_final_stats=1 \
        -artifact_prefix="$dir/found/" "$@" >"$log" 2>&1 </dev/null || code=$?
} 2>"$dir/cpu"
executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
coverage=$(grep -ao 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2) || true
result=clean
[ "$code" -eq 0 ] || result=$(grep -am1 -oE "panicked at [^:]*:[0-9]+|ERROR: libFuzzer: [a-z -]*" "$log" || echo "exit $code")
[ "${coverage:-0}" -gt 0 ] || { result="no coverage"; code=1; }
# A niced run beside builds gets little of the processor, so that is told beside the time.
printf '{"target":"%s","seconds":%d,"cpu_seconds":%.0f,"executions":%d,"coverage":%d,"result":"%s"}\n' \
    "$target" $((SECONDS - started)) "$(tail -1 "$dir/cpu")" "${executions:-0}" "${coverage:-0}" "$result"
exit "$((code != 0))"
