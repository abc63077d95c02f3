"""The load: real producers, readers and group members (librdkafka), each a thread that records what it saw."""

import contextlib
import os
import random
import threading
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from history import id_of, sum_of, value_of

GROUP = "crash-group"
COMMON = {
    "broker.address.family": "v4",
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 200,
    "socket.timeout.ms": 10_000,
    "topic.metadata.refresh.interval.ms": 5_000,
    # The broker dies all the time; what matters of it the driver says itself.
    "log_level": 0,
}
# What a client may be told while the broker is dead or young. Anything else is counted and shown.
EXPECTED = {
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE, KafkaError._MSG_TIMED_OUT, KafkaError._WAIT_COORD, KafkaError._NO_OFFSET,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION, KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.OFFSET_NOT_AVAILABLE, KafkaError._DESTROY, KafkaError._DESTROY_BROKER, KafkaError._STATE,
    KafkaError._UNKNOWN_PARTITION, KafkaError._NODE_UPDATE,
}


class Load:
    """What all clients share."""

    def __init__(self, recorder, bootstrap, topics, seed):
        self.recorder = recorder
        self.bootstrap = bootstrap
        self.partitions = [(topic, p) for topic, count in topics.items() for p in range(count)]
        self.topics = topics
        self.seed = seed
        # Clients are in these by turns, and one in so many and one says none.
        self.zones = ()
        self.stop_sending = threading.Event()
        self.stop = threading.Event()
        self.problems = {}
        self._lock = threading.Lock()
        self._producers = 0

    def problem(self, who, error):
        text = f"{who}: {error}"
        with self._lock:
            self.problems[text] = self.problems.get(text, 0) + 1

    def error(self, who, error):
        if error.code() not in EXPECTED:
            self.problem(who, error.str() if hasattr(error, "str") else error)

    def join(self, clients, kind, seconds):
        """Waits for the clients of a kind to end, and says which did not."""
        deadline = time.monotonic() + seconds
        for client in clients:
            if isinstance(client, kind):
                client.join(max(0.1, deadline - time.monotonic()))
                if client.is_alive():
                    self.problem(client.name, f"did not end within {seconds} s")

    def next_producer(self):
        with self._lock:
            self._producers += 1
            return self._producers


class Client(threading.Thread):
    def __init__(self, load, number):
        super().__init__(name=f"{type(self).__name__}-{number}", daemon=True)
        self.load = load
        self.recorder = load.recorder
        self.number = number
        self.random = random.Random(f"{load.seed}/{number}")
        self.fatal = None
        zones = ("", *load.zones)
        zone = zones[number % len(zones)]
        self.client_id = f"{self.name},zone={zone}" if zone else self.name

    def run(self):
        try:
            self.work()
        except Exception as e:  # a client that dies makes the run worthless: say so
            self.load.problem(self.name, f"died: {e!r}")

    def config(self, **more):
        return {**COMMON, "bootstrap.servers": self.load.bootstrap, "client.id": self.client_id, **more,
                "error_cb": self.told_error}

    def told_error(self, error):
        if error.fatal():
            self.fatal = error
        else:
            self.load.error(self.name, error)


class Sender(Client):
    """A producer. `settings` are librdkafka's; `once` and `ordered` what they promise."""

    def __init__(self, load, number, rate, once, ordered, **settings):
        super().__init__(load, number)
        self.rate, self.once, self.ordered, self.settings = rate, once, ordered, settings
        self.acked, self.unknown = [], []

    def work(self):
        while not self.load.stop_sending.is_set():
            self.life()

    def life(self):
        """One librdkafka producer, until the end or a fatal error."""
        me = self.load.next_producer()
        self.recorder.add(self.number, "producer", producer=me, once=self.once, ordered=self.ordered)
        producer = Producer(self.config(**{"linger.ms": 2, "message.timeout.ms": 120_000, **self.settings}))
        self.fatal = None
        while not self.load.stop_sending.is_set() and self.fatal is None:
            began = time.monotonic()
            sent = self.burst(producer, me)
            producer.poll(0)
            self.report()
            while (left := began + sent / self.rate - time.monotonic()) > 0:
                producer.poll(min(left, 0.05))
                self.report()
        if self.fatal is not None:
            # No right broker brings an idempotent producer to this.
            self.load.problem(self.name, f"fatal: {self.fatal.str()}")
            producer.purge()
        producer.flush(60)
        self.report()

    def burst(self, producer, me):
        topic, partition = self.random.choice(self.load.partitions)
        count = self.random.choice((1, 1, 5, 20, 50))
        records = []
        for record_id in self.recorder.ids(count):
            size = self.random.choice((0, 10, 100, 100, 1000, 1000, 5000))
            size = 300_000 if self.random.random() < 0.001 else size
            key = None if self.random.random() < 0.3 else f"k{record_id % 100}".encode()
            headers = [("h", str(record_id).encode()), ("h", b"")] if self.random.random() < 0.2 else []
            value = value_of(record_id, size)
            records.append((record_id, key, value, headers, sum_of(key, value, headers)))
        self.recorder.add(self.number, "send", producer=me, topic=topic, partition=partition,
                          records=[[r[0], r[4]] for r in records])
        for at, (record_id, key, value, headers, _) in enumerate(records):
            while True:
                try:
                    producer.produce(topic, value=value, key=key, headers=headers, partition=partition,
                                     on_delivery=self.told(record_id))
                    break
                except (BufferError, KafkaException):
                    producer.poll(0.05)
                    self.report()
                    if self.load.stop_sending.is_set() or self.fatal is not None:
                        # Never handed over: these are certain not to be in the log.
                        self.recorder.add(self.number, "failed", ids=[r[0] for r in records[at:]])
                        return count
        return count

    def told(self, record_id):
        def delivered(error, message):
            if error is None:
                offset = message.offset()
                self.acked.append([record_id, offset if offset >= 0 else None])
            else:
                self.unknown.append(record_id)
                self.load.error(self.name, error)
        return delivered

    def report(self):
        """Late is allowed: an answer is stamped when it is recorded."""
        if self.acked:
            records, self.acked = self.acked, []
            self.recorder.add(self.number, "acked", records=records)
        if self.unknown:
            ids, self.unknown = self.unknown, []
            self.recorder.add(self.number, "unknown", ids=ids)


