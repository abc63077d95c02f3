"""Kills the broker under load, again and again, and checks that clients saw nothing that a right log cannot show.

    python tests/crash/run.py [--kills 50] [--seed N] [--points all|none|NAME,…] [--power-cuts 0] [--keep DIR]
                              [--store versitygw|minio|azurite [--faults]] [--results FILE]

PEER=kafka runs it against Apache Kafka with flush.messages=1, which calibrates it. The last line says what was shown; exit
code 0: clean and nothing that was asked for is zero.

With --store the bucket is that server behind a proxy (VERSITYGW, MINIO, AZURITE name the programs); with --faults it fails in
the ways of store_faults.py while the broker is killed. Then it is shown too that acknowledgements go on while it fails, that a
start needs no store, and at the end, that the bucket holds what metadata refers to and nothing else: `isobar fsck --deep`, then
again once one topic's records were deleted, ids that a kill left behind have expired (the broker's clock is put forward, with
libfaketime) and the deleter has been.

The long form, by hand, about ten minutes each; results.jsonl has what they showed:
    run.py --store versitygw --faults --kills 40 --results tests/crash/results.jsonl      with one stop of a minute
    run.py --store azurite --faults --kills 25 --long-stop 60 --results tests/crash/results.jsonl
    run.py --store minio --kills 5 --power-cuts 12 --results tests/crash/results.jsonl    MinIO's disk loses power too
"""

import argparse
import collections
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib"), str(HERE.parent / "powercut")]

from broker import CACHE, Broker, BrokerError  # noqa: E402
from clients import Churner, Client, Load, Member, Observer, Reader, Sender, drain  # noqa: E402
from history import Recorder, check  # noqa: E402
from store_faults import (  # noqa: E402
    SERVERS, FaultyStore, Faults, acknowledged_within, empty_within, fsck, left_over, shifted,
)

# Room for a journal, a Raft log and the objects of some minutes.
VOLUME_MIB = 4096
TOPICS = {"crash-a": 4, "crash-b": 1}
# Of this one half is kept when the store is to be emptied.
KEPT = "crash-b"
REPO = HERE.parents[1]
# Fewer may well meet no named crash point.
FEW_KILLS = 25
# The crates whose code the broker process runs.
CRATES = ("host", "journal", "raft", "wal", "store", "broker", "isobar")


def crash_points():
    """The names in the source. The journal knows no host and calls its points through a function of its own."""
    names = set()
    for crate in CRATES:
        for file in (REPO / "crates" / crate / "src").rglob("*.rs"):
            if "tests" not in file.parts:
                names.update(re.findall(r'point\)?\("([a-z]+\.[a-z_.]+)"\)', file.read_text()))
    return sorted(names)


def senders(load):
    """Idempotent and plain, acks=all and acks=1, with and without order, with every codec."""
    codecs = ("none", "lz4", "zstd", "snappy", "gzip")
    kinds = [
        (True, True, {"enable.idempotence": True}),
        (True, True, {"enable.idempotence": True, "linger.ms": 0}),
        (False, True, {"acks": "all", "max.in.flight": 1}),
        # One that gives up soon, so that some sends end undecided.
        (False, False, {"acks": "all", "max.in.flight": 5, "message.timeout.ms": 700}),
        (False, True, {"acks": "1", "max.in.flight": 1}),
    ]
    for number, (once, ordered, settings) in enumerate(kinds, start=1):
        codec = codecs[(load.seed + number) % len(codecs)]
        yield Sender(load, number, load.rate / len(kinds), once, ordered, **{"compression.codec": codec}, **settings)


