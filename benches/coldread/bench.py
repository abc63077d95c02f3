"""Old data read cold by several groups at once, beside a plain download of the same objects, and what it does to the tail.
Started by run.sh, which builds what this needs.

For each store: write, wait until everything is in the bucket, stop, delete the disk cache, start; then in turn the plain download,
the tail alone, the tail beside the groups, the groups alone. Everything is deleted in the end.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests/lib"))

from broker import Broker, die_with_parent, free_ports  # noqa: E402
from confluent_kafka.admin import AdminClient, NewTopic  # noqa: E402

GENERATOR = os.environ["RDKAFKA_PERFORMANCE"]
TAIL = os.environ["TAIL"]
DOWNLOAD = os.environ["DOWNLOAD"]
GIB = 2**30
TICKS = os.sysconf("SC_CLK_TCK")
COLD = "cold"
# A consumer that asks for much at a time, as one does who has much to read.
CONSUMER = ["auto.offset.reset=earliest", "fetch.message.max.bytes=8388608", "fetch.max.bytes=52428800",
            "queued.max.messages.kbytes=65536", "enable.auto.commit=false", "check.crcs=false"]


def run(command, timeout=3600, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False,
                          preexec_fn=die_with_parent, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def say(*words):
    print(f"{datetime.datetime.now():%H:%M:%S}", *words, file=sys.stderr, flush=True)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def drop_page_cache():
    """So that the store's server reads its disk as well. Without the right to: said in the results."""
    subprocess.run(["sync"], check=True)
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


class Metrics:
    def __init__(self, broker):
        text = urllib.request.urlopen(f"http://{broker.admin}/metrics", timeout=10).read().decode()
        self.values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                self.values[name] = float(value)

    def sum(self, name, *labels):
        return sum(v for k, v in self.values.items()
                   if k.split("{")[0] == name and all(label in k for label in labels))

    def gets(self):
        return self.sum("isobar_store_requests_total", 'op="get"')

    def got(self):
        return self.sum("isobar_store_transferred_total", 'op="get"')


class S3:
    """versitygw on a directory."""

    def __init__(self, work):
        self.root = pathlib.Path(work) / "s3"
        (self.root / "bucket").mkdir(parents=True)
        (port,) = free_ports(1)
        self.env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1",
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true"}
        self.log = open(pathlib.Path(work) / "s3.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [os.environ["VERSITYGW"], "--port", f"127.0.0.1:{port}", "--access", "k", "--secret", "bench-secret", "--quiet",
             "--keep-alive", "posix", str(self.root)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=die_with_parent)
        time.sleep(1)
        self.url = "s3://bucket/isobar"
        self.objects = self.root / "bucket/isobar"

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.root)


class Directory:
    def __init__(self, work):
        self.root = pathlib.Path(work) / "bucket"
        self.env = {}
        self.url = f"file://{self.root}"
        self.objects = self.root

    def stop(self):
        shutil.rmtree(self.root, ignore_errors=True)


def write(broker, options):
    count = int(options.gib * GIB / options.size / 2)
    command = [GENERATOR, "-P", "-t", COLD, "-s", str(options.size), "-c", str(count), "-b", broker.bootstrap, "-a", "-1",
               "-q", "-X", "enable.idempotence=true", "-X", "linger.ms=20"]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                preexec_fn=die_with_parent) for _ in range(2)]
    for writer in writers:
        out = writer.communicate(timeout=7200)[0]
        found = re.search(r"(\d+) delivered \(offset [^,]+, (\d+) failed\)", out)
        if not found or int(found.group(1)) != count or int(found.group(2)) != 0:
            raise RuntimeError(f"a producer did not deliver all of {count}:\n{out}")
    deadline = time.monotonic() + 600
    while Metrics(broker).sum("isobar_upload_waiting_bytes") > 0:
        if time.monotonic() > deadline:
            raise RuntimeError("not everything was uploaded")
        time.sleep(0.5)
    return 2 * count


