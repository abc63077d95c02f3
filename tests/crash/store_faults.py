"""The broker's store as a real server that fails: what is done to it while the broker is killed, and what must be left in it.

Faults, in turns of random order with calm between:

    stopped   connections are cut and refused, later reset; it lasts until a start of the broker has gone through within it
    hung      the server is stopped by a signal: requests go out, and are answered when nobody waits any more
    killed    the server is killed, and started after a while (not Azurite, which would lose what it answered for)
    storm     503 to most requests or all
    slow      requests wait before they are passed on, at worst longer than the broker waits for a GET
    lossy     writes are done, and their answers lost

The first of each kind goes on until the driver has watched a living broker under it.
"""

import bisect
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lib"))
from storeproxy import StoreProxy  # noqa: E402
from stores import Azurite, Minio, Versitygw  # noqa: E402

SERVERS = {"versitygw": Versitygw, "minio": Minio, "azurite": Azurite}
BUCKET = "bucket"
# While the broker has been up for so long within a fault of the store, there must have been acknowledgements.
UP_S = 3.0
# Longest that a fault waits for the driver: to start the broker within it, or to watch it.
PATIENCE_S = 60.0
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
# How far the broker's clock is put forward, in steps, as metadata holds all expiry after a jump of ten minutes. Ids of uploads
# expire after ten minutes, those of compactions after an hour; S3 refuses clocks that are off by fifteen minutes.
SHIFTS_S = {"s3": (9 * 60, 14 * 60), "az": tuple(range(9 * 60, 64 * 60, 9 * 60))}
OBJECT = re.compile(r"data/[0-9a-f]{2}")
OTHERS = re.compile(r"cluster|claim/\d{3}|archive/\d{3}/(log|snapshot)/.+")


