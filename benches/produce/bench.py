"""Isobar against Apache Kafka on this machine, in turn in one run. Started by run.sh, which builds what this needs.

Throughput: two rdkafka_performance processes, idempotent, acks=all. Latency: `load latency`, open loop. A round's data is
deleted, and what is left of it written to disk, before the next one starts.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests/lib"))

from broker import Broker, die_with_parent  # noqa: E402
from confluent_kafka import KafkaException  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

GENERATOR = os.environ["RDKAFKA_PERFORMANCE"]
LOAD = os.environ["LOAD"]
GIB = 2**30
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

# As Kafka's own start script sets them; deleted data goes after a second, so that the disk does not fill.
KAFKA_JVM = ["-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
             "-XX:+ExplicitGCInvokesConcurrent"]
KAFKA_PROPERTIES = {"log.segment.delete.delay.ms": "1000", "auto.create.topics.enable": "false"}
PRODUCER = ["enable.idempotence=true", "linger.ms=5", "queue.buffering.max.messages=2000000",
            "queue.buffering.max.kbytes=2097151"]
LATENCY_PRODUCER = ["enable.idempotence=true", "acks=all", "linger.ms=0"]
PEERS = {
    "isobar": ("isobar", {}, "Isobar, every acknowledgement synced"),
    "kafka": ("kafka", {}, "Kafka, default flush (never synced before the acknowledgement)"),
    "kafka-flush": ("kafka", {"flush.messages": "1"}, "Kafka, flush.messages=1"),
}
# (record bytes, partitions) -> GiB sent in one round by each peer; Kafka's synced rounds are slower.
SCENARIOS = [(1024, 1), (1024, 100), (100, 1), (100, 100)]
VOLUME = {1024: 4.0, 100: 1.0}
VOLUME_FLUSH = {1024: 1.5, 100: 0.5}
DATA_BOUND = 12 * GIB


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_bytes(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def mib(count):
    return count / 2**20


class Peak:
    """The highest RSS of a process while this is open."""

    def __init__(self, pid):
        self.pid = pid
        self.bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self):
        while not self._end.wait(0.05):
            self.bytes = max(self.bytes, rss_bytes(self.pid))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._end.set()
        self._thread.join()


class Peer:
    """One broker process and the topics made on it."""

    def __init__(self, kind, work, name=None):
        self.kind = kind
        self.data = pathlib.Path(work) / (name or kind)
        # Wiped data is a new broker on the same ports.
        self.broker = Broker(
            peer=kind, data=self.data, log=f"{self.data}.log", jvm=KAFKA_JVM, properties=KAFKA_PROPERTIES
        )
        self.count = 0
        self.broker.start()

    @property
    def pid(self):
        return self.broker.pid

    @property
    def bootstrap(self):
        return self.broker.bootstrap

    def create(self, partitions, config):
        self.count += 1
        topic = f"bench-{self.count}"
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(60)
        deadline = time.monotonic() + 30
        while len(admin.list_topics(topic, timeout=10).topics[topic].partitions) != partitions:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{topic} has not got its {partitions} partitions")
            time.sleep(0.1)
        time.sleep(0.5)  # Kafka answers before every partition stands
        return topic

    def delete(self, topic):
        """Deletes the topic; waits until the process is quiet and the disk has nothing left to write."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        try:
            admin.delete_topics([topic])[topic].result(60)
        except KafkaException as e:
            raise RuntimeError(f"deleting {topic}: {e}") from e
        time.sleep(2)
        self.quiet()
        if self.data_bytes() > DATA_BOUND:
            self.restart_empty()
        subprocess.run(["sync"], check=True)

    def data_bytes(self):
        out = subprocess.run(["du", "-s", "-B1", str(self.data)], capture_output=True, text=True, check=False).stdout
        return int(out.split()[0])

    def restart_empty(self):
        self.broker.stop()
        shutil.rmtree(self.data)
        self.broker.start()

    def quiet(self, seconds=60):
        """Until it uses less than 3 % of a core; CPU seconds that took."""
        start = before = cpu_seconds(self.pid)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(1)
            now = cpu_seconds(self.pid)
            if now - before < 0.03:
                return now - start
            before = now
        return before - start

    def stop(self):
        self.broker.stop()
        shutil.rmtree(self.data, ignore_errors=True)