def groups(broker, options, records, attempt):
    """All groups at once; GETs and bytes from the store, seconds of the slowest."""
    before, cpu = Metrics(broker), cpu_seconds(broker.pid)
    started = time.monotonic()
    readers = []
    for number in range(options.groups):
        command = [GENERATOR, "-G", f"g{number}-{attempt}", "-t", COLD, "-b", broker.bootstrap, "-c", str(records), "-q"]
        for pair in CONSUMER:
            command += ["-X", pair]
        readers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        preexec_fn=die_with_parent))
    return {"before": before, "cpu": cpu, "started": started, "readers": readers, "records": records}


def finish(broker, options, running):
    for reader in running["readers"]:
        out = reader.communicate(timeout=7200)[0]
        found = re.search(r"(\d+) messages \((\d+) bytes\)", out)
        if not found or int(found.group(1)) < running["records"]:
            raise RuntimeError(f"a group did not read all of {running['records']}:\n{out[-2000:]}")
    seconds = time.monotonic() - running["started"]
    after, before = Metrics(broker), running["before"]
    gib = running["records"] * options.size / GIB
    gets, got = after.gets() - before.gets(), after.got() - before.got()
    return {
        "seconds": seconds,
        "read_mib_s": options.groups * gib * 1024 / seconds,
        "store_mib_s": got / 2**20 / seconds,
        "gets": gets,
        "gets_per_gib": gets / gib,
        "store_gib_per_gib": got / GIB / gib,
        "cpu_s_per_gib_read": (cpu_seconds(broker.pid) - running["cpu"]) / (gib * options.groups),
        "unused_mib": (after.sum("isobar_cache_ahead_unused_bytes_total")
                       - before.sum("isobar_cache_ahead_unused_bytes_total")) / 2**20,
        "hedges": after.sum("isobar_store_hedges_total") - before.sum("isobar_store_hedges_total"),
    }


def download(store):
    keys = sorted(str(p.relative_to(store.objects)) for p in (store.objects / "data").rglob("*") if p.is_file())
    out = run([DOWNLOAD, store.url, "8"], input="\n".join(keys), env={**os.environ, **store.env})
    return {**json.loads(out.splitlines()[-1]), "objects": len(keys)}


