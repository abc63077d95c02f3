"""What results files have in common: the machine, the date, the versions, and tables."""

import datetime
import os
import pathlib
import platform
import re
import subprocess
import sys

REPO = pathlib.Path(__file__).resolve().parents[2]


def say(*words):
    print(f"{datetime.datetime.now():%H:%M:%S}", *words, file=sys.stderr, flush=True)


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()


def described(setup, *more):
    """Lines for the head of a results file. `setup`: how Isobar was set up."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    dirty = " with uncommitted changes" if output_of("git", "status", "--porcelain", "--", "crates", "Cargo.lock") else ""
    return [
        f"- Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC; load average at the start {os.getloadavg()[0]:.2f}",
        f"- Machine: {os.cpu_count()} cores, {cpu[1] if cpu else 'unknown'}, {memory:.0f} GiB of memory, kernel {platform.release()}, "
        "a virtual disk; all nodes, the store's server and the clients share it",
        f"- Isobar {output_of('git', 'rev-parse', '--short=12', 'HEAD')}{dirty}, release build, {setup}",
        *(f"- {line}" for line in more),
    ]


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "--|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]
