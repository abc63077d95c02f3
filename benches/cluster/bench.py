"""Three nodes of Isobar beside three of Apache Kafka, in turn in one run. Started by run.sh, which builds what this needs.

Each node is a zone with its own network namespace on a bridge, so what crosses zones is counted where it leaves a node. Clients of
the measurements of latency, throughput and kills are at the bridge, in no zone; those of the bytes that cross are in the zones.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / part) for part in ("chaos", "benches/lib")]

import net  # noqa: E402
from confluent_kafka import Consumer, Producer  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402
from peers import NODES, REPO, Crossing, Isobar, Kafka, bootstrap, die_with_parent, in_zone  # noqa: E402
from results import described, output_of, say, table  # noqa: E402

GENERATOR, LOAD = os.environ["RDKAFKA_PERFORMANCE"], os.environ["LOAD"]
GIB = 2**30
PARTITIONS = 12
RECORD_BYTES = 1024
RATES = (1e6, 5e6, 20e6)
PRODUCER = ["enable.idempotence=true", "acks=all", "linger.ms=0"]
BULK_PRODUCER = ["enable.idempotence=true", "linger.ms=5", "queue.buffering.max.messages=1000000"]
ACTS = ("kill -9 of a node", "kill -9 of the leader of metadata", "SIGTERM")


def output(process, timeout):
    out, _ = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise RuntimeError(f"{process.args[0]} ended with {process.returncode}: {out[-2000:]}")
    return out


class Topics:
    def __init__(self, peer):
        self.admin, self.count = AdminClient({"bootstrap.servers": bootstrap(peer)}), 0

    def new(self, partitions=PARTITIONS):
        self.count += 1
        topic = f"bench-{self.count}"
        self.admin.create_topics([NewTopic(topic, partitions, len(NODES))])[topic].result(60)
        while len(self.admin.list_topics(topic, timeout=10).topics[topic].partitions) != partitions:
            time.sleep(0.1)
        time.sleep(1)  # Kafka answers before every partition stands
        return topic

    def delete(self, topic):
        self.admin.delete_topics([topic])[topic].result(60)
        time.sleep(3)
        subprocess.run(["sync"], check=True)


def latency(peer, topics, rate, seconds):
    topic = topics.new()
    command = [LOAD, "latency", bootstrap(peer), topic, str(PARTITIONS), str(rate), str(RECORD_BYTES), str(seconds), *PRODUCER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 200, check=True, preexec_fn=die_with_parent)
    topics.delete(topic)
    return json.loads(done.stdout.splitlines()[-1])


def throughput(peer, topics, gib):
    """MB/s of two producers, by the slower one's clock."""
    topic, count = topics.new(), int(gib * GIB / RECORD_BYTES / 2)
    command = [GENERATOR, "-P", "-t", topic, "-s", str(RECORD_BYTES), "-c", str(count), "-b", bootstrap(peer), "-a", "-1", "-q"]
    for pair in BULK_PRODUCER:
        command += ["-X", pair]
    producers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=die_with_parent)
                 for _ in range(2)]
    slowest_ms = 0
    for producer in producers:
        out, _ = producer.communicate(timeout=900)
        found = re.search(r"(\d+) delivered \(offset [^,]+, (\d+) failed\) in (\d+)ms", out)
        if not found or int(found[1]) != count or int(found[2]) != 0:
            raise RuntimeError(f"a producer did not deliver all of {count}: {out[-2000:]}")
        slowest_ms = max(slowest_ms, int(found[3]))
    topics.delete(topic)
    return 2 * count * RECORD_BYTES / slowest_ms / 1e3


def own_counts(peer):
    """Isobar's own counts, of all nodes: bytes sent to each other by channel, and reads of the WAL by where they were answered from."""
    found = {}
    if peer.kind == "isobar":
        for node in peer.cluster.nodes:
            text = urllib.request.urlopen(f"http://{node.admin}/metrics", timeout=10).read().decode()
            for name, value in re.findall(
                    r'^isobar_(rpc_sent_bytes_total\{channel="\w+"|wal_quorum_reads_total\{from="\w+")\} (\S+)', text, re.MULTILINE):
                label = name.split('"')[1]
                key = ("rpc" if name.startswith("rpc") else "reads", label)
                found[key] = found.get(key, 0) + float(value)
    return found


