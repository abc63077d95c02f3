"""Objects that are too large for one PUT: compaction writes what is over 64 MiB in parts."""

import hashlib
import re
import signal
import subprocess

from harness import ISOBAR, Node, clean_env, fresh_dir, until
from cases import cases_for
from storeproxy import StoreProxy
from stores import Azurite, Minio, Versitygw, texts

PART_BYTES = 16 << 20
# Compaction merges once 256 MiB or so many uploads have gathered; the second is quicker. Each upload has so much that they are over
# 64 MiB together, and is begun by its bytes, never by the clock.
UPLOADS = 256
TRIGGER_BYTES = 288 << 10
LINE_BYTES = 8 << 10


def line(number):
    text = hashlib.sha256(str(number).encode()).hexdigest()
    return f"{number:08} {text * (LINE_BYTES // len(text))}"


class Compacting(Node):
    """Small uploads, and eager compaction."""

    def __init__(self, data, url, env, bytes_per_s="1GiB"):
        settings = {
            "ISOBAR_UPLOAD_TRIGGER": str(TRIGGER_BYTES),
            "ISOBAR_COMPACTION_INTERVAL": "100ms",
            "ISOBAR_COMPACTION_BYTES_PER_S": bytes_per_s,
            "ISOBAR_CACHE_DISK": "0",
        }
        super().__init__(data, url, env | settings, upload_interval_ms=600_000)

    def fill(self):
        """Writes until there are so many uploads; what it wrote."""
        command = [ISOBAR, "produce", "t", "-b", self.kafka]
        lines, per_upload = [], TRIGGER_BYTES // LINE_BYTES + 1
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as producer:
            while (before := self.uploaded()) < UPLOADS:
                lines += [line(n) for n in range(len(lines), len(lines) + per_upload)]
                producer.stdin.write("".join(f"{text}\n" for text in lines[-per_upload:]))
                producer.stdin.flush()
                until(lambda: self.uploaded() > before, "the next upload")
        assert producer.returncode == 0
        return lines


def unfinished(store):
    """What of uploads that never ended lies in the store: names that only this knows."""
    if isinstance(store, Azurite):
        with_parts = store.keys("bucket", include="uncommittedblobs")
        return sorted(with_parts.keys() - store.keys("bucket").keys())
    # MinIO lists them only by whole keys; so for both, from where they keep parts. versitygw's list must agree.
    where = store.data / {Versitygw: "bucket/.sgwtmp/multipart", Minio: ".minio.sys/multipart"}[type(store)]
    found = sorted({path.parent for path in where.rglob("*") if path.is_file()})
    if isinstance(store, Versitygw):
        listed = list(texts(store.request("GET", "/bucket", query={"uploads": ""}), "Upload", "Key", "UploadId"))
        assert (len(listed) > 0) >= (len(found) > 0), (listed, found)
        return listed
    return found


def large(store):
    return [key for key, size in store.keys("bucket").items() if size > 64 << 20]


def parts_of(store, key):
    if isinstance(store, Azurite):
        return store.blocks("bucket", key)
    tag = re.fullmatch(r'"[0-9a-f]{32}-(\d+)"', store.head("bucket", key)["ETag"])
    return int(tag[1]) if tag else 1


@cases_for(["versitygw", "minio", "azurite"])
def merged_in_parts(name):
    kind = {"versitygw": Versitygw, "minio": Minio, "azurite": Azurite}[name]
    with kind() as store, StoreProxy(store.address) as proxy, fresh_dir() as data:
        store.bucket("bucket")
        url, slow = store.url("bucket", "p", address=proxy.address), "24MiB"
        with Compacting(data, url, store.env, slow).wait_ready() as node:
            node.create_topic()
            lines = node.fill()
            # A part that is refused ends the upload; its parts are taken back.
            until(lambda: unfinished(store), "a part lies in the store")
            proxy.set(refuse=[403, "AccessDenied"], methods=["PUT"])
            node.wait_log("compaction failed")
            assert not large(store)
            if kind is Azurite:
                assert len(unfinished(store)) == 1
            else:
                until(lambda: not unfinished(store), "no part lies in the store", 10)
            node.end(signal.SIGKILL)
        proxy.set()
        given_up = unfinished(store)
        with Compacting(data, url, store.env, slow).wait_ready() as node:
            until(lambda: len(unfinished(store)) > len(given_up), "a part lies in the store")
            node.end(signal.SIGKILL)
        # Nobody takes these back but a rule of the bucket.
        left = unfinished(store)
        assert len(left) > len(given_up)
        with Compacting(data, url, store.env).wait_ready() as node:
            until(lambda: large(store), "uploads are merged")
            node.wait_log("objects compacted")
        (key,) = large(store)
        size = store.keys("bucket")[key]
        assert parts_of(store, key) == -(-size // PART_BYTES), (parts_of(store, key), size)
        assert unfinished(store) == left
        with Compacting(data, url, store.env).wait_ready() as node:
            assert node.consume() == lines
            assert node.value('isobar_store_requests_total{store="local",op="get",result="ok"}') > 10
            command = [ISOBAR, "fsck", "--admin", node.admin, "--deep"]
            done = subprocess.run(command, env=clean_env({}), capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
