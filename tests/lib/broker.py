"""Starts and stops a broker for a test: `isobar dev`, or Apache Kafka (PEER=kafka), which calibrates the tests.

    with Broker() as broker:          # its own data directory and free ports; waits until ApiVersions answers
        broker.bootstrap, broker.admin, broker.pid
    # SIGTERM at the end; an exit code other than 0 is an error

From a shell:  python3 tests/lib/broker.py COMMAND…   runs COMMAND with BOOTSTRAP, ADMIN and BROKER_PID set.

The broker dies with the thread that started it (PR_SET_PDEATHSIG), however that one ends: start it from one that stays.
"""

import ctypes
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

LIB = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("ISOBAR_CACHE", pathlib.Path.home() / ".cache/isobar"))
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_CLUSTER_ID = "aXNvYmFyLXRlc3QtcGVlcg"


class BrokerError(Exception):
    pass


def free_ports(count):
    """Ports of 127.0.0.1 that were free a moment ago. Below the range from which the kernel gives ports to outgoing
    connections, so that none of those takes one while its broker is restarted."""
    held = {}
    while len(held) < count:
        port = random.randrange(10_000, 32_000)
        s = socket.socket()
        try:
            s.bind(("127.0.0.1", port))
            held[port] = s
        except OSError:
            s.close()
    for s in held.values():
        s.close()
    return list(held)


def die_with_parent():
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def api_versions(host, port, timeout=1.0):
    """One ApiVersions v0 round trip; the advertised {api_key: (min, max)}."""
    with socket.create_connection((host, port), timeout=timeout) as s:
        s.settimeout(timeout)
        client = b"probe"
        body = struct.pack(">hhih", 18, 0, 7, len(client)) + client
        s.sendall(struct.pack(">i", len(body)) + body)
        (size,) = struct.unpack(">i", _exactly(s, 4))
        answer = _exactly(s, size)
    correlation, error, count = struct.unpack_from(">ihi", answer)
    if correlation != 7 or error != 0:
        raise BrokerError(f"ApiVersions answered correlation {correlation}, error {error}")
    found = {}
    for i in range(count):
        key, low, high = struct.unpack_from(">hhh", answer, 10 + 6 * i)
        found[key] = (low, high)
    return found


def _exactly(s, count):
    got = b""
    while len(got) < count:
        part = s.recv(count - len(got))
        if not part:
            raise ConnectionError("closed")
        got += part
    return got


class Broker:
    """peer: 'isobar' or 'kafka'. data: kept by the caller if given, else made and removed here.

    args: further arguments of `isobar dev`. properties: further lines of Kafka's configuration. jvm: its flags.
    """

    def __init__(self, peer=None, data=None, args=(), properties=None, env=None, heap="1g", jvm=(), log=None, binary=None):
        self.peer = peer or os.environ.get("PEER", "isobar")
        self.args = list(args)
        self.properties = dict(properties or {})
        self.env = {**os.environ, **(env or {})}
        self.heap = heap
        self.jvm = list(jvm)
        self.binary = binary
        self.own_data = data is None
        self.data = pathlib.Path(data or tempfile.mkdtemp(prefix="isobar-test-"))
        self.port, self.admin_port, self._controller_port = free_ports(3)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.admin = f"127.0.0.1:{self.admin_port}"
        self.log_path = pathlib.Path(log) if log else pathlib.Path(f"{self.data}.log")
        self.own_log = log is None
        self.process = None
        self.started_at = None

    @property
    def pid(self):
        return self.process.pid

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.stop()
            else:
                self.kill()
        finally:
            self.clean(keep_log=kind is not None)

    def start(self, wait=True, timeout=60.0):
        """Starts the process on the same data and ports as before; returns seconds until it answered ApiVersions."""
        command = self._kafka_command() if self.peer == "kafka" else self._isobar_command()
        self.started_at = time.monotonic()
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, preexec_fn=die_with_parent
            )
        return self.wait_ready(timeout) if wait else None

    def wait_ready(self, timeout=60.0):
        deadline = self.started_at + timeout
        while True:
            if self.process.poll() is not None:
                raise BrokerError(f"the broker ended with {self.process.returncode} at its start:\n{self.log_tail()}")
            try:
                api_versions("127.0.0.1", self.port)
                return time.monotonic() - self.started_at
            except (OSError, struct.error) as e:
                if time.monotonic() > deadline:
                    raise BrokerError(f"no answer on {self.bootstrap} for {timeout} s ({e}):\n{self.log_tail()}") from e
            time.sleep(0.02)

    def stop(self, timeout=60.0):
        """SIGTERM; raises unless it drains and exits with 0 (Kafka: 143, the JVM's way to say the same)."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise BrokerError(f"still running {timeout} s after SIGTERM:\n{self.log_tail()}") from None
        if code not in ((0, 143) if self.peer == "kafka" else (0,)):
            raise BrokerError(f"exit code {code} after SIGTERM:\n{self.log_tail()}")

    def kill(self):
        """SIGKILL."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def clean(self, keep_log=False):
        if self.own_data:
            shutil.rmtree(self.data, ignore_errors=True)
        if self.own_log and not keep_log:
            self.log_path.unlink(missing_ok=True)

    def log_tail(self, lines=40):
        text = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:])

    def _isobar_command(self):
        binary = self.binary or os.environ.get("ISOBAR_BIN")
        if not binary:
            target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", CACHE / "target"))
            binary = str(target / "ci/isobar")
        return [binary, "dev", "--data", str(self.data), "--listen", self.bootstrap, "--admin", self.admin, *self.args]

    def _kafka_command(self):
        libs = os.environ.get("KAFKA_LIBS", str(CACHE / "jars-kafka-4.3.1"))
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "server.properties"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
            "log.dirs": str(self.data / "logs"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            **self.properties,
        }
        config.write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
        classes = [f"-Dlog4j2.configurationFile={LIB}/kafka/log4j2.xml", "-cp", f"{libs}/*"]
        if not (self.data / "logs/meta.properties").exists():
            tool = ["java", *classes, "kafka.tools.StorageTool", "format", "--standalone", "-t", _CLUSTER_ID]
            done = subprocess.run(
                [*tool, "-c", str(config)], capture_output=True, text=True, env=self.env, check=False
            )
            if done.returncode != 0:
                raise BrokerError(f"Kafka's format failed:\n{done.stdout}{done.stderr}")
        return ["java", f"-Xms{self.heap}", f"-Xmx{self.heap}", *self.jvm, *classes, "kafka.Kafka", str(config)]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)

    def ended(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, ended)
    broker = Broker()
    try:
        with broker:
            env = {
                **os.environ, "BOOTSTRAP": broker.bootstrap, "ADMIN": broker.admin,
                "BROKER_PID": str(broker.pid), "PEER": broker.peer,
            }
            code = subprocess.run(sys.argv[1:], env=env, check=False).returncode
            if broker.process.poll() is not None:
                raise BrokerError(f"the broker died with {broker.process.returncode}:\n{broker.log_tail()}")
            if code != 0:
                print(f"-- the broker's log ends:\n{broker.log_tail()}", file=sys.stderr)
        sys.exit(code)
    except BrokerError as e:
        sys.exit(f"broker: {e}")


if __name__ == "__main__":
    main()
