"""A cluster of processes on loopback: `isobar cluster init` and `isobar serve`, each node with its own directory and log.

Environment: ISOBAR_BIN, a binary with the feature `testing`.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

LIB = pathlib.Path(__file__).resolve().parents[1] / "tests" / "lib"
sys.path.insert(0, str(LIB))
from broker import CACHE, die_with_parent, free_ports  # noqa: E402

BINARY = os.environ.get("ISOBAR_BIN", str(CACHE / "target/ci/isobar"))


class Died(Exception):
    """A node ended that nobody had ended."""


class Node:
    def __init__(self, node_id, directory, kafka, admin, env):
        self.id, self.directory, self.kafka, self.admin, self.env = node_id, directory, kafka, admin, env
        self.log = directory / f"node-{node_id}.log"
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", "--config", f"node-{self.id}.toml"],
                cwd=self.directory, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent,
            )

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

    def tail(self, lines=30):
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))
        return "\n".join(text.splitlines()[-lines:])


class Cluster:
    """Three nodes with all roles, one a zone, on a bucket."""

    def __init__(self, directory, url=None, size=3):
        self.directory = directory
        ports = free_ports(3 * size)
        rpc, kafka, admin = (ports[i * size : (i + 1) * size] for i in range(3))
        init = [BINARY, "cluster", "init", "--store", url or f"file://{directory}/bucket", "--out", str(directory)]
        for n in range(size):
            init += ["--node", f"{n + 1}@127.0.0.1:{rpc[n]}", "--zone", f"zone-{n + 1}"]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        self.nodes = []
        for n in range(size):
            # `cluster init` gives Kafka's ports; several clusters may be on this machine.
            env = {"ISOBAR_LISTENERS_KAFKA": f"127.0.0.1:{kafka[n]}", "ISOBAR_LISTENERS_ADMIN": f"127.0.0.1:{admin[n]}"}
            self.nodes.append(Node(n + 1, directory, f"127.0.0.1:{kafka[n]}", f"127.0.0.1:{admin[n]}", env))

    @property
    def bootstrap(self):
        return ",".join(node.kafka for node in self.nodes)

    def start(self):
        for node in self.nodes:
            node.start()
        self.wait_whole()

    def status(self, node):
        """What `isobar cluster status` says at a node; its exit code."""
        done = subprocess.run([BINARY, "cluster", "status", "--json", "--admin", node.admin], capture_output=True, text=True,
                              timeout=20, check=False)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def leader(self):
        """The node that leads the metadata quorum; None while nobody says so."""
        for node in self.nodes:
            if node.alive:
                for line in self.status(node)[1]:
                    if line.get("metadata") == "leader":
                        return self.nodes[line["id"] - 1]
        return None

    def wait_whole(self, seconds=60):
        """Every node says that nothing is wrong."""
        deadline = time.monotonic() + seconds
        for node in self.nodes:
            while self.status(node)[0] != 0:
                if not node.alive:
                    raise Died(f"node {node.id} ended by itself with {node.process.poll()}:\n{node.tail()}")
                if time.monotonic() > deadline:
                    raise Died(f"not whole after {seconds} s, says node {node.id}: {self.status(node)}\n{node.tail()}")
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
