"""Breaks a cluster under load, and checks that clients saw nothing that a right log cannot show.

    python chaos/run.py [--rounds 10] [--seed N] [--faults kill,partition,…] [--rate 1500] [--longest SECONDS] [--store s3|file]
                        [--layout all|roles] [--from OLD_BINARY] [--no-netns] [--keep DIR] [--report DIR] [--results FILE]
                                                                                     --list says which faults there are

Each round is one fault of faults.py and its healing; the next comes when every node says that nothing is wrong, every producer
has written to every partition again and the reader has read. The clients are those of tests/crash (idempotent and plain
producers, readers, members of a group, an observer), and so is the judge, `history-check`. At the end everything is read twice,
the second time after a stop and a start of all; and with a store that speaks S3, its objects are held against metadata (`isobar
fsck --deep`).

Where namespaces can be made the whole run is in a network of its own, each node in another, and nodes' file systems lie in
memory; else on loopback and on disk, without the faults that need the former. What is printed of each round, and in the report
(report.py) with a picture: the longest silence of acknowledgements, of all and of the partition that waited longest; the longest
that a record waited for its own; the longest gap of the reader at the end of the log; how soon the cluster was whole and served
again. Of the machine itself: what a small synced write waited, and how many threads of a node, on average, were ready and had no
processor (`starved`).
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "crash"), str(HERE.parent / "tests" / "lib")]

import net  # noqa: E402
import report  # noqa: E402
from clients import Client, Load, Member, Observer, Reader, Sender, drain  # noqa: E402
from cluster import BINARY, FAKETIME, LAYOUTS, Cluster, Died  # noqa: E402
from faults import FAULTS, Scene  # noqa: E402
from history import Recorder, check  # noqa: E402
from store_faults import fsck  # noqa: E402
from timeline import ALL, Timeline  # noqa: E402

TOPICS = {"chaos-a": 6, "chaos-b": 1}
PARTITIONS = [(topic, p) for topic, count in TOPICS.items() for p in range(count)]
# The reader that stays at the end: what it waits for is the consumers' gap.
TAIL = 12
# Of a node, in memory: much more than its WAL holds while the store is away for a minute.
DISK_MIB = 1024
# Within this all producers must write to all partitions again once the cluster is whole, and the reader read.
AGAIN_S = 60


class TimedRecorder(Recorder):
    """Tells the timeline what the reader at the end reads."""

    def __init__(self, path, timeline):
        super().__init__(path)
        self.timeline = timeline

    def add(self, client, op, **fields):
        super().add(client, op, **fields)
        if op == "poll" and client == TAIL:
            self.timeline.read((fields["topic"], fields["partition"]), len(fields["records"]))


class TimedSender(Sender):
    """Tells the timeline of each acknowledgement: when it came, and how long after the record was handed to the client."""

    def told(self, record_id):
        tell = super().told(record_id)

        def delivered(error, message):
            tell(error, message)
            if error is None:
                self.recorder.timeline.acked(self.name, (message.topic(), message.partition()), message.latency())
        return delivered


class Probe(threading.Thread):
    """What this machine does to everybody: how long a small synced write takes beside the nodes' data."""

    def __init__(self, timeline, directory):
        super().__init__(name="Probe", daemon=True)
        self.timeline, self.path = timeline, directory / "probe"

    def run(self):
        with contextlib.suppress(OSError), open(self.path, "wb", buffering=0) as file:
            while not self.timeline.ended.wait(0.05):
                began = time.monotonic()
                file.seek(0)
                # On a full disk too: it is in its place.
                file.write(bytes(4096))
                os.fdatasync(file.fileno())
                self.timeline.machine(time.monotonic() - began)


def senders(load):
    """Idempotent and plain; every codec of two.

    Of plain ones no order is asked, even with one request in flight: librdkafka counts that for each connection (its issue 1969),
    so when a partition's leader moves while a request waits at the old one, later records go to the new one first. What brokers
    promise is the order of one connection, and that of an idempotent producer.
    """
    kinds = [
        (True, True, {"enable.idempotence": True, "compression.codec": "lz4"}),
        (True, True, {"enable.idempotence": True, "linger.ms": 0}),
        (False, False, {"acks": "all", "max.in.flight": 1, "compression.codec": "zstd"}),
        (False, False, {"acks": "1", "max.in.flight": 1}),
    ]
    for number, (once, ordered, settings) in enumerate(kinds, start=1):
        yield TimedSender(load, number, load.rate / len(kinds), once, ordered, **settings)


