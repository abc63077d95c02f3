"""The faults: a table of functions. One more is one more function here.

Each gets the `Scene` (cluster, network, what is random) and a node, makes the fault, lets it last, heals it, and returns in a few
words what exactly it did. Its docstring is what people read. `role`: what it strikes. `needs`: what must be there for it:
`net` (network namespaces), `s3` (a store behind the proxy), `disks` (nodes' directories that are file systems of their own),
`clocks` (libfaketime), `old` (an older binary, which the nodes run before). `on`: `leader` if the node must be the metadata
quorum's leader, or a role that it must have.

A fault that meets nothing proves nothing: those that can count what they met call `Scene.met`.
"""

import contextlib
import dataclasses
import functools
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from cluster import BINARY, Cluster, Died
from net import CLIENTS, STORE


@dataclasses.dataclass
class Fault:
    name: str
    role: str
    summary: str
    make: Callable
    needs: tuple = ()
    on: str = "any"
    starts: bool = True

    def beside(self, other):
        """Both at once: this one's name and role, and while it is made, the other, which starts no process (a node dies with the
        thread that started it)."""
        def make(scene, node):
            told = []
            rng = random.Random(scene.random.random())
            aside = dataclasses.replace(scene, random=rng)
            thread = threading.Thread(target=lambda: told.append(other.make(aside, rng.choice(scene.cluster.nodes))))
            thread.start()
            # So that it is on, and perhaps goes on afterwards.
            time.sleep(1)
            detail = self.make(scene, node)
            thread.join()
            if not told:
                scene.problem(f"fault {other.name}", "it failed")
            return "; ".join([*([detail] if detail else []), f"{other.name}: {' '.join(told)}"])
        return dataclasses.replace(self, name=f"{self.name}+{other.name}", make=make)


FAULTS = {}
ROLES = ("process", "network", "store", "disk")


def fault(role, needs=(), on="any", name=None, starts=False):
    def register(function):
        called = name or function.__name__.replace("_", "-")
        # Of a partial function that of the whole.
        text = getattr(function, "func", function).__doc__
        words = text.split() + ("Here: the leader of the metadata quorum.".split() if on == "leader" else [])
        FAULTS[called] = Fault(called, role, " ".join(words), function, needs, on, starts or role == "process")
        return function
    return register


@dataclasses.dataclass
class Scene:
    """What a fault may work on."""

    cluster: Cluster
    random: random.Random
    # How long one lasts at most.
    longest_s: float
    problem: Callable

    @property
    def net(self):
        return self.cluster.net

    @property
    def store(self):
        return self.cluster.store

    def seconds(self, *choices_s):
        """How long the fault shall last: one of these."""
        return min(self.random.choice(choices_s), self.longest_s)

    def last(self, *choices_s):
        """Lets the fault last for one of these times; says which."""
        seconds = self.seconds(*choices_s)
        time.sleep(seconds)
        return f"{seconds:g} s"

    @contextlib.contextmanager
    def broken_network(self, name):
        """Heals the network at the end."""
        try:
            yield self.net
        finally:
            self.met(name, self.net.heal(name), "packet")

    @contextlib.contextmanager
    def broken_store(self, name, counted, **faults):
        """Lets the proxy do this to the store's requests until the end."""
        before = self.store.proxy.counts()[counted]
        self.store.proxy.set(**faults)
        try:
            yield
        finally:
            self.met(name, self.store.proxy.counts()[counted] - before, "request")
            self.store.proxy.set()

    def others(self, node):
        return [other.id for other in self.cluster.nodes if other is not node]

    def met(self, name, count, what):
        if not count:
            self.problem(f"fault {name}", f"it met no {what}: it has shown nothing")


# Processes

def kill(scene, node):
    """One node is killed, and started again soon or some seconds later."""
    node.send(signal.SIGKILL)
    node.process.wait()
    wait = scene.random.choice((0, 0.3, 2, 5))
    time.sleep(wait)
    node.start()
    return f"started after {wait:g} s"


fault("process")(kill)
fault("process", on="leader", name="kill-leader")(kill)


