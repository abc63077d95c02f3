"""Disasters: the node's directory is deleted under load, and a new node is made of the bucket.

    python tests/recover/cases.py [NAME…]

What one cut means is seen in topic `marks`: one producer writes the counter 0, 1, 2, … to partition 0, then to 1, 2, 3, waiting for
each acknowledgement, and commits the counter as a group's offset after the last. Whatever is left of it must be a prefix
of that one line.
"""

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

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "lib")]

from broker import Broker, BrokerError  # noqa: E402
from cases import case, equal, run  # noqa: E402
from confluent_kafka import (  # noqa: E402
    OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

MARKS, LOAD = "marks", "load"
MARK_PARTITIONS, LOAD_PARTITIONS = 4, 3
GROUP = "marks-group"
UPLOAD_MS, ARCHIVE_MS = 400, 200
# What was acknowledged longer ago than this is behind the cut: an upload, an archive object, and a slow machine.
SURELY_ARCHIVED_S = 6.0


def isobar(*args, env=None, timeout=120):
    done = subprocess.run(
        [os.environ["ISOBAR_BIN"], *args], capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, done.stdout + done.stderr


class World:
    """One bucket, and the nodes that were made of it."""

    def __init__(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="isobar-recover-"))
        self.bucket = self.root / "bucket"
        self.url = f"file://{self.bucket}"
        self.nodes = 0
        self.broker = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.broker is not None:
            self.broker.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def directory(self):
        self.nodes += 1
        return self.root / f"data-{self.nodes}"

    def new_broker(self, data, like=None):
        args = ["--store", self.url, "--upload-interval-ms", str(UPLOAD_MS)]
        broker = Broker(peer="isobar", data=data, args=args, log=self.root / f"{data.name}.log")
        broker.env |= {"ISOBAR_WAL_SEGMENT": str(8 << 20), "ISOBAR_METADATA_SNAPSHOT_AFTER": str(128 << 10),
                       "ISOBAR_ARCHIVE_INTERVAL": f"{ARCHIVE_MS}ms"}
        if like is not None:
            broker.port, broker.bootstrap = like.port, like.bootstrap
            broker.admin_port, broker.admin = like.admin_port, like.admin
        return broker

    def start(self):
        self.broker = self.new_broker(self.directory())
        self.broker.start()
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap})
        topics = [NewTopic(MARKS, MARK_PARTITIONS, 1), NewTopic(LOAD, LOAD_PARTITIONS, 1)]
        for future in admin.create_topics(topics).values():
            future.result(30)

    def disaster(self):
        """kill -9, and the directory is gone."""
        self.broker.kill()
        shutil.rmtree(self.broker.data)

    def recover(self, data, *more, env=None):
        return isobar("recover", "--data", str(data), "--store", self.url, *more, env=env)

    def recovered(self, like=None):
        """A running node made of the bucket; gives the report."""
        data = self.directory()
        code, said = self.recover(data, "--yes")
        equal(code, 0, f"exit code of recover, which said {said}")
        self.broker = self.new_broker(data, like)
        self.broker.start()
        return said


class Marks(threading.Thread):
    """The one line of marks; `acked` is how many counters have gone through whole, with the time of each."""

    def __init__(self, broker, first=0):
        super().__init__(daemon=True)
        self.bootstrap = broker.bootstrap
        self.stopping = threading.Event()
        self.next = first
        self.times = []
        self.error = None

    def run(self):
        try:
            producer = Producer(
                {"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "linger.ms": 0,
                 "message.timeout.ms": 3_600_000, "topic.metadata.refresh.interval.ms": 1000}
            )
            admin = AdminClient({"bootstrap.servers": self.bootstrap})
            while not self.stopping.is_set():
                for partition in range(MARK_PARTITIONS):
                    if not self.send(producer, partition):
                        return
                offset = TopicPartition(MARKS, 0, self.next + 1)
                asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP, [offset])], request_timeout=5)
                for future in asked.values():
                    future.result(5)
                self.next += 1
                self.times.append(time.monotonic())
        except (KafkaException, TimeoutError) as error:
            # The broker died under it.
            self.error = error

    def send(self, producer, partition):
        told = []
        producer.produce(MARKS, str(self.next).encode(), partition=partition, on_delivery=lambda e, _m: told.append(e))
        while not told:
            producer.poll(0.05)
            if self.stopping.is_set() and not told:
                producer.purge()
        return told[0] is None

    def stop(self):
        self.stopping.set()
        self.join(30)

    def acked_before(self, moment):
        return self.next - sum(1 for at in self.times if at > moment)


