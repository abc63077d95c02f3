"""confluent-kafka (librdkafka 2.16) against the broker at $BOOTSTRAP; every record is checked by content."""

import os
import pathlib
import sys
import threading
import time
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "lib"))

from confluent_kafka import (
    Consumer, ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, Producer, TopicCollection,
    TopicPartition, OFFSET_BEGINNING, OFFSET_END,
)
from confluent_kafka.admin import (
    AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType,
)

import cases
from cases import case, cases_for, equal

BOOTSTRAP = os.environ["BOOTSTRAP"]
KAFKA = os.environ.get("PEER", "isobar") == "kafka"
ADMIN = AdminClient({"bootstrap.servers": BOOTSTRAP})
BASE_TIME = 1_700_000_000_000


def fresh(name):
    return f"confluent-{name}-{uuid.uuid4().hex[:8]}"


def code_of(call):
    """The error code that a call's KafkaException carries."""
    try:
        call()
    except KafkaException as e:
        return e.args[0].code()
    raise AssertionError("no error was raised")


def create(topic, partitions=1, **config):
    settings = {k.replace("_", "."): str(v) for k, v in config.items()}
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=settings)
    ADMIN.create_topics([new])[topic].result(30)
    return topic


class Sender:
    """A producer that remembers what it sent and where it was acknowledged."""

    def __init__(self, **config):
        self.producer = Producer({
            "bootstrap.servers": BOOTSTRAP, "enable.idempotence": True, "linger.ms": 5,
            **{k.replace("_", "."): v for k, v in config.items()},
        })
        self.sent = {}
        self.errors = []

    def send(self, topic, value, key=None, headers=None, partition=-1, timestamp=0):
        def acked(error, message):
            if error is not None:
                self.errors.append(error)
                return
            place = (message.topic(), message.partition(), message.offset())
            if place in self.sent:
                self.errors.append(f"{place} was acknowledged twice")
            self.sent[place] = (key, value, headers, timestamp)

        self.producer.produce(
            topic, value=value, key=key, headers=headers, partition=partition, timestamp=timestamp, on_delivery=acked
        )
        self.producer.poll(0)

    def flush(self):
        equal(self.producer.flush(60), 0, "messages without an answer")
        equal(self.errors, [], "delivery errors")
        return self.sent


def consumer(group=None, **config):
    return Consumer({
        "bootstrap.servers": BOOTSTRAP, "group.id": group or fresh("group"), "enable.auto.commit": False,
        "auto.offset.reset": "earliest", **{k.replace("_", "."): v for k, v in config.items()},
    })


def drain(reader, count, seconds=30):
    """The next `count` messages; an error or too few in time is a failure."""
    found = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(found)} of {count} messages after {seconds} s")
        for message in reader.consume(count - len(found), 0.5):
            if message.error() is not None:
                raise KafkaException(message.error())
            found.append(message)
    return found


def quiet(reader, seconds=0.5):
    """Nothing more arrives."""
    more = reader.consume(1, seconds)
    equal([(m.partition(), m.offset(), m.error()) for m in more], [], "messages beyond the end")


def check(messages, sent):
    """The messages are those that were sent, each once, in the order of the offsets of its partition."""
    last = {}
    found = {}
    for m in messages:
        place = (m.topic(), m.partition(), m.offset())
        if m.offset() <= last.get(m.partition(), -1):
            raise AssertionError(f"{place} came after offset {last[m.partition()]}")
        last[m.partition()] = m.offset()
        found[place] = (m.key(), m.value(), m.headers(), m.timestamp()[1])
    equal(sorted(found), sorted(sent), "places read")
    for place, expected in sent.items():
        key, value, headers, timestamp = found[place]
        want = (expected[0], expected[1], expected[2] or None)
        equal((key, value, headers), want, f"record at {place}")
        if expected[3]:
            equal(timestamp, expected[3], f"timestamp at {place}")


def read_all(topic, partitions, sent):
    reader = consumer()
    reader.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(partitions)])
    check(drain(reader, len(sent)), sent)
    quiet(reader)
    reader.close()