def throughput(peer, config, size, partitions, gib):
    """One round: MB/s by the slower producer's clock, CPU and memory of the broker."""
    topic = peer.create(partitions, config)
    count = int(gib * GIB / size / 2)
    command = [GENERATOR, "-P", "-t", topic, "-s", str(size), "-c", str(count), "-b", peer.bootstrap, "-a", "-1", "-q"]
    for pair in PRODUCER:
        command += ["-X", pair]
    before = cpu_seconds(peer.pid)
    with Peak(peer.pid) as peak:
        producers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             preexec_fn=die_with_parent)
            for _ in range(2)
        ]
        outputs = [p.communicate(timeout=600)[0] for p in producers]
    during = cpu_seconds(peer.pid) - before
    after = peer.quiet()
    slowest = 0
    for producer, output in zip(producers, outputs):
        found = re.search(r"(\d+) delivered \(offset [^,]+, (\d+) failed\) in (\d+)ms", output)
        # Not its exit code: now and then it miscounts what it has produced by one.
        if not found or int(found.group(1)) != count or int(found.group(2)) != 0:
            raise RuntimeError(f"a producer did not deliver all of {count}:\n{output}")
        slowest = max(slowest, int(found.group(3)))
    sent = 2 * count * size
    peer.delete(topic)
    return {
        "mb_s": sent / slowest / 1e3, "cpu_s_gib": during / (sent / GIB), "cpu_after_s_gib": after / (sent / GIB),
        "peak_mib": mib(peak.bytes),
    }


def latency(peer, config, rate, seconds):
    topic = peer.create(1, config)
    command = [LOAD, "latency", peer.bootstrap, topic, "1", str(rate), "1024", str(seconds), *LATENCY_PRODUCER]
    with Peak(peer.pid) as peak:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 200, check=False, preexec_fn=die_with_parent
        )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    peer.delete(topic)
    return {**json.loads(done.stdout.splitlines()[-1]), "peak_mib": mib(peak.bytes)}


def bare(work, rate, seconds):
    """What the machine itself takes for the two synced writes that stand before an acknowledgement."""
    command = [LOAD, "bare", str(work), str(rate), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=die_with_parent)
    return json.loads(done.stdout.splitlines()[-1])


def first_ack(kind, work, times):
    """Milliseconds from exec to the first acknowledgement on a directory that holds data: after SIGTERM, after SIGKILL.
    The client is there first and tries again every few milliseconds."""
    peer = Peer(kind, work, f"{kind}-start")
    topic = peer.create(1, {})
    fill = [GENERATOR, "-P", "-t", topic, "-s", "1024", "-c", "200000", "-b", peer.bootstrap, "-a", "-1", "-q"]
    subprocess.run(fill, check=True, capture_output=True, preexec_fn=die_with_parent)
    result = {"term_ms": [], "kill_ms": []}
    for name in ("term_ms", "kill_ms"):
        for _ in range(times):
            if name == "term_ms":
                peer.broker.stop()
            else:
                peer.broker.kill()
            client = subprocess.Popen(
                [LOAD, "first-ack", peer.bootstrap, topic, "acks=all", "linger.ms=0", "reconnect.backoff.ms=5",
                 "reconnect.backoff.max.ms=10", "topic.metadata.refresh.fast.interval.ms=10", "retry.backoff.ms=10",
                 "log_level=0"],
                stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent,
            )
            time.sleep(0.3)
            peer.broker.start(wait=False)
            out, _ = client.communicate(timeout=120)
            result[name].append((float(out) - peer.broker.started_at) * 1e3)
            peer.broker.wait_ready()
    peer.stop()
    return result


def memory_at_rest(kind, work):
    """RSS of a fresh process five seconds after it is ready, and the same again after load and rest."""
    peer = Peer(kind, work, f"{kind}-rest")
    time.sleep(5)
    fresh = mib(rss_bytes(peer.pid))
    throughput(peer, {}, 1024, 100, 1.0)
    time.sleep(10)
    after = mib(rss_bytes(peer.pid))
    peer.stop()
    return {"fresh_mib": fresh, "after_load_mib": after}


