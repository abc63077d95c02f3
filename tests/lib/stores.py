"""Object stores on loopback for tests, each with its own directory and port; they die with the thread that started them.

    with Versitygw() as store:
        store.bucket("b")                  # makes a bucket
        store.url("b", "prefix")           # for --store
        store.keys("b", "prefix/")         # {name: length} of what lies there, asked of the store itself
        store.env                          # credentials, for the process that uses it

Programs come from tests/lib/stores.sh, by the variables VERSITYGW, MINIO and AZURITE.
"""

import base64
import contextlib
import email.utils
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from broker import die_with_parent, free_ports  # noqa: E402

LIB = pathlib.Path(__file__).resolve().parent


def open_retrying(request, tls=None):
    """Body and headers. A server that has just begun to listen may not be able to answer yet."""
    for attempt in range(50):
        try:
            with urllib.request.urlopen(request, timeout=10, context=tls) as answered:
                return answered.read(), answered.headers
        except (ConnectionError, urllib.error.URLError) as error:
            if attempt == 49 or (isinstance(error, urllib.error.HTTPError) and error.code != 503):
                raise
            time.sleep(0.2)


def texts(xml_text, item, *names):
    """The texts of these children of each `item`, whatever the namespace; names may be paths."""
    for found in xml.etree.ElementTree.fromstring(xml_text).iterfind(f".//{{*}}{item}"):
        yield [found.findtext("/".join(f"{{*}}{part}" for part in name.split("/"))) for name in names]


