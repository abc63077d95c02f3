"""Nodes that come and go: a cluster grows, loses directories, is drained and shrinks, and keeps what it acknowledged.

    ISOBAR_BIN=… python tests/members/run.py [PART OF A NAME…]

Every step is the command that docs/operations.md names. Needs confluent-kafka, and what tests/clients/java does.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "chaos"), str(HERE.parent / "lib")]

from broker import die_with_parent, free_ports  # noqa: E402
from cases import case, equal, run  # noqa: E402
from cluster import BINARY, Node  # noqa: E402
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

TOPIC, PARTITIONS = "members", 4


class Members:
    """Nodes of one cluster, each with a file, a directory and ports of its own."""

    def __init__(self, directory):
        self.directory, self.nodes, self.rpc = directory, {}, {}
        self.cluster_id, self.voters = None, []
        self.sent, self.ports = 0, set()

    def node(self, node_id, roles="broker,wal,metadata", zone=None):
        """Its files; not started."""
        # Of those that were free a moment ago, none that another node was given.
        ports = [port for port in free_ports(12) if port not in self.ports][:3]
        self.ports.update(ports)
        rpc, kafka, admin = (f"127.0.0.1:{port}" for port in ports)
        self.rpc[node_id] = rpc
        made = Node(node_id, self.directory, kafka, admin, {})
        self.nodes[node_id] = made
        made.roles, made.zone = roles, zone or f"zone-{node_id}"
        return made

    def configure(self, node, store=None):
        """As of now: who the first voters are."""
        voters = ",".join(f"{n}@{self.rpc[n]}" for n in self.voters)
        cluster = f'[cluster]\nid = "{self.cluster_id}"\nvoters = "{voters}"\nsecret_file = "cluster.secret"\n' if voters else ""
        secret = self.directory / "cluster.secret"
        if not secret.exists():
            secret.write_text("the secret of this test's cluster\n")
        (self.directory / f"node-{node.id}.toml").write_text(
            f'[node]\nid = {node.id}\ndata = "{node.data}"\nzone = "{node.zone}"\n'
            + (f'roles = "{node.roles}"\n' if voters else "")
            + f'[listeners]\nkafka = "{node.kafka}"\nadmin = "{node.admin}"\n'
            + (f'cluster = "{self.rpc[node.id]}"\n' if voters else "")
            + f'{cluster}[store]\nurl = "{store or self.url}"\n'
        )

    @property
    def url(self):
        return f"file://{self.directory}/bucket"

    def begin(self, *nodes):
        """Starts them as a new cluster."""
        self.cluster_id = self.cluster_id or "bWVtYmVycy1vZi10ZXN0cw"
        self.voters = [node.id for node in nodes]
        for node in nodes:
            self.configure(node)
            node.start()
        self.wait_whole()

    def init(self, *nodes):
        """The same from the files that `isobar cluster init` writes; ports come by the environment, several clusters may be here."""
        command = [BINARY, "cluster", "init", "--store", self.url, "--out", str(self.directory)]
        for node in nodes:
            command += ["--node", f"{node.id}@{self.rpc[node.id]}", "--zone", node.zone, "--roles", node.roles]
            node.env["ISOBAR_LISTENERS_ADMIN"] = node.admin
            if "broker" in node.roles:
                node.env["ISOBAR_LISTENERS_KAFKA"] = node.kafka
        subprocess.run(command, check=True, capture_output=True, text=True)
        self.cluster_id = re.search(r'^id = "(.*)"', (self.directory / f"node-{nodes[0].id}.toml").read_text(), re.MULTILINE)[1]
        self.voters = [node.id for node in nodes if "metadata" in node.roles]
        for node in nodes:
            node.start()
        self.wait_whole()

    def join(self, node):
        self.configure(node)
        node.start()

    def isobar(self, *arguments, at=None, ok=True):
        """A command at a node's admin port; what it printed."""
        node = at or next(node for node in self.nodes.values() if node.alive)
        done = subprocess.run([BINARY, "cluster", *map(str, arguments), "--admin", node.admin], capture_output=True, text=True,
                              timeout=120, check=False)
        if ok is not None and (done.returncode == 0) != ok:
            raise AssertionError(f"cluster {arguments} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def standing(self, node):
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            done = subprocess.run([BINARY, "cluster", "status", "--json", "--admin", node.admin], capture_output=True, text=True,
                                  timeout=20, check=False)
            lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            return done.returncode, {line["id"]: line for line in lines if "id" in line}
        return 1, {}

    def until(self, what, so, seconds=60):
        deadline = time.monotonic() + seconds
        while not so():
            if time.monotonic() > deadline:
                tails = "\n".join(f"--- node {n.id}\n{n.tail(12)}" for n in self.nodes.values())
                raise AssertionError(f"waited {seconds} s for {what}; {[self.standing(n) for n in self.nodes.values()]}\n{tails}")
            time.sleep(0.1)

    def wait_whole(self):
        live = [node for node in self.nodes.values() if node.alive]
        self.until("all to be well", lambda: all(self.standing(node)[0] == 0 for node in live))

    def brokers(self):
        return [node for node in self.nodes.values() if node.alive and "broker" in node.roles]

    def bootstrap(self):
        return ",".join(node.kafka for node in self.brokers())

    def create_topic(self, partitions=PARTITIONS):
        admin = AdminClient({"bootstrap.servers": self.bootstrap()})
        admin.create_topics([NewTopic(TOPIC, partitions, 1)])[TOPIC].result(30)

    @staticmethod
    def metric(node, name):
        """A counter of the node; 0 while it does not answer."""
        with contextlib.suppress(OSError):
            text = urllib.request.urlopen(f"http://{node.admin}/metrics", timeout=5).read().decode()
            return sum(float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0] == name)
        return 0

    def send(self, count=400, zone=""):
        """Every one is acknowledged."""
        producer = Producer({"bootstrap.servers": self.bootstrap(), "enable.idempotence": True, "linger.ms": 2,
                             "client.id": f"members,zone={zone}"})
        failed = []
        for n in range(self.sent, self.sent + count):
            producer.produce(TOPIC, str(n).encode(), partition=n % PARTITIONS,
                             on_delivery=lambda error, _: error and failed.append(error))
        if producer.flush(60) or failed:
            raise AssertionError(f"{len(producer)} unanswered, {failed[:3]}")
        self.sent += count

    def check(self, expected=None):
        """Everything that was acknowledged is there once, in order."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap(), "group.id": "check", "enable.partition.eof": True,
                             "auto.offset.reset": "error"})
        consumer.assign([TopicPartition(TOPIC, p, 0) for p in range(PARTITIONS)])
        found, ended, deadline = {p: [] for p in range(PARTITIONS)}, set(), time.monotonic() + 60
        while len(ended) < PARTITIONS and time.monotonic() < deadline:
            message = consumer.poll(1)
            if message is None:
                continue
            if message.error() is None:
                found[message.partition()].append(int(message.value()))
            elif message.error().code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
            elif message.error().fatal():
                raise AssertionError(message.error())
        consumer.close()
        total = self.sent if expected is None else expected
        for partition in range(PARTITIONS):
            equal(found[partition], list(range(partition, total, PARTITIONS)), f"partition {partition}")

    def kill(self, node):
        node.send(signal.SIGKILL)
        node.process.wait()

    def stop(self, node):
        node.send(signal.SIGTERM)
        equal(node.process.wait(60), 0, f"the exit code of node {node.id}\n{node.tail()}")

    def wipe(self, node):
        shutil.rmtree(node.data)


@contextlib.contextmanager
def members():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="isobar-members-"))
    these = Members(directory)
    try:
        yield these
    except BaseException:
        for node in these.nodes.values():
            print(f"--- node {node.id}\n{node.tail(15)}", flush=True)
        raise
    finally:
        for node in these.nodes.values():
            node.kill()
        shutil.rmtree(directory, ignore_errors=True)


@case
def a_node_alone_grows_to_three_in_place():
    with members() as m:
        one, two, three = m.node(1), m.node(2), m.node(3)
        # As `isobar dev` does it, on a store that others will reach.
        m.configure(one)
        one.start()
        m.until("the first", lambda: m.standing(one)[0] == 0)
        status = m.isobar("status", at=one)
        m.cluster_id = status.split("cluster ", 1)[1].split(",", 1)[0]
        m.create_topic()
        m.send()
        m.stop(one)
        m.voters = [1]
        m.join(one)
        m.wait_whole()
        m.send()
        for node in (two, three):
            m.join(node)
        m.wait_whole()
        equal({n: line["metadata"] for n, line in m.standing(two)[1].items()}, {1: "leader", 2: "learner", 3: "learner"}, "who votes")
        m.send()
        said = m.isobar("add", 2) + m.isobar("add", 3, at=three)
        assert "two WAL replicas have what is acknowledged" in said, said
        m.isobar("add", 3)
        m.wait_whole()
        m.send()
        # Streams of one replica are left for such of three: then the first may go.
        time.sleep(4)
        m.send()
        m.kill(one)
        m.send()
        m.check()
        one.start()
        m.wait_whole()
        m.check()


@case
def a_lost_directory_is_replaced_with_one_command():
    with members() as m:
        nodes = [m.node(n) for n in (1, 2, 3)]
        m.begin(*nodes)
        m.create_topic()
        m.send()
        lost = nodes[1]
        m.kill(lost)
        m.wipe(lost)
        lost.start()
        m.send()
        time.sleep(2)
        assert m.standing(nodes[0])[0] != 0, "a node without its directory counts as well"
        said = m.isobar("replace", 2, at=nodes[0])
        assert "goes on with its new directory" in said, said
        m.wait_whole()
        m.isobar("replace", 2, at=nodes[2])
        m.wait_whole()
        m.send()
        # It has its part again: the others may go one after the other.
        for node in (nodes[0], nodes[2]):
            m.kill(node)
            m.send()
            m.check()
            node.start()
            m.wait_whole()


@case
def java_clients_feel_no_death():
    with members() as m:
        nodes = [m.node(n) for n in (1, 2, 3)]
        m.begin(*nodes)
        m.create_topic()
        java = subprocess.Popen([HERE.parent / "clients/java/run.sh", m.bootstrap(), TOPIC], env=os.environ | {"MAIN": "Alive"},
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        try:
            equal(java.stdout.readline(), "ready\n", "what it says first")
            for node in nodes:
                m.kill(node)
                # Until it is fenced, and longer: groups find their coordinator, lanes their streams.
                time.sleep(8)
                node.start()
                m.wait_whole()
            leader = next(line["id"] for line in m.standing(nodes[0])[1].values() if line["metadata"] == "leader")
            m.stop(m.nodes[leader])
            m.nodes[leader].start()
            m.wait_whole()
            said = java.communicate(timeout=180)[0]
        finally:
            java.kill()
            java.wait()
        print(said, end="")
        assert re.match(r"[1-9]\d{3,} records; ", said), said


@case
def brokers_of_a_zone_share_a_cache():
    with members() as m:
        nodes = [m.node(n, zone="zone-1") for n in (1, 2, 3)]
        for node in nodes:
            node.env["ISOBAR_UPLOAD_INTERVAL"] = "300ms"
        m.begin(*nodes)
        m.create_topic()
        # In many objects: of one alone, whoever reads it may be its blocks' home.
        for _ in range(10):
            m.send()
            time.sleep(0.4)
        # With an empty cache, and nothing in the WAL.
        for node in nodes:
            m.stop(node)
            node.start()
            m.wait_whole()
        m.check()
        served, missed, failed = (sum(m.metric(node, f"isobar_cache_zone_{name}_total") for node in nodes)
                                  for name in ("served_blocks", "blocks", "failures"))
        assert served > 0, "no block came from another broker"
        equal((missed, failed), (served, 0), "blocks that came from others, and failures")


@case
def a_node_is_drained_and_removed():
    with members() as m:
        nodes = [m.node(n) for n in (1, 2, 3)]
        m.begin(*nodes)
        four = m.node(4, zone="zone-1")
        m.create_topic()
        m.send()
        m.join(four)
        m.wait_whole()
        m.isobar("add", 4)
        m.send()
        refused = m.isobar("remove", 4, at=nodes[0], ok=False)
        assert "Drain the node first" in refused, refused
        m.send()
        said = m.isobar("drain", 4, at=nodes[0])
        assert "nothing needs it" in said, said
        equal(m.standing(nodes[0])[1][4]["wal"], "draining", "the WAL of node 4")
        m.stop(four)
        said = m.isobar("remove", 4, at=nodes[0])
        assert "is removed" in said, said
        del m.nodes[4]
        m.wait_whole()
        assert 4 not in m.standing(nodes[0])[1], "it is still shown"
        m.send()
        m.check()
        # With its old directory it is not let in again.
        four.start()
        time.sleep(3)
        assert 4 not in m.standing(nodes[0])[1], "a removed node is back"
        four.kill()
        m.check()


@case
def what_is_not_uploaded_gets_the_copy_that_a_lost_node_had():
    with members() as m:
        nodes = [m.node(n) for n in (1, 2, 3)]
        four = m.node(4, "broker,wal", zone="zone-1")
        for node in (*nodes, four):
            node.env["ISOBAR_UPLOAD_INTERVAL"] = "1h"
        m.begin(*nodes)
        m.create_topic()
        m.join(four)
        m.wait_whole()
        # Its own lanes have a replica on it. Clients of its zone write by it alone while the other broker there is away.
        m.stop(nodes[0])
        m.until("node 4 to write", lambda: m.send(40, zone="zone-1") or m.metric(four, "isobar_wal_chunks_total") > 5)
        nodes[0].start()
        m.wait_whole()
        m.kill(four)
        m.send()
        refused = m.isobar("remove", 4, at=nodes[0], ok=None)
        assert "may lie in the directory" in refused or "streams that are open" in refused, refused
        # It is needed no more once others have all that it had; nothing of that was uploaded.
        m.until("node 4 to be needed no more", lambda: "is removed" in m.isobar("remove", 4, ok=None))
        del m.nodes[4]
        equal(sum(m.metric(node, "isobar_upload_objects_total") for node in nodes), 0, "uploaded objects")
        assert sum(m.metric(node, "isobar_wal_filled_chunks_total") for node in nodes) > 0
        m.wait_whole()
        m.kill(nodes[0])
        m.check()
        m.send()
        m.check()


@case
def a_broker_that_joins_takes_its_share_from_running_clients():
    with members() as m:
        nodes = [m.node(n, zone="zone-1" if n == 1 else "zone-2") for n in (1, 2, 3)]
        m.begin(*nodes)
        m.create_topic(partitions=24)
        client = {"bootstrap.servers": m.bootstrap(), "client.id": "members,zone=zone-1"}
        failed, ended = [], threading.Event()

        def write():
            producer = Producer(client | {"enable.idempotence": True})
            while not ended.is_set():
                for partition in range(24):
                    producer.produce(TOPIC, b"v", partition=partition, on_delivery=lambda error, _: error and failed.append(error))
                producer.poll(0.02)
            failed.extend(["unanswered"] * producer.flush(30))

        def read():
            consumer = Consumer(client | {"group.id": "share", "auto.offset.reset": "earliest"})
            consumer.subscribe([TOPIC])
            while not ended.is_set():
                message = consumer.poll(0.1)
                if message is not None and message.error() is not None:
                    failed.append(message.error())
            consumer.close()

        clients = [threading.Thread(target=work) for work in (write, read)]
        for thread in clients:
            thread.start()
        try:
            time.sleep(3)
            four = m.node(4, "broker", zone="zone-1")
            m.join(four)
            began = time.monotonic()
            m.until("the new broker to serve", lambda: m.metric(four, "isobar_broker_records_in_total") > 0)
            m.until("the new broker to be read from", lambda: m.metric(four, "isobar_broker_record_out_bytes_total") > 0)
            print(f"its share after {time.monotonic() - began:.1f} s", flush=True)
            # It has its share, not all.
            before = {node.id: m.metric(node, "isobar_broker_records_in_total") for node in (nodes[0], four)}
            time.sleep(2)
            after = {node.id: m.metric(node, "isobar_broker_records_in_total") for node in (nodes[0], four)}
        finally:
            ended.set()
            for thread in clients:
                thread.join()
        equal(failed, [], "errors of clients")
        assert all(after[n] > before[n] for n in before), f"one of the two in the zone has no part: {before}, {after}"


@case
def every_role_on_nodes_of_its_own():
    with members() as m:
        metadata = [m.node(n, "metadata", f"zone-{n}") for n in (1, 2, 3)]
        wal = [m.node(n, "wal", f"zone-{n - 10}") for n in (11, 12, 13)]
        brokers = [m.node(n, "broker", f"zone-{n - 20}") for n in (21, 22)]
        m.init(*metadata, *wal, *brokers)
        m.create_topic()
        m.send()
        for node in (wal[0], metadata[0], brokers[0]):
            m.kill(node)
            m.send()
            node.start()
            m.wait_whole()
        m.check()
        assert "does not have the role metadata" in m.isobar("add", 21, ok=False)
        # A broker's directory is a cache: gone, it comes back by itself.
        m.kill(brokers[1])
        m.wipe(brokers[1])
        brokers[1].start()
        m.wait_whole()
        # A WAL replica's is not, but it has no vote: it comes back by itself, and the old one is given up by a command.
        m.kill(wal[1])
        m.wipe(wal[1])
        wal[1].start()
        m.until("a second directory", lambda: m.standing(metadata[0])[1].get(12, {}).get("wal") == "2 directories")
        m.isobar("replace", 12)
        m.wait_whole()
        m.send()
        m.check()
        # A new broker comes and goes.
        late = m.node(23, "broker", "zone-3")
        m.join(late)
        m.wait_whole()
        m.stop(brokers[0])
        m.send()
        m.check()


@case
def all_directories_gone_is_told_and_recovered():
    with members() as m:
        nodes = [m.node(n) for n in (1, 2, 3)]
        m.begin(*nodes)
        m.create_topic()
        m.send()
        # Uploads and the archive come every few seconds; with the second of three that stops they end.
        time.sleep(8)
        for node in nodes:
            node.send(signal.SIGTERM)
        for node in nodes:
            node.process.wait(60)
        old = m.directory / "old"
        old.mkdir()
        for node in nodes:
            node.data.rename(old / node.data.name)
        for node in nodes:
            node.start()
        m.until("a refusal", lambda: any("isobar recover" in node.tail() for node in nodes), 30)
        for node in nodes:
            node.kill()
            m.wipe(node)
        done = subprocess.run([BINARY, "recover", "--data", nodes[0].data, "--store", m.url, "--yes"], capture_output=True,
                              text=True, timeout=60, check=False)
        equal(done.returncode, 0, f"{done.stdout}{done.stderr}")
        m.voters = [1]
        for node in nodes:
            m.configure(node)
            node.start()
        m.until("the others", lambda: m.standing(nodes[0])[1].get(3, {}).get("metadata") == "learner"
                and m.standing(nodes[0])[1].get(2, {}).get("metadata") == "learner")
        for n in (2, 3):
            m.isobar("replace", n, at=nodes[0])
            m.isobar("add", n, at=nodes[0])
        m.wait_whole()
        m.check()
        m.send()
        m.check()
        # An old node that comes back finds that the cluster went on.
        m.kill(nodes[2])
        m.wipe(nodes[2])
        (old / nodes[2].data.name).rename(nodes[2].data)
        nodes[2].start()
        time.sleep(5)
        m.send()
        m.check()


if __name__ == "__main__":
    run(sys.argv[1:])
