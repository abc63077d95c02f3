"""What a format fixture holds, and how it is read back: shared by make.py and check.py. With confluent-kafka."""

import base64
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

import broker

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
BASE_TIME = 1_700_000_000_000
DELETE_RECORDS = 21
PATIENCE = 60


def admin(bootstrap):
    return AdminClient({"bootstrap.servers": bootstrap})


def wait(futures):
    return {name: future.result(PATIENCE) for name, future in futures.items()}


def create(client, name, partitions, **config):
    settings = {k.replace("_", "."): v for k, v in config.items()}
    wait(client.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)]))


def send(bootstrap, topic, partition, numbers, codec="none", idempotent=False):
    """Records that their number makes up: some without key, value or headers, some of several KB."""
    failed = []
    producer = Producer({
        "bootstrap.servers": bootstrap, "compression.type": codec, "enable.idempotence": idempotent, "linger.ms": 20,
    })
    for n in numbers:
        producer.produce(
            topic, partition=partition,
            key=None if n % 4 == 0 else f"key-{n % 7}".encode(),
            value=None if n % 11 == 5 else (f"{topic}/{partition}/{n} " * (1 + n % 3 + 60 * (n % 13 == 0))).encode(),
            headers=[] if n % 2 else [("number", str(n).encode()), ("empty", None)],
            timestamp=BASE_TIME + n,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        if n % 10 == 9:
            producer.flush(PATIENCE)
    left = producer.flush(PATIENCE)
    if failed or left:
        raise AssertionError(f"{topic}-{partition}: {left} left, failed {failed[:3]}")


def read(bootstrap):
    """Everything that a client can see, as JSON holds it."""
    client = admin(bootstrap)
    listed = client.list_topics(timeout=PATIENCE).topics
    topics = {name: sorted(topic.partitions) for name, topic in listed.items() if not name.startswith("__")}
    every = [TopicPartition(name, p) for name, partitions in topics.items() for p in partitions]
    first = wait({(tp.topic, tp.partition): f for tp, f in client.list_offsets({tp: OffsetSpec.earliest() for tp in every}).items()})
    last = wait({(tp.topic, tp.partition): f for tp, f in client.list_offsets({tp: OffsetSpec.latest() for tp in every}).items()})
    seen = {"topics": {}, "groups": {}, "configs": {}}
    for name, partitions in topics.items():
        seen["topics"][name] = {
            str(p): {
                "start": first[name, p].offset, "end": last[name, p].offset,
                "records": records(bootstrap, name, p, first[name, p].offset, last[name, p].offset),
            }
            for p in partitions
        }
    for group in sorted(g.group_id for g in client.list_consumer_groups().result(PATIENCE).valid):
        answer = wait(client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]))[group]
        seen["groups"][group] = sorted([tp.topic, tp.partition, tp.offset, tp.metadata or ""] for tp in answer.topic_partitions)
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
    for resource, future in client.describe_configs(resources).items():
        # The topic's own.
        own = {k: e.value for k, e in future.result(PATIENCE).items() if e.source == 1}
        seen["configs"][resource.name] = dict(sorted(own.items()))
    return json.loads(json.dumps(seen))


def records(bootstrap, topic, partition, start, end):
    found = []
    if start == end:
        return found
    consumer = Consumer({
        "bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False, "check.crcs": True,
        "auto.offset.reset": "error", "fetch.wait.max.ms": 50,
    })
    consumer.assign([TopicPartition(topic, partition, start)])
    deadline = time.monotonic() + PATIENCE
    while (not found or found[-1][0] < end - 1) and time.monotonic() < deadline:
        for message in consumer.consume(500, 0.2):
            if message.error():
                raise AssertionError(f"{topic}-{partition}: {message.error()}")
            kind, stamp = message.timestamp()
            text = lambda raw: None if raw is None else base64.b64encode(raw).decode()
            headers = [[name, text(value)] for name, value in message.headers() or []]
            found.append([message.offset(), kind, stamp, text(message.key()), text(message.value()), headers])
    consumer.close()
    return found


def before_upload(bootstrap):
    """The part of a fixture that is to be found in objects."""
    client = admin(bootstrap)
    create(client, "codecs", len(CODECS))
    for partition, codec in enumerate(CODECS):
        send(bootstrap, "codecs", partition, range(40), codec)
    create(client, "stamped", 1, message_timestamp_type="LogAppendTime", retention_ms="3155760000000")
    send(bootstrap, "stamped", 0, range(30), "lz4")
    create(client, "idempotent", 2, max_message_bytes="65536")
    send(bootstrap, "idempotent", 0, range(50), "zstd", idempotent=True)
    create(client, "grown", 1)
    send(bootstrap, "grown", 0, range(12))
    wait(client.create_partitions([NewPartitions("grown", 3)]))
    create(client, "gone", 2)
    send(bootstrap, "gone", 1, range(20))
    wait(client.delete_topics(["gone"]))
    host, port = bootstrap.split(":")
    if DELETE_RECORDS in broker.api_versions(host, int(port)):
        create(client, "trimmed", 1)
        send(bootstrap, "trimmed", 0, range(60), "snappy")
        wait({"trimmed": next(iter(client.delete_records([TopicPartition("trimmed", 0, 37)]).values()))})
    commit(client, "first", {("codecs", 0): 7, ("codecs", 3): 39}, "noted")
    commit(client, "second", {("stamped", 0): 1}, "")


def after_upload(bootstrap):
    """The part that is to be found in the WAL alone."""
    for partition, codec in enumerate(CODECS):
        send(bootstrap, "codecs", partition, range(40, 55), codec)
    send(bootstrap, "stamped", 0, range(30, 41))
    send(bootstrap, "idempotent", 1, range(25), idempotent=True)
    send(bootstrap, "grown", 2, range(9), "gzip")
    commit(admin(bootstrap), "first", {("codecs", 0): 44}, "again")


def commit(client, group, offsets, metadata):
    partitions = [TopicPartition(topic, p, offset, metadata) for (topic, p), offset in offsets.items()]
    wait(client.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, partitions)]))