class FaultyStore:
    """A server behind the proxy. A new directory of the broker's needs a new `prefix`: the bucket knows its cluster."""

    def __init__(self, kind, directory):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.server = SERVERS[kind](directory)
        self.proxy = StoreProxy(self.server.address)
        self.server.bucket(BUCKET)
        self.prefixes = 0
        self.shifts_s = SHIFTS_S[self.server.scheme]
        self.has_hour_left = self.shifts_s[-1] < 3600

    def next_url(self):
        self.prefixes += 1
        return self.server.url(BUCKET, f"cluster-{self.prefixes}", address=self.proxy.address)

    def env(self, env):
        """For the broker: these credentials and no others."""
        kept = {k: v for k, v in env.items() if not k.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
        return kept | {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"} | self.server.env

    def keys(self):
        """Names and lengths of what lies under the last prefix, as the server itself says."""
        prefix = f"cluster-{self.prefixes}/"
        return {key.removeprefix(prefix): size for key, size in self.server.keys(BUCKET, prefix).items()}

    def close(self):
        self.proxy.__exit__()
        self.server.stop()


class Faults(threading.Thread):
    """Makes one fault after the other until `finish`."""

    def __init__(self, store, recorder, rng, seconds, long_stop, server_too):
        super().__init__(name="Faults", daemon=True)
        self.store, self.recorder, self.random = store, recorder, rng
        self.seconds, self.long_stop = seconds, long_stop
        self.kinds = ["stopped", "storm", "slow", "lossy"]
        if server_too:
            self.kinds += ["hung"] + (["killed"] if store.server.may_be_killed else [])
        self.spans = []  # kind, begin and end in monotonic nanoseconds
        self.turns = 0
        self.started_within = 0
        self.now = None
        self.error = None
        self._stopped_ns = 0
        self._watched = {kind: threading.Event() for kind in self.kinds}
        self._finish = threading.Event()
        self._started = threading.Event()
        self._may_end = threading.Event()

    def run(self):
        try:
            while not self._finish.is_set():
                kinds = self.random.sample(self.kinds, len(self.kinds))
                for kind in kinds:
                    if self.turns and self._finish.is_set():
                        break
                    self._finish.wait(self.random.uniform(0.3, self.seconds / 2))
                    self.fault(kind)
                self.turns += 1
        except Exception as e:  # told by the run
            self.error = e
        # The server dies with the thread that started it last.
        self._may_end.wait()

    def fault(self, kind):
        self.recorder.add(0, "fault", kind=f"store-{kind}")
        begin, self.now = time.monotonic_ns(), kind
        try:
            getattr(self, kind)(self.random.uniform(0.6, 1.4) * self.seconds)
            self.spans.append((kind, begin, time.monotonic_ns()))
        finally:
            self.store.proxy.set()
            self.now = None

    def stopped(self, seconds):
        if self.long_stop:
            seconds, self.long_stop = self.long_stop, 0
        self._stopped_ns = time.monotonic_ns()
        self._started.clear()
        self.store.proxy.set(stopped_s=seconds + PATIENCE_S)
        time.sleep(seconds / 2)
        # The same again, so that both ways to be away are there.
        self.store.proxy.set(stopped_s=seconds / 2)
        time.sleep(seconds / 2 * 0.9)
        if not self._started.is_set():
            self.store.proxy.set(stopped_s=4 * PATIENCE_S)
            self._started.wait(PATIENCE_S)
        self._watched["stopped"].wait(PATIENCE_S)

    def hung(self, seconds):
        os.kill(self.store.server.process.pid, signal.SIGSTOP)
        try:
            self.last("hung", seconds)
        finally:
            os.kill(self.store.server.process.pid, signal.SIGCONT)

    def killed(self, seconds):
        self.store.server.stop()
        self.last("killed", seconds)
        self.store.server.start()

    def last(self, kind, seconds):
        time.sleep(seconds)
        self._watched[kind].wait(PATIENCE_S)

    def storm(self, seconds):
        self.store.proxy.set(storm=self.random.choice((0.7, 1.0)))
        self.last("storm", seconds)

    def slow(self, seconds):
        self.store.proxy.set(delay_ms=self.random.choice((300, 1500, 6000)))
        self.last("slow", seconds)

    def lossy(self, seconds):
        self.store.proxy.set(lose=self.random.choice((0.5, 1.0)))
        self.last("lossy", seconds)

    @property
    def is_away(self):
        return self.now in ("stopped", "hung", "killed")

    @property
    def wants_watch(self):
        """The fault that is on waits for the driver."""
        kind = self.now
        return kind is not None and not self._watched[kind].is_set()

    def watch(self):
        """Called when the broker has just answered: stays until a kind of fault that nobody has watched yet was watched."""
        kind = self.now
        if self.wants_watch:
            deadline = time.monotonic() + 1.3 * UP_S
            while self.now == kind and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.now == kind:
                self._watched[kind].set()

    def broker_started(self, since_ns):
        """The broker answers; it was started at `since_ns`."""
        if self.now == "stopped" and self._stopped_ns < since_ns:
            self.started_within += 1
            self._started.set()

    def finish(self, seconds=300):
        """Ends the faults, but not before each was there once; the server lives on."""
        self._finish.set()
        if self.turns:
            for event in (self._started, *self._watched.values()):
                event.set()
        deadline = time.monotonic() + seconds
        while (self.turns == 0 or self.now is not None) and self.error is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.error is not None:
            raise RuntimeError(f"the faults ended: {self.error!r}")

    def close(self):
        self._may_end.set()

    def by_kind(self):
        counts = {}
        for kind, _, _ in self.spans:
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def problems(self, counts):
        """What was to happen and did not, by the proxy's `counts`."""
        wanted = {"storm": "stormed", "slow": "slowed", "lossy": "lost", "stopped": "stops"}
        for kind in self.kinds:
            if kind not in self.by_kind():
                yield f"the fault {kind} never came"
            elif wanted.get(kind) and not counts[wanted[kind]]:
                yield f"the fault {kind} met no request"
        if counts["cut"] + counts["turned_away"] == 0:
            yield "no connection was cut or turned away by a stop"
        if self.started_within == 0:
            yield "no start of the broker fell into a stop of its store"


def acknowledged_within(history, spans, ups):
    """Windows of at least UP_S within one fault of the store and one life of the broker: for each its kind, its length and the
    longest time without an acknowledgement, in seconds; without any: None."""
    acks = []
    with open(history, encoding="ascii") as lines:
        for line in lines:
            if '"op":"acked"' in line:
                acks.append(json.loads(line)["t"])
    for kind, begin, end in spans:
        for up, down in ups:
            first, last = max(begin, up), min(end, down)
            if last - first < UP_S * 1e9:
                continue
            within = acks[bisect.bisect_left(acks, first) : bisect.bisect_right(acks, last)]
            edges = [first, *within, last]
            longest = max(after - before for before, after in zip(edges, edges[1:]))
            yield kind, (last - first) / 1e9, longest / 1e9 if within else None


def shifted(env, seconds):
    """The same environment with a clock that is ahead."""
    kept = {k: v for k, v in env.items() if not k.startswith("FAKETIME") and k != "LD_PRELOAD"}
    if not seconds:
        return kept
    return kept | {"LD_PRELOAD": FAKETIME, "FAKETIME": f"+{seconds}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def fsck(binary, admin, deep=False, timeout=300):
    """(exit code, findings, summary) of `isobar fsck`."""
    command = [binary, "fsck", "--json", "--admin", admin, *(["--deep"] if deep else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    summary = next((line for line in lines if line.get("done") is True), None)
    return done.returncode, [line for line in lines if "finding" in line], summary or {"error": done.stdout + done.stderr}


def left_over(keys, summary):
    """What lies in the bucket and is nobody's, as far as names and numbers tell."""
    objects = [key for key in keys if OBJECT.match(key)]
    for key in sorted(keys):
        if not OBJECT.match(key) and not OTHERS.fullmatch(key):
            yield f"{key} is no name of ours"
    known = summary["referenced"] + summary["prepared"]
    if len(objects) != known:
        yield f"{len(objects)} objects lie in the bucket, and metadata knows of {known}"


def empty_within(binary, admin, store, seconds):
    """Whether the bucket holds what metadata refers to and nothing else, before so long has passed."""
    deadline = time.monotonic() + seconds
    while True:
        code, _, summary = fsck(binary, admin)
        if code == 0 and summary["prepared"] + summary["awaiting_delete"] == 0 and not list(left_over(store.keys(), summary)):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
