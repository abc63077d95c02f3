#!/usr/bin/env bash
# Runs the tests: `tests/run.sh` all suites, `tests/run.sh NAME…` some, `tests/run.sh NAME/PART` a part of one
# (clients/java). A suite is an executable in tests/suites whose last line is `N passed, N failed`; it installs what it
# needs. Logs of suites that fail are kept in the directory named at the end.
. "$(dirname "$0")/lib/common.sh"

ALL=(fmt arrows deny clippy unit demo deploy sim clients flood formats recover stores fuzz powercut crash cluster members aws)
# No suite takes longer than this; one that hangs is ended and counts as failed.
SUITE_SECONDS=${SUITE_SECONDS:-1500}

logs=$(mktemp -d "${TMPDIR:-/tmp}/isobar-tests-XXXXXX")
running=
stop() {
    # Ends the suite with everything it started: it leads its own process group.
    if [ -n "$running" ]; then
        kill -TERM -- "-$running" 2>/dev/null || true
        sleep 2
        kill -KILL -- "-$running" 2>/dev/null || true
    fi
    running=
}
trap 'stop; exit 130' INT TERM HUP
trap 'stop' EXIT

total_passed=0 total_failed=0 failures=()

run_suite() {
    local name=${1%%/*} part=() log started seconds summary passed failed code=0
    [[ $1 == */* ]] && part=("${1#*/}")
    log=$logs/${1//\//-}.log
    if [ ! -x "$REPO/tests/suites/$name" ]; then
        echo "no suite is called $name; there are: ${ALL[*]}"
        total_failed=$((total_failed + 1)) failures+=("$1")
        return
    fi
    started=$SECONDS
    setsid timeout --kill-after=20 "$SUITE_SECONDS" "$REPO/tests/suites/$name" "${part[@]}" >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running" || code=$?
    kill -KILL -- "-$running" 2>/dev/null || true
    running=
    seconds=$((SECONDS - started))
    summary=$(grep -vE '^\s*$' "$log" | tail -1) || true
    if [[ $summary =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
        passed=${BASH_REMATCH[1]} failed=${BASH_REMATCH[2]}
        [ $((passed + failed)) -gt 0 ] || { failed=1; echo "$1 ran no test"; }
        [ "$code" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
    else
        passed=0 failed=1
    fi
    total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed))
    printf '%-20s %4d passed, %2d failed  %4d s\n' "$1" "$passed" "$failed" "$seconds"
    if [ "$failed" -gt 0 ]; then
        failures+=("$1")
        echo "---- $1 (exit $code): lines that name a failure, then the end of $log"
        grep -E '^(FAIL|error|warning: unused|thread .* panicked|  +FAIL)' "$log" | head -40 || true
        echo "----"
        tail -60 "$log"
        echo "----"
    fi
}

chosen=("$@")
[ ${#chosen[@]} -gt 0 ] || chosen=("${ALL[@]}")
for suite in "${chosen[@]}"; do
    run_suite "$suite"
done

if [ ${#failures[@]} -gt 0 ]; then
    echo "failed: ${failures[*]}; logs in $logs"
else
    rm -rf "$logs"
fi
echo "$total_passed passed, $total_failed failed"
[ "$total_failed" -eq 0 ] && [ "$total_passed" -gt 0 ]
