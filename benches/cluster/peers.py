"""Three nodes of each peer, one a zone, each in its own network namespace (chaos/net.py). Both peers may stand at once."""

import functools
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "chaos"), str(REPO / "tests/lib")]

from broker import LIB, BrokerError, api_versions, die_with_parent  # noqa: E402
from cluster import Cluster, Node  # noqa: E402
from confluent_kafka import KafkaException  # noqa: E402
from confluent_kafka.admin import AdminClient  # noqa: E402
from net import ADMIN_PORT, run  # noqa: E402

NODES = (1, 2, 3)
_CLUSTER_ID = "aXNvYmFyLWJlbmNoLXBlZXI"


class Isobar:
    """Three nodes with all roles as `isobar cluster init` sets them up, on an S3 server (versitygw) beside them."""

    kind = "isobar"
    kafka_port = 9092
    # What a zone's bytes go by, beside clients.
    inner_ports = {"rpc": 9093}

    def __init__(self, work, net):
        self.net = net
        directory = pathlib.Path(work) / self.kind
        directory.mkdir()
        self.cluster = Cluster(directory, store="s3", net=net)
        self.cluster.start()

    def pid(self, node):
        return self.cluster.nodes[node - 1].process.pid

    def kill(self, node):
        self.cluster.nodes[node - 1].kill()

    def terminate(self, node):
        process = self.cluster.nodes[node - 1].process
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    def start(self, node):
        self.cluster.nodes[node - 1].start()
        self.cluster.wait_whole()

    def leader(self):
        return self.cluster.leader().id

    def add_broker(self, node_id):
        """A node that is a broker only, from the file of another; it is started."""
        like = self.cluster.nodes[0]
        text = (like.directory / f"node-{like.id}.toml").read_text()
        # A voter's own address is among the voters'; this node is none.
        rpc = f'[listeners]\\ncluster = "{self.net.address(node_id)}:{self.inner_ports["rpc"]}"'
        for pattern, new in ((r"^id = \d+$", f'id = {node_id}\\nroles = "broker"'), (r"^data = .*", f'data = "./isobar-{node_id}"'),
                             (r"^zone = .*", 'zone = "zone-1"'), (r"^\[listeners\]", rpc)):
            text = re.sub(pattern, new, text, flags=re.MULTILINE)
        (like.directory / f"node-{node_id}.toml").write_text(text)
        kafka, admin = (f"{self.net.address(node_id)}:{port}" for port in (self.kafka_port, ADMIN_PORT))
        env = like.env | {"ISOBAR_LISTENERS_KAFKA": kafka, "ISOBAR_LISTENERS_ADMIN": admin}
        node = Node(node_id, like.directory, kafka, admin, env, functools.partial(self.net.enter, node_id), ("broker",))
        node.start()
        return node

    @staticmethod
    def client(zone):
        """What says where a client is."""
        return [f"client.id=bench,zone=zone-{zone}", f"client.rack=zone-{zone}"]

    def stop(self):
        self.cluster.stop()
        self.cluster.kill()


