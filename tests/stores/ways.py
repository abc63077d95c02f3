"""On the way to the store, and how it keeps objects: CA files, proxies, encryption at rest."""

import asyncio
import base64
import collections
import hashlib
import os
import pathlib
import threading
import urllib.error

from harness import Node, check, free_ports, fresh_dir, refused
from cases import case
from storeproxy import copy_body, fields_of, read_body
from stores import Minio, Versitygw

LINES = [f"line {n}" for n in range(500)]


class ForwardProxy:
    """A forward proxy in a thread: requests whose target is a whole URL, and CONNECT. `seen` counts them by target."""

    def __init__(self):
        self.seen = collections.Counter()
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.main(),), daemon=True)

    async def main(self):
        self.end = asyncio.Event()
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, limit=1 << 20)
        self.url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
        self.ready.set()
        await self.end.wait()
        server.close()
        # Those still open end within this loop: collected later they would print to a log whose last line counts.
        open_connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_connections:
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)
        await asyncio.sleep(0)

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join(10)

    async def connection(self, reader, writer):
        upstream = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, rest = head.split(b" ", 2)
                if method == b"CONNECT":
                    self.seen["CONNECT", target.decode()] += 1
                    upstream = await asyncio.open_connection(*target.decode().split(":"))
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))
                    return
                scheme, _, address, path = target.split(b"/", 3)
                assert scheme == b"http:", target
                self.seen["plain", address.decode()] += 1
                body = await read_body(reader, fields_of(head))
                upstream = upstream or await asyncio.open_connection(*address.decode().split(":"), limit=1 << 20)
                upstream[1].write(method + b" /" + path + b" " + rest + body)
                reply = await upstream[0].readuntil(b"\r\n\r\n")
                writer.write(reply)
                if method != b"HEAD" and int(reply.split(b" ", 2)[1]) not in (204, 304):
                    await copy_body(upstream[0], fields_of(reply), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            writer.close()
            if upstream:
                upstream[1].close()


async def pump(reader, writer):
    while part := await reader.read(1 << 16):
        writer.write(part)
        await writer.drain()
    writer.close()


def fit(url, env):
    code, text = check(url, env)
    assert code == 0 and "This store is fit for Isobar." in text, text


def write_and_read(url, env):
    """A node writes; a second on its directory, which has nothing of it in memory, reads from the store."""
    with fresh_dir() as data:
        with Node(data, url, env).wait_ready() as node:
            node.create_topic()
            node.produce(LINES)
            node.wait_uploaded()
        with Node(data, url, env).wait_ready() as node:
            assert node.consume() == LINES
            assert node.value('isobar_store_requests_total{store="local",op="get",result="ok"}') > 1


def refused_request(store, method, path, headers=None):
    try:
        store.exchange(method, path, headers=headers)
    except urllib.error.HTTPError as error:
        return error.code
    raise AssertionError(f"{method} {path} was answered")


@case
def a_ca_of_ones_own():
    with fresh_dir() as directory, Minio(tls=directory) as store:
        store.bucket("bucket")
        refused(store.url("bucket"), store.env, "no trusted TLS connection", "UnknownIssuer", "ca_file=PATH")
        fit(store.url("bucket", ca_file=store.ca_file), store.env)
        write_and_read(store.url("bucket", "p", ca_file=store.ca_file), store.env)
        # Another CA is none.
        with fresh_dir() as other:
            with Minio(tls=other) as second:
                refused(store.url("bucket", ca_file=second.ca_file), store.env, "no trusted TLS connection")
        pathlib.Path(f"{directory}/empty").touch()
        refused(store.url("bucket", ca_file=f"{directory}/empty"), store.env, "holds no PEM certificate")
        refused(store.url("bucket", ca_file=f"{directory}/none"), store.env, "cannot read", f"{directory}/none")


@case
def through_a_proxy():
    with Versitygw() as store, ForwardProxy() as proxy:
        store.bucket("bucket")
        fit(store.url("bucket", proxy=proxy.url), store.env)
        checked = proxy.seen["plain", store.address]
        assert checked > 20, proxy.seen
        write_and_read(store.url("bucket", "p", proxy=proxy.url), store.env)
        assert set(proxy.seen) == {("plain", store.address)} and proxy.seen.total() > checked + 5, proxy.seen
        fit(store.url("bucket", proxy=proxy.url, proxy_excludes="127.0.0.1"), store.env)
    with fresh_dir() as directory, Minio(tls=directory) as store, ForwardProxy() as proxy:
        store.bucket("bucket")
        fit(store.url("bucket", proxy=proxy.url, ca_file=store.ca_file), store.env)
        assert set(proxy.seen) == {("CONNECT", store.address)}, proxy.seen


@case
def a_proxy_that_is_not_there():
    with Versitygw() as store:
        store.bucket("bucket")
        port = free_ports(1)[0]
        url = store.url("bucket", proxy=f"http://someone:hush@127.0.0.1:{port}")
        code, text = check(url, store.env)
        assert code == 1 and "the store cannot be reached" in " ".join(text.split()), text
        assert f"127.0.0.1:{port}" in text and "hush" not in text, text


@case
def encrypted_at_rest():
    with fresh_dir() as directory, Minio(tls=directory, kms="the-key") as store:
        store.bucket("bucket")
        options = {"ca_file": store.ca_file}
        for sse, more, algorithm in [("s3", {}, "AES256"), ("kms", {"kms_key_id": "the-key"}, "aws:kms")]:
            write_and_read(store.url("bucket", sse, sse=sse, **options, **more), store.env)
            found = store.keys("bucket", f"{sse}/")
            assert any("/data/" in key for key in found), found
            for key in found:
                headers = store.head("bucket", key)
                assert headers["x-amz-server-side-encryption"] == algorithm, (key, headers.items())
                if sse == "kms":
                    assert headers["x-amz-server-side-encryption-aws-kms-key-id"].endswith("the-key"), headers.items()
        unknown = store.url("bucket", sse="kms", kms_key_id="another", **options)
        refused(unknown, store.env, "encryption at rest fails", "Check the sse options")


@case
def encrypted_with_our_key():
    with fresh_dir() as directory, Minio(tls=directory) as store:
        store.bucket("bucket")
        secrets = [os.urandom(32) for _ in range(2)]
        files = [pathlib.Path(f"{directory}/key-{n}") for n in range(2)]
        for path, secret in zip(files, secrets, strict=True):
            path.write_bytes(base64.b64encode(secret) + b"\n")

        def url(path):
            return store.url("bucket", "p", ca_file=store.ca_file, sse="c", sse_c_key_file=path)

        write_and_read(url(files[0]), store.env)
        found = store.keys("bucket", "p/")
        assert any("/data/" in key for key in found), found
        for key in found:
            assert refused_request(store, "GET", f"/bucket/{key}") == 400
            assert refused_request(store, "GET", f"/bucket/{key}", with_key(secrets[1])) == 403
            body, _ = store.exchange("GET", f"/bucket/{key}", headers=with_key(secrets[0]))
            assert len(body) == found[key]
        # Who comes without the key is told what it is. With another, MinIO only says that access is denied.
        refused(store.url("bucket", "p", ca_file=store.ca_file), store.env, "encryption at rest fails", "Check the sse options")
        refused(url(files[1]), store.env, "access denied")
        files[1].write_text("short")
        refused(url(files[1]), store.env, "sse_c_key_file", "32 bytes in base64")


def with_key(secret):
    name = "x-amz-server-side-encryption-customer-"
    md5 = base64.b64encode(hashlib.md5(secret).digest()).decode()
    return {f"{name}algorithm": "AES256", f"{name}key": base64.b64encode(secret).decode(), f"{name}key-md5": md5}


@case
def encryption_that_the_store_lacks():
    with Minio() as store:
        store.bucket("bucket")
        for options in [{"sse": "s3"}, {"sse": "kms", "kms_key_id": "k"}]:
            words = "encryption at rest fails", "KMS is not configured", "Check the sse options"
            refused(store.url("bucket", **options), store.env, *words)
        with fresh_dir() as directory:
            path = pathlib.Path(f"{directory}/key")
            path.write_bytes(base64.b64encode(bytes(32)))
            refused(store.url("bucket", sse="c", sse_c_key_file=path), store.env, "encryption at rest fails", "secure connection")