def record_polls(load, client, messages, last=False):
    """Records what `messages` gave, per partition; the next offset of each partition."""
    polled, ends = {}, {}
    for m in messages:
        if m.error() is not None:
            if m.error().code() != KafkaError._PARTITION_EOF:
                load.error(f"consumer {client}", m.error())
            continue
        read = [m.offset(), id_of(m.value()), sum_of(m.key(), m.value(), m.headers())]
        polled.setdefault((m.topic(), m.partition()), []).append(read)
        ends[(m.topic(), m.partition())] = m.offset() + 1
    for (topic, partition), records in polled.items():
        more = {"last": True} if last else {}
        load.recorder.add(client, "poll", topic=topic, partition=partition, records=records, **more)
    return ends


def gather(consumer, most, seconds, pending):
    """Polls one by one into `pending`, so that a rebalance callback can record first what came before it."""
    until = time.monotonic() + seconds
    while len(pending) < most and (left := until - time.monotonic()) > 0:
        message = consumer.poll(left)
        if message is not None:
            pending.append(message)


CONSUMER = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # A log that lost its end must not be taken for a new beginning.
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 100,
    "fetch.error.backoff.ms": 50,
    "check.crcs": True,
}


class Reader(Client):
    """Assigns itself every partition and reads; with some chance each tenth of a second, begins again somewhere."""

    def __init__(self, load, number, goes_back=0.02):
        super().__init__(load, number)
        self.goes_back = goes_back

    def work(self):
        consumer = Consumer(self.config(**{**CONSUMER, "group.id": f"nobody-{self.number}"}))
        at = dict.fromkeys(self.load.partitions, 0)
        self.assign(consumer, at)
        while not self.load.stop.is_set():
            pending = []
            gather(consumer, 500, 0.1, pending)
            at.update(record_polls(self.load, self.number, pending))
            if self.random.random() < self.goes_back:
                for key, next_offset in at.items():
                    at[key] = self.random.randint(max(0, next_offset - 2000), next_offset)
                self.assign(consumer, at)
        consumer.close()

    def assign(self, consumer, at):
        for (topic, partition), offset in at.items():
            self.recorder.add(self.number, "assign", topic=topic, partition=partition, offset=offset)
        consumer.assign([TopicPartition(topic, p, offset) for (topic, p), offset in at.items()])


class Member(Client):
    """A member of the group: subscribes, commits now and then, leaves and comes back now and then."""

    commits = iter(range(1, 1 << 60))

    def work(self):
        while not self.load.stop.is_set():
            self.life(time.monotonic() + self.random.uniform(5, 25))

    def life(self, until):
        # All members of a run speak the same protocol; the seed picks it.
        strategy = {"partition.assignment.strategy": ("range", "cooperative-sticky")[self.load.seed % 2]}
        consumer = Consumer(self.config(**{**CONSUMER, **strategy, "auto.offset.reset": "earliest", "group.id": GROUP,
                                           "session.timeout.ms": 6_000, "heartbeat.interval.ms": 500,
                                           "max.poll.interval.ms": 60_000}))
        at, pending = {}, []

        def record():
            at.update(record_polls(self.load, self.number, pending))
            pending.clear()

        def assigned(_consumer, partitions):
            record()
            for p in partitions:
                at.pop((p.topic, p.partition), None)
                self.recorder.add(self.number, "assign", topic=p.topic, partition=p.partition, group=GROUP)

        def revoked(_consumer, partitions):
            record()
            for p in partitions:
                at.pop((p.topic, p.partition), None)

        consumer.subscribe(list(self.load.topics), on_assign=assigned, on_revoke=revoked, on_lost=revoked)
        while not self.load.stop.is_set() and time.monotonic() < until:
            gather(consumer, 200, 0.1, pending)
            record()
            if at and self.random.random() < 0.3:
                self.commit(consumer, dict(at))
        consumer.close()

    def commit(self, consumer, at):
        numbers = {}
        for (topic, partition), offset in at.items():
            number = numbers[(topic, partition)] = next(self.commits)
            self.recorder.add(self.number, "commit", commit=number, group=GROUP, topic=topic, partition=partition,
                              offset=offset)
        offsets = [TopicPartition(topic, p, offset) for (topic, p), offset in at.items()]
        try:
            done = {(tp.topic, tp.partition): tp.error for tp in consumer.commit(offsets=offsets, asynchronous=False)}
        except KafkaException as e:
            self.load.error(self.name, e.args[0])
            done = {}
        for key, number in numbers.items():
            # A refusal may answer a repeat of a request that did count.
            told = "commit_acked" if key in done and done[key] is None else "commit_unknown"
            self.recorder.add(self.number, told, commit=number)


