"""Kills the broker under load, again and again, and checks that clients saw nothing that a right log cannot show.

    python tests/crash/run.py [--kills 50] [--seed N] [--points all|none|NAME,…] [--power-cuts 0] [--keep DIR]

PEER=kafka runs it against Apache Kafka with flush.messages=1, which calibrates it. The last line says what was shown; exit
code 0: clean and nothing that was asked for is zero.
"""

import argparse
import collections
import contextlib
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

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib"), str(HERE.parent / "powercut")]

from broker import CACHE, Broker, BrokerError  # noqa: E402
from clients import Churner, Client, Load, Member, Observer, Reader, Sender, drain  # noqa: E402
from history import Recorder  # noqa: E402

# Room for a journal, a Raft log and the objects of some minutes.
VOLUME_MIB = 4096
TOPICS = {"crash-a": 4, "crash-b": 1}
REPO = HERE.parents[1]
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
        self.load = Load(self.recorder, self.broker.bootstrap, TOPICS, args.seed)
        self.load.rate = args.rate
        self.points = self.random.sample(args.point_names, len(args.point_names))
        self.misses = collections.Counter()
        self.kills = 0
        self.starts = []

    def start(self, point=None, wait=True):
        """Starts the broker; false if it met its crash point before it answered."""
        # Now much lies in the WAL, now little; now it is read from memory, now from disk.
        self.broker.env["ISOBAR_UPLOAD_INTERVAL"] = f"{self.random.choice((50, 200, 1000, 3000))}ms"
        self.broker.env["ISOBAR_WAL_MEMORY"] = str(self.random.choice((64 << 10, 64 << 20)))
        self.broker.env.pop("ISOBAR_CRASH_POINT", None)
        if point is not None:
            self.broker.env["ISOBAR_CRASH_POINT"] = point
        self.broker.start(wait=False)
        if not wait:
            return True
        try:
            self.starts.append(self.broker.wait_ready(60))
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

    def kill(self):
        """SIGKILL from outside, at no special moment."""
        code = self.broker.process.poll()
        if code is not None:
            raise BrokerError(f"it ended by itself with {code}:\n{self.broker.log_tail()}")
        self.recorder.add(0, "fault", kind="kill")
        self.broker.kill()
        self.kills += 1

    def at_random(self):
        """One start that is killed; one in four before it may have answered."""
        if self.random.random() < 0.25:
            self.start(wait=False)
            time.sleep(self.random.uniform(0.0, 0.5))
        else:
            self.start()
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
            except subprocess.TimeoutExpired:
                self.broker.process.send_signal(signal.SIGTERM)
        try:
            code = self.broker.process.wait(30)
        except subprocess.TimeoutExpired:
            raise BrokerError(f"still running 30 s after SIGTERM:\n{self.broker.log_tail()}") from None
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
        self.volume.power_cut([self.broker.pid] if code is None else [])
        self.broker.kill()
        self.volume.remount()

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

    def all_power_cuts(self):
        for turn in range(self.args.power_cuts):
            self.cut_power(self.points[turn // 2 % len(self.points)] if self.points and turn % 2 else None)
        print(f"{self.args.power_cuts} power cuts, {self.recorder.acks} acknowledgements", flush=True)

    def all_kills(self):
        """Random moments and named points in turn."""
        turn = 0
        while self.kills < self.args.kills:
            turn += 1
            if self.points and turn % 2 == 0:
                self.at_point(self.points[turn // 2 % len(self.points)])
            else:
                self.at_random()
            if turn % 10 == 0:
                print(f"{self.kills} kills, {self.recorder.acks} acknowledgements", flush=True)

    def run(self):
        self.half_made()
        self.start()
        self.create_topics()
        clients = [*senders(self.load), Reader(self.load, 11), Reader(self.load, 12), Member(self.load, 21),
                   Member(self.load, 22), Observer(self.load, 31), Churner(self.load, 32)]
        for client in clients:
            client.start()
        time.sleep(1)
        self.kill()
        self.all_kills()
        if self.volume:
            self.all_power_cuts()
        self.start()
        self.recorder.add(0, "restart")
        time.sleep(1)
        self.load.stop_sending.set()
        self.join(clients, (Sender, Churner), 90)
        self.load.stop.set()
        self.join(clients, Client, 30)
        # All of it can be read while it lives; then, judged: what a clean stop and a start leave.
        if drain(self.load, 41, self.args.drain_seconds, last=False):
            self.broker.stop()
            self.start()
            self.recorder.add(0, "restart")
            drain(self.load, 42, self.args.drain_seconds)
        self.recorder.close()
        self.broker.stop()

    def join(self, clients, kind, seconds):
        deadline = time.monotonic() + seconds
        for client in clients:
            if isinstance(client, kind):
                client.join(max(0.1, deadline - time.monotonic()))
                if client.is_alive():
                    self.load.problem(client.name, f"did not end within {seconds} s")


def check(history, required):
    """The verdict of history-check; its exit code and what it printed."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "target"))
    binary = os.environ.get("HISTORY_CHECK", str(target / "ci/history-check"))
    done = subprocess.run([binary, "--dense", "--require", required, str(history)], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout + done.stderr


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
    args = parser.parse_args()
    args.seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 30)
    known = [] if os.environ.get("PEER") == "kafka" else crash_points()
    args.point_names = {"all": known, "none": []}.get(args.points, args.points.split(","))
    return args


def main():
    args = parse_args()
    directory = pathlib.Path(args.keep or tempfile.mkdtemp(prefix="isobar-crash-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"seed {args.seed}, in {directory}", flush=True)
    run = Run(args, directory)
    began = time.monotonic()
    try:
        run.run()
    except BrokerError as e:
        run.load.problem("the broker", e)
    finally:
        run.broker.kill()
        if run.volume:
            run.volume.destroy()
    required = f"acks=1000,reads=1000,faults={args.kills + args.power_cuts},restarts,commits,ends"
    required += ",crash-points" if args.point_names else ""
    run.recorder.close()
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
    if not failed and not args.keep:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{'FAILED' if failed else 'clean'} after {time.monotonic() - began:.0f} s, seed {args.seed}", flush=True)
    # Clients that hang must not hold the verdict.
    sys.stdout.flush()
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