def crossing(peer, topics, rate, seconds):
    """In each zone a producer, and a consumer that reads what all zones write."""
    topic = topics.new()
    consumers = []
    for zone in NODES:
        command = [GENERATOR, "-G", f"crossing-{zone}", "-t", topic, "-b", bootstrap(peer, zone), "-X",
                   "auto.offset.reset=earliest"]
        for pair in peer.client(zone):
            command += ["-X", pair]
        # It says a lot: a pipe that nobody reads would hold it up.
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        consumers.append((in_zone(peer, zone, command, stdout=said), said))
    time.sleep(5)
    counted, before = Crossing(peer), own_counts(peer)
    producers = []
    for zone in NODES:
        pairs = [pair for pair in peer.client(zone) if pair.startswith("client.id")]
        command = [LOAD, "latency", bootstrap(peer, zone), topic, str(PARTITIONS), str(rate / len(NODES)), str(RECORD_BYTES),
                   str(seconds), "enable.idempotence=true", "linger.ms=5", *pairs]
        producers.append(in_zone(peer, zone, command))
    sent = sum(json.loads(output(producer, seconds + 100).splitlines()[-1])["sent"] for producer in producers)
    time.sleep(3)
    found = {"by": counted.bytes(), "produced_bytes": sent * RECORD_BYTES, "rpc": {}, "reads": {}}
    for (what, label), value in own_counts(peer).items():
        found[what][label] = value - before.get((what, label), 0)
    read = 0
    for consumer, said in consumers:
        consumer.send_signal(signal.SIGINT)
        consumer.wait(30)
        said.seek(0)
        counts = re.findall(r"% (\d+) messages \(", said.read())
        said.close()
        read += int(counts[-1]) if counts else 0
    found["read_records"], found["sent_records"] = read, sent
    topics.delete(topic)
    return found


class Felt:
    """A producer with defaults (idempotent), a consumer at the log's end, and a group of two: what they feel."""

    def __init__(self, peer, topics, rate):
        self.peer, self.topic, self.rate = peer, topics.new(), rate
        self.ended, self.errors, self.rebalances = threading.Event(), [], 0
        self.reset()
        self.threads = [threading.Thread(target=work, daemon=True)
                        for work in (self._produce, self._read, self._member, self._member)]
        for thread in self.threads:
            thread.start()
        time.sleep(10)

    def reset(self):
        now = time.monotonic()
        self.last_ack = self.last_read = now
        self.longest_wait = self.silence = self.gap = 0.0
        self.rebalances, self.acked, self.read = 0, 0, 0

    def _produce(self):
        producer = Producer({"bootstrap.servers": bootstrap(self.peer), "enable.idempotence": True, "linger.ms": 0,
                             "error_cb": lambda error: self.errors.append(str(error)) if error.fatal() else None})

        def told(sent):
            def delivered(error, _message):
                now = time.monotonic()
                if error is not None:
                    self.errors.append(str(error))
                self.silence, self.last_ack = max(self.silence, now - self.last_ack), now
                self.longest_wait = max(self.longest_wait, now - sent)
                self.acked += 1

            return delivered

        due, number = time.monotonic(), 0
        while not self.ended.is_set():
            producer.produce(self.topic, b"x" * 200, partition=number % PARTITIONS, on_delivery=told(time.monotonic()))
            number += 1
            due += 1 / self.rate
            producer.poll(max(0, due - time.monotonic()))
        producer.flush(60)

    def _read(self):
        consumer = Consumer({"bootstrap.servers": bootstrap(self.peer), "group.id": "alone", "enable.auto.commit": False,
                             "auto.offset.reset": "latest"})
        consumer.subscribe([self.topic])
        while not self.ended.is_set():
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                now = time.monotonic()
                self.gap, self.last_read = max(self.gap, now - self.last_read), now
                self.read += 1
        consumer.close()

    def _member(self):
        def assigned(_consumer, _partitions):
            self.rebalances += 1

        consumer = Consumer({"bootstrap.servers": bootstrap(self.peer), "group.id": "pair", "auto.offset.reset": "latest"})
        consumer.subscribe([self.topic], on_assign=assigned)
        while not self.ended.is_set():
            consumer.poll(0.2)
        consumer.close()

    def close(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(90)


class FeltByJava:
    """The same of Apache's client in Java: a producer and a group of two with defaults (tests/clients/java/src/Alive.java)."""

    SAID = re.compile(r"[1-9]\d* records; the longest that one waited (\d+) ms, the longest gap of a member (\d+) ms\n")

    def __init__(self, peer, topics):
        self.topics, self.topic = topics, topics.new()
        self.process = subprocess.Popen([REPO / "tests/clients/java/run.sh", bootstrap(peer), self.topic], env=os.environ | {"MAIN": "Alive"},
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        if (said := self.process.stdout.readline()) != "ready\n":
            raise RuntimeError(f"the client in Java: {said}{output(self.process, 60)}")
        # Its producer has only just begun.
        time.sleep(5)

    def end(self):
        """Its row: what was wrong (errors, a rebalance, records that were lost or came twice), and how long it waited."""
        *wrong, last = output(self.process, 180).splitlines(keepends=True)
        if not (said := self.SAID.fullmatch(last)):
            raise RuntimeError(f"the client in Java: {last}")
        self.topics.delete(self.topic)
        return {"java_wait_s": int(said[1]) / 1e3, "java_gap_s": int(said[2]) / 1e3, "java_wrong": [line.strip() for line in wrong]}


def kills(peer, topics, options):
    """[{act, longest silence of acknowledgements, longest wait of a record, longest gap of the reader, rebalances, errors, Java's}]"""
    felt, found = Felt(peer, topics, 500), []
    for number in range(options.kills):
        for act in ACTS:
            java = FeltByJava(peer, topics)
            leader = peer.leader()
            node = leader if "leader" in act else next(n for n in NODES[number % 3:] + NODES if n != leader)
            felt.reset()
            (peer.terminate if act == "SIGTERM" else peer.kill)(node)
            time.sleep(15)
            row = {"act": act, "silence_s": felt.silence, "wait_s": felt.longest_wait, "gap_s": felt.gap,
                   "rebalances": felt.rebalances, "errors": len(felt.errors), "acked": felt.acked}
            if felt.acked == 0 or felt.read == 0:
                raise RuntimeError(f"{peer.kind}: nothing went on after {act}")
            row |= java.end()
            peer.start(node)
            found.append(row)
            say(peer.kind, row)
            time.sleep(8)
    felt.close()
    topics.delete(felt.topic)
    return found


def records_in(node):
    """Taken from producers since it started; None while it does not answer."""
    try:
        text = urllib.request.urlopen(f"http://{node.admin}/metrics", timeout=5).read().decode()
    except OSError:
        return None
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0] == "isobar_broker_records_in_total")