def value_of(i, size=200):
    """Half of it compresses, half does not."""
    noise = (i * 2654435761 % 2**32).to_bytes(4, "big")
    return (b"record-%08d|" % i + noise * (size // 8)).ljust(size, b".")


@case
def create_topic():
    topic = create(fresh("create"), 3)
    found = ADMIN.list_topics(topic, timeout=10).topics[topic]
    equal(found.error, None, "error")
    equal(sorted(found.partitions), [0, 1, 2], "partitions")
    equal(code_of(lambda: create(topic, 3)), KafkaError.TOPIC_ALREADY_EXISTS, "creating it again")


@cases_for(["none", "gzip", "snappy", "lz4", "zstd"])
def produce_codec(codec):
    topic = create(fresh(codec), 3)
    sender = Sender(compression_codec=codec)
    for i in range(2_000):
        sender.send(topic, value_of(i), key=b"key-%d" % (i % 97), timestamp=BASE_TIME + i)
    sent = sender.flush()
    equal(len(sent), 2_000, "acknowledged")
    read_all(topic, 3, sent)
    where = {}
    for (_, partition, _), (key, *_rest) in sent.items():
        equal(where.setdefault(key, partition), partition, f"partition of {key}")


@case
def produce_without_idempotence_acks_1_and_0():
    for acks in ("1", "0"):
        topic = create(fresh(f"acks{acks}"))
        sender = Sender(enable_idempotence=False, acks=acks)
        for i in range(200):
            sender.send(topic, value_of(i))
        equal(sender.producer.flush(30), 0, "messages without an answer")
        equal(sender.errors if acks == "1" else [], [], "delivery errors")
        reader = consumer()
        reader.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        got = drain(reader, 200)
        equal([m.value() for m in got], [value_of(i) for i in range(200)], f"values with acks={acks}")
        reader.close()


@case
def keys_headers_and_empties():
    topic = create(fresh("shapes"))
    sender = Sender(compression_codec="zstd")
    shapes = [
        (None, b"no key", None), (b"", b"an empty key", None), (b"k", b"", None), (b"tombstone", None, None),
        (None, None, None), (b"", b"", None),
        (b"h", b"headers", [("a", b"1"), ("b", b""), ("c", None)]),
        (b"h", b"repeated headers", [("a", b"1"), ("a", b"2"), ("b", b"x"), ("a", b"1")]),
        (b"h", b"unicode header", [("größe", "größer".encode())]),
        ("schlüssel".encode(), "wert €".encode(), None), (bytes(range(256)), bytes(range(255, -1, -1)), None),
    ]
    for key, value, headers in shapes:
        sender.send(topic, value, key=key, headers=headers)
    sent = sender.flush()
    equal(len(sent), len(shapes), "acknowledged")
    read_all(topic, 1, sent)


@case
def records_of_1_mb():
    topic = create(fresh("large"))
    sender = Sender(message_max_bytes=1_048_588)
    for i in range(8):
        sender.send(topic, value_of(i, 1_000_000), key=b"%d" % i, timestamp=BASE_TIME + i)
    # The largest that fits into max.message.bytes as one batch: 61 bytes of batch, 11 of record, no key.
    sender.send(topic, os.urandom(1_048_588 - 61 - 11), timestamp=BASE_TIME + 9)
    sent = sender.flush()
    read_all(topic, 1, sent)


def filled(count=300, partitions=1):
    topic = create(fresh("filled"), partitions)
    sender = Sender()
    for i in range(count):
        sender.send(topic, value_of(i), partition=i % partitions, timestamp=BASE_TIME + 1000 * i)
        if i % 50 == 49:
            sender.flush()
    return topic, sender.flush()


@case
def consume_from_earliest():
    topic, sent = filled()
    reader = consumer(auto_offset_reset="earliest")
    reader.subscribe([topic])
    check(drain(reader, 300), sent)
    quiet(reader)
    reader.close()


@case
def consume_from_latest():
    topic, _ = filled()
    reader = consumer()
    reader.assign([TopicPartition(topic, 0, OFFSET_END)])
    equal(len(reader.consume(1, 2.0)), 0, "messages before the next was sent")
    sender = Sender()
    sender.send(topic, b"after the end", key=b"new")
    check(drain(reader, 1), sender.flush())
    reader.close()


@case
def consume_from_offset():
    topic, sent = filled()
    reader = consumer()
    reader.assign([TopicPartition(topic, 0, 123)])
    check(drain(reader, 177), {place: what for place, what in sent.items() if place[2] >= 123})
    reader.seek(TopicPartition(topic, 0, 299))
    equal(drain(reader, 1)[0].offset(), 299, "offset after a seek")
    reader.close()


@case
def consume_from_timestamp():
    topic, sent = filled()
    reader = consumer()
    for ask, expected in [
        (0, 0), (BASE_TIME, 0), (BASE_TIME + 1, 1), (BASE_TIME + 77_000, 77), (BASE_TIME + 76_001, 77),
        (BASE_TIME + 299_000, 299), (BASE_TIME + 299_001, OFFSET_END),
    ]:
        found = reader.offsets_for_times([TopicPartition(topic, 0, ask)], timeout=10)[0]
        equal((found.error, found.offset), (None, expected), f"offset for time {ask}")
    reader.assign(reader.offsets_for_times([TopicPartition(topic, 0, BASE_TIME + 200_000)], timeout=10))
    check(drain(reader, 100), {place: what for place, what in sent.items() if place[2] >= 200})
    equal(reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=10), (0, 300), "watermarks")
    reader.close()


class Member(threading.Thread):
    """A consumer of a group that polls until it is told to leave."""

    def __init__(self, topic, group, **config):
        super().__init__(daemon=True)
        self.reader = consumer(group, session_timeout_ms=10_000, heartbeat_interval_ms=500, **config)
        self.topic = topic
        self.got = []
        self.assigned = set()
        self.assignments = 0
        self.revocations = 0
        self.failure = None
        self.leave = threading.Event()
        self.start()

    def run(self):
        try:
            self.reader.subscribe([self.topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._revoke)
            while not self.leave.is_set():
                for m in self.reader.consume(500, 0.2):
                    if m.error() is not None:
                        raise KafkaException(m.error())
                    self.got.append(m)
            if self.got:
                self.reader.commit(asynchronous=False)
            self.reader.close()
        except Exception as e:  # handed to the case, which raises it
            self.failure = e

    def _assign(self, _reader, partitions):
        self.assignments += 1
        self.assigned |= {p.partition for p in partitions}

    def _revoke(self, reader, partitions):
        self.revocations += 1
        if self.got:
            try:
                reader.commit(asynchronous=False)
            except KafkaException as e:
                if e.args[0].code() != KafkaError._NO_OFFSET:
                    raise
        self.assigned -= {p.partition for p in partitions}

    def end(self):
        self.leave.set()
        self.join(30)
        if self.failure is not None:
            raise self.failure


def until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def in_order(member):
    """Within one assignment offsets only rise; a partition that comes back goes on from its commit."""
    seen = {}
    for m in member.got:
        if m.offset() != seen.get(m.partition(), m.offset() - 1) + 1 and m.partition() in seen:
            raise AssertionError(f"partition {m.partition()}: {m.offset()} after {seen[m.partition()]}")
        seen[m.partition()] = m.offset()


@cases_for(["range", "cooperative-sticky"])
def group_of_two_with_a_rebalance(strategy):
    topic, group = create(fresh("group"), 4), fresh("group")
    sender = Sender()

    def send(count):
        for i in range(count):
            sender.send(topic, value_of(len(sender.sent) + i), partition=i % 4)
        return sender.flush()

    send(200)
    config = {"partition_assignment_strategy": strategy}
    one = Member(topic, group, **config)
    until(lambda: one.failure or one.assigned == {0, 1, 2, 3}, "the first member has every partition")
    until(lambda: one.failure or len(one.got) == 200, "the first member read everything")
    two = Member(topic, group, **config)
    until(lambda: one.failure or two.failure or (len(one.assigned) == 2 and len(two.assigned) == 2), "two and two")
    equal(one.assigned | two.assigned, {0, 1, 2, 3}, "partitions of both")
    described = ADMIN.describe_consumer_groups([group])[group].result(10)
    equal(described.state.name, "STABLE", "state")
    equal(described.partition_assignor, strategy, "assignor")
    equal(len(described.members), 2, "members")
    held = sorted(p.partition for m in described.members for p in m.assignment.topic_partitions)
    equal(held, [0, 1, 2, 3], "partitions in the description")
    send(200)
    until(lambda: len(one.got) + len(two.got) == 400, "both read the rest")
    one.end()
    until(lambda: two.failure or two.assigned == {0, 1, 2, 3}, "the second member has every partition")
    sent = send(200)
    until(lambda: two.failure or len(one.got) + len(two.got) == 600, "the second member read the rest")
    two.end()
    in_order(one)
    in_order(two)
    check(sorted(one.got + two.got, key=lambda m: (m.partition(), m.offset())), sent)
    committed = consumer(group).committed([TopicPartition(topic, p) for p in range(4)], timeout=10)
    equal([p.offset for p in committed], [150] * 4, "committed offsets at the end")


@case
def static_member_comes_back_without_a_rebalance():
    topic, group = create(fresh("static"), 2), fresh("static")
    stays = Member(topic, group, group_instance_id="stays")
    goes = Member(topic, group, group_instance_id="goes")
    until(lambda: len(stays.assigned) == 1 and len(goes.assigned) == 1, "one and one")
    before = stays.assignments, set(goes.assigned)
    goes.end()
    back = Member(topic, group, group_instance_id="goes")
    until(lambda: back.failure or len(back.assigned) == 1, "the member is back")
    equal(back.assigned, before[1], "its partition")
    equal(stays.assignments, before[0], "assignments of the other")
    described = ADMIN.describe_consumer_groups([group])[group].result(10)
    equal(sorted(m.group_instance_id for m in described.members), ["goes", "stays"], "instance ids")
    back.end()
    stays.end()


@case
def commit_and_resume_after_a_restart():
    topic, sent = filled()
    group = fresh("resume")
    reader = consumer(group)
    reader.subscribe([topic])
    first = drain(reader, 120)
    reader.commit(message=first[99], asynchronous=False)
    reader.close()
    reader = consumer(group)
    reader.subscribe([topic])
    check(drain(reader, 200), {place: what for place, what in sent.items() if place[2] >= 100})
    with_metadata = TopicPartition(topic, 0, 300, metadata="half way, größer")
    reader.commit(offsets=[with_metadata], asynchronous=False)
    reader.close()
    reader = consumer(group)
    found = reader.committed([TopicPartition(topic, 0)], timeout=10)[0]
    equal((found.offset, found.metadata), (300, "half way, größer"), "commit with metadata")
    reader.subscribe([topic])
    quiet(reader, 3)
    reader.close()


@case
def commit_automatically():
    topic, sent = filled(100)
    group = fresh("auto")
    reader = consumer(group, enable_auto_commit=True, auto_commit_interval_ms=200)
    reader.subscribe([topic])
    check(drain(reader, 100), sent)
    reader.close()
    found = consumer(group).committed([TopicPartition(topic, 0)], timeout=10)[0]
    equal(found.offset, 100, "committed at close")


@case
def admin_topics():
    topic = create(fresh("admin"), 2)
    sender = Sender()
    for i in range(10):
        sender.send(topic, value_of(i), partition=0, timestamp=BASE_TIME + (5 if i == 3 else 0))
    sender.flush()
    equal(topic in ADMIN.list_topics(timeout=10).topics, True, "in the list")
    described = ADMIN.describe_topics(TopicCollection([topic]))[topic].result(10)
    equal([p.id for p in described.partitions], [0, 1], "described partitions")
    cluster = ADMIN.describe_cluster().result(10)
    equal([f"{n.host}:{n.port}" for n in cluster.nodes], [BOOTSTRAP], "nodes")
    equal(bool(cluster.cluster_id), True, "a cluster id")

    ADMIN.create_partitions([NewPartitions(topic, 5)])[topic].result(10)
    until(lambda: len(ADMIN.list_topics(topic, timeout=10).topics[topic].partitions) == 5, "five partitions")
    fewer = code_of(lambda: ADMIN.create_partitions([NewPartitions(topic, 3)])[topic].result(10))
    equal(fewer, KafkaError.INVALID_PARTITIONS, "fewer partitions")

    def offset(spec):
        asked = {TopicPartition(topic, 0): spec}
        return next(iter(ADMIN.list_offsets(asked).values())).result(10).offset

    equal(offset(OffsetSpec.earliest()), 0, "earliest")
    equal(offset(OffsetSpec.latest()), 10, "latest")
    equal(offset(OffsetSpec.max_timestamp()), 3, "max timestamp")
    equal(offset(OffsetSpec.for_timestamp(BASE_TIME + 1)), 3, "for a timestamp")

    ADMIN.delete_topics([topic])[topic].result(10)
    until(lambda: topic not in ADMIN.list_topics(timeout=10).topics, "gone from the list")
    gone = code_of(lambda: ADMIN.delete_topics([topic])[topic].result(10))
    equal(gone, KafkaError.UNKNOWN_TOPIC_OR_PART, "deleting it again")


def config_of(topic):
    resource = ConfigResource(ResourceType.TOPIC, topic)
    return ADMIN.describe_configs([resource])[resource].result(10)


def set_config(topic, operation, name, value=None):
    entry = ConfigEntry(name, value, incremental_operation=operation)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    return ADMIN.incremental_alter_configs([resource])[resource].result(10)


@case
def admin_configs():
    topic = create(fresh("configs"), retention_ms=3_600_000)
    equal(config_of(topic)["retention.ms"].value, "3600000", "retention.ms as created")
    equal(config_of(topic)["retention.ms"].is_default, False, "retention.ms is no default")
    equal(config_of(topic)["max.message.bytes"].value, "1048588", "max.message.bytes by default")
    set_config(topic, AlterConfigOpType.SET, "max.message.bytes", "2000")
    equal(config_of(topic)["max.message.bytes"].value, "2000", "max.message.bytes after the change")
    sender = Sender(message_max_bytes=4_000_000)
    sender.send(topic, b"x" * 3_000)
    sender.producer.flush(20)
    equal([e.code() for e in sender.errors], [KafkaError.MSG_SIZE_TOO_LARGE], "a record over the topic's bound")
    set_config(topic, AlterConfigOpType.DELETE, "max.message.bytes")
    equal(config_of(topic)["max.message.bytes"].value, "1048588", "max.message.bytes after the removal")
    set_config(topic, AlterConfigOpType.SET, "cleanup.policy", "compact")
    equal(config_of(topic)["cleanup.policy"].value, "compact", "cleanup.policy")
    for name, value in [("retention.ms", "soon"), ("no.such.config", "1"), ("cleanup.policy", "burn")]:
        bad = code_of(lambda name=name, value=value: set_config(topic, AlterConfigOpType.SET, name, value))
        equal(bad, KafkaError.INVALID_CONFIG, f"{name}={value}")
    broker = ConfigResource(ResourceType.BROKER, str(next(iter(ADMIN.list_topics(timeout=10).brokers))))
    found = ADMIN.describe_configs([broker])[broker].result(10)
    equal("message.max.bytes" in found, True, "message.max.bytes among the broker's configs")


@case
def admin_groups():
    topic, _ = filled(50)
    group = fresh("listed")
    reader = consumer(group)
    reader.subscribe([topic])
    drain(reader, 50)
    reader.commit(asynchronous=False)
    listed = {g.group_id: g for g in ADMIN.list_consumer_groups().result(10).valid}
    equal(listed[group].state.name, "STABLE", "state in the list")
    equal(listed[group].type.name, "CLASSIC", "type in the list")
    described = ADMIN.describe_consumer_groups([group])[group].result(10)
    equal((described.state.name, len(described.members)), ("STABLE", 1), "description")
    equal(described.members[0].client_id, "rdkafka", "client id of the member")
    asked = ConsumerGroupTopicPartitions(group)
    found = ADMIN.list_consumer_group_offsets([asked])[group].result(10)
    equal([(p.topic, p.partition, p.offset) for p in found.topic_partitions], [(topic, 0, 50)], "its offsets")
    reader.close()
    until(lambda: ADMIN.describe_consumer_groups([group])[group].result(10).state.name == "EMPTY", "the group is empty")
    to = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 7)])
    ADMIN.alter_consumer_group_offsets([to])[group].result(10)
    found = ADMIN.list_consumer_group_offsets([asked])[group].result(10)
    equal([p.offset for p in found.topic_partitions], [7], "offsets after the change")