def kill_several(scene, count):
    nodes = scene.random.sample(scene.cluster.nodes, count)
    for node in nodes:
        node.send(signal.SIGKILL)
    for node in nodes:
        node.process.wait()
    for node in nodes:
        time.sleep(scene.random.choice((0, 0.5, 2)))
        node.start()
    return "nodes " + ", ".join(str(node.id) for node in nodes)


@fault("process")
def kill_two(scene, _node):
    """Two nodes are killed at once: if they are two of three of a role, nothing is written until one is back."""
    return kill_several(scene, 2)


@fault("process")
def kill_all(scene, _node):
    """All nodes are killed at once."""
    return kill_several(scene, len(scene.cluster.nodes))


@fault("process")
def pause(scene, node):
    """A node is stopped by a signal: so short that nobody notices, so long that it is suspected, or that it is fenced."""
    node.send(signal.SIGSTOP)
    try:
        return scene.last(0.2, 1.5, 4, 11)
    finally:
        node.send(signal.SIGCONT)


@fault("process")
def term(_scene, node):
    """A node is stopped with SIGTERM, which must end it with 0, and started again."""
    stop(node)
    node.start()
    return ""


def stop(node):
    node.send(signal.SIGTERM)
    try:
        code = node.process.wait(60)
    except subprocess.TimeoutExpired:
        raise Died(f"node {node.id} still runs 60 s after SIGTERM:\n{node.tail()}") from None
    if code != 0:
        raise Died(f"node {node.id} ended with {code} on SIGTERM:\n{node.tail()}")


@fault("process")
def roll(scene, _node):
    """A rolling restart: each node with SIGTERM, the next one only when all is well."""
    for other in scene.cluster.nodes:
        term(scene, other)
        scene.cluster.wait_whole()
    return ""


@fault("process", ("old",))
def upgrade(scene, _node):
    """A rolling upgrade from an older binary: each node, by the seed with SIGTERM or SIGKILL, the next one only when all is well;
    then `isobar cluster upgrade`."""
    for other in scene.cluster.nodes:
        if scene.random.random() < 0.3:
            other.send(signal.SIGKILL)
            other.process.wait()
        else:
            stop(other)
        other.binary = BINARY
        other.start()
        # The last one sees that the new level may come.
        scene.cluster.wait_whole(but="`isobar cluster upgrade`")
    code, said = scene.cluster.command(scene.random.choice(scene.cluster.nodes), "upgrade")
    if code != 0:
        raise Died(f"cluster upgrade ended with {code}: {said}")
    return said


# Network

# Shorter than any timeout; some heartbeats; longer than a session's timeout (9 s).
CUTS_S = (0.7, 4, 13)


def partition(scene, node, name="partition"):
    """A node is cut off from the others; by the seed from clients too, and from the store."""
    peers, words = scene.others(node), ["from nodes"]
    for peer, what in ((CLIENTS, "clients"), (STORE, "store")):
        if scene.random.random() < 0.5:
            peers.append(peer)
            words.append(what)
    with scene.broken_network(name) as net:
        net.cut(name, node.id, peers)
        return f"{scene.last(*CUTS_S)}, {' and '.join(words)}"


fault("network", ("net",))(partition)
fault("network", ("net",), on="leader", name="partition-leader")(functools.partial(partition, name="partition-leader"))


@fault("network", ("net",))
def partial(scene, node):
    """Two nodes cannot see each other, which have something to say to each other; both see the others."""
    other = scene.random.choice(partners(scene, node))
    with scene.broken_network("partial") as net:
        net.cut("partial", node.id, [other])
        return f"{scene.last(*CUTS_S)}, {node.id} and {other}"


def partners(scene, node):
    """Brokers and WAL replicas always speak, the metadata's leader and its followers too; brokers with each other never do."""
    others = [other for other in scene.cluster.nodes if other is not node]
    if node.roles == ("metadata",):
        leader = scene.cluster.leader()
        voters = [other for other in others if "metadata" in other.roles]
        return [other.id for other in voters if leader in (None, node, other)]
    return [other.id for other in others if {"broker", "wal"} <= {*node.roles, *other.roles}]


