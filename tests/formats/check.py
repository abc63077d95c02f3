"""Reads format fixtures with the present isobar: each fixture is a data directory that an earlier isobar left when it was killed,
and must be served to the last byte, written to, and served again after a restart. Arguments choose fixtures."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

import scenario
from broker import Broker
from cases import equal

HERE = pathlib.Path(__file__).resolve().parent


def unpack(fixture, work):
    with tarfile.open(fixture) as tar:
        tar.extractall(work, filter="data")
    return json.loads((work / "expected.json").read_text())


def check(fixture, work):
    expected = unpack(fixture, work)
    data = work / "data"
    dumped = subprocess.run([os.environ["ISOBAR_BIN"], "dump", "--json", str(data)], capture_output=True, text=True, check=False)
    equal(dumped.returncode, 0, f"dump ({dumped.stderr[-300:]})")
    broker = Broker(peer="isobar", data=data, log=work / "log", args=["--upload-interval-ms", "100"])
    with broker:
        compare(scenario.read(broker.bootstrap), expected, "as it was left")
        for topic, partitions in expected["topics"].items():
            for partition in partitions:
                scenario.send(broker.bootstrap, topic, int(partition), range(1000, 1020), "zstd", idempotent=True)
        written = scenario.read(broker.bootstrap)
        continues(written, expected)
    broker.start()
    try:
        compare(scenario.read(broker.bootstrap), written, "after a restart")
    finally:
        broker.kill()


def compare(seen, expected, when):
    for kind in ("groups", "configs"):
        equal(seen[kind], expected[kind], f"{kind} {when}")
    equal(sorted(seen["topics"]), sorted(expected["topics"]), f"topics {when}")
    for topic, partitions in expected["topics"].items():
        equal(sorted(seen["topics"][topic]), sorted(partitions), f"partitions of {topic} {when}")
        for partition, one in partitions.items():
            found = seen["topics"][topic][partition]
            where = f"{topic}-{partition} {when}"
            equal((found["start"], found["end"], len(found["records"])), (one["start"], one["end"], len(one["records"])), where)
            for got, record in zip(found["records"], one["records"]):
                equal(got, record, f"a record of {where}")


def continues(written, expected):
    """What was there, then twenty more."""
    cut = json.loads(json.dumps(written))
    for topic, partitions in cut["topics"].items():
        for partition, one in partitions.items():
            equal(one["end"], expected["topics"][topic][partition]["end"] + 20, f"end of {topic}-{partition}")
            one["end"] -= 20
            one["records"] = one["records"][:-20]
    compare(cut, expected, "below what was written since")


def main():
    fixtures = sorted(HERE.glob("*.tar.xz"))
    if sys.argv[1:]:
        fixtures = [HERE / f"{name}.tar.xz" for name in sys.argv[1:]]
    passed = failed = 0
    for fixture in fixtures:
        work = pathlib.Path(tempfile.mkdtemp(prefix="isobar-format-"))
        try:
            check(fixture, work)
            passed += 1
            print(f"ok   {fixture.name}")
        except Exception as e:  # one bad fixture does not hide the others
            failed += 1
            print(f"FAIL {fixture.name}: {type(e).__name__}: {e}")
            log = work / "log"
            if log.exists():
                print("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    os.environ.pop("PEER", None)
    main()