class Run:
    def __init__(self, args, directory):
        self.args, self.directory, self.random = args, directory, random.Random(args.seed)
        # Small enough that segments are recycled, snapshots taken and objects deleted within a run; reads from memory or disk.
        self.settings = {
            "ISOBAR_WAL_SEGMENT": str(8 << 20), "ISOBAR_METADATA_SNAPSHOT_AFTER": str(256 << 10), "ISOBAR_CACHE_DISK": "128MiB",
            "ISOBAR_ARCHIVE_INTERVAL": "500ms", "ISOBAR_DELETE_INTERVAL": "500ms", "ISOBAR_DELETE_GRACE": "15s",
            "ISOBAR_DELETE_REPEAT": "2s", "ISOBAR_WAL_MEMORY": self.random.choice(("64KiB", "64MiB")),
            "ISOBAR_CACHE_MEMORY": self.random.choice(("1MiB", "64MiB")),
            "ISOBAR_UPLOAD_INTERVAL": self.random.choice(("200ms", "1s", "3s")),
        }
        layout = LAYOUTS[args.layout]
        self.net = net.Net(len(layout)) if net.is_own() else None
        self.cluster = Cluster(directory, args.store, self.net, self.settings, layout, args.old or BINARY)
        for node in self.cluster.nodes:
            if args.memory_disks:
                node.own_disk(DISK_MIB)
            if any("clocks" in fault.needs for fault in args.faults):
                node.fake_clock()
        self.timeline = Timeline(PARTITIONS)
        self.history = directory / "history.jsonl"
        self.recorder = TimedRecorder(self.history, self.timeline)
        self.load = Load(self.recorder, self.cluster.bootstrap, TOPICS, args.seed)
        self.load.rate = args.rate
        # Clients without one stay with the broker that they asked: at last all of them with one.
        self.load.zones = self.cluster.zones
        self.rounds, self.load_ended_s, self.panics = [], None, collections.Counter()

    def run(self):
        self.cluster.start()
        self.create_topics()
        clients = [*senders(self.load), Reader(self.load, 11), Reader(self.load, TAIL, goes_back=0), Member(self.load, 21),
                   Member(self.load, 22), Observer(self.load, 31)]
        self.timeline.start()
        # Beside the image of the first node's file system, or of its directory.
        Probe(self.timeline, next(path for path in (self.directory / "disk-1", self.directory) if path.is_dir())).start()
        for client in clients:
            client.start()
        time.sleep(3)
        for number, fault in zip(range(self.args.rounds), self.order()):
            self.round(number, fault)
        self.load_ended_s = time.monotonic() - self.timeline.began
        self.load.stop_sending.set()
        self.load.join(clients, Sender, 90)
        self.timeline.ended.set()
        self.load.stop.set()
        self.load.join(clients, Client, 30)
        # All of it while it lives; then, judged: what a stop of all and a start leave.
        if drain(self.load, 41, 120, last=False):
            well, codes = self.cluster.stop()
            if not well:
                self.load.problem("SIGTERM", f"exit codes {codes}")
            for node in self.cluster.nodes:
                node.kill()
            self.cluster.start()
            self.recorder.add(0, "restart")
            if drain(self.load, 42, 120) and self.cluster.store:
                self.fsck()

    def order(self):
        """The faults in turn if they were named, else each time in another order; with --pairs another one beside each. An upgrade is
        the first of all, and there is one."""
        if self.args.old:
            yield FAULTS["upgrade"]
        aside = [fault for fault in self.args.faults if not fault.starts]
        while True:
            for fault in self.args.faults if self.args.named else self.random.sample(self.args.faults, len(self.args.faults)):
                # A fault of the network or of the store beside one of its own would undo it.
                others = [other for other in aside if other.role != fault.role] if self.args.pairs else []
                yield fault.beside(self.random.choice(others)) if others else fault

    def round(self, number, fault):
        # A round does the same whatever came before it.
        rng = random.Random(f"{self.args.seed}/{number}")
        leader, chosen = self.cluster.leader(), rng.choice(self.cluster.having(fault.on) or self.cluster.nodes)
        node = leader if fault.on == "leader" and leader else chosen
        scene = Scene(self.cluster, rng, self.args.longest, self.load.problem)
        time.sleep(1.5)
        self.restart_panicked()
        self.cluster.wait_whole()
        began, acks = time.monotonic(), self.recorder.acks
        waited = {node: (node.process.pid, node.waited_s()) for node in self.cluster.nodes}
        calm = self.timeline.acks.worst(began - 1.5, began)
        self.recorder.add(0, "fault", kind=fault.name)
        detail = fault.make(scene, node)
        self.recorder.add(0, "restart")
        healed = time.monotonic()
        self.cluster.wait_whole()
        whole = time.monotonic()
        again = self.wait_again(whole)
        # Of one that was started meanwhile all that it waited.
        before = {node: waited_s for node, (pid, waited_s) in waited.items() if node.process.pid == pid}
        starved = (node.waited_s() - before.get(node, 0) for node in self.cluster.nodes)
        acked, read = self.timeline.acks, self.timeline.reads
        told = {
            "round": number, "fault": fault.name, "role": fault.role, "detail": detail, "node": node.id, "leader": node is leader,
            "began_s": began - self.timeline.began, "healed_s": healed - self.timeline.began,
            "whole_after_s": whole - healed, "again_after_s": again - whole, "calm_s": calm, "acks": self.recorder.acks - acks,
            "stall_s": acked.longest(ALL, began, again), "stall_partition_s": acked.worst(began, again),
            "latency_s": self.timeline.longest_of("longest", began, again), "gap_s": read.worst(began, again),
            "machine_s": self.timeline.longest_of("machine", began, again), "starved": max(starved) / (again - began),
        }
        told = {name: round(value, 3) if isinstance(value, float) else value for name, value in told.items()}
        self.rounds.append(told)
        where = f"node {node.id}{' (leader)' if node is leader else ''}"
        print(f"{number:3} {fault.name:24} {where:15} silence {told['stall_s']:5.2f} s, of a partition "
              f"{told['stall_partition_s']:5.2f} s, latency {told['latency_s']:5.2f} s, gap {told['gap_s']:5.2f} s; whole "
              f"{told['whole_after_s']:5.2f} s after, serves {told['again_after_s']:5.2f} s later; machine "
              f"{told['machine_s']:4.2f} s, starved {told['starved']:4.2f}; {detail}", flush=True)

    def restart_panicked(self):
        """A node with a thread that panicked is a problem, and starts again, so that the rest of the run shows other things."""
        for node in self.cluster.nodes:
            if len(panics := node.panics()) > self.panics[node.id]:
                for panic in panics[self.panics[node.id] :]:
                    self.load.problem(f"node {node.id} panicked", panic)
                self.panics[node.id] = len(panics)
                node.kill()
                node.start()

    def wait_again(self, since):
        """Until every producer had an acknowledgement of every partition since, and the reader a record; the moment."""
        while True:
            self.restart_panicked()
            behind, now = self.timeline.behind(since), time.monotonic()
            if not behind:
                return now
            if now - since > AGAIN_S:
                for who, topic, partition in behind:
                    self.load.problem("again", f"{who} at {topic}-{partition}: nothing for {AGAIN_S} s once all was whole")
                return now
            time.sleep(0.2)

    def fsck(self):
        code, findings, summary = fsck(BINARY, self.cluster.having("broker")[0].admin, deep=True)
        print(f"fsck: {summary}")
        if code != 0 or findings:
            self.load.problem("fsck", f"exit code {code}, {len(findings)} findings: {findings[:3]} {summary if code else ''}")

    def create_topics(self):
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap})
        for future in admin.create_topics([NewTopic(t, n, 1) for t, n in TOPICS.items()]).values():
            future.result(30)

    def close(self):
        self.cluster.kill()
        self.recorder.close()
        self.timeline.ended.set()


