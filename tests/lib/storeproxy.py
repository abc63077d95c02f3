#!/usr/bin/env python3
"""A proxy before an object store that does to requests what networks and stores do: HTTP/1.1, any store.

    storeproxy.py UPSTREAM_HOST:PORT [[LISTEN_HOST:]LISTEN_PORT [CONTROL_PORT]]   prints "PROXY port CONTROL port"; runs until killed

    with StoreProxy("127.0.0.1:9110") as proxy:                        # or from Python
        proxy.set(storm=0.5)        # half of the requests get 503 SlowDown / ServerBusy and are not passed on
        proxy.set(delay_ms=200)     # each request waits before it is passed on
        proxy.set(lose=0.2)         # of requests that write: passed on, answered by the store, the answer is thrown away
        proxy.set(stopped_s=60)     # connections are cut, then refused for half of it, then taken and reset
        proxy.set(refuse=[403, "AccessDenied"], methods=["PUT", "POST", "DELETE"])   # this answer to these methods
        proxy.set()                 # all faults off
        proxy.counts()              # requests, stormed, lost, refused, slowed, stops, cut, turned_away, bytes

Control is HTTP too: POST /set with the same names as JSON (what is absent is off), GET /counts. From a shell:
    curl -s -d '{"storm": 0.3}' http://127.0.0.1:CONTROL/set
`cut` counts connections that a stop found open, `turned_away` those that were reset later; what the kernel refused is not seen.
The signature of a request stays valid, because nothing in it is changed.
"""

import asyncio
import collections
import json
import pathlib
import random
import subprocess
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from broker import die_with_parent  # noqa: E402

ALL_METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
WRITES = ("PUT", "POST", "DELETE")


