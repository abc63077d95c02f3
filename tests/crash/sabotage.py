"""Breaks one promise of the broker on purpose and demands that run.py catches it.

    python tests/crash/sabotage.py --list | NAME [--seed N]

The broker must be built with isobar's feature `testing`; ISOBAR_SABOTAGE names the promise (grep for `sabotaged(`). A run
that finds nothing is tried again with another seed, because a kill has to fall into the gap that the broken promise
opens; exit code 0: caught.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent

# What each does, how it is provoked, and the anomalies any one of which catches it. A log that cannot be read to its
# end (not-drained) has lost what was acknowledged there.
GONE = {"lost-write", "not-drained", "vanished-record", "inconsistent-offsets", "stale-end", "watermark-went-back"}
PROMISES = {
    "ack-before-sync": (["--kills", "8", "--points", "none"], GONE),
    "ack-before-commit": (["--kills", "8", "--points", "none"], {"lost-write"}),
    "release-before-swap": (["--kills", "4", "--points", "none"], GONE),
    "object-not-synced": (["--kills", "0", "--power-cuts", "4", "--points", "none"], GONE),
    "repeat-sequenced-twice": (["--kills", "8", "--points", "produce.after_commit"], {"duplicate"}),
}
# The same kinds of runs with nothing broken: what the others find is not the runs' own doing.
CONTROL = "control"
PROMISES[CONTROL] = (["--kills", "4", "--power-cuts", "4", "--points", "none"], set())
TRIES = 3


def caught(promise, seed):
    """The anomalies that one run found, and its exit code."""
    arguments, _ = PROMISES[promise]
    env = {k: v for k, v in os.environ.items() if k != "ISOBAR_SABOTAGE"}
    if promise != CONTROL:
        env["ISOBAR_SABOTAGE"] = promise
    with tempfile.TemporaryDirectory(prefix="isobar-sabotage-") as directory:
        command = [sys.executable, str(HERE / "run.py"), *arguments, "--seed", str(seed), "--drain-seconds", "15",
                   "--keep", directory]
        done = subprocess.run(command, env=env, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print("\n".join(f"  | {line}" for line in done.stdout.splitlines()), flush=True)
    return set(re.findall(r"^ANOMALY ([a-z-]+):", done.stdout, re.MULTILINE)), done.returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("promise", nargs="?", choices=PROMISES)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.list or args.promise is None:
        print("\n".join(PROMISES))
        return 0
    _, expected = PROMISES[args.promise]
    if args.promise == CONTROL:
        found, code = caught(CONTROL, args.seed)
        print("the control is clean" if code == 0 else f"the control is not clean: {', '.join(sorted(found))}")
        return code
    for seed in range(args.seed, args.seed + TRIES):
        found, _ = caught(args.promise, seed)
        if found & expected:
            print(f"caught {args.promise} by {', '.join(sorted(found & expected))}")
            return 0
    print(f"NOT CAUGHT: the broker broken by {args.promise} passed {TRIES} runs")
    return 1


if __name__ == "__main__":
    sys.exit(main())