def no_disks(no_network):
    """Why a node cannot have a file system of its own; None if it can."""
    if no_network:
        return "no mount namespace of its own"
    return None if shutil.which("mkfs.ext4") else "no mkfs.ext4"


def there_is(need, args, no_network):
    """Why a need of a fault cannot be met; None if it can."""
    return {
        "net": no_network,
        "s3": None if args.store == "s3" else "the store is a directory",
        "disks": "--real-disk" if args.real_disk else no_disks(no_network),
        "old": "it is the first one, once, with --from",
        "clocks": None if os.path.exists(FAKETIME) else f"no {FAKETIME}",
    }[need]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", help="in turn; or process, network, store or disk: those of a role; default: all")
    parser.add_argument("--pairs", action="store_true", help="beside each fault another of another role")
    parser.add_argument("--rate", type=float, default=1500, help="records a second, all producers together")
    parser.add_argument("--longest", type=float, default=60, help="seconds that a fault lasts at most")
    parser.add_argument("--store", choices=("s3", "file"), help="default: s3 if VERSITYGW names the program")
    parser.add_argument("--layout", choices=LAYOUTS, default="all", help="three nodes with all roles, or 3 metadata, 3 wal, 2 broker")
    parser.add_argument("--from", dest="old", metavar="BINARY", help="an older isobar: nodes begin with it, and are upgraded first")
    parser.add_argument("--no-netns", action="store_true", help="nodes on loopback, no faults of the network")
    parser.add_argument("--real-disk", action="store_true", help="nodes' directories on this machine's disk, not in memory")
    parser.add_argument("--keep", help="directory for history and logs; kept")
    parser.add_argument("--report", help="directory for a page that shows the run, and what it was made from")
    parser.add_argument("--results", help="a line of JSON is added to this file")
    parser.add_argument("--list", action="store_true", help="the faults that there are")
    parser.add_argument("--bench", action="store_true", help="kills during a benchmark: benches/cluster/run.sh with what else is given")
    args, others = parser.parse_known_args()
    if args.bench:
        bench = HERE.parent / "benches" / "cluster" / "run.sh"
        os.execv(bench, [str(bench), *others])
    if others:
        parser.error(f"unknown: {' '.join(others)}")
    args.store = args.store or ("s3" if os.environ.get("VERSITYGW") else "file")
    no_network = "--no-netns" if args.no_netns else None if net.is_own() else net.missing()
    if args.list:
        for fault in FAULTS.values():
            why = [f"not here: {why}" for need in fault.needs if (why := there_is(need, args, no_network))]
            print(f"{fault.name:24} {fault.role:8} {' '.join([fault.summary, *why])}")
        sys.exit(0)
    args.named = args.faults is not None and args.faults not in {fault.role for fault in FAULTS.values()}
    if args.named:
        if unknown := set(args.faults.split(",")) - set(FAULTS):
            parser.error(f"no fault is called {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
        wanted = [FAULTS[name] for name in args.faults.split(",")]
    else:
        wanted = [fault for fault in FAULTS.values() if args.faults in (None, fault.role)]
    lacking = {fault.name: why for fault in wanted for need in fault.needs if (why := there_is(need, args, no_network))}
    if lacking and args.named or len(lacking) == len(wanted):
        parser.error("; ".join(f"{name} cannot be made here: {why}" for name, why in lacking.items()))
    args.faults = [fault for fault in wanted if fault.name not in lacking]
    args.memory_disks = not args.real_disk and no_disks(no_network) is None
    if no_network is None:
        net.enter_own()
    by_reason = collections.defaultdict(list)
    for name, why in lacking.items():
        by_reason[why].append(name)
    for why, names in by_reason.items():
        print(f"left out, {why}: {', '.join(names)}")
    args.seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 30)
    return args