def tail(broker, options, seconds):
    topic = f"tail-{time.monotonic_ns()}"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(60)
    time.sleep(0.5)
    return subprocess.Popen([TAIL, broker.bootstrap, topic, str(options.tail_rate), "1024", str(seconds)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent)


def tail_result(process):
    out, error = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(f"tail: {out}{error}")
    return json.loads(out.splitlines()[-1])


def restart_cold(broker):
    broker.stop()
    shutil.rmtree(broker.data / "cache", ignore_errors=True)
    dropped = drop_page_cache()
    broker.start()
    return dropped


def one_store(name, options, work):
    store = S3(work) if name == "s3" else Directory(work)
    broker = Broker(peer="isobar", data=pathlib.Path(work) / f"data-{name}", log=pathlib.Path(work) / f"{name}.log",
                    args=["--store", store.url], env=store.env)
    result = {"store": name}
    try:
        broker.start()
        admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        admin.create_topics([NewTopic(COLD, options.partitions, 1)])[COLD].result(60)
        time.sleep(0.5)
        say(name, f"writing {options.gib} GiB")
        records = write(broker, options)
        result["page_cache_dropped"] = restart_cold(broker)
        for attempt in range(options.rounds):
            say(name, "plain download")
            result.setdefault("download", []).append(download(store))
            restart_cold(broker)
            say(name, "tail alone")
            alone = tail_result(tail(broker, options, options.tail_seconds))
            result.setdefault("tail_alone", []).append(alone)
            say(name, f"{options.groups} groups and the tail")
            running = groups(broker, options, records, f"t{attempt}")
            beside = tail(broker, options, options.tail_seconds)
            result.setdefault("tail_beside", []).append(tail_result(beside))
            result.setdefault("groups_beside_tail", []).append(finish(broker, options, running))
            restart_cold(broker)
            say(name, f"{options.groups} groups")
            result.setdefault("groups", []).append(finish(broker, options, groups(broker, options, records, f"g{attempt}")))
            say(name, json.dumps(result["groups"][-1]))
        broker.stop()
    finally:
        if broker.process and broker.process.poll() is None:
            broker.kill()
        store.stop()
        shutil.rmtree(broker.data, ignore_errors=True)
    return result


def median(rows, key):
    values = sorted(row[key] for row in rows)
    return values[len(values) // 2]


def report(results, options):
    def out(*command):
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()

    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    lines = [
        "# Cold reads by several groups", "",
        f"Written by `benches/coldread/run.sh {' '.join(sys.argv[1:])}`.", "",
        f"- Date: {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC; load average at the end {os.getloadavg()[0]:.2f}",
        f"- Machine: {os.cpu_count()} cores, {cpu.group(1) if cpu else 'unknown'}, kernel {platform.release()}; broker, store and clients share it",
        f"- Isobar {out('git', 'rev-parse', '--short=12', 'HEAD')}, `isobar dev`; librdkafka 2.12.1; "
        f"versitygw {os.environ.get('VERSITYGW_VERSION', '')} (posix) on loopback",
        f"- {options.gib:g} GiB of {options.size} B records on {options.partitions} partitions, read by {options.groups} groups at once, one "
        "consumer each, from a broker whose memory and disk cache are empty; page cache dropped before: "
        + ("yes" if all(r["page_cache_dropped"] for r in results) else "no"),
        "- *plain download*: the same objects from the same store by 8 parallel GETs of 8 MiB ranges, same HTTP client, bytes thrown away",
        f"- Tail: {options.tail_rate} records/s of 1 KiB, one partition, acks=all, from when a record was due until its consumer had it",
        f"- Medians of {options.rounds} rounds", "",
        "## Throughput and requests", "",
        "| store | GETs per GiB written | bytes from the store per byte written | from the store MiB/s | plain download MiB/s | ratio | "
        "read by all groups MiB/s | broker CPU s per GiB read | read ahead in vain MiB | hedges |", "|" + "--|" * 10,
    ]
    for r in results:
        rows = r["groups"]
        plain = median(r["download"], "mib_s")
        lines.append(
            f"| {r['store']} | {median(rows, 'gets_per_gib'):.0f} | {median(rows, 'store_gib_per_gib'):.2f} | {median(rows, 'store_mib_s'):.0f} | "
            f"{plain:.0f} | {median(rows, 'store_mib_s') / plain:.2f} | {median(rows, 'read_mib_s'):.0f} | "
            f"{median(rows, 'cpu_s_per_gib_read'):.2f} | {median(rows, 'unused_mib'):.0f} | {median(rows, 'hedges'):.0f} |")
    lines += ["", "## The tail, ms", "",
              "| store | | p50 | p99 | p99.9 | max |", "|" + "--|" * 6]
    for r in results:
        for key, what in (("tail_alone", "alone"), ("tail_beside", f"beside {options.groups} groups")):
            rows = r[key]
            lines.append(f"| {r['store']} | {what} | " + " | ".join(
                f"{median(rows, k):.2f}" for k in ("p50_ms", "p99_ms", "p999_ms", "max_ms")) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=20)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--size", type=int, default=4096, help="bytes of a record")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stores", nargs="+", default=["directory", "s3"], choices=["directory", "s3"])
    parser.add_argument("--tail-rate", type=int, default=500)
    parser.add_argument("--tail-seconds", type=int, default=20)
    parser.add_argument("--work", default=None, help="directory for the data; a temporary one unless given")
    parser.add_argument("--out", default=str(REPO / "benches/coldread/results.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isobar-coldread-", dir=options.work) as work:
        results = [one_store(name, options, work) for name in options.stores]
    out = pathlib.Path(options.out)
    out.write_text(report(results, options))
    out.with_suffix(".json").write_text(json.dumps({"options": vars(options), "results": results}, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
