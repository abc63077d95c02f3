"""A cluster of processes: `isobar cluster init` and `isobar serve`, each node with its own directory and log; and its store.

On loopback, or each node in its own network namespace (net.py). Environment: ISOBAR_BIN, a binary with the feature `testing`;
VERSITYGW, for a store that speaks S3.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request

LIB = pathlib.Path(__file__).resolve().parents[1] / "tests" / "lib"
sys.path.insert(0, str(LIB))
from broker import CACHE, die_with_parent, free_ports  # noqa: E402
from net import ADMIN_PORT, STORE  # noqa: E402
from storeproxy import StoreProxy  # noqa: E402
from stores import Versitygw  # noqa: E402

BINARY = os.environ.get("ISOBAR_BIN", str(CACHE / "target/ci/isobar"))
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
ROLES = ("broker", "wal", "metadata")
# The roles of each node.
LAYOUTS = {
    "all": [ROLES] * 3,
    "roles": [("metadata",)] * 3 + [("wal",)] * 3 + [("broker",)] * 2,
}
# linux/loop.h: struct loop_info64, and where lo_sizelimit is in it.
LOOP_SET_STATUS64, LOOP_GET_STATUS64 = 0x4C04, 0x4C05
LOOP_INFO, LOOP_SIZELIMIT = struct.Struct("=5Q4I64s64s32s2Q"), 4


def zone_of(node_id, roles):
    """Nodes take turns; those that are brokers only share one, and so what they have of the store."""
    return "zone-1" if tuple(roles) == ("broker",) else f"zone-{(node_id - 1) % 3 + 1}"


class Died(Exception):
    """A node ended that nobody had ended."""


def mount(arguments):
    subprocess.run(["mount", *arguments], check=True, stdin=subprocess.DEVNULL)


class Node:
    """`space`: the network that its process lives in, as a function that a child calls. `clock`: the file that sets its clock."""

    def __init__(self, node_id, directory, kafka, admin, env, space=None, roles=ROLES, binary=BINARY):
        self.id, self.directory, self.kafka, self.admin, self.env, self.space = node_id, directory, kafka, admin, env, space
        self.roles, self.binary = roles, binary
        self.log = directory / f"node-{node_id}.log"
        # As `cluster init` writes it.
        self.data = directory / f"isobar-{node_id}"
        self.clock = None
        self.process = None

    def start(self):
        def prepare():
            die_with_parent()
            if self.space:
                self.space()

        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve", "--config", f"node-{self.id}.toml"],
                cwd=self.directory, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=prepare,
            )

    def fake_clock(self):
        """From the next start on its clock is what `set_clock` says; timers go by another, which stays true."""
        self.clock = self.directory / f"clock-{self.id}"
        self.set_clock(0)
        self.env |= {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_CACHE_DURATION": "1",
                     "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}

    def set_clock(self, seconds):
        new = self.clock.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.rename(self.clock)

    def own_disk(self, mebibytes):
        """Its data directory becomes a file system of its own, so that it can be full. It lies in memory, so that what else this
        machine's disk does is not taken for the node's."""
        self.image.parent.mkdir()
        self.data.mkdir()
        mount(["-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", self.image.parent])
        with open(self.image, "wb") as file:
            file.truncate((mebibytes - 16) << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", self.image], check=True, stdin=subprocess.DEVNULL)
        mount(["-o", "loop", self.image, self.data])
        (self.data / "lost+found").rmdir()

    @property
    def image(self):
        """Of the file system that its data directory may be."""
        return self.directory / f"disk-{self.id}" / "image"

    def fail_disk(self, fails):
        """From now on each read and write of the disk itself fails, as if its cable were out: what the page cache held and was
        not written yet is lost, as after any failed sync. Or it is in again."""
        device = self.data.stat().st_dev
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        fd = os.open(f"/dev/{name}", os.O_RDWR)
        try:
            info = bytearray(LOOP_INFO.size)
            fcntl.ioctl(fd, LOOP_GET_STATUS64, info)
            fields = list(LOOP_INFO.unpack(info))
            fields[LOOP_SIZELIMIT] = 4096 if fails else 0
            fcntl.ioctl(fd, LOOP_SET_STATUS64, LOOP_INFO.pack(*fields))
        finally:
            os.close(fd)

    def mount_again(self):
        """What a machine does that starts after such an end: nothing in memory, and a look at the file system."""
        subprocess.run(["umount", self.data], check=True)
        # 1: it was repaired.
        done = subprocess.run(["e2fsck", "-fy", self.image], capture_output=True, text=True, check=False)
        if done.returncode > 1:
            raise Died(f"e2fsck of node {self.id}'s disk ended with {done.returncode}: {done.stdout}{done.stderr}")
        mount(["-o", "loop", self.image, self.data])

    def give_back_disk(self, keep):
        """Its data is in its directory again, on the disk, if it is to be kept."""
        if self.data.is_mount():
            kept = self.directory / f"kept-{self.id}"
            if keep:
                shutil.copytree(self.data, kept)
            for path in (self.data, self.image.parent):
                subprocess.run(["umount", path], check=True)
                path.rmdir()
            if keep:
                kept.rename(self.data)

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def send(self, signum):
        if not self.alive:
            raise Died(f"node {self.id} ended by itself with {self.process and self.process.poll()}:\n{self.tail()}")
        self.process.send_signal(signum)

    def kill(self):
        if self.process is not None:
            if self.alive:
                self.process.kill()
            self.process.wait()

    def said(self, since=0):
        """Its log from this position on."""
        with open(self.log, "rb") as file:
            file.seek(since)
            return re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode(errors="replace"))

    def waited_s(self):
        """How long the threads of its process, together, were ready and had no processor."""
        waited = 0.0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                waited += int(task.read_text().split()[1]) / 1e9
        return waited

    def panics(self):
        """Where and why a thread of it has panicked: the process may live on without it."""
        lines = re.findall(r"^thread (.*) \(\d+\) panicked at (.*):\n(.*)", self.said(), re.MULTILINE)
        return [" ".join(found) for found in lines]

    def tail(self, lines=30):
        return "\n".join(self.said().splitlines()[-lines:])


class S3Store:
    """A server behind the proxy that makes its faults, with one bucket."""

    def __init__(self, directory, host="127.0.0.1"):
        directory.mkdir()
        self.server = Versitygw(directory)
        self.server.bucket("bucket")
        self.proxy = StoreProxy(self.server.address, host)

    @property
    def url(self):
        return self.server.url("bucket", "cluster", address=self.proxy.address)

    @property
    def env(self):
        return self.server.env | {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"}

    def close(self):
        self.proxy.__exit__()
        self.server.stop()


class Cluster:
    """Nodes of a layout in three zones, on a bucket: of an S3 server, or a directory that they share. `binary`: what they run at
    first, all of them."""

    def __init__(self, directory, store="file", net=None, settings=None, layout=LAYOUTS["all"], binary=BINARY):
        self.directory, self.net = directory, net
        self.store = S3Store(directory / "store", STORE if net else "127.0.0.1") if store == "s3" else None
        size = len(layout)
        ids = range(1, size + 1)
        if net:
            rpc, kafka, admin = ([f"{net.address(n)}:{port}" for n in ids] for port in (9093, 9092, ADMIN_PORT))
        else:
            ports = free_ports(3 * size)
            rpc, kafka, admin = ([f"127.0.0.1:{port}" for port in ports[i * size : (i + 1) * size]] for i in range(3))
        url = self.store.url if self.store else f"file://{directory}/bucket"
        init = [binary, "cluster", "init", "--store", url, "--out", str(directory)]
        for n, roles in zip(ids, layout):
            init += ["--node", f"{n}@{rpc[n - 1]}", "--zone", zone_of(n, roles)]
            # A binary of before there were roles has all of them.
            init += ["--roles", ",".join(roles)] if roles != ROLES else []
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        self.nodes = []
        for n, roles in zip(ids, layout):
            # `cluster init` gives Kafka's ports; several clusters may be on this machine.
            env = {"ISOBAR_LISTENERS_ADMIN": admin[n - 1], **(settings or {})}
            env |= {"ISOBAR_LISTENERS_KAFKA": kafka[n - 1]} if "broker" in roles else {}
            env |= self.store.env if self.store else {}
            space = functools.partial(net.enter, n) if net else None
            self.nodes.append(Node(n, directory, kafka[n - 1], admin[n - 1], env, space, roles, binary))

    def having(self, role):
        return [node for node in self.nodes if role in node.roles]

    @property
    def zones(self):
        """Those of the brokers."""
        return tuple(sorted({zone_of(node.id, node.roles) for node in self.having("broker")}))

    @property
    def bootstrap(self):
        return ",".join(node.kafka for node in self.having("broker"))

    def start(self):
        for node in self.nodes:
            node.start()
        self.wait_whole()

    def standing(self, node):
        """What a node says of the cluster; None if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{node.admin}/v1/cluster", timeout=5) as answered:
                return json.load(answered)
        except OSError:
            return None

    def command(self, node, *arguments):
        """`isobar cluster …` at a node: its exit code, and what it said."""
        done = subprocess.run([BINARY, "cluster", *arguments, "--admin", node.admin], capture_output=True, text=True, timeout=120,
                              check=False)
        return done.returncode, (done.stdout + done.stderr).strip()

    def leader(self):
        """The node that leads the metadata quorum; None while nobody says so."""
        for node in self.nodes:
            for line in (node.alive and self.standing(node) or {}).get("nodes", ()):
                if line["metadata"] == "leader":
                    return self.nodes[line["id"] - 1]
        return None

    def wait_whole(self, seconds=60, but=None):
        """Every node says that nothing is wrong, and so does the command; or nothing `but` what has these words."""
        deadline = time.monotonic() + seconds
        for node in self.nodes:
            while (standing := self.standing(node)) is None or [w for w in standing["wrong"] if not (but and but in w)]:
                if not node.alive:
                    raise Died(f"node {node.id} ended by itself with {node.process.poll()}:\n{node.tail()}")
                if time.monotonic() > deadline:
                    raise Died(f"not whole after {seconds} s, says node {node.id}: {standing}\n{node.tail()}")
                time.sleep(0.05)
        # The command says the same. A node that was cut off may be suspect for another moment.
        while but is None and (said := self.command(self.nodes[0], "status"))[0] != 0:
            if time.monotonic() > deadline:
                raise Died(f"cluster status ends with {said[0]} after {seconds} s: {said[1]}")
            time.sleep(0.05)

    def stop(self):
        """SIGTERM to all; True if all ended well."""
        for node in self.nodes:
            if node.alive:
                node.process.send_signal(signal.SIGTERM)
        codes = []
        for node in self.nodes:
            try:
                codes.append(node.process.wait(60))
            except subprocess.TimeoutExpired:
                codes.append("still running")
        return all(code == 0 for code in codes), codes

    def kill(self):
        for node in self.nodes:
            node.kill()
        if self.store:
            self.store.close()
