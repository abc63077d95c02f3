"""Makes a format fixture: `make.py BIN NAME` runs that binary, writes what scenario.py says, kills it, and packs the data
directory with what must be read from it as NAME.tar.xz beside this file. By make.sh, which brings confluent-kafka."""

import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import time

import scenario
from broker import Broker

HERE = pathlib.Path(__file__).resolve().parent
# Kept small, so that segments are left behind, snapshots are taken and the fixture packs well.
SMALL = ["--segment-bytes", str(8 << 20), "--snapshot-after-bytes", str(8 << 10)]
MOST_BYTES = 300_000


def objects(data):
    return sum(1 for path in (data / "bucket").rglob("*") if path.is_file())


def main():
    binary, name = sys.argv[1:]
    work = pathlib.Path(tempfile.mkdtemp(prefix="isobar-format-"))
    try:
        data = work / "data"
        first = Broker(peer="isobar", data=data, log=work / "1.log", binary=binary, args=[*SMALL, "--upload-interval-ms", "50"])
        with first:
            scenario.before_upload(first.bootstrap)
            time.sleep(2)
        assert objects(data) > 0, "nothing was uploaded"
        uploaded = objects(data)
        second = Broker(peer="isobar", data=data, log=work / "2.log", binary=binary, args=[*SMALL, "--upload-interval-ms", "3600000"])
        second.start()
        try:
            scenario.after_upload(second.bootstrap)
            expected = scenario.read(second.bootstrap)
        finally:
            second.kill()
        assert objects(data) == uploaded, "what was meant for the WAL was uploaded"
        (work / "expected.json").write_text(json.dumps(expected, separators=(",", ":")))
        packed = HERE / f"{name}.tar.xz"
        with tarfile.open(packed, "w:xz", preset=9) as tar:
            tar.add(work / "expected.json", "expected.json")
            tar.add(data, "data", filter=anonymous)
        size = packed.stat().st_size
        print(f"{packed}: {size} bytes, {uploaded} objects, topics {sorted(expected['topics'])}")
        if size > MOST_BYTES:
            sys.exit(f"more than {MOST_BYTES} bytes")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def anonymous(member):
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    os.environ.pop("PEER", None)
    main()