def growth(peer, topics, rate, seconds=45, after_s=10):
    """A fourth node, a broker only, starts beside the one of zone 1 while a producer and a consumer of that zone run: when it has its
    share of them."""
    topic, zone = topics.new(48), peer.client(1)
    pairs = [word for pair in zone for word in ("-X", pair)]
    reader = subprocess.Popen([GENERATOR, "-G", "growth", "-t", topic, "-b", bootstrap(peer), "-q", *pairs],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
    command = [LOAD, "latency", bootstrap(peer), topic, "48", str(rate), str(RECORD_BYTES), str(seconds), *PRODUCER,
               *(pair for pair in zone if pair.startswith("client.id"))]
    load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=die_with_parent)
    time.sleep(after_s)
    before, began = net.sent_to(len(NODES) + 1), time.monotonic()
    four = peer.add_broker(len(NODES) + 1)
    nodes, counts, found = [*peer.cluster.nodes, four], [], {"first_s": None, "half_s": None}
    try:
        while time.monotonic() - began < 20:
            counted = [records_in(node) or 0 for node in nodes]
            now = time.monotonic() - began
            counts.append(counted)
            # Of what was taken in the last second or so.
            recent = [b - a for a, b in zip(counts[max(0, len(counts) - 6)], counted)]
            share = recent[-1] / max(1, sum(recent))
            if counted[-1] > 0 and found["first_s"] is None:
                found["first_s"] = now
            if share >= 0.25 and found["half_s"] is None:
                found["half_s"] = now
            time.sleep(0.2)
        found |= {"share": share, "entered_bytes": net.sent_to(len(NODES) + 1) - before, "produced_bytes": counted[-1] * RECORD_BYTES,
                  "after_s": time.monotonic() - began}
        found["load"] = json.loads(output(load, seconds + 100).splitlines()[-1])
    finally:
        reader.kill()
        reader.wait()
        four.send(signal.SIGTERM)
        four.process.wait(60)
    topics.delete(topic)
    return found