def measure(options, work):
    peers = {}
    chosen = [p for p in PEERS if p in options.peers]
    for name in chosen:
        kind = PEERS[name][0]
        if kind not in peers:
            peers[kind] = Peer(kind, work)

    def each(what):
        for name in chosen:
            kind, config, _ = PEERS[name]
            print(f"{datetime.datetime.now():%H:%M:%S} {what} {name}", file=sys.stderr, flush=True)
            yield name, peers[kind], config

    results = {"throughput": [], "latency": [], "bare": [], "first_ack": {}, "memory": {}, "warmed_gib": {}}
    for kind, peer in peers.items():
        # A cold JVM gives a third of a warm one.
        warm = options.warm_gib
        print(f"warming {kind} with {warm:g} GiB", file=sys.stderr, flush=True)
        for size, partitions in SCENARIOS:
            share = warm * (0.4 if size == 1024 else 0.1)
            throughput(peer, {}, size, partitions, share)
        if "kafka-flush" in chosen and kind == "kafka":
            throughput(peer, PEERS["kafka-flush"][1], 1024, 1, options.scale * 1.0)
        results["warmed_gib"][kind] = warm
    for number in range(options.rounds):
        for size, partitions in SCENARIOS:
            for name, peer, config in each(f"round {number + 1}: {size} B, {partitions} partitions:"):
                gib = (VOLUME_FLUSH if name == "kafka-flush" else VOLUME)[size] * options.scale
                row = throughput(peer, config, size, partitions, gib)
                results["throughput"].append({"peer": name, "size": size, "partitions": partitions, **row})
                print(f"    {row['mb_s']:.0f} MB/s, {row['cpu_s_gib']:.2f} CPU s/GiB", file=sys.stderr, flush=True)
    for _ in range(options.latency_rounds):
        for rate in (5e6, 50e6):
            results["bare"].append({"rate": rate, **bare(work, rate, options.latency_seconds)})
            for name, peer, config in each(f"latency at {rate / 1e6:g} MB/s:"):
                row = latency(peer, config, rate, options.latency_seconds)
                results["latency"].append({"peer": name, "rate": rate, **row})
                print(f"    p50 {row['p50_ms']} p99 {row['p99_ms']} p99.9 {row['p999_ms']} ms", file=sys.stderr, flush=True)
    for peer in peers.values():
        peer.stop()
    for kind in peers:
        print(f"start and memory of {kind}", file=sys.stderr, flush=True)
        results["first_ack"][kind] = first_ack(kind, work, options.starts)
        results["memory"][kind] = memory_at_rest(kind, work)
    return results


def described():
    def out(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()

    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) / 2**20
    dirty = " with uncommitted changes" if out("git", "status", "--porcelain", "--", "crates", "Cargo.lock") else ""
    return [
        f"- Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC; load average at the start"
        f" {os.getloadavg()[0]:.2f}",
        f"- Machine: {os.cpu_count()} cores, {cpu.group(1) if cpu else 'unknown'}, {memory:.0f} GiB of memory, kernel "
        f"{platform.release()}, {out('findmnt', '-n', '-o', 'FSTYPE', '-T', tempfile.gettempdir())} on a virtual disk; "
        "broker and generators share it",
        f"- Isobar {out('git', 'rev-parse', '--short=12', 'HEAD')}{dirty}, release build, `isobar dev`",
        f"- Apache Kafka 4.3.1, one KRaft node, {out('java', '--version').splitlines()[0]}, 1 GiB of heap, "
        f"`{' '.join(KAFKA_JVM)}`, and {', '.join(f'`{k}={v}`' for k, v in KAFKA_PROPERTIES.items())}",
        "- Generator: librdkafka 2.12.1. Throughput: two `rdkafka_performance -P -a -1 -s SIZE "
        + " ".join(f"-X {p}" for p in PRODUCER) + "`; MB/s is all bytes of values by the slower one's clock",
        "- Latency: `load latency`, open loop, 1 KiB records, one partition, " + ", ".join(f"`{p}`" for p in LATENCY_PRODUCER)
        + "; from when a record was due to its acknowledgement. *late*: records that the generator itself sent over 1 ms"
        " after they were due",
        "- CPU: the broker's user and system time during the round; *after*: more of it until it was quiet again",
    ]


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "--|" * len(head), *("| " + " | ".join(r) + " |" for r in rows), ""]