def main():
    args = parse_args()
    directory = pathlib.Path(args.keep or tempfile.mkdtemp(prefix="isobar-chaos-")).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.exit(f"{directory} is not empty: another run's data would count as this one's")
    where = "a network of its own" if net.is_own() else "loopback"
    print(f"seed {args.seed}, store {args.store}, on {where}, in {directory}", flush=True)
    began, run, problems = time.monotonic(), Run(args, directory), {}
    try:
        run.run()
    except Died as e:
        problems[f"the cluster: {e}"] = 1
    finally:
        run.close()
    for node in run.cluster.nodes:
        for panic in node.panics()[run.panics[node.id] :]:
            run.load.problem(f"node {node.id} panicked", panic)
    problems |= run.load.problems
    code, verdict = check(run.history, f"acks=1000,reads=1000,faults={args.rounds},restarts,commits,ends")
    print(verdict)
    for text, count in sorted(problems.items()):
        print(f"PROBLEM ({count} times) {text}")
    failed = code != 0 or bool(problems)
    git = ["git", "-C", HERE, "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    binary = pathlib.Path(BINARY)
    utc = lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))  # noqa: E731
    told = {
        "date": utc(time.time()), "commit": commit, "binary_built": utc(binary.stat().st_mtime),
        "binary_sha256": hashlib.sha256(binary.read_bytes()).hexdigest(), "seed": args.seed, "store": args.store,
        "network": net.is_own(), "layout": args.layout, "from": args.old and pathlib.Path(args.old).name, "rate": args.rate, "longest_s": args.longest, "settings": run.settings, "rounds": run.rounds,
        "acks": run.recorder.acks, "load_ended_s": run.load_ended_s, "problems": sorted(problems),
        "seconds": round(time.monotonic() - began), "result": "FAILED" if failed else "clean",
    }
    if args.results:
        with open(args.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(told, sort_keys=True) + "\n")
    report.write(directory, told | {"timeline": run.timeline.table(), "verdict": verdict})
    if args.report:
        for name in (report.PAGE, report.FIGURES):
            pathlib.Path(args.report).mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / name, pathlib.Path(args.report) / f"{args.seed}-{name}")
    for node in run.cluster.nodes:
        node.give_back_disk(keep=failed or bool(args.keep))
    if not failed and not args.keep:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{told['result']} after {told['seconds']} s, seed {args.seed}, in {directory}", flush=True)
    # Clients that hang must not hold the verdict.
    sys.stdout.flush()
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
