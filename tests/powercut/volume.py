"""A volume whose power can be cut: what was not synced is lost, what was synced is not. Needs root.

    ext4 -> loop device -> nbdfuse -> nbdkit with a write-back cache -> image file

A write lives in the page cache and then in nbdkit's cache; only a flush, which ext4 sends for fsync, fdatasync and its
journal's commits, brings it to the image. Killing nbdkit is the power cut: every later read or write of the device fails,
and `remount` starts again from the image.

    volume = Volume(); volume.create()    # mounted at volume.path
    volume.power_cut([pid, …])            # the power first, then SIGKILL to the processes that used it
    volume.remount()                      # the same path again, after ext4 replayed its journal
    volume.destroy()

nbdkit asks the kernel to be ended with the thread that started it: create and remount on one that stays.

From a shell:  volume.py create DIR [MIB] | power_cut DIR [PID…] | remount DIR | destroy DIR | path DIR
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PREFIX = "isobar-powercut-"


class VolumeError(Exception):
    pass


def _run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if check and done.returncode != 0:
        raise VolumeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done


def _alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _is(pid, name):
    """Whether this pid still is the program we started under it."""
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == name
    except (FileNotFoundError, ProcessLookupError):
        return False


def _kill(pid, name):
    if not pid:
        return  # and waitpid(0) would reap any child of the caller
    if _is(pid, name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(200):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not _alive(pid):
            return
        time.sleep(0.01)


def _wait(condition, what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise VolumeError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


class Volume:
    """Everything it needs lies in `work` (made if not given), of which it removes all in `destroy`."""

    def __init__(self, size_mib=1024, work=None, outlives=False):
        self.size_mib = size_mib
        self.work = pathlib.Path(work or tempfile.mkdtemp(prefix=PREFIX))
        self.path = self.work / "mount"
        self.cuts = 0
        self._outlives = outlives  # this process ends before the volume does
        self._nbdkit = self._nbdfuse = 0
        self._loop = ""

    def __enter__(self):
        self.create()
        return self

    def __exit__(self, *_error):
        self.destroy()

    def create(self):
        sweep()
        for part in ("mount", "fuse", "cache"):
            (self.work / part).mkdir(parents=True, exist_ok=True)
        image = self.work / "image"
        with open(image, "wb") as file:
            file.truncate(self.size_mib << 20)
        # No lazy initialisation: nothing but the test's own writes reaches the device later.
        _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        self._attach()
        return self.path

    def power_cut(self, pids=()):
        """From here on nothing reaches the image; then the processes given are killed. Children are not reaped."""
        _kill(self._nbdkit, "nbdkit")
        self.cuts += 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            _wait(lambda pid=pid: not _alive(pid), f"process {pid} has ended")
        self._save()

    def remount(self):
        self._detach()
        self._attach()
        return self.path

    def destroy(self):
        self._detach()
        shutil.rmtree(self.work)

    def _attach(self):
        socket = self.work / "nbd.sock"
        socket.unlink(missing_ok=True)
        with open(self.work / "nbdkit.log", "ab") as log:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            command = ["nbdkit", "-U", str(socket), "--filter=cache", "file", str(self.work / "image"), "cache=writeback"]
            env = {**os.environ, "TMPDIR": str(self.work / "cache")}
            if self._outlives:
                pid_file = self.work / "nbdkit.pid"
                subprocess.run([*command[:1], "-P", str(pid_file), *command[1:]], env=env, check=True, **quiet)
                self._nbdkit = int(pid_file.read_text())
            else:
                self._nbdkit = subprocess.Popen([*command[:1], "-f", *command[1:]], env=env, **quiet).pid
            _wait(socket.exists, "nbdkit listens")
            target = self.work / "fuse/nbd"
            target.touch()
            self._nbdfuse = subprocess.Popen(["nbdfuse", str(target), "--unix", str(socket)], **quiet).pid
            _wait(lambda: target.stat().st_size == self.size_mib << 20, "nbdfuse shows the device")
        self._loop = _run("losetup", "--find", "--show", str(target)).stdout.strip()
        # The journal's own timer would sync what the test did not.
        _run("mount", "-t", "ext4", "-o", "commit=600,errors=remount-ro", self._loop, str(self.path))
        self._save()

    def _detach(self):
        """Takes everything down in any state. A device without power fails its last writes; that is the point."""
        if _run("mountpoint", "-q", str(self.path), check=False).returncode == 0:
            _wait(self._unmounted, f"nothing holds {self.path} open")
        if self._loop:
            _wait(self._loop_free, f"{self._loop} is free")
            self._loop = ""
        # nbdkit still running means nobody cut the power: what was written is kept as by a clean unmount.
        if self._nbdfuse:
            _run("fusermount3", "-u", "-z", str(self.work / "fuse/nbd"), check=False)
            _kill_after(self._nbdfuse, "nbdfuse", 2.0)
            self._nbdfuse = 0
        if self._nbdkit:
            if _is(self._nbdkit, "nbdkit"):
                os.kill(self._nbdkit, signal.SIGTERM)
                _kill_after(self._nbdkit, "nbdkit", 5.0)
            self._nbdkit = 0

    def _unmounted(self):
        return _run("umount", str(self.path), check=False).returncode == 0 or not os.path.ismount(self.path)

    def _loop_free(self):
        # The kernel may have given the number to somebody else's file by now.
        backing = pathlib.Path("/sys/block", pathlib.Path(self._loop).name, "loop/backing_file")
        try:
            if backing.read_text().strip() != str(self.work / "fuse/nbd"):
                return True
        except FileNotFoundError:
            return True
        _run("losetup", "-d", self._loop, check=False)
        return False

    def _save(self):
        state = {
            "owner": os.getpid(), "size_mib": self.size_mib, "cuts": self.cuts, "nbdkit": self._nbdkit,
            "nbdfuse": self._nbdfuse, "loop": self._loop,
        }
        (self.work / "state.json").write_text(json.dumps(state))

    @classmethod
    def load(cls, work):
        """The volume that another process created there."""
        state = json.loads((pathlib.Path(work) / "state.json").read_text())
        volume = cls(state["size_mib"], work, outlives=True)
        volume.cuts, volume._loop = state["cuts"], state["loop"]
        volume._nbdkit, volume._nbdfuse = state["nbdkit"], state["nbdfuse"]
        return volume


def _kill_after(pid, name, seconds):
    deadline = time.monotonic() + seconds
    while _alive(pid) and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    _kill(pid, name)


def sweep():
    """Removes volumes whose owner died without doing so."""
    for work in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, VolumeError):
            if not _alive(json.loads((work / "state.json").read_text())["owner"]):
                Volume.load(work).destroy()


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    command, work, rest = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), sys.argv[3:]
    try:
        if command == "create":
            print(Volume(int(rest[0]) if rest else 1024, work, outlives=True).create())
        elif command == "path":
            print(Volume.load(work).path)
        elif command == "power_cut":
            Volume.load(work).power_cut([int(pid) for pid in rest])
        elif command == "remount":
            print(Volume.load(work).remount())
        elif command == "destroy":
            Volume.load(work).destroy()
        else:
            sys.exit(__doc__)
    except VolumeError as e:
        sys.exit(f"volume: {e}")


if __name__ == "__main__":
    main()
