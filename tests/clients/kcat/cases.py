"""Debian's kcat (librdkafka 2.0.2) against the broker at $BOOTSTRAP; every record is checked by content."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "lib"))

import cases
from broker import die_with_parent
from cases import case, cases_for, equal

BOOTSTRAP = os.environ["BOOTSTRAP"]
BASE = ["kcat", "-b", BOOTSTRAP, "-X", "socket.timeout.ms=10000"]
WORK = pathlib.Path(tempfile.mkdtemp(prefix="isobar-kcat-"))


def fresh(name):
    return f"kcat-{name}-{uuid.uuid4().hex[:8]}"


def kcat(*args, data=None, code=0, seconds=60):
    done = subprocess.run(
        [*BASE, *args], input=data, capture_output=True, timeout=seconds, check=False, preexec_fn=die_with_parent
    )
    if done.returncode != code:
        raise AssertionError(f"kcat {' '.join(args)}: exit {done.returncode}, expected {code}: {done.stderr.decode()}")
    return done.stdout if code == 0 else done.stderr.decode()


def produce(topic, *args, data):
    kcat("-P", "-t", topic, "-X", "enable.idempotence=true", *args, data=data)
    return topic


def listing(*args):
    return json.loads(kcat("-L", "-J", *args))


def consume(topic, *args):
    """What -J prints of each record: topic, partition, offset, ts, headers, key, payload."""
    return [json.loads(line) for line in kcat("-C", "-t", topic, "-e", "-q", "-J", *args).splitlines()]


def lines(count, start=0):
    return [f"key-{i % 37}:value-{i:06d}-{'é' * (i % 20)}" for i in range(start, start + count)]


def check(records, sent):
    """The records are the lines sent, each once; and in order, offsets without a gap, within their partition."""
    got = [f"{r['key']}:{r['payload']}" for r in records]
    equal(sorted(got), sorted(sent), "records")
    place = {line: i for i, line in enumerate(sent)}
    for partition in {r["partition"] for r in records}:
        mine = [r for r in records if r["partition"] == partition]
        order = [place[f"{r['key']}:{r['payload']}"] for r in mine]
        equal(order, sorted(order), f"order in partition {partition}")
        offsets = [r["offset"] for r in mine]
        equal(offsets, list(range(offsets[0], offsets[0] + len(offsets))), f"offsets in partition {partition}")


def text(sent):
    return "\n".join(sent).encode()


@case
def create_topic_by_first_use():
    topic = produce(fresh("create"), data=b"first")
    described = listing("-t", topic)["topics"]
    equal([t["topic"] for t in described], [topic], "topics")
    equal(described[0]["partitions"][0]["partition"], 0, "partition")
    equal([r["payload"] for r in consume(topic)], ["first"], "records")


@cases_for(["none", "gzip", "snappy", "lz4", "zstd"])
def produce_codec(codec):
    sent = lines(2_000)
    topic = produce(fresh(codec), "-K:", "-z", codec, data=text(sent))
    check(consume(topic), sent)


@case
def produce_with_acks_0_and_1():
    for acks in ("0", "1"):
        topic = fresh(f"acks{acks}")
        produce(topic, data=b"first")  # with acks=0 a record sent while the topic comes into being may be lost
        sent = lines(300)
        kcat("-P", "-t", topic, "-K:", "-X", f"acks={acks}", data=text(sent))
        check(consume(topic)[1:], sent)


@case
def keys():
    topic = produce(fresh("keys"), "-K:", "-k", "fixed", data=b"a:1\n:2\nb:3")
    equal([(r["key"], r["payload"]) for r in consume(topic)], [("a", "1"), ("", "2"), ("b", "3")], "keys")
    topic = produce(fresh("keys"), data=b"no key")
    equal([(r["key"], r["payload"]) for r in consume(topic)], [(None, "no key")], "no key")


@case
def headers():
    topic = produce(
        fresh("headers"), "-H", "a=1", "-H", "a=2", "-H", "b=", "-H", "größe=größer", "-H", "c", "-H", "a=1", data=b"x"
    )
    found = consume(topic)[0]["headers"]
    equal(found, ["a", "1", "a", "2", "b", "", "größe", "größer", "c", None, "a", "1"], "headers")


@case
def empty_and_null_values():
    topic = produce(fresh("empty"), "-K:", data=b"empty:\nfull:x")
    equal([(r["key"], r["payload"]) for r in consume(topic)], [("empty", ""), ("full", "x")], "an empty value")
    topic = produce(fresh("null"), "-K:", "-Z", data=b"gone:\nfull:x")
    equal([(r["key"], r["payload"]) for r in consume(topic)], [("gone", None), ("full", "x")], "a null value")


@case
def records_of_1_mb():
    topic = fresh("large")
    files = []
    for i in range(5):
        file = WORK / f"large-{i}"
        # The file's own kind of noise, so that a record cannot pass for another.
        file.write_bytes(os.urandom(400_000) + bytes([i]) * 600_000)
        files.append(file)
    produce(topic, "-X", "message.max.bytes=1048588", *map(str, files), data=None)
    for i, file in enumerate(files):
        got = kcat("-C", "-t", topic, "-o", str(i), "-c", "1", "-e", "-q", "-f", "%s")
        if got != file.read_bytes():
            raise AssertionError(f"record {i}: {len(got)} bytes that differ from the {file.stat().st_size} sent")


def filled(count=300):
    sent = lines(count)
    return produce(fresh("filled"), "-K:", "-p", "0", "-X", "batch.num.messages=20", data=text(sent)), sent


@case
def consume_from_earliest():
    topic, sent = filled()
    found = consume(topic, "-o", "beginning")
    equal([r["offset"] for r in found], list(range(300)), "offsets")
    check(found, sent)


@case
def consume_from_latest():
    topic, _ = filled()
    equal(consume(topic, "-o", "end"), [], "records at the end")
    reader = Reader("-C", "-t", topic, "-o", "end", "-q", "-J", "-u")
    time.sleep(1.5)
    produce(topic, "-K:", data=b"new:after the end")
    reader.until(lambda r: len(r.out) == 1, "the new record")
    equal([(r["offset"], r["payload"]) for r in map(json.loads, reader.out)], [(300, "after the end")], "records")
    reader.end()


@case
def consume_from_offset():
    topic, sent = filled()
    check(consume(topic, "-o", "123"), sent[123:])
    check(consume(topic, "-o", "-25"), sent[275:])
    check(consume(topic, "-o", "299", "-c", "1"), sent[299:])


@case
def consume_from_timestamp():
    topic, first = filled(100)
    time.sleep(0.05)
    middle = int(time.time() * 1000)
    time.sleep(0.05)
    second = lines(100, 100)
    produce(topic, "-K:", "-p", "0", data=text(second))
    found = consume(topic, "-o", f"s@{middle}")
    check(found, second)
    check(consume(topic, "-o", "s@0", "-o", f"e@{middle}"), first)
    if min(r["ts"] for r in found) < middle:
        raise AssertionError(f"a timestamp before {middle}")
    equal(query(topic, middle), 100, "offset for a time")
    equal((query(topic, -2), query(topic, -1)), (0, 200), "first and end offset")


def query(topic, time_ms):
    """The offset that -Q answers for a time; kcat takes one question for each partition."""
    answer = kcat("-Q", "-t", f"{topic}:0:{time_ms}").decode()
    return int(re.fullmatch(r".* \[0\] offset (-?\d+)\s*", answer).group(1))


class Reader:
    """A kcat that runs until it is ended; its lines as they come."""

    def __init__(self, *args):
        self.out = []
        self.err = []
        self.process = subprocess.Popen(
            [*BASE, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=die_with_parent,
        )
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream, into):
        for line in stream:
            into.append(line.rstrip("\n"))

    def held(self):
        """How many partitions it has, by the rebalances that kcat reported on stderr."""
        count = 0
        for line in self.err:
            if " rebalanced" not in line:
                continue
            named = len(re.findall(r"\[\d+\]", line))
            if "incremental" in line:
                count += named if "incremental assign" in line else -named
            else:
                count = named if "assigned" in line else 0
        return count

    def until(self, condition, what, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"not within {seconds} s: {what}; stderr: {self.err}")
            time.sleep(0.05)

    def end(self, code=0):
        self.process.terminate()
        equal(self.process.wait(20), code, f"exit code of a kcat that was told to end ({self.err[-3:]})")
        for thread in self._threads:
            thread.join(5)


GROUP = ["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=10000", "-X", "heartbeat.interval.ms=500",
         "-X", "auto.commit.interval.ms=200", "-J", "-u"]


@cases_for(["roundrobin", "cooperative-sticky"])
def group_of_two_with_a_rebalance(strategy):
    # kcat cannot create a topic of several partitions: four topics of one do as well.
    topics = [produce(f"{fresh('group')}-{i}", "-K:", data=text(lines(50, 50 * i))) for i in range(4)]
    group = fresh("group")
    sent = lines(200)
    started = []

    def member():
        started.append(Reader("-X", f"partition.assignment.strategy={strategy}", *GROUP, "-G", group, *topics))
        return started[-1]

    one = member()
    one.until(lambda r: r.held() == 4 and len(r.out) == 200, "the first member has and read everything")
    two = member()
    two.until(lambda r: r.held() == 2 and one.held() == 2, "two and two")
    for i, topic in enumerate(topics):
        produce(topic, "-K:", data=text(lines(50, 200 + 50 * i)))
    sent += lines(200, 200)
    two.until(lambda r: len(r.out) + len(one.out) >= 400, "both read the rest")
    time.sleep(0.5)  # for the automatic commit
    one.end()
    two.until(lambda r: r.held() == 4, "the second member has everything")
    for i, topic in enumerate(topics):
        produce(topic, "-K:", data=text(lines(50, 400 + 50 * i)))
    sent += lines(200, 400)
    two.until(lambda r: len(r.out) + len(one.out) >= 600, "the second member read the rest")
    two.end()
    found = [json.loads(line) for reader in started for line in reader.out]
    equal(sorted(f"{r['key']}:{r['payload']}" for r in found), sorted(sent), "records of both, each once")
    for reader in started:
        last = {}
        for r in map(json.loads, reader.out):
            place = r["topic"], r["partition"]
            if r["offset"] != last.get(place, r["offset"] - 1) + 1 and place in last:
                raise AssertionError(f"{place}: {r['offset']} after {last[place]}")
            last[place] = r["offset"]


@case
def commit_and_resume_after_a_restart():
    topic, sent = filled()
    group = fresh("resume")
    reader = Reader(*GROUP, "-c", "120", "-G", group, topic)
    equal(reader.process.wait(30), 0, "exit code")
    for thread in reader._threads:
        thread.join(5)
    check([json.loads(line) for line in reader.out], sent[:120])
    reader = Reader(*GROUP, "-G", group, topic)
    reader.until(lambda r: len(r.out) >= 180, "the rest")
    time.sleep(0.5)
    reader.end()
    check([json.loads(line) for line in reader.out], sent[120:])
    produce(topic, "-K:", "-p", "0", data=b"new:one more")
    reader = Reader(*GROUP, "-G", group, topic)
    reader.until(lambda r: len(r.out) >= 1, "the new record")
    time.sleep(0.5)
    reader.end()
    check([json.loads(line) for line in reader.out], ["new:one more"])


@case
def admin_listing():
    topic, _ = filled(10)
    found = listing()
    equal([b["name"] for b in found["brokers"]], [BOOTSTRAP], "brokers")
    equal(topic in [t["topic"] for t in found["topics"]], True, "the topic is listed")
    mine = listing("-t", topic)["topics"][0]["partitions"][0]
    broker = found["brokers"][0]["id"]
    equal((mine["partition"], mine["leader"]), (0, broker), "partition and leader")
    equal([b["id"] for b in mine["isrs"]], [broker], "in-sync replicas")
    equal((query(topic, -2), query(topic, -1)), (0, 10), "first and end offset")


@case
def error_unknown_topic():
    topic = fresh("unknown")
    error = kcat("-C", "-t", topic, "-e", "-X", "allow.auto.create.topics=false", code=1)
    equal("Unknown topic or partition" in error, True, f"the broker's word in {error!r}")
    equal(topic in [t["topic"] for t in listing()["topics"]], False, "created by a consumer")


@case
def error_record_too_large():
    topic = produce(fresh("toolarge"), data=b"fits")
    file = WORK / "toolarge"
    file.write_bytes(b"x" * 2_000_000)
    error = kcat("-P", "-t", topic, "-X", "message.max.bytes=4000000", str(file), code=1)
    equal("Message size too large" in error, True, f"the broker's word in {error!r}")
    equal([r["payload"] for r in consume(topic)], ["fits"], "records")


@case
def error_unknown_partition():
    topic = produce(fresh("partition"), data=b"x")
    error = kcat("-P", "-t", topic, "-p", "7", code=1, data=b"y")
    equal("Unknown partition" in error, True, f"the client's word in {error!r}")


@case
def error_bad_topic_name():
    error = kcat("-C", "-t", "a b", "-e", code=1)
    equal("Invalid topic" in error, True, f"the broker's word in {error!r}")


if __name__ == "__main__":
    try:
        cases.run(sys.argv[1:])
    finally:
        for leftover in WORK.iterdir():
            leftover.unlink()
        WORK.rmdir()