def make_ca(directory):
    """Makes a CA, and `public.crt` and `private.key` for 127.0.0.1; the path of the CA's certificate."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n"
    (directory / "names").write_text(names)
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"]
    for command in [
        ["req", "-x509", *new, "-days", "2", "-subj", "/CN=CA of a test", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *new, "-subj", "/CN=127.0.0.1", "-keyout", "private.key", "-out", "request.pem"],
        ["x509", "-req", "-in", "request.pem", *signed, "-out", "public.crt"],
    ]:
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
    return str(directory / "ca.pem")


class Store:
    scheme = "s3"
    # Whether the process may be killed without losing what it has answered for.
    may_be_killed = True

    # A CA's certificate, where it is served over TLS.
    ca_file = None

    def __init__(self, directory=None, args=()):
        self.own = directory is None
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix="isobar-store-"))
        self.data = self.directory / "data"
        self.data.mkdir(exist_ok=True)
        self.port = free_ports(1)[0]
        self.args = list(args)
        self.process = None
        self.start()

    def start(self):
        log = open(self.directory / "log", "ab")
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "AZURE_", "GOOGLE_"))} | self.server_env()
        self.process = subprocess.Popen(
            self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, preexec_fn=die_with_parent
        )
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{type(self).__name__} did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def server_env(self):
        return {}

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def http(self):
        return "https" if self.ca_file else "http"

    def url(self, bucket, prefix="", address=None, **options):
        options = {"endpoint": f"{self.http}://{address or self.address}"} | options
        return f"{self.scheme}://{bucket}/{prefix}?{urllib.parse.urlencode(options)}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        if self.own:
            shutil.rmtree(self.directory, ignore_errors=True)


class S3(Store):
    key, secret = "isobar-test-key", "isobar-test-secret"

    @property
    def env(self):
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}

    def bucket(self, name):
        self.request("PUT", f"/{name}")

    def keys(self, bucket, prefix=""):
        found, more = {}, {}
        while True:
            answer = self.request("GET", f"/{bucket}", query={"list-type": "2", "prefix": prefix} | more)
            found |= {key: int(size) for key, size in texts(answer, "Contents", "Key", "Size")}
            token = xml.etree.ElementTree.fromstring(answer).findtext("{*}NextContinuationToken")
            if not token:
                return found
            more = {"continuation-token": token}

    def head(self, bucket, key, headers=None):
        return self.exchange("HEAD", f"/{bucket}/{key}", headers=headers)[1]

    def request(self, method, path, body=b"", query=None, headers=None):
        return self.exchange(method, path, body, query, headers)[0]

    def exchange(self, method, path, body=b"", query=None, headers=None):
        """One signed request (AWS signature version 4); body and headers of the answer."""
        query = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote, safe="-_.~")
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        digest = hashlib.sha256(body).hexdigest()
        # Some requests must have it.
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        fields = {"content-md5": md5, "host": self.address, "x-amz-content-sha256": digest, "x-amz-date": now}
        fields = dict(sorted((fields | (headers or {})).items()))
        names = ";".join(fields)
        canonical = "\n".join([method, path, query, *(f"{k}:{v}" for k, v in fields.items()), "", names, digest])
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        mac = f"AWS4{self.secret}".encode()
        for part in [*scope.split("/"), text]:
            mac = hmac.new(mac, part.encode(), hashlib.sha256).digest()
        fields["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={mac.hex()}"
        )
        url = f"{self.http}://{self.address}{path}?{query}"
        request = urllib.request.Request(url, data=body, method=method, headers=fields)
        return open_retrying(request, ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None)


class Versitygw(S3):
    """Strict and quick; never syncs, so it is not for power cuts."""

    def command(self):
        return [os.environ["VERSITYGW"], "--port", self.address, "--access", self.key, "--secret", self.secret, "--quiet"] + [
            "--keep-alive", *self.args, "posix", str(self.data)
        ]


class Minio(S3):
    """tls: a directory in which a CA and its certificate for the server are made. kms: MinIO's own key store, which holds the key
    of this name."""

    def __init__(self, directory=None, args=(), tls=None, kms=None):
        self.kms = kms
        if tls is not None:
            self.ca_file = make_ca(pathlib.Path(tls))
            args = [*args, "--certs-dir", str(tls)]
        super().__init__(directory, args)

    def server_env(self):
        # Without the last a rename that was answered for may be lost with the power.
        env = {"MINIO_ROOT_USER": self.key, "MINIO_ROOT_PASSWORD": self.secret, "MINIO_FS_OSYNC": "on"}
        return env | ({"MINIO_KMS_SECRET_KEY": f"{self.kms}:{base64.b64encode(bytes(32)).decode()}"} if self.kms else {})

    def command(self):
        return [os.environ["MINIO"], "server", "--quiet", "--address", self.address] + [
            "--console-address", f"127.0.0.1:{free_ports(1)[0]}", *self.args, str(self.data)
        ]


class Azurite(Store):
    scheme = "az"
    # It writes its list of blobs to disk now and then.
    may_be_killed = False
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def command(self):
        return [os.environ["AZURITE"], "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "-l", str(self.data)] + [
            "--skipApiVersionCheck", "--silent"
        ]

    @property
    def env(self):
        return {"AZURE_STORAGE_ACCOUNT_NAME": self.account, "AZURE_STORAGE_ACCOUNT_KEY": self.key}

    def url(self, bucket, prefix="", address=None, **options):
        return super().url(bucket, prefix, **({"endpoint": f"http://{address or self.address}/{self.account}"} | options))

    def _sign(self, text):
        mac = hmac.new(base64.b64decode(self.key), text.encode(), hashlib.sha256)
        return base64.b64encode(mac.digest()).decode()

    def bucket(self, name):
        self._request("PUT", name, {"restype": "container"})

    def keys(self, bucket, prefix="", **more):
        found, marker = {}, ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": prefix} | more | ({"marker": marker} if marker else {})
            answer = self._request("GET", bucket, query)
            found |= {key: int(size) for key, size in texts(answer, "Blob", "Name", "Properties/Content-Length")}
            marker = xml.etree.ElementTree.fromstring(answer).findtext("NextMarker")
            if not marker:
                return found

    def blocks(self, container, key):
        """Of how many blocks a blob was made."""
        answer = self._request("GET", f"{container}/{key}", {"comp": "blocklist", "blocklisttype": "committed"})
        return len(list(texts(answer, "Block", "Name")))

    def _request(self, method, container, query):
        date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
        resource = "\n".join([f"/{self.account}/{self.account}/{container}", *(f"{k}:{v}" for k, v in sorted(query.items()))])
        text = method + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
        request = urllib.request.Request(
            f"http://{self.address}/{self.account}/{container}?{urllib.parse.urlencode(query)}",
            method=method,
            headers={
                "x-ms-date": date,
                "x-ms-version": version,
                "Authorization": f"SharedKey {self.account}:{self._sign(text)}",
                "Content-Length": "0",
            },
        )
        return open_retrying(request)[0]

    def sas(self, expiry, permissions="rwdlac"):
        """An account SAS that ends at `expiry` (seconds since 1970)."""
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expiry))
        begin = "2020-01-01T00:00:00Z"
        fields = {"sv": "2021-08-06", "ss": "b", "srt": "sco", "sp": permissions, "st": begin, "se": end, "spr": "https,http"}
        text = "\n".join([self.account, permissions, "b", "sco", begin, end, "", "https,http", "2021-08-06", "", ""])
        return urllib.parse.urlencode(fields | {"sig": self._sign(text)})


class GcsFake(Store):
    scheme = "gs"

    def command(self):
        return [sys.executable, str(LIB / "gcs_fake.py"), str(self.port)]

    @property
    def env(self):
        # object_store asks for a token before a DELETE even where requests are not signed, so a key that says "no OAuth".
        key = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}

    def bucket(self, name):
        pass