@case
def error_unknown_topic():
    reader = consumer(allow_auto_create_topics=False)
    reader.subscribe([fresh("unknown")])
    deadline = time.monotonic() + 20
    error = None
    while error is None and time.monotonic() < deadline:
        message = reader.poll(0.5)
        error = message and message.error()
    equal(error and error.code(), KafkaError.UNKNOWN_TOPIC_OR_PART, "error")
    reader.close()
    offsets = {TopicPartition(fresh("unknown"), 0): OffsetSpec.latest()}
    found = code_of(lambda: next(iter(ADMIN.list_offsets(offsets).values())).result(10))
    equal(found, KafkaError._NOENT, "list_offsets of an unknown topic")  # the client's own word for it


@case
def error_record_too_large():
    topic = create(fresh("toolarge"))
    sender = Sender(message_max_bytes=4_000_000)
    sender.send(topic, b"x" * 2_000_000)
    sender.producer.flush(20)
    equal([e.code() for e in sender.errors], [KafkaError.MSG_SIZE_TOO_LARGE], "delivery error")
    sender = Sender()
    sender.send(topic, b"fits")
    read_all(topic, 1, sender.flush())


@case
def error_bad_create_requests():
    new = [
        ("name with spaces", NewTopic("a b", 1, 1), KafkaError.TOPIC_EXCEPTION),
        ("a dot alone", NewTopic(".", 1, 1), KafkaError.TOPIC_EXCEPTION),
        ("250 characters", NewTopic("x" * 250, 1, 1), KafkaError.TOPIC_EXCEPTION),
        ("an unknown config", NewTopic(fresh("c"), 1, 1, config={"no.such": "1"}), KafkaError.INVALID_CONFIG),
        ("a bad config", NewTopic(fresh("c"), 1, 1, config={"retention.ms": "x"}), KafkaError.INVALID_CONFIG),
    ]
    for what, topic, expected in new:
        got = code_of(lambda topic=topic: ADMIN.create_topics([topic])[topic.topic].result(10))
        equal(got, expected, f"create with {what}")
    three = NewTopic(fresh("rf"), 1, 3)
    if KAFKA:
        got = code_of(lambda: ADMIN.create_topics([three])[three.topic].result(10))
        equal(got, KafkaError.INVALID_REPLICATION_FACTOR, "three replicas on one node")
    else:
        ADMIN.create_topics([three])[three.topic].result(10)
    dry = NewTopic(fresh("dry"), 1, 1)
    ADMIN.create_topics([dry], validate_only=True)[dry.topic].result(10)
    equal(dry.topic in ADMIN.list_topics(timeout=10).topics, False, "created by validate_only")


