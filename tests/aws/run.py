"""The cargo feature `aws`: where AWS's own tools find credentials, Isobar finds them, and buckets are made and looked at.

Environment: AWS_BIN and PLAIN_BIN (isobar with and without the feature), VERSITYGW, MINIO.
"""

import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

LIB = pathlib.Path(__file__).resolve().parent.parent / "lib"
sys.path.insert(0, str(LIB))
from cases import case, run  # noqa: E402
from stores import Minio, Versitygw  # noqa: E402

AWS_BIN, PLAIN_BIN = os.environ["AWS_BIN"], os.environ["PLAIN_BIN"]
PROFILES = """
[profile keys]
region = us-east-1
aws_access_key_id = {key}
aws_secret_access_key = {secret}

[profile wrong]
region = us-east-1
aws_access_key_id = {key}
aws_secret_access_key = wrong

[profile process]
region = us-east-1
credential_process = {process}

[profile sso]
region = us-east-1
sso_session = ours
sso_account_id = 123456789012
sso_role_name = Writer

[sso-session ours]
sso_region = us-east-1
sso_start_url = https://ours.invalid/start
sso_registration_scopes = sso:account:access
"""


class Home(tempfile.TemporaryDirectory):
    """A home directory with ~/.aws."""

    def __enter__(self):
        self.path = pathlib.Path(super().__enter__())
        (self.path / ".aws/sso/cache").mkdir(parents=True)
        keys = {"Version": 1, "AccessKeyId": Minio.key, "SecretAccessKey": Minio.secret}
        script = self.path / "give-credentials"
        script.write_text(f"#!/bin/sh\necho '{json.dumps(keys)}'\n")
        script.chmod(0o755)
        (self.path / ".aws/config").write_text(PROFILES.format(key=Minio.key, secret=Minio.secret, process=script))
        return self


def isobar(binary, home, *args, **env):
    """(exit code, what it printed on one line)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    env = kept | {"HOME": str(home.path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"} | env
    done = subprocess.run([binary, *args], env=env, capture_output=True, text=True, timeout=120)
    text = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert "panicked" not in text, text
    return done.returncode, text


def check(home, url, binary=AWS_BIN, **env):
    return isobar(binary, home, "store", "check", url, "--quick", "--races", "2", **env)


def fit(result, *words):
    code, text = result
    assert code == 0 and "This store is fit" in text, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


@case
def profiles_give_credentials():
    with Home() as home, Minio() as store:
        store.bucket("bucket")
        fit(check(home, store.url("bucket"), AWS_PROFILE="keys"), "profile keys (AWS_PROFILE)")
        fit(check(home, store.url("bucket"), AWS_PROFILE="process"), "profile process")
        # The URL is more explicit than keys in the environment.
        wrong = {"AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "other", "AWS_REGION": "us-east-1"}
        fit(check(home, store.url("bucket", profile="keys"), **wrong), "profile keys, as the URL says")
        # And keys in the environment are more explicit than AWS_PROFILE.
        fit(check(home, store.url("bucket"), AWS_PROFILE="wrong", **store.env), "AWS_ACCESS_KEY_ID")


@case
def mistakes_are_named():
    with Home() as home, Minio() as store:
        store.bucket("bucket")
        code, text = check(home, store.url("bucket"), AWS_PROFILE="wrong")
        assert code == 1 and "does not accept the credentials" in text, text
        code, text = check(home, store.url("bucket", profile="absent"))
        assert code == 1 and "no credentials" in text and "absent" in text, text
        code, text = check(home, store.url("bucket"))
        assert code == 1 and "no credentials" in text, text


@case
def a_build_without_it_says_what_to_do():
    with Home() as home, Minio() as store:
        code, text = check(home, store.url("bucket", profile="keys"), binary=PLAIN_BIN)
        assert code == 1 and "export-credentials --profile keys" in text, text
        code, text = isobar(PLAIN_BIN, home, "store", "make", store.url("bucket"))
        assert code == 1 and "aws s3 mb" in text, text


class Portal(http.server.BaseHTTPRequestHandler):
    """The one request of IAM Identity Center's portal that a client with a cached token makes. Not Amazon's software."""

    def do_GET(self):
        right = self.headers.get("x-amz-sso_bearer_token") == "the-token" and "role_name=Writer" in self.path
        keys = {"accessKeyId": Minio.key, "secretAccessKey": Minio.secret, "sessionToken": "", "expiration": int(time.time() + 3600) * 1000}
        body = json.dumps({"roleCredentials": keys} if right else {"message": "Session token not found or invalid"}).encode()
        self.send_response(200 if right else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@case
def single_sign_on():
    with Home() as home, Minio() as store:
        store.bucket("bucket")
        token = {"accessToken": "the-token", "startUrl": "https://ours.invalid/start", "region": "us-east-1"}
        token["expiresAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        name = hashlib.sha1(b"ours").hexdigest()
        (home.path / f".aws/sso/cache/{name}.json").write_text(json.dumps(token))
        portal = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal)
        threading.Thread(target=portal.serve_forever, daemon=True).start()
        try:
            at = {"AWS_ENDPOINT_URL_SSO": f"http://127.0.0.1:{portal.server_port}"}
            fit(check(home, store.url("bucket"), AWS_PROFILE="sso", **at), "profile sso")
            (home.path / f".aws/sso/cache/{name}.json").unlink()
            code, text = check(home, store.url("bucket"), AWS_PROFILE="sso", **at)
            assert code == 1 and "no credentials" in text, text
        finally:
            portal.shutdown()


@case
def buckets_are_made_and_looked_at():
    for kind in (Minio, Versitygw):
        with Home() as home, kind() as store:
            code, text = isobar(AWS_BIN, home, "store", "make", store.url("made"), AWS_PROFILE="keys")
            assert code == 0 and "bucket made was made in us-east-1" in text, text
            fit(check(home, store.url("made"), AWS_PROFILE="keys"), "see its versioning", "see its lifecycle rules")
            code, text = isobar(AWS_BIN, home, "store", "make", store.url("made"), AWS_PROFILE="wrong")
            assert code == 1 and "was not made" in text, text


@case
def a_rule_that_removes_objects_is_found():
    rule = "<Rule><ID>eater</ID><Status>Enabled</Status><Filter><Prefix>p</Prefix></Filter><Expiration><Days>1</Days></Expiration></Rule>"
    rules = f"<LifecycleConfiguration>{rule}</LifecycleConfiguration>".encode()
    with Home() as home, Minio() as store:
        store.bucket("bucket")
        store.request("PUT", "/bucket", rules, query={"lifecycle": ""})
        code, text = check(home, store.url("bucket", "p/q"), AWS_PROFILE="keys")
        assert code == 1 and "rule eater removes objects" in text, text
        fit(check(home, store.url("bucket", "other"), AWS_PROFILE="keys"))


if __name__ == "__main__":
    run(sys.argv[1:])