class LoadWriter(threading.Thread):
    """Records of some size beside the marks, so that objects have several runs and straddle the cut."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.producer = Producer(
            {"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "linger.ms": 5,
             "compression.type": "lz4", "queue.buffering.max.kbytes": 4096}
        )

    def run(self):
        number = 0
        while not self.stopping.is_set():
            value = f"{number}:".encode() + os.urandom(700)
            try:
                self.producer.produce(LOAD, value, partition=number % LOAD_PARTITIONS)
                number += 1
            except BufferError:
                self.producer.poll(0.05)
            self.producer.poll(0)
            time.sleep(0.0005)

    def stop(self):
        self.stopping.set()
        self.join(30)
        self.producer.purge()


class Ahead(threading.Thread):
    """A consumer that reads at the tail and is told when the log was cut under it."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self.told = []
        self.reached = {}
        self.consumer = Consumer(
            {"bootstrap.servers": broker.bootstrap, "group.id": "ahead", "enable.auto.commit": False,
             "auto.offset.reset": "error", "enable.partition.eof": False, "reconnect.backoff.max.ms": 500,
             "topic.metadata.refresh.interval.ms": 500}
        )
        self.consumer.assign([TopicPartition(MARKS, p, 0) for p in range(MARK_PARTITIONS)])

    def run(self):
        while not self.stopping.is_set():
            message = self.consumer.poll(0.1)
            if message is None:
                continue
            if message.error():
                if message.error().code() in (KafkaError._LOG_TRUNCATION, KafkaError._AUTO_OFFSET_RESET,
                                              KafkaError.OFFSET_OUT_OF_RANGE):
                    self.told.append((message.partition(), message.error().code()))
            else:
                self.reached[message.partition()] = message.offset() + 1

    def stop(self):
        self.stopping.set()
        self.join(30)
        self.consumer.close()


def read_all(broker, topic, partitions):
    """{partition: [(offset, leader epoch, value)]} from beginning to end."""
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": "reader", "enable.auto.commit": False, "check.crcs": True,
         "auto.offset.reset": "error"}
    )
    try:
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=30)[1] for p in range(partitions)}
        found = {p: [] for p in range(partitions)}
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
        deadline = time.monotonic() + 60
        while any(len(found[p]) < ends[p] for p in ends):
            if time.monotonic() > deadline:
                raise AssertionError(f"{topic}: read {[len(f) for f in found.values()]} of {ends}")
            for message in consumer.consume(500, 0.2):
                if message.error():
                    raise KafkaException(message.error())
                epoch = message.leader_epoch()
                found[message.partition()].append((message.offset(), epoch, message.value()))
        return found
    finally:
        consumer.close()


def committed(broker):
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": GROUP})
    try:
        return consumer.committed([TopicPartition(MARKS, 0)], timeout=30)[0].offset
    finally:
        consumer.close()


