"""A file system in compressed memory (zram), for what needs more room than the disk has. Records of benches compress to next to nothing."""

import contextlib
import pathlib
import subprocess
import tempfile

CONTROL = pathlib.Path("/sys/class/zram-control")


@contextlib.contextmanager
def ramdisk(gib, most_memory_gib):
    """A directory with that much room; writes fail once they need more memory. Needs root; its memory is free again afterwards."""
    number = int((CONTROL / "hot_add").read_text())
    settings, device = pathlib.Path(f"/sys/block/zram{number}"), f"/dev/zram{number}"
    try:
        (settings / "disksize").write_text(f"{gib}G")
        (settings / "mem_limit").write_text(f"{most_memory_gib}G")
        # Nothing survives this machine, so there is no journal to keep; what is deleted is memory again at once.
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", "-m", "0", device], check=True)
        directory = pathlib.Path(tempfile.mkdtemp(prefix="isobar-ramdisk-"))
        subprocess.run(["mount", "-o", "discard,noatime", device, directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)
            directory.rmdir()
    finally:
        (settings / "reset").write_text("1")
        (CONTROL / "hot_remove").write_text(str(number))


def memory_gib(directory):
    """What the file system takes of memory now, and what it stands for."""
    device = subprocess.run(["findmnt", "-no", "SOURCE", "-T", directory], capture_output=True, text=True, check=True).stdout.strip()
    stands_for, _, takes = map(int, pathlib.Path(f"/sys/block/{device.removeprefix('/dev/')}/mm_stat").read_text().split()[:3])
    return takes / 2**30, stands_for / 2**30
