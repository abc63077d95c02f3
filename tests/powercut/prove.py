"""That the volume does what its name says: synced data survives a power cut, unsynced data does not."""

import mmap
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lib"))
sys.path.insert(0, str(HERE))

import cases
from cases import case, cases_for, equal
from volume import Volume

VOLUME = Volume(size_mib=256)


def content(name):
    return f"{name}\n".encode() * 10_000


def sync_dir(path):
    folder = os.open(path, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


@case
def synced_files_survive_and_unsynced_ones_do_not():
    folder = VOLUME.path / "files"
    folder.mkdir()
    sync_dir(VOLUME.path)
    for i in range(20):
        with open(folder / f"synced-{i}", "wb") as file:
            file.write(content(f"synced-{i}"))
            file.flush()
            os.fsync(file.fileno())
    sync_dir(folder)
    for i in range(20):
        (folder / f"unsynced-{i}").write_bytes(content(f"unsynced-{i}"))
    VOLUME.power_cut()
    VOLUME.remount()
    for i in range(20):
        equal((folder / f"synced-{i}").read_bytes(), content(f"synced-{i}"), f"synced-{i}")
    left = [p.name for p in folder.glob("unsynced-*") if p.read_bytes() == content(p.name)]
    equal(left, [], "unsynced files that survived")


@cases_for(["buffered", "direct"])
def overwrite_in_place_is_lost_unless_synced(how):
    path = VOLUME.path / f"place-{how}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if how == "direct" else 0), 0o644)
    page = mmap.mmap(-1, 4096)

    def write(letter, at):
        page[:] = letter * 4096
        os.pwrite(file, page, at)

    write(b"a", 0)
    write(b"a", 4096)
    os.fsync(file)
    sync_dir(VOLUME.path)
    write(b"b", 0)
    os.fdatasync(file)
    write(b"c", 4096)
    os.close(file)
    VOLUME.power_cut()
    VOLUME.remount()
    found = path.read_bytes()
    equal(found[:4096], b"b" * 4096, "the synced overwrite")
    equal(found[4096:], b"a" * 4096, "the overwrite that was not synced")


@case
def without_a_cut_everything_stays():
    path = VOLUME.path / "kept"
    path.write_bytes(content("kept"))
    VOLUME.remount()
    equal(path.read_bytes(), content("kept"), "a file over a clean unmount")


@cases_for([f"{how}_{i}" for i in range(3) for how in ("buffered", "direct")])
def writer_under_power(name):
    """A process that syncs each record: all that it reported are there, and after the cut it reports none."""
    how = name.split("_")[0]
    path = VOLUME.path / f"writer-{name}"
    writer = subprocess.Popen(
        [sys.executable, str(HERE / "writer.py"), str(path), how],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )
    reported = []
    reader = threading.Thread(target=lambda: reported.extend(int(line) for line in writer.stdout))
    reader.start()
    try:
        while len(reported) < 20 and writer.poll() is None:
            time.sleep(0.01)
        time.sleep(random.random())
        VOLUME.power_cut()
        equal(writer.wait(20), 3, "exit code of a writer without power")
    finally:
        writer.kill()
        writer.wait()
        reader.join()
    VOLUME.remount()
    data = path.read_bytes()
    if len(reported) < 20:
        raise AssertionError(f"only {len(reported)} records were reported")
    for number in reported:
        want = b"%015d\n" % number * 256
        equal(data[number * 4096 : (number + 1) * 4096], want, f"record {number} of {len(reported)}")
    path.unlink()


if __name__ == "__main__":
    with VOLUME:
        cases.run(sys.argv[1:])