def measure(options, work):
    results = {"latency": [], "throughput": [], "crossing": {}, "kills": {}}
    # One more for the node that joins.
    network = net.Net(len(NODES) + 1)
    peers = []
    try:
        for kind in (Isobar, Kafka):
            if kind.kind in options.peers:
                say("starting", kind.kind)
                peers.append(kind(work, network))
        topics = {peer.kind: Topics(peer) for peer in peers}
        for peer in peers:
            say("warming", peer.kind)
            # A cold JVM gives a third of a warm one.
            throughput(peer, topics[peer.kind], options.warm_gib)
        for number in range(options.rounds):
            for rate in RATES:
                for peer in peers:
                    row = latency(peer, topics[peer.kind], rate, options.seconds)
                    results["latency"].append({"peer": peer.kind, "rate": rate, **row})
                    say(f"round {number + 1}: {peer.kind} at {rate / 1e6:g} MB/s: {row}")
            for peer in peers:
                mb_s = throughput(peer, topics[peer.kind], options.gib)
                results["throughput"].append({"peer": peer.kind, "mb_s": mb_s})
                say(f"round {number + 1}: {peer.kind}: {mb_s:.0f} MB/s")
        for peer in peers:
            results["crossing"][peer.kind] = crossing(peer, topics[peer.kind], 6e6, options.seconds)
            say(peer.kind, results["crossing"][peer.kind])
        for peer in peers:
            results["kills"][peer.kind] = kills(peer, topics[peer.kind], options)
            # Kafka's new broker has nothing until somebody moves partitions to it.
            if peer.kind == "isobar":
                results["growth"] = growth(peer, topics[peer.kind], 5e6)
                say(peer.kind, results["growth"])
    except BaseException:
        for log in sorted(pathlib.Path(work).glob("*/*.log")):
            print(f"-- {log} ends:", *log.read_text(errors="replace").splitlines()[-10:], sep="\n", file=sys.stderr)
        raise
    finally:
        for peer in peers:
            peer.stop()
    return results


NAMES = {"isobar": "Isobar, every acknowledgement synced on two nodes and in metadata",
         "kafka": "Kafka, acks=all, min.insync.replicas=2, never synced before the acknowledgement"}


