"""The disk cache of a whole node, damaged while it is stopped: whatever lies there, what is served is what was written."""

import hashlib
import os
import pathlib
import random
import shutil

from harness import Node, fresh_dir
from cases import case
from stores import Versitygw

LINES = 12_000
SEED = 1


def line(number):
    return f"{number:08} " + hashlib.shake_256(str(number).encode()).hexdigest(1_000)


class Cached(Node):
    def __init__(self, data, store):
        # Memory holds next to nothing.
        settings = {"ISOBAR_CACHE_DISK": "128MiB", "ISOBAR_CACHE_MEMORY": "4MiB"}
        super().__init__(data, store.url("bucket", "p"), store.env | settings)

    def counts(self):
        names = "hits", "misses", "damaged", "errors"
        return {name: int(self.value(f"isobar_cache_disk_{name}_total")) for name in names}


def files_of(cache):
    return sorted(path for path in cache.iterdir() if path.name.startswith("foyer-"))


def written_pages(path):
    """Where this file holds anything but zeros."""
    data = path.read_bytes()
    return [at for at in range(0, len(data), 4096) if any(data[at : at + 4096])]


def flip(path, offset, bit):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@case
def a_damaged_disk_cache_serves_nothing_wrong():
    chance = random.Random(SEED)
    lines = [line(n) for n in range(LINES)]
    with Versitygw() as store, fresh_dir() as data:
        store.bucket("bucket")
        cache = pathlib.Path(data) / "node/cache"

        def read():
            """All records, by a node that has nothing in memory; what its disk cache counted."""
            with Cached(data, store).wait_ready() as node:
                node.wait_log("block cache on disk")
                assert node.consume() == lines, "wrong records"
                return node.counts()

        def read_until_whole():
            # What comes too fast is not kept: it may need another time.
            for _ in range(5):
                found = read()
                if found["hits"] and not found["misses"] + found["damaged"]:
                    return found
            raise AssertionError(f"blocks do not stay in the cache: {found}")

        with Cached(data, store).wait_ready() as node:
            node.create_topic()
            node.produce(lines)
            node.wait_uploaded()
        blocks = read_until_whole()["hits"]
        assert blocks > 20, blocks
        for flips in [3, 300]:
            pages = [(path, at) for path in files_of(cache) for at in written_pages(path)]
            for path, at in chance.sample(pages, flips):
                flip(path, at + chance.randrange(4096), chance.randrange(8))
            found = read()
            assert found["damaged"] > 0 and found["errors"] == 0, (flips, found)
            assert flips > 3 or found["hits"] > blocks // 2, found
            read_until_whole()
        # Blocks in another's place.
        first, second, *_ = files_of(cache)
        shutil.copyfile(first, second)
        read()
        read_until_whole()
        for path in files_of(cache):
            os.truncate(path, chance.randrange(path.stat().st_size))
        assert read()["hits"] < blocks
        flip(cache / "cache.json", 12, 0)
        assert read()["hits"] == 0
        shutil.rmtree(cache)
        assert read()["hits"] == 0
        assert files_of(cache)
