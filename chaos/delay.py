#!/usr/bin/env python3
"""Holds back the packets that the namespace's rules give to queue 0, in order: `tc netem delay`, which this kernel lacks.

    delay.py DELAY_MS JITTER_MS SEED      SIGTERM ends it; it prints how many packets it held

NFQUEUE by hand: three messages of netlink are less than a package that must be compiled. Only headers are looked at; the packets
stay in the kernel.
"""

import collections
import random
import select
import signal
import socket
import struct
import sys
import time

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5
PACKET, VERDICT_BATCH, CONFIG = 0x300, 0x303, 0x302
CFG_CMD, CFG_PARAMS, CFG_MAX_LENGTH, CFG_MASK, CFG_FLAGS = 1, 2, 3, 4, 5
BIND, COPY_META, NF_ACCEPT = 1, 1, 1
# A packet of many segments stays one; what no longer fits into the queue goes through at once.
FLAGS = 1 | 4


def attribute(kind, body):
    return struct.pack("=HH", 4 + len(body), kind) + body + bytes(-len(body) % 4)


def message(kind, body, flags=1):
    body = struct.pack("!BBH", 0, 0, 0) + body
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def packet_ids(data):
    """Of the packets that a read from the socket told of."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == PACKET:
            part = at + 20
            while part < at + length:
                size, name = struct.unpack_from("=HH", data, part)
                if name & 0x3FFF == 1:
                    yield struct.unpack_from("!I", data, part + 4)[0]
                    break
                part += size + -size % 4
        at += length + -length % 4


def main(delay_ms, jitter_ms, seed):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    queue.bind((0, 0))
    queue.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    queue.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    settings = attribute(CFG_PARAMS, struct.pack("!IB", 0, COPY_META)) + attribute(CFG_MAX_LENGTH, struct.pack("!I", 100_000))
    settings += attribute(CFG_MASK, struct.pack("!I", FLAGS)) + attribute(CFG_FLAGS, struct.pack("!I", FLAGS))
    for body in (attribute(CFG_CMD, struct.pack("!BxH", BIND, 0)), settings):
        queue.send(message(CONFIG, body, flags=5))
        error = struct.unpack_from("=i", queue.recv(65536), 16)[0]
        if error:
            sys.exit(f"netlink says {error}")
    print("READY", flush=True)
    rng, held, released, count = random.Random(seed), collections.deque(), 0.0, 0
    # Once the rules are gone nothing new comes: what is held goes out in time.
    while held or not ended:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else 0.1
        if select.select([queue], [], [], min(wait, 0.1))[0]:
            for packet_id in packet_ids(queue.recv(1 << 18)):
                # Never before the one that came first: this makes no new order.
                released = max(released, time.monotonic() + (delay_ms + rng.uniform(-jitter_ms, jitter_ms)) / 1000)
                held.append((released, packet_id))
                count += 1
        last = None
        while held and held[0][0] <= time.monotonic():
            last = held.popleft()[1]
        if last is not None:
            queue.send(message(VERDICT_BATCH, attribute(2, struct.pack("!II", NF_ACCEPT, last))))
    print(count, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