def report(options, results):
    lines = ["# Three nodes: Isobar and Apache Kafka", "", f"Written by `benches/cluster/run.sh {' '.join(sys.argv[1:])}`.".replace(" `.", "`."), ""]
    lines += [*options.described, "", "## Acknowledgement latency, ms", ""]

    def middle(rows, key):
        return statistics.median(row[key] for row in rows)

    rows = []
    for rate in RATES:
        for name in options.peers:
            got = [row for row in results["latency"] if row["peer"] == name and row["rate"] == rate]
            figures = [f"{middle(got, key):.2f}" for key in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
            rows.append([f"{rate / 1e6:g} MB/s", NAMES[name], *figures, f"{middle(got, 'mb_s'):.1f}"])
    lines += table(["rate", "cluster", "p50", "p99", "p99.9", "max", "MB/s reached"], rows)
    lines += ["## Throughput", ""]
    rows = []
    for name in options.peers:
        got = [row["mb_s"] for row in results["throughput"] if row["peer"] == name]
        rows.append([NAMES[name], f"{statistics.median(got):.0f}", f"{max(got):.0f}"])
    lines += table(["cluster", "MB/s median", "best"], rows)
    lines += ["## Bytes between zones, for each byte produced", "",
              "In each zone a producer, and a consumer that reads what all zones write. Counted where packets leave a node, heads and"
              " all. The store is in no zone.", ""]
    rows = []
    for name in options.peers:
        found = results["crossing"][name]
        for what, count in [*found["by"].items(), *((f"of rpc: {c}", b) for c, b in sorted(found["rpc"].items()))]:
            rows.append([name, what, f"{count / found['produced_bytes']:.3f}"])
        rows.append([name, "**all**", f"**{sum(found['by'].values()) / found['produced_bytes']:.3f}**"])
        rows.append([name, "records read, for each one sent", f"{found['read_records'] / found['sent_records']:.2f}"])
        reads = sum(found["reads"].values())
        for where, count in sorted(found["reads"].items()):
            rows.append([name, f"reads of the WAL answered from: {where}", f"{count / reads:.1%}"])
    lines += table(["cluster", "what", "bytes a byte"], rows)
    lines += ["## What clients feel", "",
              "An idempotent librdkafka producer with defaults (500 records a second over twelve partitions), a consumer at the log's end,"
              " a group of two; beside them a producer of the same rate and a group of two in Java, with defaults. Worst of all rounds.", ""]
    rows = []
    for act in ACTS:
        for name in options.peers:
            got = [row for row in results["kills"][name] if row["act"] == act]
            rows.append([act, name, *(f"{max(row[key] for row in got):.2f}" for key in ("silence_s", "wait_s", "gap_s")),
                         str(sum(row["rebalances"] for row in got)), str(max(row["errors"] for row in got)),
                         *(f"{max(row[key] for row in got):.2f}" for key in ("java_wait_s", "java_gap_s")),
                         str(sum(len(row["java_wrong"]) for row in got))])
    lines += table(["what", "cluster", "longest silence of all partitions, s", "longest that a record waited, s",
                    "longest gap of the reader, s", "rebalances", "errors of clients", "Java: longest that a record waited, s",
                    "longest gap of a member, s", "errors and rebalances"], rows)
    if grown := results.get("growth"):
        seconds = lambda key: "never" if grown[key] is None else f"{grown[key]:.1f} s"  # noqa: E731
        lines += ["## A fourth node", "",
                  "A broker only, started in zone 1 while a producer (5 MB/s over 48 partitions) and a consumer of that zone ran, which"
                  " until then went to node 1. An even share is half. Times from the start of its process. A Kafka broker that joins"
                  " has nothing until somebody moves partitions to it.", ""]
        lines += table(["what", "figure"], [
            ["first records from the producer", seconds("first_s")],
            ["half of an even share of the records, or more", seconds("half_s")],
            ["its share in the end", f"{grown['share']:.0%}"],
            [f"bytes that entered it in {grown['after_s']:.0f} s, metadata and fetched tail among them", f"{grown['entered_bytes'] / 1e6:.1f} MB"],
            ["of these from the producer", f"{grown['produced_bytes'] / 1e6:.1f} MB"],
            ["longest that a record waited", f"{grown['load']['max_ms'] / 1e3:.2f} s"],
        ])
    return "\n".join(lines)


def described_both():
    return described(
        f"`isobar cluster init` with three nodes, defaults; store: versitygw {os.environ.get('VERSITYGW_VERSION', '')} on the same machine",
        f"Apache Kafka 4.3.1, three KRaft nodes with both roles, {output_of('java', '--version').splitlines()[0]}, `{' '.join(Kafka.JVM)}`, "
        "RF 3, min.insync.replicas 2, broker.rack, RackAwareReplicaSelector, else defaults",
        "Both stand all the time; one is under load at a time",
        "Clients: librdkafka 2.12.1, and Apache's 4.3.1 in Java where it is named. Latency: open loop, 1 KiB records, twelve partitions, " + ", ".join(f"`{p}`" for p in PRODUCER)
        + ". Throughput: two producers, " + ", ".join(f"`{p}`" for p in BULK_PRODUCER))


def main():
    parser = argparse.ArgumentParser(description="Three nodes of Isobar beside three of Apache Kafka, in turn in one run.")
    parser.add_argument("--rounds", type=int, default=3, help="of latency and throughput")
    parser.add_argument("--seconds", type=int, default=20, help="of each latency and of the bytes that cross zones")
    parser.add_argument("--gib", type=float, default=1.0, help="sent in each round of throughput")
    parser.add_argument("--warm-gib", type=float, default=2.0, help="sent to each cluster first")
    parser.add_argument("--kills", type=int, default=3, help="rounds of kills and a SIGTERM")
    parser.add_argument("--short", action="store_true", help="everything once and little of it, to see whether it runs")
    parser.add_argument("--peers", default="isobar,kafka")
    parser.add_argument("--work", help="where nodes keep their data; removed at the end")
    parser.add_argument("--out", help="results file; results.md beside this file for a full run")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.seconds, options.gib, options.warm_gib, options.kills = 1, 5, 0.1, 0.2, 1
    options.peers = options.peers.split(",")
    if why := net.missing():
        sys.exit(f"nodes cannot have networks of their own here: {why}")
    net.enter_own()
    default = REPO / "benches/cluster/results.md" if not options.short and len(options.peers) == 2 else "/tmp/isobar-bench-cluster.md"
    results_file = pathlib.Path(options.out or default)
    options.described = described_both()
    work = tempfile.mkdtemp(prefix="isobar-bench-", dir=options.work)
    try:
        results = measure(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    results_file.write_text(report(options, results))
    results_file.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {results_file}")
    # Clients that hang must not hold the end.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