@case
def error_offset_out_of_range():
    topic, _ = filled(10)
    reader = consumer(auto_offset_reset="error")
    reader.assign([TopicPartition(topic, 0, 1_000)])
    deadline = time.monotonic() + 20
    error = None
    while error is None and time.monotonic() < deadline:
        message = reader.poll(0.5)
        error = message and message.error()
    equal(error and error.code(), KafkaError._AUTO_OFFSET_RESET, "error")
    equal("out of range" in error.str(), True, f"'out of range' in {error.str()!r}")
    reader.close()


@case
def error_commit_by_a_stranger():
    topic, group = create(fresh("fenced")), fresh("fenced")
    member = Member(topic, group)
    until(lambda: member.assigned == {0}, "a member")
    stranger = consumer(group)
    got = code_of(lambda: stranger.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False))
    equal(got, KafkaError.UNKNOWN_MEMBER_ID, "a commit without membership into a live group")
    stranger.close()
    member.end()


@case
def auto_create_on_first_produce():
    topic = fresh("auto")
    sender = Sender()
    for i in range(20):
        sender.send(topic, value_of(i))
    sent = sender.flush()
    partitions = len(ADMIN.list_topics(topic, timeout=10).topics[topic].partitions)
    read_all(topic, partitions, sent)


@case
def read_committed_consumer():
    topic, sent = filled(100)
    reader = consumer(isolation_level="read_committed")
    reader.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    check(drain(reader, 100), sent)
    asked = {TopicPartition(topic, 0): OffsetSpec.latest()}
    found = ADMIN.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED)
    equal(next(iter(found.values())).result(10).offset, 100, "last stable offset")
    reader.close()


@case
def many_partitions_and_topics():
    names = [create(fresh(f"many{i}"), 50) for i in range(4)]
    sender = Sender()
    for i in range(4_000):
        sender.send(names[i % 4], value_of(i), partition=i // 4 % 50, timestamp=BASE_TIME + i)
    sent = sender.flush()
    reader = consumer()
    reader.subscribe(names)
    messages = drain(reader, 4_000)
    reader.close()
    for name in names:
        mine = [m for m in messages if m.topic() == name]
        check(mine, {place: what for place, what in sent.items() if place[0] == name})


if __name__ == "__main__":
    cases.run(sys.argv[1:])
