"""Writes what the clients saw, for history-check (crates/testkit), and the values whose content it judges."""

import json
import os
import pathlib
import random
import struct
import subprocess
import threading
import time
import zlib

_MAGIC = b"IBR1"
_HEAD = struct.Struct(">4sQI")
# Payloads are slices of this: they neither compress to nothing nor are all alike.
_NOISE = random.Random(1).randbytes(1 << 20)


class Recorder:
    """One file, one lock: events are in order of time. Stamps are taken inside the lock."""

    def __init__(self, path):
        self._file = open(path, "w", encoding="ascii", buffering=1 << 20)
        self._lock = threading.Lock()
        self._next_id = 1
        self.acks = 0

    def add(self, client, op, **fields):
        with self._lock:
            if self._file.closed:
                return
            line = {"t": time.monotonic_ns(), "c": client, "op": op, **fields}
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            if op == "acked":
                self.acks += len(fields["records"])

    def ids(self, count):
        """Numbers that nothing else in this history has."""
        with self._lock:
            first = self._next_id
            self._next_id += count
        return range(first, first + count)

    def close(self):
        """What comes later, from clients that are being abandoned, is dropped."""
        with self._lock:
            self._file.close()


def value_of(record_id, size):
    """A value that names its record and sums itself; `size` bytes of noise within."""
    at = (record_id * 7919) % (len(_NOISE) - size)
    body = _HEAD.pack(_MAGIC, record_id, size) + _NOISE[at : at + size]
    return body + struct.pack(">I", zlib.crc32(body))


def id_of(value):
    """The record that a value names; None if it is not whole."""
    if value is None or len(value) < _HEAD.size + 4:
        return None
    magic, record_id, size = _HEAD.unpack_from(value)
    if magic != _MAGIC or len(value) != _HEAD.size + size + 4:
        return None
    body, (crc,) = value[:-4], struct.unpack(">I", value[-4:])
    return record_id if zlib.crc32(body) == crc else None


def sum_of(key, value, headers):
    """Over all that was sent, so that a record whose parts are mixed up is not taken for whole."""
    total = zlib.crc32(value or b"")
    total = zlib.crc32(b"\0" if key is None else b"\1" + key, total)
    for name, content in headers or []:
        total = zlib.crc32(name.encode() + b"\0" + (content or b""), total)
    return total


def check(history, required):
    """The verdict of history-check; its exit code and what it printed."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path.home() / ".cache/isobar/target"))
    binary = os.environ.get("HISTORY_CHECK", str(target / "ci/history-check"))
    done = subprocess.run([binary, "--dense", "--require", required, str(history)], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout + done.stderr