def check_one_cut(broker):
    """What is left of the line of marks is a prefix of it. Gives the counter that the line goes on with."""
    marks = read_all(broker, MARKS, MARK_PARTITIONS)
    for partition, records in marks.items():
        equal([offset for offset, _, _ in records], list(range(len(records))), f"offsets of marks-{partition}")
        equal([int(value) for _, _, value in records], list(range(len(records))), f"marks in partition {partition}")
    lengths = [len(marks[p]) for p in range(MARK_PARTITIONS)]
    if lengths != sorted(lengths, reverse=True) or lengths[0] - lengths[-1] > 1:
        raise AssertionError(f"the partitions are not cut at one point: {lengths}")
    offset = max(committed(broker), 0)
    # Committed after the counter's last partition and before the next one's first.
    if not lengths[0] - 1 <= offset <= lengths[-1]:
        raise AssertionError(f"the group is at {offset}, the partitions at {lengths}")
    return marks, lengths


class Pairs:
    """(topic, partition, offset, leader epoch) → what was seen there."""

    def __init__(self):
        self.seen = {}

    def add(self, topic, records):
        for partition, found in records.items():
            for offset, epoch, value in found:
                before = self.seen.setdefault((topic, partition, offset, epoch), value)
                if before != value:
                    raise AssertionError(f"{topic}-{partition}: offset {offset} of leader epoch {epoch} has two contents")


def wait(what, so, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not so():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.05)


@case
def one_cut_and_nothing_below_it_is_lost():
    """Three disasters, one after the other, each under load."""
    pairs, rounds = Pairs(), 3
    with World() as world:
        world.start()
        first = 0
        for number in range(rounds):
            marks, load, ahead = Marks(world.broker, first), LoadWriter(world.broker), Ahead(world.broker)
            for thread in (marks, load, ahead):
                thread.start()
            time.sleep(SURELY_ARCHIVED_S + 3)
            pairs.add(MARKS, read_all(world.broker, MARKS, MARK_PARTITIONS))
            old, killed = world.broker, time.monotonic()
            world.disaster()
            marks.stop()
            load.stop()
            surely = marks.acked_before(killed - SURELY_ARCHIVED_S)
            equal(surely > first, True, f"marks were written in round {number} (error: {marks.error})")
            said = world.recovered(like=old)
            equal(f"incarnation {number + 1}" in said, True, f"the incarnation in {said}")
            found, lengths = check_one_cut(world.broker)
            if lengths[-1] < surely:
                raise AssertionError(f"{surely} marks were acknowledged in time, {lengths} are left:\n{said}")
            pairs.add(MARKS, found)
            loaded = read_all(world.broker, LOAD, LOAD_PARTITIONS)
            for partition, records in loaded.items():
                equal([offset for offset, _, _ in records], list(range(len(records))), f"offsets of load-{partition}")
            lost = {p: at for p, at in ahead.reached.items() if at > lengths[p]}
            print(f"     round {number}: {marks.next} marks written, {lengths} left; a reader was ahead in {lost}")
            # The line goes on where it was cut.
            first = finish_line(world.broker, lengths)
            if lost:
                wait("the reader that was ahead to be told", lambda a=ahead, l=lost: {p for p, _ in a.told} & set(l), 30)
            ahead.stop()


