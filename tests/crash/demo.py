"""The demo's data set through a node whose bucket is a real server that fails meanwhile, and back.

    python tests/crash/demo.py versitygw|minio|azurite [--stop-seconds 60]

First `isobar demo --store`, if the binary has that option. Then the same flights by `isobar produce` and `isobar consume` through
`isobar dev`: while they are produced the server is away for `--stop-seconds`, then storms, is slow, and loses answers. Each row
must come back once for each time it was sent, and the bucket must end as metadata says.
"""

import argparse
import collections
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]

from broker import Broker  # noqa: E402
from store_faults import SERVERS, FaultyStore, empty_within, fsck, left_over, shifted  # noqa: E402

FLIGHTS = HERE.parents[1] / "crates/isobar/data/flights.csv.zst"
TOPIC, PARTITIONS = "flights", "4"


def make_faults(store, stop_s, ended):
    for seconds, faults in [(stop_s, {"stopped_s": stop_s}), (5, {"storm": 0.8}), (5, {"delay_ms": 1000}), (5, {"lose": 0.6})]:
        store.proxy.set(**faults)
        ended.wait(seconds)
        store.proxy.set()
        ended.wait(1)


def while_it_fails(store, stop_s, work):
    """Runs `work` until the faults have all been, once at least; how often it ran."""
    ended, times = threading.Event(), 0
    faults = threading.Thread(target=make_faults, args=(store, stop_s, ended))
    faults.start()
    try:
        while faults.is_alive():
            work()
            times += 1
    finally:
        ended.set()
        faults.join()
    return times


def by_hand(binary, store, directory, stop_s):
    rows = subprocess.run(["zstd", "-dc", FLIGHTS], capture_output=True, check=True).stdout.split(b"\n")[1:]
    file = directory / "flights.csv"
    file.write_bytes(b"\n".join(rows))
    broker = Broker(data=directory / "data", log=directory / "broker.log", args=["--store", store.next_url()])
    broker.env = store.env(broker.env) | {"ISOBAR_UPLOAD_INTERVAL": "500ms", "ISOBAR_WAL_MEMORY": str(4 << 20)}
    broker.env |= {"ISOBAR_ARCHIVE_INTERVAL": "500ms", "ISOBAR_DELETE_INTERVAL": "500ms", "ISOBAR_DELETE_GRACE": "2s"}
    with broker:
        subprocess.run([binary, "topic", "create", TOPIC, "-p", PARTITIONS, "-b", broker.bootstrap], check=True)
        produce = [binary, "produce", TOPIC, "-f", str(file), "-b", broker.bootstrap]

        def work():
            began = time.monotonic()
            subprocess.run(produce, check=True, stdout=subprocess.DEVNULL)
            print(f"{len(rows)} flights acknowledged in {time.monotonic() - began:.1f} s", flush=True)
            # A minute's worth of them is too much for a test; what is slower than that meets the shorter faults.
            if store.proxy.counts()["stormed"] == 0:
                time.sleep(5)

        times = while_it_fails(store, stop_s, work)
        broker.stop()
        broker.start()
        consume = [binary, "consume", TOPIC, "-b", broker.bootstrap, "--from", "earliest", "--exit-at-end"]
        read = subprocess.run(consume, capture_output=True, check=True).stdout.split(b"\n")
        wanted = collections.Counter(row for row in rows if row)
        found = collections.Counter(row for row in read if row)
        assert found == collections.Counter({row: n * times for row, n in wanted.items()}), "rows are missing, doubled or changed"
        code, findings, summary = fsck(binary, broker.admin, deep=True)
        assert code == 0 and not findings, (findings, summary)
        env = dict(broker.env)
        for seconds in store.shifts_s:
            broker.stop()
            broker.env = shifted(env, seconds)
            broker.start()
            subprocess.run([binary, "produce", TOPIC, "-b", broker.bootstrap], input=b"x\n", check=True, stdout=subprocess.DEVNULL)
            if empty_within(binary, broker.admin, store, 8):
                break
        code, findings, summary = fsck(binary, broker.admin)
        left = list(left_over(store.keys(), summary))
        # An id of a compaction that failed lives an hour, for which S3's clock cannot be put forward.
        hour = summary["prepared"] if store.has_hour_left else 0
        assert code == 0 and not findings and not left and summary["awaiting_delete"] + summary["prepared"] == hour, (findings, summary, left)
        counts = store.proxy.counts()
        unmet = [name for name in ("stops", "stormed", "slowed", "lost") if not counts[name]]
        assert not unmet, f"no request was {unmet}: {counts}"
        print(f"every one of {times} times {len(rows)} flights came back right; the bucket: {summary}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", choices=SERVERS)
    parser.add_argument("--stop-seconds", type=float, default=60)
    args = parser.parse_args()
    binary = os.environ["ISOBAR_BIN"]
    usage = subprocess.run([binary, "demo", "--help"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="isobar-demo-") as directory:
        directory = pathlib.Path(directory)
        store = FaultyStore(args.store, directory / "store")
        try:
            if "--store" in usage:
                # It formats a node, for which the store must be there.
                command = [binary, "--log", "warn", "demo", "--store", store.next_url()]
                subprocess.run(command, env=store.env(dict(os.environ)), check=True)
            by_hand(binary, store, directory, args.stop_seconds)
            print(f"proxy: {store.proxy.counts()}")
        finally:
            store.close()


if __name__ == "__main__":
    main()