class Proxy:
    def __init__(self, upstream, host):
        upstream_host, port = upstream.rsplit(":", 1)
        self.upstream, self.host = (upstream_host, int(port)), host
        self.faults = {}
        names = ("requests", "stormed", "lost", "refused", "slowed", "stops", "cut", "turned_away", "bytes")
        self.count = collections.Counter(dict.fromkeys(names, 0))
        self.writers = set()
        self.server = self.port = None
        # Of the last `set`: what an earlier one has planned is void.
        self.turn = 0
        self.random = random.Random(1)

    async def listen(self, port):
        self.server = await asyncio.start_server(self.connection, self.host, port, limit=1 << 20, backlog=512)
        self.port = self.server.sockets[0].getsockname()[1]

    async def set(self, faults):
        self.turn += 1
        self.faults = faults
        seconds = faults.get("stopped_s")
        if seconds:
            self.server.close()
            self.count["stops"] += 1
            self.count["cut"] += len(self.writers)
            for writer in list(self.writers):
                writer.transport.abort()
            asyncio.ensure_future(self.come_back(self.turn, seconds))
        elif not self.server.is_serving():
            await self.listen(self.port)

    async def come_back(self, turn, seconds):
        await asyncio.sleep(seconds / 2)
        if self.turn == turn:
            await self.listen(self.port)
            await asyncio.sleep(seconds / 2)
        if self.turn == turn:
            self.faults = {}

    async def connection(self, reader, writer):
        if self.faults.get("stopped_s"):
            self.count["turned_away"] += 1
            writer.transport.abort()
            return
        upstream = None
        self.writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                upstream = await self.request(head, reader, writer, upstream)
                if upstream is None:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        finally:
            self.writers.discard(writer)
            writer.transport.abort() if self.faults.get("stopped_s") else writer.close()
            if upstream:
                upstream[1].close()

    async def request(self, head, reader, writer, upstream):
        faults, self.count["requests"] = self.faults, self.count["requests"] + 1
        method = head.split(b" ", 1)[0].decode()
        fields = fields_of(head)
        if fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await read_body(reader, fields)
        self.count["bytes"] += len(body)
        if faults.get("refuse") and method in faults.get("methods", ALL_METHODS):
            self.count["refused"] += 1
            writer.write(answer(method, *faults["refuse"]))
            await writer.drain()
            return upstream or await asyncio.open_connection(*self.upstream, limit=1 << 20)
        if self.random.random() < faults.get("storm", 0):
            self.count["stormed"] += 1
            writer.write(answer(method, 503, "SlowDown", "ServerBusy"))
            await writer.drain()
            return upstream or await asyncio.open_connection(*self.upstream, limit=1 << 20)
        if faults.get("delay_ms"):
            self.count["slowed"] += 1
            await asyncio.sleep(faults["delay_ms"] / 1000)
        for attempt in (1, 2):
            if upstream is None:
                upstream = await asyncio.open_connection(*self.upstream, limit=1 << 20)
            upstream[1].write(head + body)
            try:
                reply = await upstream[0].readuntil(b"\r\n\r\n")
                while reply.startswith(b"HTTP/1.1 100"):
                    reply = await upstream[0].readuntil(b"\r\n\r\n")
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                # The store had closed an idle connection: that is no fault that was asked for.
                upstream = None
                if attempt == 2:
                    return None
        fields = fields_of(reply)
        status = int(reply.split(b" ", 2)[1])
        empty = method == "HEAD" or status in (204, 304)
        lose = method in WRITES and self.random.random() < faults.get("lose", 0)
        if not lose:
            writer.write(reply)
        if not empty:
            await copy_body(upstream[0], fields, None if lose else writer)
        if lose:
            self.count["lost"] += 1
            upstream[1].close()
            return None
        await writer.drain()
        if fields.get("connection", "").lower() == "close":
            return None
        return upstream

    async def control(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await read_body(reader, fields_of(head))
            if head.startswith(b"POST"):
                await self.set(json.loads(body or b"{}"))
            text = json.dumps(self.count).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            await writer.drain()
        finally:
            writer.close()


def fields_of(head):
    lines = head.decode("latin1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


async def read_body(reader, fields):
    if "chunked" in fields.get("transfer-encoding", ""):
        parts = []
        while True:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            parts += [line, await reader.readexactly(size + 2)]
            if size == 0:
                return b"".join(parts)
    return await reader.readexactly(int(fields.get("content-length", 0)))


async def copy_body(reader, fields, writer):
    if "chunked" in fields.get("transfer-encoding", ""):
        body = await read_body(reader, fields)
        if writer:
            writer.write(body)
        return
    left = int(fields.get("content-length", 0))
    while left > 0:
        part = await reader.read(min(left, 1 << 18))
        if not part:
            raise ConnectionError
        left -= len(part)
        if writer:
            writer.write(part)
            await writer.drain()


def answer(method, status, code, azure_code=None):
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>said the proxy</Message></Error>'.encode()
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        f"x-ms-error-code: {azure_code or code}\r\n\r\n"
    ).encode()
    return head if method == "HEAD" else head + body


async def main(upstream, host, port, control_port):
    proxy = Proxy(upstream, host)
    await proxy.listen(port)
    control = await asyncio.start_server(proxy.control, "127.0.0.1", control_port)
    print("PROXY", proxy.port, "CONTROL", control.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


class StoreProxy:
    """The proxy in a process of its own."""

    def __init__(self, upstream, host="127.0.0.1"):
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), upstream, f"{host}:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        words = self.process.stdout.readline().split()
        self.port, self.control = int(words[1]), int(words[3])
        self.address = f"{host}:{self.port}"

    def set(self, **faults):
        self._ask("set", json.dumps(faults).encode())

    def counts(self):
        return self._ask("counts", None)

    def _ask(self, path, body):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.control}/{path}", data=body, timeout=10) as answered:
            return json.load(answered)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    listen_host, _, listen_port = (sys.argv[2] if len(sys.argv) > 2 else "0").rpartition(":")
    asyncio.run(main(sys.argv[1], listen_host or "127.0.0.1", int(listen_port), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
