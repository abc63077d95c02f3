"""What the cases of stores share: `isobar store check`, and `isobar dev` on a store.

Environment: ISOBAR_BIN, VERSITYGW, MINIO, AZURITE.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

LIB = pathlib.Path(__file__).resolve().parent.parent / "lib"
sys.path.insert(0, str(LIB))
from broker import die_with_parent, free_ports  # noqa: E402

ISOBAR = os.environ["ISOBAR_BIN"]
fresh_dir = tempfile.TemporaryDirectory


def clean_env(extra):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
    # Without credentials nothing may leave this machine for them.
    return kept | {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1", "HOME": "/nonexistent"} | extra


def check(url, env, *args, prefix=()):
    """Runs `isobar store check`; (exit code, what it printed)."""
    command = [*prefix, ISOBAR, "store", "check", url, "--quick", "--races", "3", *args]
    done = subprocess.run(command, env=clean_env(env), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def refused(url, env, *words, prefix=()):
    code, text = check(url, env, prefix=prefix)
    assert code == 1, f"exit code {code}:\n{text}"
    flat = re.sub(r"\s+", " ", text)
    for word in words:
        assert word in flat, f"{word!r} is not in:\n{text}"
    assert "panicked" not in text, text


def until(true, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"in vain for {seconds} s: {what}"
        time.sleep(0.01)


class Node:
    """`isobar dev` on a store."""

    def __init__(self, data, url, env, upload_interval_ms=300):
        self.kafka, self.admin = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.log_path = pathlib.Path(data) / "log"
        self.log = open(self.log_path, "ab")
        self.log_start = self.log.tell()
        command = [ISOBAR, "dev", "--data", f"{data}/node", "--store", url, "--listen", self.kafka, "--admin", self.admin]
        self.process = subprocess.Popen(
            command + ["--upload-interval-ms", str(upload_interval_ms)],
            env=clean_env(env),
            stderr=self.log,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )

    def wait_ready(self):
        self.wait_log("isobar is ready")
        return self

    def text(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_path.read_bytes()[self.log_start :].decode())

    def wait_log(self, words, seconds=60):
        deadline = time.monotonic() + seconds
        while words not in self.text():
            assert self.process.poll() is None, f"it ended: {self.text()[-3000:]}"
            assert time.monotonic() < deadline, f"no {words!r} in: {self.text()[-3000:]}"
            time.sleep(0.1)

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=10) as answered:
            lines = answered.read().decode().splitlines()
        return [line for line in lines if line.startswith(name)]

    def wait_metric(self, name, words, seconds=60):
        deadline = time.monotonic() + seconds
        while not any(all(word in line for word in words) for line in self.metric(name)):
            assert time.monotonic() < deadline, f"{name} {words}: {self.metric(name)}"
            time.sleep(0.2)

    def value(self, name):
        """The sum of all that is counted under this name."""
        return sum(float(line.split()[-1]) for line in self.metric(name))

    def produce(self, lines):
        command = [ISOBAR, "produce", "t", "-b", self.kafka]
        subprocess.run(command, input="\n".join(lines) + "\n", text=True, check=True, timeout=60, stdout=subprocess.DEVNULL)

    def create_topic(self):
        command = [ISOBAR, "topic", "create", "t", "-b", self.kafka]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)

    def consume(self):
        command = [ISOBAR, "consume", "t", "-b", self.kafka, "--from", "earliest", "--exit-at-end"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.splitlines()

    def uploaded(self):
        return self.value("isobar_upload_objects_total")

    def wait_uploaded(self, more_than=0):
        until(lambda: self.uploaded() > more_than, "something is uploaded")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end(signal.SIGTERM)

    def end(self, by):
        if self.process.poll() is None:
            self.process.send_signal(by)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def dev_fails(data, url, env):
    node = Node(data, url, env)
    with node:
        code = node.process.wait(90)
    return code, re.sub(r"\s+", " ", node.text())
