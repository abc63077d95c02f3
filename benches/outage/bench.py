"""What an outage of the store does to those who write and read, and how it is caught up. Started by run.sh, which builds what this needs.

Three nodes, each a zone with a network of its own (chaos/net.py), on versitygw behind the proxy that makes the faults. A phase is a
number of slices; in each a producer in an open loop, beside one consumer that reads at the end of the log all the time.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "chaos"), str(REPO / "tests/lib"), str(REPO / "benches/lib")]

import net  # noqa: E402
from broker import die_with_parent  # noqa: E402
from cluster import Cluster  # noqa: E402
from confluent_kafka import Consumer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402
from ramdisk import memory_gib, ramdisk  # noqa: E402
from results import described, say, table  # noqa: E402

LOAD, GENERATOR = os.environ["LOAD"], os.environ["RDKAFKA_PERFORMANCE"]
TOPIC, PARTITIONS = "outage", 12
# What a reader in Python keeps up with, beside all that runs here.
AT_THE_TAIL = range(3)
# More of it would leave too little for the nodes.
ZRAM_MEMORY_GIB = 14
PRODUCER = ["enable.idempotence=true", "acks=all", "linger.ms=5", "queue.buffering.max.messages=1000000"]


class Tail:
    """Reads some partitions at their ends all the time: how old records are when they come, and whether each offset follows the last."""

    def __init__(self, cluster, partitions):
        self.consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "tail", "enable.auto.commit": False,
                                  "auto.offset.reset": "earliest", "fetch.wait.max.ms": 100})
        self.consumer.assign([TopicPartition(TOPIC, p, 0) for p in partitions])
        # A client of its own: asked of one that reads in another thread, this one's `consume` never came back.
        self.asker = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "asker"})
        self.next, self.ages_ms, self.gap_s, self.holes, self.last = dict.fromkeys(partitions, 0), [], 0.0, 0, time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.ended.is_set():
            messages = self.consumer.consume(1, 0.2)
            if not messages:
                continue
            # Those that are there already: waiting for more of them would make them older.
            messages += self.consumer.consume(2000, 0)
            now, wall_ms = time.monotonic(), time.time() * 1e3
            self.gap_s, self.last = max(self.gap_s, now - self.last), now
            for message in messages:
                if message.error():
                    continue
                p, offset = message.partition(), message.offset()
                self.holes += offset != self.next[p]
                self.next[p] = offset + 1
            self.ages_ms += [wall_ms - message.timestamp()[1] for message in messages[::50] if not message.error()]

    def begin(self):
        self.ages_ms, self.gap_s, self.last = [], 0.0, time.monotonic()

    def figures(self):
        ages = sorted(self.ages_ms) or [float("nan")]
        return {"read_p50_ms": ages[len(ages) // 2], "read_p99_ms": ages[int(0.99 * len(ages))], "read_gap_s": self.gap_s}

    def is_at_the_end(self):
        return self.ends(self.next) == self.next

    def ends(self, partitions):
        return {p: self.asker.get_watermark_offsets(TopicPartition(TOPIC, p), timeout=30)[1] for p in partitions}

    def close(self):
        self.ended.set()
        self.thread.join(30)
        self.consumer.close()
        self.asker.close()


class Run:
    def __init__(self, options, work):
        self.options, self.slices, self.sent = options, [], 0
        wal_bytes = int(options.wal_gib * 2**30)
        self.cluster = Cluster(work, store="s3", net=net.Net(3), settings={"ISOBAR_WAL_MAX_DISK": str(wal_bytes)})
        self.cluster.start()
        admin = AdminClient({"bootstrap.servers": self.cluster.bootstrap})
        admin.create_topics([NewTopic(TOPIC, PARTITIONS, 3)])[TOPIC].result(60)

    def waiting_bytes(self):
        """In the WAL and not uploaded yet, as the image says, which every broker has."""
        return max((self._of(node, "isobar_upload_waiting_bytes") for node in self.cluster.nodes if node.alive), default=0.0)

    @staticmethod
    def _of(node, name):
        try:
            text = urllib.request.urlopen(f"http://{node.admin}/metrics", timeout=10).read().decode()
        except OSError:
            return 0.0
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " "))

    def limit_mb_s(self):
        """What two producers with batches get through."""
        size = self.options.record_bytes
        count = int(self.options.limit_gib * 2**30 / size / 2)
        command = [GENERATOR, "-P", "-t", TOPIC, "-s", str(size), "-c", str(count), "-b", self.cluster.bootstrap, "-a", "-1", "-q"]
        for pair in PRODUCER:
            if not pair.startswith("acks"):
                command += ["-X", pair]
        began = time.monotonic()
        for producer in [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
                         for _ in range(2)]:
            if producer.wait(900) != 0:
                raise RuntimeError("a producer failed")
        self.sent += 2 * count
        return 2 * count * size / (time.monotonic() - began) / 1e6

    def slice(self, phase, mb_s, seconds, tail):
        tail.begin()
        command = [LOAD, "latency", self.cluster.bootstrap, TOPIC, str(PARTITIONS), str(mb_s * 1e6),
                   str(self.options.record_bytes), str(seconds), *PRODUCER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300, check=False, preexec_fn=die_with_parent)
        if done.returncode != 0:
            raise RuntimeError(f"{phase}: {done.stdout[-500:]}{done.stderr[-500:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        # One to each partition before the clock starts.
        self.sent += row["sent"] + PARTITIONS
        row |= {"phase": phase, "asked_mb_s": mb_s, "waiting_gib": self.waiting_bytes() / 2**30, **tail.figures()}
        self.slices.append(row)
        say(row)

    def free_bytes(self):
        return shutil.disk_usage(self.cluster.directory).free * 0.8

    def caught_up(self, most_s=1800):
        """Seconds until nearly nothing waits for its upload."""
        began = time.monotonic()
        while self.waiting_bytes() > 64 << 20:
            if time.monotonic() - began > most_s:
                raise RuntimeError(f"{self.waiting_bytes():.0f} bytes still wait for their upload after {most_s} s")
            time.sleep(0.5)
        return time.monotonic() - began

    def lose(self, node):
        """For good: the process, and all that its disk held."""
        node.send(signal.SIGKILL)
        node.process.wait(60)
        shutil.rmtree(node.data)

    def replace(self, node):
        began = time.monotonic()
        node.data.mkdir()
        node.start()
        while True:
            code, said = self.cluster.command(self.cluster.nodes[0], "replace", str(node.id))
            if code == 0 and "not taken out yet" not in said:
                break
            if time.monotonic() - began > 300:
                raise RuntimeError(f"not replaced: {said}")
            time.sleep(1)
        self.cluster.wait_whole(300)
        return time.monotonic() - began

    def phases(self):
        o, proxy, found = self.options, self.cluster.store.proxy, {}
        found["limit_mb_s"] = limit = self.limit_mb_s()
        say(f"write limit {limit:.0f} MB/s")
        found["caught_up_first_s"] = self.caught_up()
        # What waits lies on three nodes, then on two; all of it comes to the store, and what is sent before and after.
        part, others_s = o.lost_after / 100, (3 * o.before + 2) * o.slice_s
        can_hold = self.free_bytes() / ((3 * part + 2 * (1 - part) + 1) * o.away_s + others_s) / 1e6
        found["rate_mb_s"] = rate = min(limit / 2, can_hold)
        tail = Tail(self.cluster, AT_THE_TAIL)
        while not tail.is_at_the_end():
            time.sleep(0.2)
        for _ in range(o.before):
            self.slice("before", rate, o.slice_s, tail)
        proxy.set(stopped_s=1e6)
        lost = self.cluster.nodes[2]
        for number in range(o.away_s // o.slice_s):
            if number == o.away_s // o.slice_s * o.lost_after // 100:
                self.lose(lost)
                say("a node is lost")
            self.slice("store away" + (", a node lost" if not lost.alive else ""), rate, o.slice_s, tail)
        found["most_waiting_gib"] = self.waiting_bytes() / 2**30
        proxy.set()
        began = time.monotonic()
        self.slice("catching up", rate, o.slice_s, tail)
        found["caught_up_s"] = time.monotonic() - began + self.caught_up()
        found["replaced_s"] = self.replace(lost)
        for _ in range(o.before):
            self.slice("after", rate, o.slice_s, tail)
        proxy.set(storm=0.9)
        for _ in range(o.before):
            self.slice("nine of ten requests answered by 503", rate, o.slice_s, tail)
        proxy.set()
        found["caught_up_storm_s"] = self.caught_up()
        found |= self.judge(tail)
        return found

    def judge(self, tail):
        """Whether everything that was acknowledged is there, once, by the counts; the tail reader saw each offset in turn."""
        deadline = time.monotonic() + 120
        while not (ended := tail.is_at_the_end()) and time.monotonic() < deadline:
            time.sleep(0.2)
        written = sum(tail.ends(range(PARTITIONS)).values())
        tail.close()
        say("reading everything again, from the store")
        began = time.monotonic()
        command = [GENERATOR, "-G", "again", "-t", TOPIC, "-c", str(self.sent), "-b", self.cluster.bootstrap, "-q",
                   "-X", "auto.offset.reset=earliest"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1800, check=True, preexec_fn=die_with_parent)
        return {"sent": self.sent, "tail_ended": ended, "written": written, "again_s": time.monotonic() - began, "holes": tail.holes}


def report(options, run, found):
    lines = ["# The store is away", "", f"Written by `benches/outage/run.sh {' '.join(sys.argv[1:])}`.".replace(" `.", "`."), "", *options.described, ""]
    half = found["limit_mb_s"] / 2
    lines += [f"The write limit, two producers with batches of {options.record_bytes}-byte records: {found['limit_mb_s']:.0f} MB/s. The store is"
              f" away for {options.away_s} s at " + ("half of it" if found["rate_mb_s"] >= half else
              f"{found['rate_mb_s']:.0f} MB/s, which is what this machine's disk can hold of three copies") + ".", ""]
    rows, phases = [], list(dict.fromkeys(row["phase"] for row in run.slices))
    for phase in phases:
        got = [row for row in run.slices if row["phase"] == phase]
        figures = [f"{statistics.median(row[key] for row in got):.1f}" for key in ("p50_ms", "p99_ms", "read_p50_ms", "read_p99_ms")]
        worst = [f"{max(row[key] for row in got):.0f}" for key in ("max_ms",)] + [f"{max(row['read_gap_s'] for row in got):.1f}"]
        rows.append([phase, str(len(got)), f"{got[0]['asked_mb_s']:.0f}", f"{statistics.median(row['mb_s'] for row in got):.0f}", *figures, *worst,
                     f"{max(row['waiting_gib'] for row in got):.1f}"])
    lines += table([f"phase, in slices of {options.slice_s} s", "slices", "MB/s asked", "got", "ack p50, ms", "p99", "read p50, ms", "p99",
                    "worst ack, ms", "longest gap of the reader, s", "most that waited, GiB"], rows)
    lines += ["Medians of the slices. A read's age is from the client's timestamp of the record to its arrival at the consumer.", "",
              f"- Caught up {found['caught_up_s']:.0f} s after the outage and {found['caught_up_storm_s']:.0f} s after the storm; writers went on for"
              f" the first {options.slice_s} s of the former.",
              f"- The lost node was back, with an empty disk and by `isobar cluster replace`, after {found['replaced_s']:.0f} s.",
              f"- Records acknowledged {found['sent']}, offsets given {found['written']}; as many were read again in {found['again_s']:.0f} s;"
              f" the reader at the tail {'came' if found['tail_ended'] else 'did not come'} to the end, and offsets that did not follow"
              f" the last: {found['holes']}.", ""]
    return "\n".join(lines)


def measure(options, work):
    run = None
    try:
        run = Run(options, work)
        found = run.phases()
        if options.zram_gib:
            say("of memory, and stands for, GiB:", *memory_gib(work))
    except BaseException:
        for log in sorted(work.glob("*.log")):
            print(f"-- {log} ends:", *log.read_text(errors="replace").splitlines()[-10:], sep="\n", file=sys.stderr)
        raise
    finally:
        if run:
            run.cluster.stop()
            run.cluster.kill()
        shutil.rmtree(work, ignore_errors=True)
    return report(options, run, found)


def main():
    parser = argparse.ArgumentParser(description="The store away while clients write and read, and a node lost for good meanwhile.")
    parser.add_argument("--away-s", type=int, default=600, help="the outage")
    parser.add_argument("--lost-after", type=int, default=30, help="a node is lost for good then, in percent of the outage")
    parser.add_argument("--slice-s", type=int, default=30)
    parser.add_argument("--record-bytes", type=int, default=1024)
    parser.add_argument("--before", type=int, default=3, help="slices before, after and in the storm")
    parser.add_argument("--limit-gib", type=float, default=2.0, help="sent to find the write limit")
    parser.add_argument("--wal-gib", type=float, default=24.0, help="wal.max_disk of each node")
    parser.add_argument("--short", action="store_true", help="everything once and little of it")
    parser.add_argument("--work", help="where nodes keep their data; removed at the end")
    parser.add_argument("--zram-gib", type=int, help="keep the data on a compressed RAM disk of that size; records are of one letter")
    parser.add_argument("--out", help="results file; results.md beside this file for a full run")
    options = parser.parse_args()
    if options.short:
        options.away_s, options.slice_s, options.before, options.limit_gib = 40, 10, 1, 0.2
    if why := net.missing():
        sys.exit(f"nodes cannot have networks of their own here: {why}")
    net.enter_own()
    out = pathlib.Path(options.out or ("/tmp/isobar-bench-outage.md" if options.short else REPO / "benches/outage/results.md"))
    options.described = described("`isobar cluster init` with three nodes, wal.max_disk raised, else defaults; "
                                  f"store: versitygw {os.environ.get('VERSITYGW_VERSION', '')} on the same machine",
                                  "Producer: librdkafka 2.12.1 in an open loop, twelve partitions, "
                                  + ", ".join(f"`{pair}`" for pair in PRODUCER[:3]) + "; one consumer of three of the partitions, in Python")
    if options.zram_gib:
        options.described.append(f"- All data on a file system of {options.zram_gib} GiB in compressed memory, as this machine's disk cannot hold this"
                                 " rate: syncs cost next to nothing there")
    with ramdisk(options.zram_gib, ZRAM_MEMORY_GIB) if options.zram_gib else contextlib.nullcontext(options.work) as place:
        text = measure(options, pathlib.Path(tempfile.mkdtemp(prefix="isobar-bench-", dir=place)))
    out.write_text(text)
    print(f"written to {out}")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