class Kafka:
    """Three nodes, each broker and controller; followers may serve consumers of their zone."""

    kind = "kafka"
    kafka_port = 19092
    inner_ports = {"replication": 19094, "controller": 19095}
    JVM = ("-Xms1g", "-Xmx1g", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
           "-XX:+ExplicitGCInvokesConcurrent")
    SETTINGS = {
        "process.roles": "broker,controller",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INNER",
        "listener.security.protocol.map": "CLIENTS:PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "offsets.topic.replication.factor": "3",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "share.coordinator.state.topic.replication.factor": "3",
        "share.coordinator.state.topic.min.isr": "2",
        "replica.selector.class": "org.apache.kafka.common.replica.RackAwareReplicaSelector",
        "auto.create.topics.enable": "false",
        "log.segment.delete.delay.ms": "1000",
    }

    def __init__(self, work, net):
        self.net, self.directory = net, pathlib.Path(work) / self.kind
        self.directory.mkdir()
        self.processes = {}
        for node in NODES:
            self._configure(node)
            self._spawn(node)
        self._wait()

    def _classes(self):
        return [f"-Dlog4j2.configurationFile={LIB}/kafka/log4j2.xml", "-cp", f"{os.environ['KAFKA_LIBS']}/*"]

    def _config(self, node):
        return self.directory / f"node-{node}.properties"

    def _configure(self, node):
        address = self.net.address(node)
        listeners = [f"{name}://{address}:{port}" for name, port in (
            ("CLIENTS", self.kafka_port), ("INNER", self.inner_ports["replication"]),
            ("CONTROLLER", self.inner_ports["controller"]))]
        voters = ",".join(f"{n}@{self.net.address(n)}:{self.inner_ports['controller']}" for n in NODES)
        settings = self.SETTINGS | {
            "node.id": node, "broker.rack": f"zone-{node}", "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(listeners[:2]), "controller.quorum.voters": voters,
            "log.dirs": self.directory / f"data-{node}",
        }
        self._config(node).write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        tool = ["java", *self._classes(), "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(self._config(node))]
        subprocess.run(tool, check=True, capture_output=True)

    def _spawn(self, node):
        def prepare():
            die_with_parent()
            self.net.enter(node)

        with open(self.directory / f"node-{node}.log", "ab") as log:
            self.processes[node] = subprocess.Popen(
                ["java", *self.JVM, *self._classes(), "kafka.Kafka", str(self._config(node))],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=prepare)

    def _wait(self, seconds=120):
        """Every broker answers, knows the others, and nobody is out of sync."""
        deadline = time.monotonic() + seconds
        for node in NODES:
            while True:
                try:
                    api_versions(self.net.address(node), self.kafka_port)
                    admin = AdminClient({"bootstrap.servers": f"{self.net.address(node)}:{self.kafka_port}", "log_level": 0})
                    known = admin.list_topics(timeout=5)
                    if len(known.brokers) == len(NODES) and all(
                            len(p.isrs) == len(p.replicas) for t in known.topics.values() for p in t.partitions.values()):
                        break
                except (OSError, struct.error, KafkaException, BrokerError) as error:
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"Kafka's node {node} is not there after {seconds} s: {error}") from error
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Kafka is not whole after {seconds} s")
                time.sleep(0.2)

    def pid(self, node):
        return self.processes[node].pid

    def kill(self, node):
        self.processes[node].kill()
        self.processes[node].wait()

    def terminate(self, node):
        self.processes[node].send_signal(signal.SIGTERM)
        self.processes[node].wait(120)

    def start(self, node):
        self._spawn(node)
        self._wait()

    def leader(self):
        """The active controller."""
        tool = ["java", *self._classes(), "org.apache.kafka.tools.MetadataQuorumCommand", "--bootstrap-server",
                f"{self.net.address(1)}:{self.kafka_port}", "describe", "--status"]
        said = subprocess.run(tool, check=True, capture_output=True, text=True).stdout
        return int(next(line.split()[-1] for line in said.splitlines() if line.startswith("LeaderId")))

    @staticmethod
    def client(zone):
        return ["client.id=bench", f"client.rack=zone-{zone}"]

    def stop(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Crossing:
    """Counts the bytes that leave each node's namespace for another node, by what they are for. The store is in no zone."""

    def __init__(self, peer):
        self.peer = peer
        ports = {"requests of clients": ("dport", peer.kafka_port), "answers to clients": ("sport", peer.kafka_port)}
        self.rules = dict(ports)
        for name, port in peer.inner_ports.items():
            self.rules[name] = ("both", port)
        for node in NODES:
            self._write(node)

    def _write(self, node):
        lines = ["*filter", ":INPUT ACCEPT", ":OUTPUT ACCEPT"]
        for other in NODES:
            if other != node:
                for way, port in self.rules.values():
                    for one in ("sport", "dport") if way == "both" else (way,):
                        lines.append(f"-A OUTPUT -d {self.peer.net.address(other)} -p tcp --{one} {port}")
        run("iptables-restore", text="\n".join([*lines, "COMMIT", ""]), namespace=self.peer.net.spaces[node])

    def bytes(self):
        """{what: bytes since this began}."""
        found = dict.fromkeys(self.rules, 0)
        for node in NODES:
            saved = run("iptables-save", "-c", "-t", "filter", namespace=self.peer.net.spaces[node])
            for count, way, port in re.findall(r"^\[\d+:(\d+)\] -A OUTPUT .*--(sport|dport) (\d+)", saved, re.MULTILINE):
                for name, (ours, our_port) in self.rules.items():
                    if int(port) == our_port and ours in (way, "both"):
                        found[name] += int(count)
        return found


def bootstrap(peer, zone=None):
    nodes = NODES if zone is None else (zone,)
    return ",".join(f"{peer.net.address(node)}:{peer.kafka_port}" for node in nodes)


def in_zone(peer, zone, command, **more):
    """A client in a zone."""
    def prepare():
        die_with_parent()
        peer.net.enter(zone)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | more
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, preexec_fn=prepare, **pipes)