@fault("network", ("net",))
def one_way(scene, node):
    """A node hears the others and is not heard (mute), or is heard and does not hear (deaf)."""
    way = scene.random.choice(("in", "out"))
    with scene.broken_network("one-way") as net:
        net.cut("one-way", node.id, scene.others(node), ways=(way,))
        return f"{scene.last(*CUTS_S)}, {'deaf' if way == 'in' else 'mute'}"


@fault("network", ("net",))
def delay(scene, node):
    """Packets between nodes wait, in order: those of one node, or all; by the seed those of clients too."""
    delay_ms = scene.random.choice((5, 25, 100))
    everyone = scene.random.random() < 0.5
    clients = [CLIENTS] if scene.random.random() < 0.3 else []
    # Between two slowed nodes each packet waits once: at the one that sends it.
    ways = ("out",) if everyone else ("in", "out")
    with scene.broken_network("delay") as net:
        for slowed in scene.cluster.nodes if everyone else [node]:
            net.slow("delay", slowed.id, scene.others(slowed) + clients, delay_ms, delay_ms / 2, scene.random.random(), ways)
        told = f"{delay_ms} ± {delay_ms / 2:g} ms, {'all nodes' if everyone else 'one node'}{' and clients' if clients else ''}"
        return f"{scene.last(5, 12)}, {told}"


@fault("network", ("net",))
def loss(scene, node):
    """A share of the packets between nodes is lost: of one node, or of all."""
    share = scene.random.choice((0.01, 0.05, 0.2))
    everyone = scene.random.random() < 0.5
    with scene.broken_network("loss") as net:
        for lossy in scene.cluster.nodes if everyone else [node]:
            net.cut("loss", lossy.id, scene.others(lossy), ways=("out",) if everyone else ("in", "out"), share=share)
        return f"{scene.last(5, 12)}, {share:.0%}, {'all nodes' if everyone else 'one node'}"


# Store

@fault("store", ("s3",))
def store_outage(scene, _node):
    """The store is away: connections are cut and refused, later taken and reset; or it hangs, its connections open."""
    seconds = scene.seconds(5, 15, 45)
    if scene.random.random() < 0.3:
        os.kill(scene.store.server.process.pid, signal.SIGSTOP)
        try:
            return f"{scene.last(seconds)}, hangs"
        finally:
            os.kill(scene.store.server.process.pid, signal.SIGCONT)
    with scene.broken_store("store-outage", "stops", stopped_s=seconds):
        return f"{scene.last(seconds)}, refused"


@fault("store", ("s3",), name="store-503")
def store_storm(scene, _node):
    """A storm: 503 SlowDown to most requests, or to all."""
    share = scene.random.choice((0.7, 1.0))
    with scene.broken_store("store-503", "stormed", storm=share):
        return f"{scene.last(6, 15)}, {share:.0%} of requests"


@fault("store", ("s3",))
def store_slow(scene, _node):
    """Each request to the store waits before it is passed on."""
    delay_ms = scene.random.choice((300, 1500, 6000))
    with scene.broken_store("store-slow", "slowed", delay_ms=delay_ms):
        return f"{scene.last(8, 20)}, {delay_ms} ms"


@fault("store", ("s3",))
def store_lost_put_responses(scene, _node):
    """The store does what writes ask for, and the answers are lost: of half of them, or of all."""
    share = scene.random.choice((0.5, 1.0))
    with scene.broken_store("store-lost-put-responses", "lost", lose=share):
        return f"{scene.last(6, 15)}, {share:.0%} of writes"


# Disks and clocks

# Within this a WAL whose store is away has used up its spare segments.
FILLED_S = 40


@fault("disk", on="broker", starts=True)
def wipe_cache(scene, node):
    """A node is killed or stopped, and finds its broker's cache directory gone when it starts again."""
    node.send(scene.random.choice((signal.SIGKILL, signal.SIGTERM)))
    node.process.wait(60)
    shutil.rmtree(node.data / "cache", ignore_errors=True)
    node.start()
    return ""


