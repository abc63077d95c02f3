"""Breaks a cluster of three nodes under load, and checks that clients saw nothing that a right log cannot show.

    python chaos/run.py [--rounds 10] [--seed N] [--faults kill,pause,…] [--rate 1500] [--keep DIR] [--results FILE]

Each round is one fault and its healing: a node killed (the leader, two, all three at once), paused, stopped with SIGTERM, or all
of them stopped and started one after another; the next comes when every node says that nothing is wrong. The clients are
those of tests/crash (idempotent and plain producers, readers, members of a group, an observer), and so is the judge,
`history-check`. What is printed beside its verdict: the longest time without an acknowledgement within each round, which is the
stall that a fault made, and whatever error a client was told that it should not have been.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests" / "crash"), str(HERE.parent / "tests" / "lib")]

from clients import Client, Load, Member, Observer, Reader, Sender, drain  # noqa: E402
from cluster import Cluster, Died  # noqa: E402
from history import Recorder, check  # noqa: E402

TOPICS = {"chaos-a": 6, "chaos-b": 1}
FAULTS = ("kill", "kill-leader", "pause", "term", "kill-two", "kill-all", "roll")
SAMPLE_SECONDS = 0.01


class Timeline(threading.Thread):
    """When acknowledgements came: the longest silence between two moments."""

    def __init__(self, recorder):
        super().__init__(daemon=True)
        self.recorder, self.moments, self.ended = recorder, [], threading.Event()

    def run(self):
        last = -1
        while not self.ended.wait(SAMPLE_SECONDS):
            if (acks := self.recorder.acks) != last:
                last = acks
                self.moments.append(time.monotonic())

    def silence(self, begin, end):
        moments = [begin, *(m for m in list(self.moments) if begin < m < end), end]
        return max(b - a for a, b in zip(moments, moments[1:]))


def senders(load):
    """Idempotent and plain; every codec of two."""
    kinds = [
        (True, True, {"enable.idempotence": True, "compression.codec": "lz4"}),
        (True, True, {"enable.idempotence": True, "linger.ms": 0}),
        (False, True, {"acks": "all", "max.in.flight": 1, "compression.codec": "zstd"}),
        (False, True, {"acks": "1", "max.in.flight": 1}),
    ]
    for number, (once, ordered, settings) in enumerate(kinds, start=1):
        yield Sender(load, number, load.rate / len(kinds), once, ordered, **settings)


class Run:
    def __init__(self, args, directory):
        self.args, self.random = args, random.Random(args.seed)
        self.cluster = Cluster(directory)
        self.history = directory / "history.jsonl"
        self.recorder = Recorder(self.history)
        self.timeline = Timeline(self.recorder)
        self.rounds = []

    def run(self):
        self.cluster.start()
        self.load = Load(self.recorder, self.cluster.bootstrap, TOPICS, self.args.seed)
        self.load.rate = self.args.rate
        self.create_topics()
        clients = [*senders(self.load), Reader(self.load, 11), Member(self.load, 21), Member(self.load, 22), Observer(self.load, 31)]
        for client in clients:
            client.start()
        self.timeline.start()
        time.sleep(3)
        for number in range(self.args.rounds):
            self.round(number, self.args.faults[number % len(self.args.faults)])
        self.load.stop_sending.set()
        self.load.join(clients, Sender, 90)
        self.load.stop.set()
        self.load.join(clients, Client, 30)
        # All of it while it lives; then, judged: what a stop of all and a start leave.
        if drain(self.load, 41, 120, last=False):
            well, codes = self.cluster.stop()
            if not well:
                self.load.problem("SIGTERM", f"exit codes {codes}")
            self.cluster.start()
            self.recorder.add(0, "restart")
            drain(self.load, 42, 120)

    def round(self, number, fault):
        leader = self.cluster.leader()
        node = leader if fault == "kill-leader" and leader else self.random.choice(self.cluster.nodes)
        quiet = time.monotonic()
        time.sleep(1.5)
        began = time.monotonic()
        calm = self.timeline.silence(quiet, began)
        self.recorder.add(0, "fault", kind=fault)
        getattr(self, {"kill-leader": "kill"}.get(fault, fault).replace("-", "_"))(node)
        self.recorder.add(0, "restart")
        healed = time.monotonic()
        self.cluster.wait_whole()
        whole = time.monotonic()
        told = {"round": number, "fault": fault, "node": node.id, "leader": node is leader,
                "stall_s": round(self.timeline.silence(began, whole), 3), "calm_s": round(calm, 3), "whole_s": round(whole - healed, 2)}
        self.rounds.append(told)
        print(f"{number:3} {fault:12} node {node.id}{' (leader)' if node is leader else '':9}  longest silence {told['stall_s']:6.3f} s "
              f"(before it {told['calm_s']:.3f} s)  whole {told['whole_s']:.1f} s after  {self.recorder.acks} acks", flush=True)

    def kill(self, node):
        node.send(signal.SIGKILL)
        node.process.wait()
        time.sleep(self.random.choice((0, 0.3, 2, 5)))
        node.start()

    def kill_two(self, node):
        """Two of three: nothing is written until one is back."""
        self.kill_several(self.random.sample(self.cluster.nodes, 2))

    def kill_all(self, node):
        self.kill_several(self.random.sample(self.cluster.nodes, 3))

    def kill_several(self, nodes):
        for node in nodes:
            node.send(signal.SIGKILL)
        for node in nodes:
            node.process.wait()
        for node in nodes:
            time.sleep(self.random.choice((0, 0.5, 2)))
            node.start()

    def roll(self, node):
        """A rolling restart: the next one only when all is well."""
        for other in self.cluster.nodes:
            self.term(other)
            self.cluster.wait_whole()

    def pause(self, node):
        """So short that nobody notices, so long that it is suspected, or so long that its session is fenced."""
        node.send(signal.SIGSTOP)
        time.sleep(self.random.choice((0.2, 1.5, 4, 11)))
        node.send(signal.SIGCONT)

    def term(self, node):
        node.send(signal.SIGTERM)
        try:
            code = node.process.wait(60)
        except subprocess.TimeoutExpired:
            raise Died(f"node {node.id} still runs 60 s after SIGTERM:\n{node.tail()}") from None
        if code != 0:
            raise Died(f"node {node.id} ended with {code} on SIGTERM:\n{node.tail()}")
        node.start()

    def create_topics(self):
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap})
        for future in admin.create_topics([NewTopic(t, n, 1) for t, n in TOPICS.items()]).values():
            future.result(30)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--faults", default=",".join(FAULTS), help="in turn")
    parser.add_argument("--rate", type=float, default=1500, help="records a second, all producers together")
    parser.add_argument("--keep", help="directory for history and logs; kept")
    parser.add_argument("--results", help="a line of JSON is added to this file")
    args = parser.parse_args()
    args.faults = args.faults.split(",")
    if unknown := set(args.faults) - set(FAULTS):
        parser.error(f"no fault is called {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    args.seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 30)
    return args


def main():
    args = parse_args()
    directory = pathlib.Path(args.keep or tempfile.mkdtemp(prefix="isobar-chaos-")).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.exit(f"{directory} is not empty: another run's data would count as this one's")
    print(f"seed {args.seed}, in {directory}", flush=True)
    began, run, problems = time.monotonic(), Run(args, directory), {}
    try:
        run.run()
    except Died as e:
        problems[f"the cluster: {e}"] = 1
    finally:
        run.cluster.kill()
        run.timeline.ended.set()
        run.recorder.close()
    problems |= run.load.problems
    code, verdict = check(run.history, f"acks=1000,reads=1000,faults={args.rounds},restarts,commits,ends")
    print(verdict)
    for text, count in sorted(problems.items()):
        print(f"PROBLEM ({count} times) {text}")
    failed = code != 0 or bool(problems)
    if args.results:
        commit = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        line = {"commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d", time.gmtime()), "seed": args.seed, "rounds": run.rounds,
                "acks": run.recorder.acks, "problems": sorted(problems), "result": "FAILED" if failed else "clean"}
        with open(args.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
    if not failed and not args.keep:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{'FAILED' if failed else 'clean'} after {time.monotonic() - began:.0f} s, seed {args.seed}", flush=True)
    # Clients that hang must not hold the verdict.
    sys.stdout.flush()
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