def report(options, results):
    lines = ["# Producing: Isobar and Apache Kafka", "", f"Written by `benches/produce/run.sh {' '.join(sys.argv[1:])}`."]
    lines[-1] = lines[-1].replace(" `.", "`.")
    lines += ["", *options.described]
    warmed = ", ".join(f"{kind} with {gib:g} GiB" for kind, gib in results["warmed_gib"].items())
    lines += [f"- Warmed before the first round: {warmed}", ""]
    names = {n: text for n, (_, _, text) in PEERS.items() if n in options.peers}

    def of(kind, **wanted):
        return [r for r in results[kind] if all(r[k] == v for k, v in wanted.items())]

    def middle(rows, key):
        return statistics.median(r[key] for r in rows)

    lines += ["## Throughput", ""]
    rows = []
    for size, partitions in SCENARIOS:
        for name in names:
            got = of("throughput", peer=name, size=size, partitions=partitions)
            if got:
                rows.append([
                    f"{size} B", str(partitions), names[name], f"{middle(got, 'mb_s'):.0f}",
                    f"{max(r['mb_s'] for r in got):.0f}", f"{middle(got, 'cpu_s_gib'):.2f}",
                    f"{middle(got, 'cpu_after_s_gib'):.2f}", f"{max(r['peak_mib'] for r in got):.0f}",
                ])
    lines += table(["record", "partitions", "broker", "MB/s median", "best", "CPU s/GiB", "after", "peak RSS MiB"], rows)

    lines += ["## Acknowledgement latency, ms", ""]
    rows = []
    for rate in (5e6, 50e6):
        of_machine = of("bare", rate=rate)
        for what, prefix in (("*machine: a timer*", "timer_"), ("*machine: two synced writes, one after the other*", "")):
            if of_machine:
                figures = [f"{middle(of_machine, prefix + k):.2f}" for k in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
                rows.append([f"{rate / 1e6:g} MB/s", what, *figures, "", ""])
        for name in names:
            got = of("latency", peer=name, rate=rate)
            if got:
                rows.append([
                    f"{rate / 1e6:g} MB/s", names[name], *(f"{middle(got, k):.2f}" for k in ("p50_ms", "p99_ms", "p999_ms", "max_ms")),
                    f"{middle(got, 'mb_s'):.1f}", f"{max(r['late'] / r['sent'] for r in got):.2%}",
                ])
    lines += table(["rate", "broker", "p50", "p99", "p99.9", "max", "MB/s reached", "late"], rows)
    lines += [
        "Each figure is the median over the rounds. *machine*: the same rounds without a broker. How late a process wakes"
        " that asked for the next millisecond, and what O_DIRECT writes of that millisecond's bytes to two files take, each"
        " synced before the next: an acknowledgement of Isobar waits for WAL and metadata log in that order.",
        "", "## Start and memory", ""]
    rows = []
    for kind, starts in results["first_ack"].items():
        rest = results["memory"][kind]
        rows.append([
            kind, f"{statistics.median(starts['term_ms']):.0f} / {max(starts['term_ms']):.0f}",
            f"{statistics.median(starts['kill_ms']):.0f} / {max(starts['kill_ms']):.0f}",
            f"{rest['fresh_mib']:.0f}", f"{rest['after_load_mib']:.0f}",
        ])
    lines += table(["broker", "exec to first acknowledgement after SIGTERM, ms (median / worst)", "after SIGKILL",
                    "RSS MiB at rest, fresh", "at rest after load"], rows)
    lines += aims(of)
    lines += ["## Every round", ""]
    rows = [
        [f"{r['size']} B", str(r["partitions"]), r["peer"], f"{r['mb_s']:.0f}", f"{r['cpu_s_gib']:.2f}",
         f"{r['cpu_after_s_gib']:.2f}", f"{r['peak_mib']:.0f}"]
        for r in results["throughput"]
    ]
    lines += table(["record", "partitions", "broker", "MB/s", "CPU s/GiB", "after", "peak RSS MiB"], rows)
    rows = [
        [f"{r['rate'] / 1e6:g} MB/s", r["peer"], *(f"{r[k]:.2f}" for k in ("p50_ms", "p99_ms", "p999_ms", "max_ms")),
         f"{r['mb_s']:.1f}", str(r["late"]), f"{r['peak_mib']:.0f}"]
        for r in results["latency"]
    ]
    lines += table(["rate", "broker", "p50", "p99", "p99.9", "max", "MB/s", "late", "peak RSS MiB"], rows)
    for kind, starts in results["first_ack"].items():
        for name, what in (("term_ms", "SIGTERM"), ("kill_ms", "SIGKILL")):
            lines.append(f"- {kind}, first acknowledgement after {what}, ms: " + ", ".join(f"{v:.0f}" for v in starts[name]))
    return "\n".join(lines) + "\n"


def aims(of):
    """What was aimed at, beside what was measured; only when all three were."""
    rows = []

    def row(what, got, aim, good):
        rows.append([what, got, aim, "yes" if good else "**no**"])

    for partitions in (1, 100):
        ours = of("throughput", peer="isobar", size=1024, partitions=partitions)
        plain = of("throughput", peer="kafka", size=1024, partitions=partitions)
        synced = of("throughput", peer="kafka-flush", size=1024, partitions=partitions)
        if not (ours and plain and synced):
            return []
        mine = statistics.median(r["mb_s"] for r in ours)
        best = max(r["mb_s"] for r in plain)
        median = statistics.median(r["mb_s"] for r in plain)
        where = f"1 KiB, {partitions} partition{'s' * (partitions > 1)}"
        row(f"{where}: median, by Kafka's best unsynced round", f"{mine / best:.2f}", "1.00", mine >= best)
        row(f"{where}: median, by Kafka's unsynced median", f"{mine / median:.2f}", "1.25", mine >= 1.25 * median)
        if partitions == 1:
            flushed = statistics.median(r["mb_s"] for r in synced)
            row(f"{where}: median, by Kafka's synced median", f"{mine / flushed:.2f}", "4.00", mine >= 4 * flushed)
        cpu = statistics.median(r["cpu_s_gib"] for r in ours) / statistics.median(r["cpu_s_gib"] for r in plain)
        row(f"{where}: CPU per GiB, by Kafka's unsynced", f"{cpu:.2f}", "at most 0.40", cpu <= 0.4)
    ours, synced = of("latency", peer="isobar", rate=5e6), of("latency", peer="kafka-flush", rate=5e6)
    if ours and synced:
        p99 = statistics.median(r["p99_ms"] for r in ours)
        theirs = statistics.median(r["p99_ms"] for r in synced)
        machine = statistics.median(r["p99_ms"] for r in of("bare", rate=5e6))
        row(f"p99 at 5 MB/s (machine alone: {machine:.2f} ms)", f"{p99:.2f} ms", f"at most 2 ms and below {theirs:.2f}", p99 <= 2 and p99 < theirs)
    return ["## Aims", "", *table(["what", "measured", "aim", "reached"], rows)]


def main():
    parser = argparse.ArgumentParser(description="Isobar against Apache Kafka, in turn, on this machine.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency-rounds", type=int, default=3)
    parser.add_argument("--latency-seconds", type=int, default=20)
    parser.add_argument("--starts", type=int, default=5, help="starts measured after SIGTERM and after SIGKILL")
    parser.add_argument("--warm-gib", type=float, default=8.0, help="sent to each broker before the first round")
    parser.add_argument("--scale", type=float, default=1.0, help="of the GiB a round sends")
    parser.add_argument("--short", action="store_true", help="everything once and little of it, to see whether it runs")
    parser.add_argument("--without-isobar", action="store_true", help="calibrate the peers alone")
    parser.add_argument("--peers", default=",".join(PEERS), help="some of: " + ", ".join(PEERS))
    parser.add_argument("--work", help="where brokers keep their data; removed at the end")
    parser.add_argument("--out", help="results file; results.md beside this file for a full run")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.latency_rounds, options.latency_seconds = 1, 1, 5
        options.starts, options.warm_gib, options.scale = 2, 0.5, 0.125
    options.peers = [p for p in options.peers.split(",") if not (options.without_isobar and p == "isobar")]
    full = not options.short and set(options.peers) == set(PEERS)
    out = pathlib.Path(options.out or (REPO / "benches/produce/results.md" if full else "/tmp/isobar-bench-results.md"))
    options.described = described()
    work = tempfile.mkdtemp(prefix="isobar-bench-", dir=options.work)
    try:
        results = measure(options, work)
    except BaseException:
        for log in pathlib.Path(work).glob("*.log"):
            print(f"-- {log.name} ends:", *log.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    out.write_text(report(options, results))
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