@fault("disk", starts=True)
def wipe_node(scene, node):
    """A node is killed and all that its disk held is gone; it starts with an empty directory and is replaced by the one command
    (which one that is only a broker does not need)."""
    node.send(signal.SIGKILL)
    node.process.wait(60)
    for path in node.data.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    time.sleep(scene.random.choice((0, 3)))
    node.start()
    if node.roles == ("broker",):
        return "came back by itself"
    asked = scene.random.choice([other for other in scene.cluster.nodes if other is not node])
    deadline = time.monotonic() + 60
    while True:
        code, said = scene.cluster.command(asked, "replace", str(node.id))
        # Taken out is the old directory once no writer is left in a stream that names it.
        if code == 0 and "not taken out yet" not in said:
            return f"replaced by node {asked.id}"
        if time.monotonic() > deadline:
            raise Died(f"node {node.id} was not replaced within 60 s: {said}\n{node.tail()}")
        time.sleep(0.3)


@fault("disk", ("disks", "s3"), on="wal", starts=True)
def disk_full(scene, node):
    """A node's file system is full, while the store is away so that its WAL must grow; it lasts on once the node has noticed."""
    filler, log_end = node.data / "filler", node.log.stat().st_size
    with scene.broken_store("disk-full", "stops", stopped_s=2 * FILLED_S):
        try:
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                free = os.fstatvfs(file.fileno())
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - (4 << 20)))
                file.seek(0, os.SEEK_END)
                while file.write(bytes(4096)):
                    pass
            deadline = time.monotonic() + FILLED_S
            while not (by_wal := "disk is full" in node.said(log_end)) and time.monotonic() < deadline:
                time.sleep(0.2)
            # A WAL that has many spare segments needs none; a snapshot of metadata needs room at once.
            scene.met("disk-full", by_wal or "No space left" in node.said(log_end), "write that needed room")
            told = f"{scene.last(3, 10)} since {'the WAL noticed' if by_wal else 'a snapshot noticed at least'}"
        finally:
            filler.unlink()
    if node.process.poll() is not None:
        # It may say that it cannot go on; whoever runs it starts it again.
        told += f", ended with {node.process.returncode}"
        node.start()
    return told


@fault("disk", ("disks",))
def disk_stall(scene, node):
    """A node's disk takes no writes for a while: they wait, and go on."""
    subprocess.run(["fsfreeze", "--freeze", node.data], check=True)
    try:
        return scene.last(0.5, 3, 12)
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", node.data], check=True)


@fault("disk", ("disks",), starts=True)
def disk_error(scene, node):
    """A node's disk fails: each read, write and sync of it is an error for a while (after which a sync would say that all is well).
    The node ends, or says that its disk has failed (a broker need not: its disk is a cache); then it is killed, its disk mounted
    again, and it starts."""
    node.fail_disk(True)
    try:
        told = scene.last(0.5, 2, 6)
    finally:
        node.fail_disk(False)
    deadline = time.monotonic() + 20
    must_notice = node.roles != ("broker",)
    while not (noticed := failed_disk(scene, node)) and must_notice and time.monotonic() < deadline:
        time.sleep(0.2)
    scene.met("disk-error", noticed or not must_notice, "write or sync that it failed")
    node.kill()
    node.mount_again()
    node.start()
    return f"{told}; {noticed}"


def failed_disk(scene, node):
    """What became of a node whose disk has failed; None if nobody has noticed."""
    if not node.alive:
        return f"it ended with {node.process.returncode}"
    others = (scene.cluster.standing(other) for other in scene.cluster.nodes if other is not node)
    wrong = (what for standing in others if standing for what in standing["wrong"] if f"node {node.id}" in what)
    return next(wrong, None)


@fault("disk", ("clocks",))
def clock_jump(scene, node):
    """A node's clock (not its timers) jumps by seconds, minutes or hours, forward or back, and later jumps home."""
    seconds = scene.random.choice((1, -1)) * scene.random.choice((3, 60, 600, 7200))
    node.set_clock(seconds)
    began = time.monotonic()
    try:
        lasted = scene.last(5, 12)
        told = [what for what in scene.cluster.standing(node)["wrong"] if f"clock of node {node.id}" in what]
        # Whoever could not ask the others does not know.
        cut_off = scene.net and scene.net.was_broken(began)
        scene.met("clock-jump", abs(seconds) < 60 or told or cut_off, "status that tells it")
        return f"{seconds:+} s for {lasted}"
    finally:
        node.set_clock(0)