class Run:
    def __init__(self, args, directory):
        self.args = args
        self.random = random.Random(args.seed)
        self.directory = directory
        self.history = directory / "history.jsonl"
        self.recorder = Recorder(self.history)
        properties = {"log.flush.interval.messages": "1", "auto.create.topics.enable": "false"}
        self.volume = None
        if args.power_cuts:
            from volume import Volume

            self.volume = Volume(size_mib=VOLUME_MIB)
            self.volume.create()
        self.broker = Broker(data=(self.volume.path if self.volume else directory) / "data", log=directory / "broker.log", properties=properties, heap="512m",
                             args=args.broker_args)
        # Small enough that segments are recycled and snapshots taken within a run.
        self.broker.env |= {"ISOBAR_WAL_SEGMENT": str(8 << 20), "ISOBAR_METADATA_SNAPSHOT_AFTER": str(256 << 10)}
        self.store = self.faults = None
        self.ups, self.up_since = [], None
        self.shown = {}
        if args.store:
            self.store = FaultyStore(args.store, (self.volume.path if self.volume else directory) / "store")
            self.broker.env = self.store.env(self.broker.env)
            # So short that deletes happen within a run; a read by an image from before takes less.
            self.broker.env |= {"ISOBAR_ARCHIVE_INTERVAL": "500ms", "ISOBAR_DELETE_INTERVAL": "500ms",
                                "ISOBAR_DELETE_GRACE": "15s", "ISOBAR_DELETE_REPEAT": "2s"}
            self.new_prefix()
        self.load = Load(self.recorder, self.broker.bootstrap, TOPICS, args.seed)
        self.load.rate = args.rate
        self.points = self.random.sample(args.point_names, len(args.point_names))
        self.misses = collections.Counter()
        self.kills = 0
        self.starts = []

    def new_prefix(self):
        self.broker.args = [*self.args.broker_args, "--store", self.store.next_url()]

    def start(self, point=None, wait=True):
        """Starts the broker; false if it met its crash point before it answered."""
        # Now much lies in the WAL, now little; now it is read from memory, now from disk.
        self.broker.env["ISOBAR_UPLOAD_INTERVAL"] = f"{self.random.choice((50, 200, 1000, 3000))}ms"
        if self.store:
            # Small objects too, and so many that they are compacted.
            self.broker.env["ISOBAR_UPLOAD_TRIGGER"] = str(self.random.choice((4 << 10, 16 << 20)))
        self.broker.env["ISOBAR_WAL_MEMORY"] = str(self.random.choice((64 << 10, 64 << 20)))
        self.broker.env.pop("ISOBAR_CRASH_POINT", None)
        if point is not None:
            self.broker.env["ISOBAR_CRASH_POINT"] = point
        since = time.monotonic_ns()
        self.broker.start(wait=False)
        if not wait:
            return True
        try:
            self.starts.append(self.broker.wait_ready(60))
            self.up_since = time.monotonic_ns()
            if self.faults:
                self.faults.broker_started(since)
        except BrokerError:
            if point is None or self.broker.process.poll() != -signal.SIGKILL:
                raise
            return False
        return True

    def create_topics(self):
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap})
        for future in admin.create_topics([NewTopic(t, n, 1) for t, n in TOPICS.items()]).values():
            future.result(30)
        if self.broker.peer == "kafka":
            # Its format tool syncs nothing: a power cut soon after it leaves a node that never starts again.
            os.sync()

    def went_down(self):
        if self.up_since is not None:
            self.ups.append((self.up_since, time.monotonic_ns()))
            self.up_since = None

    def kill(self):
        """SIGKILL from outside, at no special moment."""
        code = self.broker.process.poll()
        if code is not None:
            raise BrokerError(f"it ended by itself with {code}:\n{self.broker.log_tail()}")
        self.went_down()
        self.recorder.add(0, "fault", kind="kill")
        self.broker.kill()
        self.kills += 1

    def at_random(self):
        """One start that is killed; one in four before it may have answered."""
        if self.random.random() < 0.25 and not (self.faults and self.faults.wants_watch):
            self.start(wait=False)
            time.sleep(self.random.uniform(0.0, 0.5))
        else:
            self.start()
            if self.faults:
                self.faults.watch()
            time.sleep(self.random.uniform(0.1, 1.5))
        self.recorder.add(0, "restart")
        self.kill()

    def at_point(self, name):
        """One start that kills itself at the point. Where load does not lead there, perhaps a clean stop does."""
        count = 1 if self.misses[name] else self.random.choice((1, 1, 2, 3, 7, 20, 60))
        if self.start(f"{name}:{count}"):
            self.recorder.add(0, "restart")
            try:
                self.broker.process.wait(2.0)
                self.went_down()
            except subprocess.TimeoutExpired:
                self.went_down()
                if self.faults and (self.faults.wants_watch or self.faults.is_away and self.random.random() < 0.8):
                    # A clean stop waits for the store as long as it may, and the fault may wait for a start.
                    self.kill()
                    return
                self.broker.process.send_signal(signal.SIGTERM)
        try:
            code = self.broker.process.wait(60)
        except subprocess.TimeoutExpired:
            raise BrokerError(f"still running 60 s after SIGTERM:\n{self.broker.log_tail()}") from None
        if code == -signal.SIGKILL:
            self.recorder.add(0, "fault", kind="crash-point", point=name)
            self.kills += 1
        elif code == 0:
            self.recorder.add(0, "fault", kind="stop")
            self.misses[name] += 1
            if self.misses[name] == 2:
                self.points.remove(name)
        else:
            raise BrokerError(f"ended with {code} on the way to {name}:\n{self.broker.log_tail()}")
        self.broker.kill()

    def cut_power(self, name):
        """What was not synced is lost. With a name: at that point, if the load leads there within two seconds."""
        count = 1 if self.misses[name] else self.random.choice((1, 2, 3, 10))
        answered = self.start(f"{name}:{count}" if name else None)
        self.recorder.add(0, "restart")
        if name is None:
            time.sleep(self.random.uniform(0.2, 1.5))
        elif answered:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.broker.process.wait(2.0)
        code = self.broker.process.poll()
        if code not in (None, -signal.SIGKILL):
            raise BrokerError(f"it ended by itself with {code}:\n{self.broker.log_tail()}")
        at = {} if code is None else {"point": name}
        if name and code is None:
            self.misses[name] += 1
        self.recorder.add(0, "fault", kind="power-cut", **at)
        self.went_down()
        stores = [self.store.server.process.pid] if self.store else []
        self.volume.power_cut([self.broker.pid, *stores] if code is None else stores)
        self.broker.kill()
        if self.store:
            self.store.server.stop()
        self.volume.remount()
        if self.store:
            self.store.server.start()

    def half_made(self):
        """First starts that end in the midst of making the directory; the next start makes the rest."""
        for name in self.points[:4]:
            if not self.start(f"{name}:1"):
                self.recorder.add(0, "fault", kind="crash-point", point=name)
                self.kills += 1
                self.broker.kill()
                self.start()
                self.recorder.add(0, "restart")
            self.kill()
            shutil.rmtree(self.broker.data)
            if self.store:
                self.new_prefix()

    def all_power_cuts(self):
        for turn in range(self.args.power_cuts):
            self.cut_power(self.points[turn // 2 % len(self.points)] if self.points and turn % 2 else None)
        print(f"{self.args.power_cuts} power cuts, {self.recorder.acks} acknowledgements", flush=True)

    def all_kills(self):
        """Random moments and named points in turn."""
        turn = 0
        while self.kills < self.args.kills or (self.faults and self.faults.turns == 0 and self.faults.error is None):
            turn += 1
            if self.points and turn % 2 == 0 and not (self.faults and self.faults.wants_watch):
                self.at_point(self.points[turn // 2 % len(self.points)])
            else:
                self.at_random()
            if turn % 10 == 0:
                print(f"{self.kills} kills, {self.recorder.acks} acknowledgements", flush=True)

    def run(self):
        self.half_made()
        self.start()
        self.create_topics()
        if self.args.faults:
            self.faults = Faults(self.store, self.recorder, random.Random(f"{self.args.seed}/faults"),
                                 self.args.fault_seconds, self.args.long_stop, server_too=self.volume is None)
        clients = [*senders(self.load), Reader(self.load, 11), Reader(self.load, 12), Member(self.load, 21),
                   Member(self.load, 22), Observer(self.load, 31), Churner(self.load, 32)]
        for client in clients:
            client.start()
        time.sleep(1)
        self.kill()
        if self.faults:
            self.faults.start()
        began = time.monotonic()
        self.all_kills()
        if self.volume:
            self.all_power_cuts()
        if self.faults:
            self.faults.finish()
            print(f"{self.kills} kills and the store's faults took {time.monotonic() - began:.0f} s", flush=True)
        self.start()
        self.recorder.add(0, "restart")
        time.sleep(1)
        self.load.stop_sending.set()
        self.load.join(clients, (Sender, Churner), 90)
        self.load.stop.set()
        self.load.join(clients, Client, 30)
        self.went_down()
        # All of it can be read while it lives; then, judged: what a clean stop and a start leave.
        if drain(self.load, 41, self.args.drain_seconds, last=False):
            self.broker.stop()
            self.start()
            self.recorder.add(0, "restart")
            drain(self.load, 42, self.args.drain_seconds)
        if self.store:
            self.settle()
        self.recorder.close()
        self.broker.stop()

    def settle(self):
        """The bucket, once nothing fails any more: no damage, nothing missing, and then nothing that nobody refers to."""
        binary = os.environ.get("ISOBAR_BIN", str(CACHE / "target/ci/isobar"))
        code, findings, summary = fsck(binary, self.broker.admin, deep=True)
        for finding in findings:
            if finding["is_loss"] or finding["finding"] in ("unreadable", "foreign"):
                self.load.problem("fsck --deep", json.dumps(finding))
        if "error" in summary:
            self.load.problem("fsck --deep", summary["error"])
            return
        print(f"fsck --deep: {summary}", flush=True)
        self.shown["fsck_deep"] = {name: summary[name] for name in ("listed", "referenced", "read", "found")}
        if self.metric('isobar_store_failing{store="local"') > 0:
            self.load.problem("the broker", "it says that the store fails, and it does not")
        kept_from = self.delete_much(binary)
        env = dict(self.broker.env)
        for seconds in self.store.shifts_s:
            self.broker.stop()
            self.broker.env = shifted(env, seconds) | {"ISOBAR_DELETE_GRACE": "1s"}
            self.start()
            self.recorder.add(0, "restart")
            # Metadata's time moves with its entries, one jump after the other.
            self.produce_one()
            last = seconds == self.store.shifts_s[-1]
            if empty_within(binary, self.broker.admin, self.store, self.args.settle_seconds if last else 6):
                break
        self.judge_bucket(binary)
        # What was not deleted is still there after all that deleting.
        kept = Load(self.recorder, self.broker.bootstrap, {KEPT: TOPICS[KEPT]}, self.args.seed)
        kept.problems = self.load.problems
        drain(kept, 43, self.args.drain_seconds, last=False, first=kept_from)
        self.broker.stop()
        self.broker.env = env
        self.start()

    def judge_bucket(self, binary):
        code, findings, summary = fsck(binary, self.broker.admin)
        print(f"the bucket at the end: {summary}", flush=True)
        names = ("listed", "referenced", "prepared", "awaiting_delete", "found")
        self.shown["fsck_end"] = {name: summary.get(name) for name in names}
        for finding in findings:
            self.load.problem("fsck at the end", json.dumps(finding))
        if code != 0 or summary.get("awaiting_delete"):
            self.load.problem("fsck at the end", json.dumps(summary))
        if "error" in summary:
            return
        # Each is of one kill that met a compaction; their ids live an hour, and no clock can be put forward so far (SHIFTS_S).
        if summary["prepared"] > (self.kills + self.args.power_cuts if self.compactions() and self.store.has_hour_left else 0):
            self.load.problem("fsck at the end", f"{summary['prepared']} objects of ids that have expired")
        for text in left_over(self.store.keys(), summary):
            self.load.problem("the bucket at the end", text)

    def compactions(self):
        return self.broker.log_path.read_text(errors="replace").count("objects compacted")

    def delete_much(self, binary):
        """All records but half of one topic's, and for good what can still be undeleted; where each partition of that one
        begins now."""
        from confluent_kafka import TopicPartition
        from confluent_kafka.admin import AdminClient, OffsetSpec

        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap})
        kept = [TopicPartition(KEPT, p) for p in range(TOPICS[KEPT])]
        ends = admin.list_offsets({partition: OffsetSpec.latest() for partition in kept})
        until = {(p.topic, p.partition): future.result(30).offset // 2 for p, future in ends.items()}
        parts = [TopicPartition(t, p, until.get((t, p), -1)) for t, n in TOPICS.items() for p in range(n)]
        for future in admin.delete_records(parts).values():
            future.result(30)
        listed = subprocess.run([binary, "topic", "deleted", "--json", "--admin", self.broker.admin], capture_output=True, text=True, check=True)
        for topic in re.findall(r'"id": ?"([^"]+)"', listed.stdout):
            subprocess.run([binary, "topic", "purge", topic, "--admin", self.broker.admin], stdout=subprocess.DEVNULL, check=True)
        return until

    def produce_one(self):
        """To a topic of its own, which no history knows."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.broker.bootstrap})
        producer.produce("settle", b"x")
        if producer.flush(30):
            raise BrokerError(f"no acknowledgement within 30 s:\n{self.broker.log_tail()}")

    def metric(self, prefix):
        with urllib.request.urlopen(f"http://{self.broker.admin}/metrics", timeout=10) as answered:
            lines = answered.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(prefix))

    def check_faults(self):
        """What the store's faults were to show."""
        counts = self.store.proxy.counts()
        self.shown |= {"faults": self.faults.by_kind(), "proxy": counts, "starts_without_store": self.faults.started_within}
        if self.faults.error is not None:
            self.load.problem("the faults", repr(self.faults.error))
        for text in self.faults.problems(counts):
            self.load.problem("the faults", text)
        windows = list(acknowledged_within(self.history, self.faults.spans, self.ups))
        silences, lengths = {}, {}
        for kind, length, longest in windows:
            if longest is None:
                self.load.problem("acknowledgements", f"none in {length:.1f} s of a living broker, its store being {kind}")
            lengths[kind] = max(length, lengths.get(kind, 0))
            silences.setdefault(kind, []).append(length if longest is None else longest)
        for kind in self.faults.kinds:
            if kind not in silences:
                self.load.problem("acknowledgements", f"no life within a store that is {kind} was long enough to tell")
        # A window longer than a life is planned to be (six seconds): the machine stood still, driver and all.
        told = {kind: {"windows": len(of), "longest_silence_s": round(max(of), 2), "longest_window_s": round(lengths[kind], 2)}
                for kind, of in sorted(silences.items())}
        self.shown["acks_within"] = told
        print(f"store faults: {self.shown['faults']}; starts while it was stopped: {self.faults.started_within}; "
              f"proxy: {counts}\nacknowledgements within: {told}", flush=True)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--power-cuts", type=int, default=0, help="and this many, which needs root and nbdkit")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=float, default=3000, help="records a second, all producers together")
    parser.add_argument("--points", default="all", help="named crash points: all, none, or a list")
    parser.add_argument("--drain-seconds", type=float, default=120, help="the last read gives up after this")
    parser.add_argument("--keep", help="directory for history and logs; kept")
    parser.add_argument("--broker-args", type=str.split, default=[], help="further arguments of isobar dev")
    parser.add_argument("--store", choices=SERVERS, help="the bucket is this server behind a proxy")
    parser.add_argument("--faults", action="store_true", help="and it fails")
    parser.add_argument("--fault-seconds", type=float, default=3, help="what a fault takes, about")
    parser.add_argument("--long-stop", type=float, default=None, help="the first stop takes so long; 60 from 30 kills on")
    parser.add_argument("--settle-seconds", type=float, default=60, help="the bucket must be clean by then")
    parser.add_argument("--results", help="a line of JSON is added to this file")
    args = parser.parse_args()
    if args.faults and not args.store:
        parser.error("--faults needs --store")
    if args.store and os.environ.get("PEER") == "kafka":
        parser.error("Apache Kafka has no --store")
    if args.store == "versitygw" and args.power_cuts:
        parser.error("versitygw never syncs: --store minio is for power cuts")
    if args.long_stop is None:
        args.long_stop = 60 if args.kills >= 30 else 0
    args.seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 30)
    known = [] if os.environ.get("PEER") == "kafka" else crash_points()
    args.point_names = {"all": known, "none": []}.get(args.points, args.points.split(","))
    return args


def write_result(path, run, failed, seconds):
    """`commit` is what is checked out; which broker ran, `binary_…` says."""
    commit = subprocess.run(["git", "-C", REPO, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    binary = pathlib.Path(os.environ.get("ISOBAR_BIN", CACHE / "target/ci/isobar"))
    line = {
        "commit": commit, "binary_sha256": hashlib.sha256(binary.read_bytes()).hexdigest(),
        "binary_built": datetime.datetime.fromtimestamp(binary.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "seed": run.args.seed,
        "store": run.args.store or "directory", "kills": run.kills, "power_cuts": run.args.power_cuts,
        "long_stop_s": run.args.long_stop if run.args.faults else 0, "acks": run.recorder.acks, "seconds": round(seconds),
        "compactions": run.compactions(),
        **run.shown, "problems": sorted(run.load.problems), "result": "FAILED" if failed else "clean",
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def main():
    args = parse_args()
    directory = pathlib.Path(args.keep or tempfile.mkdtemp(prefix="isobar-crash-"))
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.exit(f"{directory} is not empty: another run's data would count as this one's")
    print(f"seed {args.seed}, in {directory}", flush=True)
    run = Run(args, directory)
    began = time.monotonic()
    try:
        run.run()
    except BrokerError as e:
        run.load.problem("the broker", e)
    finally:
        run.broker.kill()
        run.recorder.close()
        if run.faults:
            run.check_faults()
            run.faults.close()
        if run.store:
            run.store.close()
        if run.volume:
            run.volume.destroy()
    required = f"acks=1000,reads=1000,faults={args.kills + args.power_cuts},restarts,commits,ends"
    required += ",crash-points" if args.point_names and args.kills >= FEW_KILLS else ""
    code, verdict = check(run.history, required)
    print(verdict)
    if missed := sorted(name for name, count in run.misses.items() if name not in run.points):
        print(f"crash points not reached: {', '.join(missed)}")
    starts = sorted(run.starts)
    if starts:
        print(f"starts: {len(starts)}, median {starts[len(starts) // 2]:.2f} s, slowest {starts[-1]:.2f} s to ApiVersions")
    for text, count in sorted(run.load.problems.items()):
        print(f"PROBLEM ({count} times) {text}")
    failed = code != 0 or bool(run.load.problems)
    if args.results:
        write_result(args.results, run, failed, time.monotonic() - began)
    if not failed and not args.keep:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{'FAILED' if failed else 'clean'} after {time.monotonic() - began:.0f} s, seed {args.seed}", flush=True)
    # Clients that hang must not hold the verdict.
    sys.stdout.flush()
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
