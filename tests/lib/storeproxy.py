"""An HTTP proxy before an object store's server, which makes it fail in the ways that clouds do.

    with StoreProxy(upstream_port) as proxy:          # a process of its own, on proxy.port of 127.0.0.1
        proxy.set(throttle=0.3)                       # three requests in ten answer 503 SlowDown, and never arrive
        proxy.set(lose=0.1)                           # PUTs and DELETEs arrive, their answers are lost
        proxy.set(slow_ms=400)                        # each request waits for up to so long
        proxy.set(down=True)                          # connections are refused or cut
        proxy.set()                                   # nothing goes wrong
        proxy.counts()                                # what was done so far

It changes no header, so signatures stay right: the client must be told the proxy's address as the server's.
"""

import asyncio
import json
import multiprocessing
import os
import pathlib
import random
import socket
import tempfile
import time

from broker import die_with_parent, free_ports

_MOST_HEAD_BYTES = 64 << 10
_SLOW_DOWN = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class _Plan:
    def __init__(self, directory, seed):
        self.file = directory / "plan.json"
        self.counts_file = directory / "counts.json"
        self.random = random.Random(seed)
        self.stamp = None
        self.plan = {}
        self.counts = {}

    def look(self):
        stamp = self.file.stat().st_mtime_ns if self.file.exists() else None
        if stamp != self.stamp:
            self.stamp = stamp
            self.plan = json.loads(self.file.read_text()) if stamp else {}
        return self.plan

    def hit(self, what):
        return self.random.random() < self.look().get(what, 0)

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    async def keep_counts(self):
        while True:
            await asyncio.sleep(0.2)
            whole = self.counts_file.with_suffix(".new")
            whole.write_text(json.dumps(self.counts))
            whole.rename(self.counts_file)


def _field(head, name):
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


async def _body(reader, head, writer):
    """Moves a body on; False if it goes on to the end of the connection."""
    if (_field(head, b"transfer-encoding") or b"").lower() == b"chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            part = line + await reader.readexactly(size + 2)
            if writer:
                writer.write(part)
                await writer.drain()
            if size == 0:
                return True
    length = _field(head, b"content-length")
    left = int(length) if length else 0
    while left > 0:
        part = await reader.read(min(left, 1 << 18))
        if not part:
            raise ConnectionError("cut")
        left -= len(part)
        if writer:
            writer.write(part)
            await writer.drain()
    return length is not None


async def _request(plan, reader, writer, upstream):
    head = await reader.readuntil(b"\r\n\r\n")
    method = head.split(b" ", 1)[0]
    plan.count("requests")
    if plan.look().get("down"):
        plan.count("refused")
        raise ConnectionError("down")
    slow_ms = plan.look().get("slow_ms", 0)
    if slow_ms:
        plan.count("slowed")
        await asyncio.sleep(plan.random.uniform(0, slow_ms / 1000))
    if plan.hit("throttle"):
        plan.count("throttled")
        if _field(head, b"expect") is None:
            await _body(reader, head, None)
        writer.write(b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: %d\r\n\r\n%s" % (len(_SLOW_DOWN), _SLOW_DOWN))
        await writer.drain()
        return
    up_reader, up_writer = upstream
    up_writer.write(head)
    await _body(reader, head, up_writer)
    await up_writer.drain()
    lose = method in (b"PUT", b"DELETE", b"POST") and plan.hit("lose")
    while True:
        answer = await up_reader.readuntil(b"\r\n\r\n")
        status = int(answer.split(b" ", 2)[1])
        if status >= 200:
            break
    if lose:
        # The server has done it; nobody hears of it.
        plan.count("lost")
        raise ConnectionError("lost")
    writer.write(answer)
    if method != b"HEAD" and status not in (204, 304):
        await _body(up_reader, answer, writer)
    await writer.drain()
    if (_field(answer, b"connection") or b"").lower() == b"close":
        raise ConnectionError("closed")


async def _client(plan, upstream_port, reader, writer):
    up_writer = None
    try:
        upstream = await asyncio.open_connection("127.0.0.1", upstream_port, limit=1 << 20)
        up_writer = upstream[1]
        while True:
            await _request(plan, reader, writer, upstream)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        pass
    finally:
        for end in (writer, up_writer):
            if end is not None:
                end.transport.abort()


async def _serve(port, upstream_port, directory, seed):
    plan = _Plan(directory, seed)
    serve = lambda reader, writer: _client(plan, upstream_port, reader, writer)  # noqa: E731
    server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 20)
    counting = asyncio.create_task(plan.keep_counts())
    async with server:
        await server.serve_forever()
    await counting


def _main(port, upstream_port, directory, seed):
    die_with_parent()
    asyncio.run(_serve(port, upstream_port, directory, seed))


class StoreProxy:
    def __init__(self, upstream_port, seed=1, port=None):
        self.port = port or free_ports(1)[0]
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="isobar-proxy-"))
        args = (self.port, upstream_port, self.directory, seed)
        self.process = multiprocessing.get_context("spawn").Process(target=_main, args=args, daemon=True)

    def __enter__(self):
        self.process.start()
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                if time.monotonic() > deadline or not self.process.is_alive():
                    raise
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()
        for file in self.directory.iterdir():
            file.unlink()
        self.directory.rmdir()

    def set(self, **plan):
        whole = self.directory / "plan.new"
        whole.write_text(json.dumps(plan))
        os.replace(whole, self.directory / "plan.json")

    def counts(self):
        file = self.directory / "counts.json"
        return json.loads(file.read_text()) if file.exists() else {}