def finish_line(broker, lengths):
    """Writes the counter that the cut went through to the partitions that lack it. Gives the next counter."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True})
    for partition, length in enumerate(lengths):
        if length < lengths[0]:
            producer.produce(MARKS, str(length).encode(), partition=partition)
    equal(producer.flush(30), 0, "records that did not get through after the recovery")
    return lengths[0]


@case
def the_old_node_stops_when_it_comes_back():
    """Paused, overtaken, resumed: it acknowledges nothing more, says why, and exits."""
    with World() as world:
        world.start()
        marks = Marks(world.broker)
        marks.start()
        wait("some marks", lambda: marks.next > 50)
        marks.stop()
        time.sleep(SURELY_ARCHIVED_S)
        old = world.broker
        os.kill(old.pid, signal.SIGSTOP)
        try:
            world.recovered()
            check_one_cut(world.broker)
            new_end = len(read_all(world.broker, MARKS, 1)[0])
            os.kill(old.pid, signal.SIGCONT)
            wait("the old node to end", lambda: old.process.poll() is not None, 15)
            equal(old.process.returncode != 0, True, "its exit code is an error")
            equal("was recovered elsewhere" in old.log_tail(200), True, f"its log says why:\n{old.log_tail()}")
            # Started again it does not even listen.
            try:
                old.start()
                raise AssertionError("the old node started again")
            except BrokerError as error:
                equal("was recovered elsewhere" in str(error), True, f"why it did not start: {error}")
            producer = Producer({"bootstrap.servers": world.broker.bootstrap})
            producer.produce(MARKS, str(new_end).encode(), partition=0)
            equal(producer.flush(30), 0, "the new node takes records")
        finally:
            old.kill()


@case
def a_recovery_that_dies_is_run_again():
    with World() as world:
        world.start()
        marks = Marks(world.broker)
        marks.start()
        wait("some marks", lambda: marks.next > 50)
        marks.stop()
        written = marks.next
        time.sleep(SURELY_ARCHIVED_S)
        world.disaster()
        data = world.directory()
        for point in ("recover.claimed", "recover.founded", "recover.written"):
            code, said = world.recover(data, "--yes", env={"ISOBAR_CRASH_POINT": f"{point}:1"})
            equal(code, -signal.SIGKILL, f"exit code at {point}; it said {said}")
            half = world.new_broker(data)
            try:
                half.start()
                half.kill()
                raise AssertionError(f"a directory that died at {point} was started")
            except BrokerError as error:
                equal("did not finish" in str(error), True, f"why it did not start: {error}")
        code, said = world.recover(data, "--yes")
        equal(code, 0, f"the last attempt, which said {said}")
        equal("incarnation 4" in said, True, f"each attempt has an incarnation of its own: {said}")
        world.broker = world.new_broker(data)
        world.broker.start()
        _, lengths = check_one_cut(world.broker)
        equal(lengths[-1] >= written, True, f"{written} marks were written, {lengths} are there")


@case
def what_cannot_be_recovered_is_refused_and_nothing_changes():
    with World() as world:
        world.start()
        time.sleep(2)
        world.broker.stop()
        # A directory that holds a node.
        code, said = world.recover(world.broker.data, "--yes")
        equal((code, "holds a node" in said), (1, True), said)
        # A look changes nothing.
        claims = sorted(p.name for p in (world.bucket / "claim").iterdir())
        code, said = world.recover(world.directory())
        equal((code, "Nothing was changed" in said), (0, True), said)
        equal(sorted(p.name for p in (world.bucket / "claim").iterdir()), claims, "claims after a look")
        equal(re.search(r"Recovered to +\d+", said) is not None, True, said)
        # A bucket without a cluster.
        empty = world.root / "nothing"
        code, said = isobar("recover", "--data", str(world.directory()), "--store", f"file://{empty}", "--yes")
        equal((code, "holds no cluster" in said), (1, True), said)
        # The node itself is none the worse.
        world.broker.start()
        world.broker.stop()


@case
def an_object_that_is_missing_is_named():
    with World() as world:
        world.start()
        producer = Producer({"bootstrap.servers": world.broker.bootstrap})
        producer.produce(LOAD, b"x" * 1000, partition=0)
        equal(producer.flush(30), 0, "the record is taken")
        time.sleep(SURELY_ARCHIVED_S)
        world.disaster()
        objects = [p for p in (world.bucket / "data").rglob("*") if p.is_file()]
        equal(len(objects) > 0, True, "objects in the bucket")
        for path in objects:
            path.unlink()
        code, said = world.recover(world.directory(), "--yes")
        equal((code, "are not in the store" in said), (1, True), said)
        equal(sorted(p.name for p in (world.bucket / "claim").iterdir()), ["000"], "nothing was claimed")


if __name__ == "__main__":
    run(sys.argv[1:])