class Observer(Client):
    """Asks for ends and for the group's committed offsets."""

    def work(self):
        consumer = Consumer(self.config(**{**CONSUMER, "group.id": GROUP}))
        while not self.load.stop.wait(self.random.uniform(0.05, 0.3)):
            topic, partition = self.random.choice(self.load.partitions)
            self.ends(consumer, topic, partition)
            self.committed(consumer)
        consumer.close()

    def ends(self, consumer, topic, partition, timeout=3.0):
        began = time.monotonic_ns()
        try:
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=timeout, cached=False)
        except KafkaException as e:
            self.load.error(self.name, e.args[0])
            return None
        self.recorder.add(self.number, "ends", topic=topic, partition=partition, began=began, end=end)
        return end

    def committed(self, consumer):
        began = time.monotonic_ns()
        try:
            answer = consumer.committed([TopicPartition(t, p) for t, p in self.load.partitions], timeout=3.0)
        except KafkaException as e:
            self.load.error(self.name, e.args[0])
            return
        for tp in answer:
            if tp.error is None:
                more = {"offset": tp.offset} if tp.offset >= 0 else {}
                self.recorder.add(self.number, "committed", group=GROUP, topic=tp.topic, partition=tp.partition,
                                  began=began, **more)


class Churner(Client):
    """Makes topics, fills them and deletes them: their bytes lie beside those that must stay. Not in the history."""

    def work(self):
        admin = AdminClient(self.config())
        producer = Producer(self.config(**{"message.timeout.ms": 5_000}))
        turn = 0
        while not self.load.stop_sending.wait(0.5):
            turn += 1
            # A name comes back, with another id.
            name = f"churn-{turn % 3}"
            # Every other time it is gone at once, and its objects with it.
            config = {"isobar.undelete.window.ms": "0"} if turn % 2 and os.environ.get("PEER") != "kafka" else {}
            if not self.done(admin.create_topics([NewTopic(name, 2, 1, config=config)], operation_timeout=5, request_timeout=5)):
                continue
            # The client may not know the topic yet, or know it as deleted.
            with contextlib.suppress(KafkaException):
                for n in range(100):
                    producer.produce(name, value=bytes(1000), partition=n % 2)
            producer.flush(6)
            self.done(admin.delete_topics([name], operation_timeout=5, request_timeout=5))

    @staticmethod
    def done(futures):
        """Any refusal will do: the answer to the first try may have been lost."""
        try:
            for future in futures.values():
                future.result(10)
            return True
        except KafkaException as e:
            return e.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS


def drain(load, number, timeout=120.0, last=True, first=None):
    """Reads everything from offset 0, or from `first[(topic, partition)]`, to the end. True if it got there. `last`: it is the
    read that is judged."""
    observer = Observer(load, number)
    consumer = Consumer(observer.config(**{**CONSUMER, "group.id": GROUP}))
    deadline = time.monotonic() + timeout
    ends = {}
    for topic, partition in load.partitions:
        while (end := observer.ends(consumer, topic, partition, timeout=5.0)) is None and time.monotonic() < deadline:
            pass
        ends[(topic, partition)] = end
    at = dict.fromkeys(load.partitions, 0) | (first or {})
    for (topic, partition), offset in at.items():
        load.recorder.add(number, "assign", topic=topic, partition=partition, offset=offset)
    consumer.assign([TopicPartition(topic, p, offset) for (topic, p), offset in at.items()])
    left = {key for key, end in ends.items() if end != at[key]}
    while left and time.monotonic() < deadline:
        pending = []
        gather(consumer, 1000, 0.2, pending)
        at.update(record_polls(load, number, pending, last))
        left = {key for key in left if ends[key] is None or at[key] < ends[key]}
    for (topic, partition), end in ends.items():
        if (topic, partition) not in left:
            if last:
                load.recorder.add(number, "drained", topic=topic, partition=partition, end=end)
        else:
            load.problem("the last read", f"{topic}-{partition} got to {at[(topic, partition)]}, end {end}")
    observer.committed(consumer)
    consumer.close()
    return not left
