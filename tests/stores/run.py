"""Stores by URL, on real servers: conformance, `isobar store check`, causes and remedies, and a node on each of them.

Environment: ISOBAR_BIN, CONFORMANCE_BIN (crates/store/tests/conformance.rs, built), VERSITYGW, MINIO, AZURITE.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from harness import ISOBAR, Node, check, clean_env, dev_fails, free_ports, fresh_dir, refused
from cases import case, cases_for, run
from storeproxy import StoreProxy
from stores import Azurite, GcsFake, Minio, Versitygw

SERVERS = {"versitygw": Versitygw, "minio": Minio, "azurite": Azurite, "gcs_fake": GcsFake}


def conformance(url, env, upstream=None):
    extra = {"ISOBAR_TEST_STORE": url} | ({} if upstream is None else {"ISOBAR_TEST_UPSTREAM": upstream})
    command = [os.environ["CONFORMANCE_BIN"], "--ignored", "--exact", "server"]
    done = subprocess.run(command, env=clean_env(env | extra), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 passed" in done.stdout, (done.stdout + done.stderr)[-4000:]


@cases_for(SERVERS)
def conforms(name):
    with SERVERS[name]() as store:
        store.bucket("bucket")
        conformance(store.url("bucket", "some/prefix"), store.env)


@cases_for(SERVERS)
def upstreams_integration(name):
    with SERVERS[name]() as store:
        store.bucket("bucket")
        url, env = store.url("bucket"), store.env
        if name == "azurite":
            # It cannot begin a listing in the middle; object_store knows and filters, if it is told what it talks to.
            url, env = "az://bucket?emulator=true", env | {"AZURITE_BLOB_STORAGE_URL": f"http://{store.address}"}
        # versitygw compares If-Unmodified-Since with fractions of a second.
        conformance(url, env, upstream="get_opts" if name == "versitygw" else "")


@cases_for(SERVERS)
def check_finds_it_fit(name):
    with SERVERS[name]() as store:
        store.bucket("bucket")
        command = [ISOBAR, "store", "check", store.url("bucket", "p"), "--races", "10"]
        done = subprocess.run(command, env=clean_env(store.env), capture_output=True, text=True, timeout=120)
        print(done.stdout)
        assert done.returncode == 0 and "This store is fit for Isobar." in done.stdout, done.stdout + done.stderr
        code, text = check(store.url("bucket", "p"), store.env, "--json")
        lines = [json.loads(line) for line in text.splitlines()]
        assert code == 0 and lines[-1] == {"fit": True}, text
        assert all(line["result"] in ("ok", "warning") for line in lines[:-1]), text


@case
def check_finds_a_directory_fit():
    with tempfile.TemporaryDirectory() as directory:
        code, text = check(f"file://{directory}/store", {})
        assert code == 0 and "fit" in text, text
        # What is held while a process uses the directory is never removed.
        left = [path for path in pathlib.Path(directory).rglob("*") if path.is_file() and path.name != "LOCK"]
        assert not left, left


@cases_for(SERVERS)
def missing_bucket(name):
    with SERVERS[name]() as store:
        refused(store.url("missing-bucket"), store.env, "the bucket does not exist", "Make the bucket")


@case
def wrong_key():
    for kind in (Versitygw, Minio):
        with kind() as store:
            store.bucket("bucket")
            url = store.url("bucket")
            words = "the store does not accept the credentials", "Check the key id and secret"
            refused(url, store.env | {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, *words)
            refused(url, store.env | {"AWS_ACCESS_KEY_ID": "unknown-key"}, *words)
    with Azurite() as store:
        store.bucket("bucket")
        wrong = store.env | {"AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmcga2V5"}
        refused(store.url("bucket"), wrong, "the store does not accept the credentials")


@case
def no_credentials():
    with Versitygw() as store:
        store.bucket("bucket")
        refused(store.url("bucket"), {"AWS_REGION": "x"}, "no credentials", "AWS_ACCESS_KEY_ID")
        refused(store.url("bucket"), {"AWS_PROFILE": "work"}, "AWS_PROFILE=work is set, but")


@case
def expired():
    with GcsFake() as store:
        refused(store.url("bucket"), {"GOOGLE_BEARER_TOKEN": "expired"}, "does not accept the credentials")
    with Azurite() as store:
        store.bucket("bucket")
        account = {"AZURE_STORAGE_ACCOUNT_NAME": store.account}
        fine = account | {"AZURE_STORAGE_SAS_TOKEN": store.sas(time.time() + 3600)}
        code, text = check(store.url("bucket"), fine)
        # Azurite answers 500 to a batch of deletes signed by a SAS, so the last step cannot pass there.
        assert "racing creates have one winner 16 writers" in re.sub(r"\s+", " ", text), text
        old = account | {"AZURE_STORAGE_SAS_TOKEN": store.sas(time.time() - 3600)}
        refused(store.url("bucket"), old, "credential")
    with Versitygw() as store, StoreProxy(store.address) as proxy:
        store.bucket("bucket")
        proxy.set(refuse=[400, "ExpiredToken"])
        refused(store.url("bucket", address=proxy.address), store.env, "the credentials have expired", "Get new credentials")


@case
def read_only():
    words = "access denied", "Listing works and writing does not"
    with Versitygw() as store:
        store.bucket("bucket")
        store.stop()
        store.args = ["--readonly"]
        store.start()
        refused(store.url("bucket"), store.env, "Listing works and writing does not")
    with GcsFake() as store:
        refused(store.url("bucket"), {"GOOGLE_BEARER_TOKEN": "reader"}, *words)
    with Azurite() as store:
        store.bucket("bucket")
        env = {"AZURE_STORAGE_ACCOUNT_NAME": store.account, "AZURE_STORAGE_SAS_TOKEN": store.sas(time.time() + 3600, "rl")}
        refused(store.url("bucket"), env, *words)


@contextlib.contextmanager
def small_disk():
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def fill(directory):
    with contextlib.suppress(OSError), open(f"{directory}/filler", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


@case
def full():
    with small_disk() as directory:
        pathlib.Path(f"{directory}/store/tmp/0").mkdir(parents=True)
        pathlib.Path(f"{directory}/store/tmp/0/LOCK").touch()
        fill(directory)
        refused(f"file://{directory}/store", {}, "the store is full", "Free space")
    with small_disk() as directory, Versitygw(directory) as store:
        store.bucket("bucket")
        fill(directory)
        code, text = check(store.url("bucket"), store.env)
        assert code == 1 and "FAIL" in text, text
        print(text)
    with Versitygw() as store, StoreProxy(store.address) as proxy:
        store.bucket("bucket")
        proxy.set(refuse=[507, "XMinioStorageFull"], methods=["PUT"])
        refused(store.url("bucket", address=proxy.address), store.env, "the store is full", "Free space")


@case
def wrong_clock():
    with Versitygw() as store:
        store.bucket("bucket")
        late = ["faketime", "-f", "-2h"]
        refused(store.url("bucket"), store.env, "this machine's clock is wrong", "behind the store", prefix=late)


@case
def unreachable():
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    port = free_ports(1)[0]
    refused(f"s3://b?endpoint=http://127.0.0.1:{port}", env, "the store cannot be reached", "proxy and firewall")
    with Versitygw() as store:
        refused(store.url("b", endpoint=f"https://{store.address}"), env, "no trusted TLS connection", "ca_file=")
    refused("s3://b?regoin=x", env, "unknown option", "region")
    refused("s3://b?secret_access_key=x", env, "AWS_SECRET_ACCESS_KEY")


@case
def a_store_that_lets_two_win_is_refused():
    with GcsFake() as store:
        refused(store.url("careless"), store.env, "racing creates have one winner", "more than one was told")
        with fresh_dir() as data:
            code, log = dev_fails(data, store.url("careless"), store.env)
            assert code != 0 and "not fit for Isobar" in log, log
            assert not (pathlib.Path(data) / "node.json").exists()


@cases_for(SERVERS)
def a_node_writes_and_reads(name):
    with SERVERS[name]() as store, fresh_dir() as data:
        store.bucket("bucket")
        url = store.url("bucket", "cluster/one")
        with Node(data, url, store.env).wait_ready() as node:
            node.create_topic()
            node.produce([f"line {n}" for n in range(1000)])
            deadline = time.monotonic() + 30
            while node.uploaded() == 0:
                assert time.monotonic() < deadline, "nothing was uploaded"
                time.sleep(0.1)
        with Node(data, url, store.env).wait_ready() as node:
            assert node.consume() == [f"line {n}" for n in range(1000)]
            gets = node.metric('isobar_store_requests_total{store="local",op="get",result="ok"}')
            assert gets and float(gets[0].split()[-1]) > 1, gets
        # Another cluster finds whose it is.
        with fresh_dir() as other:
            code, log = dev_fails(other, url, store.env)
            assert code != 0 and "belongs to another cluster: it is of cluster" in log, log
        code, text = check(url, store.env)
        assert code == 0 and "it belongs to cluster" in text, text


@case
def causes_while_running():
    with Versitygw() as store, StoreProxy(store.address) as proxy, fresh_dir() as data:
        store.bucket("bucket")
        sent = 0
        with Node(data, store.url("bucket", address=proxy.address), store.env).wait_ready() as node:
            node.create_topic()
            for answer, cause, words in [
                ([403, "AccessDenied"], "denied", "access denied"),
                ([400, "ExpiredToken"], "expired_credentials", "the credentials have expired"),
                ([404, "NoSuchBucket"], "no_bucket", "the bucket does not exist"),
                ([507, "XMinioStorageFull"], "full", "the store is full"),
                ([403, "RequestTimeTooSkewed"], "clock", "clock is wrong"),
                ([503, "SlowDown"], "throttled", "fewer requests"),
            ]:
                proxy.set(refuse=answer, methods=["PUT"])
                node.produce([f"line {sent + n}" for n in range(10)])
                sent += 10
                node.wait_log(words, seconds=90)
                failing = [f'cause="{cause}"', 'kind="writing"', "} 1"]
                node.wait_metric("isobar_store_failing", failing)
                before = node.uploaded()
                proxy.set()
                node.wait_metric("isobar_store_failing", failing[:-1] + ["} 0"], seconds=120)
                deadline = time.monotonic() + 60
                while node.uploaded() == before:
                    assert time.monotonic() < deadline, "nothing was uploaded afterwards"
                    time.sleep(0.2)
            assert node.consume() == [f"line {n}" for n in range(sent)]
            errors = [line for line in node.text().splitlines() if "ERROR" in line and "the store fails" in line]
            assert len(errors) <= 12, f"each state is logged once, not each request: {len(errors)}"


@cases_for(["versitygw", "azurite"])
def faults_on_the_way(name):
    with SERVERS[name]() as store, StoreProxy(store.address) as proxy, fresh_dir() as data:
        store.bucket("bucket")
        url = store.url("bucket", address=proxy.address)
        sent = 0
        # The format too: creates whose answers are lost know their own bytes.
        proxy.set(storm=0.1, lose=0.1)
        with Node(data, url, store.env).wait_ready() as node:
            node.create_topic()
            for faults in [{"storm": 0.5}, {"lose": 0.5}, {"delay_ms": 300}, {"stopped_s": 3}, {"storm": 0.2, "lose": 0.2}]:
                proxy.set(**faults)
                for _ in range(5):
                    node.produce([f"line {sent + n}" for n in range(100)])
                    sent += 100
                    time.sleep(0.4)
            proxy.set()
            before = node.uploaded()
            node.produce([f"line {sent}"])
            sent += 1
            deadline = time.monotonic() + 60
            while node.uploaded() == before:
                assert time.monotonic() < deadline, "nothing was uploaded afterwards"
                time.sleep(0.2)
        counts = proxy.counts()
        assert counts["stormed"] > 5 and counts["lost"] > 2, counts
        with Node(data, url, store.env).wait_ready() as node:
            assert node.consume() == [f"line {n}" for n in range(sent)]


@case
def a_known_node_starts_without_its_store():
    with Versitygw() as store, fresh_dir() as data:
        store.bucket("bucket")
        url = store.url("bucket")
        with Node(data, url, store.env).wait_ready() as node:
            node.create_topic()
            node.produce(["before"])
        store.stop()
        with Node(data, url, store.env).wait_ready() as node:
            node.wait_log("the store cannot be looked at")
            node.produce(["without"])
            store.start()
            node.wait_log("the store answers and is this cluster's")
            deadline = time.monotonic() + 60
            while node.uploaded() == 0:
                assert time.monotonic() < deadline, "nothing was uploaded"
                time.sleep(0.2)
            assert node.consume() == ["before", "without"]
        # But not where a person has to act.
        code, log = dev_fails(data, url, store.env | {"AWS_SECRET_ACCESS_KEY": "wrong"})
        assert code != 0 and "does not accept the credentials" in log, log
        code, log = dev_fails(data, store.url("missing"), store.env)
        assert code != 0 and "the bucket does not exist" in log, log
        store.bucket("empty")
        code, log = dev_fails(data, store.url("empty"), store.env)
        assert code != 0 and "has no cluster marker" in log, log


if __name__ == "__main__":
    # Their cases count with these.
    import cache_damage  # noqa: F401
    import multipart  # noqa: F401
    import ways  # noqa: F401

    run(sys.argv[1:])
