"""Cases of a client script: named functions, run in order, counted one by one.

The closing line is `N passed, N failed`; the exit code is 1 if one failed or none ran. Nothing can be skipped.
"""

import sys
import time
import traceback

_CASES = []


def case(function):
    _CASES.append((function.__name__, function))
    return function


def cases_for(values):
    """One case for each value: `name_value`."""

    def add(function):
        for value in values:
            _CASES.append((f"{function.__name__}_{value}", lambda value=value: function(value)))
        return function

    return add


def equal(got, expected, what):
    if got != expected:
        raise AssertionError(f"{what}: got {_short(got)}, expected {_short(expected)}")


def _short(value):
    text = repr(value)
    return text if len(text) < 400 else f"{text[:400]}… ({len(text)} characters)"


def run(only=None):
    passed = failed = 0
    for name, function in _CASES:
        if only and not any(part in name for part in only):
            continue
        start = time.monotonic()
        try:
            function()
        except Exception as e:  # a case may fail in any way; the others still run
            failed += 1
            print(f"FAIL {name} ({time.monotonic() - start:.1f} s): {e}", flush=True)
            traceback.print_exc(file=sys.stdout)
        else:
            passed += 1
            print(f"ok   {name} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed", flush=True)
    sys.exit(0 if failed == 0 and passed > 0 else 1)
