"""A flood of malformed frames while good clients work: no good client is disturbed, memory stays bounded, the node stays up.

Good clients are librdkafka's: an idempotent producer with acks=all and a consumer that checks every value. The flood comes
from processes of its own: random bytes, lengths that promise 2 GB, frames that are cut, valid headers before garbage,
compression bombs, thousands of connections that say nothing. `--seconds` of flood after as many without.
"""

import argparse
import gzip
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from broker import Broker, die_with_parent  # noqa: E402
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

TOPIC = "good"
# What the flood may add to the memory of the process at its peak: `queued.max.request.bytes` (256 MiB) and its decoding.
MOST_ADDED_MIB = 512


def header(api, version, flexible):
    client = b"flood"
    head = struct.pack(">hhih", api, version, 1, len(client)) + client
    return head + (b"\0" if flexible else b"")


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def framed(body):
    return struct.pack(">i", len(body)) + body


def crc32c(data):
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def bomb():
    """A Produce of a batch with the right CRC whose gzip grows a thousandfold and holds no records."""
    inner = struct.pack(">hiqqqhii", 1, 0, 0, 0, -1, -1, -1, 1) + gzip.compress(bytes(40 << 20), 9)
    batch = struct.pack(">qiib", 0, 4 + 1 + 4 + len(inner), 0, 2) + struct.pack(">I", crc32c(inner)) + inner
    name = TOPIC.encode()
    body = struct.pack(">hhi", -1, 1, 1000) + struct.pack(">i", 1) + struct.pack(">h", len(name)) + name
    body += struct.pack(">ii", 1, 0) + struct.pack(">i", len(batch)) + batch
    return framed(header(0, 3, False) + body)


BOMB = bomb()


def malformed(rng):
    kind = rng.randrange(9)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 2000))
    if kind == 1:
        return struct.pack(">i", 0x7FFFFFFF) + rng.randbytes(100)
    if kind == 2:
        return struct.pack(">i", -rng.randrange(1, 1 << 31)) + b"x" * 20
    if kind == 3:  # a large frame that is promised and never comes whole
        return struct.pack(">i", 90 << 20) + header(0, 9, True) + rng.randbytes(4096)
    if kind == 4:  # arrays that promise billions
        return framed(header(3, 12, True) + varint(0xFFFFFFFF) + rng.randbytes(64))
    if kind == 5:
        return framed(header(1, 11, False) + struct.pack(">iiiib", -1, 500, 1, 1 << 30, 0) + struct.pack(">iii", 7, 9, 0x7FFFFFFF))
    if kind == 6:
        api, version = rng.randrange(-5, 90), rng.randrange(-2, 30)
        return framed(struct.pack(">hhi", api, version, 5) + rng.randbytes(rng.randrange(0, 300)))
    if kind == 7:
        return BOMB if rng.random() < 0.2 else BOMB[: rng.randrange(len(BOMB))]
    api = rng.choice([0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 22, 32])
    return framed(header(api, rng.randrange(0, 8), False) + rng.randbytes(rng.randrange(0, 500)))


def flood(bootstrap, seed, until, sent):
    die_with_parent()
    host, port = bootstrap.split(":")
    rng = random.Random(seed)
    idle = []
    while time.time() < until:
        try:
            s = socket.create_connection((host, int(port)), timeout=2)
            s.settimeout(0.05)
            if rng.random() < 0.2:
                idle.append(s)
                if len(idle) > 400:
                    idle.pop(0).close()
                continue
            for _ in range(rng.randrange(1, 4)):
                s.sendall(malformed(rng))
                with sent.get_lock():
                    sent.value += 1
            if rng.random() < 0.5:
                try:
                    s.recv(4096)
                except OSError:
                    pass
            s.close()
        except OSError:
            pass


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


class Good:
    """A producer and a consumer at a modest, steady rate."""

    def __init__(self, bootstrap):
        self.errors = []
        self.latencies = []
        self.acked = 0
        self.read = 0
        self.stop = False
        self.all_sent = False
        note = lambda error: self.errors.append(f"client error: {error}")  # noqa: E731
        common = {"bootstrap.servers": bootstrap, "error_cb": note}
        self.producer = Producer({**common, "enable.idempotence": True, "linger.ms": 0, "delivery.timeout.ms": 30000})
        self.consumer = Consumer({**common, "group.id": "good", "auto.offset.reset": "earliest", "enable.auto.commit": False})
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.consume)]
        for thread in self.threads:
            thread.start()

    def send(self):
        number = 0
        while not self.stop:
            began = time.monotonic()

            def delivered(error, _message, began=began):
                if error:
                    self.errors.append(f"a send failed: {error}")
                else:
                    self.acked += 1
                    self.latencies.append((began, time.monotonic() - began))

            self.producer.produce(TOPIC, value=number.to_bytes(8, "big") + b"v" * 500, on_delivery=delivered, partition=0)
            number += 1
            self.producer.poll(0.005)
        self.producer.flush(30)
        self.sent = number

    def consume(self):
        self.consumer.assign([TopicPartition(TOPIC, 0, 0)])
        while not self.all_sent or self.read < self.acked:
            message = self.consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                if message.error().code() != KafkaError._PARTITION_EOF:
                    self.errors.append(f"a read failed: {message.error()}")
                continue
            number = int.from_bytes(message.value()[:8], "big")
            if number != self.read:
                self.errors.append(f"read {number} where {self.read} was due")
                return
            self.read += 1

    def end(self):
        self.stop = True
        sender, reader = self.threads
        sender.join(60)
        self.all_sent = True
        reader.join(60)
        self.consumer.close()
        if self.acked != self.sent:
            self.errors.append(f"{self.sent} sent, {self.acked} acknowledged")
        if self.read != self.acked:
            self.errors.append(f"{self.acked} acknowledged, {self.read} read")


def rss_mib(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=15)
    arguments.add_argument("--processes", type=int, default=3)
    args = arguments.parse_args()
    with Broker() as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap})
        admin.create_topics([NewTopic(TOPIC, 1)])[TOPIC].result()
        good = Good(broker.bootstrap)
        time.sleep(args.seconds)
        before, peak = rss_mib(broker.pid), 0
        began, until = time.monotonic(), time.time() + args.seconds
        sent = multiprocessing.Value("Q", 0)
        flooders = [
            multiprocessing.Process(target=flood, args=(broker.bootstrap, seed, until, sent), daemon=True)
            for seed in range(args.processes)
        ]
        for process in flooders:
            process.start()
        while time.time() < until:
            peak = max(peak, rss_mib(broker.pid))
            time.sleep(0.1)
        for process in flooders:
            process.join(10)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        good.end()
        calm = [took for at, took in good.latencies if at < began]
        wild = [took for at, took in good.latencies if at >= began]
        print(f"{sent.value} malformed frames in {args.seconds:.0f} s; {good.acked} good sends, {good.read} good reads")
        for name, values in (("without", calm), ("with", wild)):
            print(f"  {name:8} the flood: p50 {percentile(values, 0.5) * 1000:.1f} ms, p99 {percentile(values, 0.99) * 1000:.1f} ms")
        print(f"  memory: {before:.0f} MiB before, at most {peak:.0f} MiB")
        problems = good.errors[:10]
        if peak - before > MOST_ADDED_MIB:
            problems.append(f"memory grew by {peak - before:.0f} MiB")
        if sent.value < 500:
            problems.append("that was no flood")
        if len(wild) < 50:
            problems.append(f"only {len(wild)} good sends during the flood")
    for problem in problems:
        print(f"FAIL {problem}")
    print("0 passed, 1 failed" if problems else "1 passed, 0 failed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
