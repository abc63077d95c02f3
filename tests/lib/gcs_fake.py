#!/usr/bin/env python3
"""A FAKE of Google Cloud Storage's XML API, in memory, written for Isobar's tests. It is not Google's software and no
emulator of theirs: none of those speaks the XML API that object_store uses. What passes here shows that our requests are
formed as the documentation of the XML API says, and nothing about Google's servers.

    gcs_fake.py [PORT]      prints "LISTENING port"; buckets: any name but one that begins with "missing";
one that begins with "careless" ignores preconditions, as some stores do
Knows: PUT, GET, HEAD, DELETE of objects; x-goog-if-generation-match; If-Match, If-None-Match, If-(Un)modified-Since; Range;
list-type=2 with prefix, delimiter, start-after, continuation-token, max-keys; multipart (?uploads, ?uploadId, &partNumber);
x-goog-copy-source; ?generation= of the newest generation and the one before it (as with object versioning). Bearer tokens: "expired" is refused with 401, "reader" may not write, any other or none may do all.
"""

import email.utils
import hashlib
import http.server
import re
import sys
import threading
import time
import urllib.parse
from xml.sax.saxutils import escape

LOCK = threading.Lock()
OBJECTS = {}  # (bucket, key) -> Object
UPLOADS = {}  # id -> (bucket, key, {part: bytes})
COUNTER = [1]


class Object:
    def __init__(self, body):
        COUNTER[0] += 1
        self.body = body
        self.generation = COUNTER[0] * 1000
        self.modified = time.time()
        self.etag = f'"{hashlib.md5(body).hexdigest()}-{self.generation}"'
        self.previous = None


class Refused(Exception):
    def __init__(self, status, code, message=""):
        self.status, self.code, self.message = status, code, message


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20

    def log_message(self, *_):
        pass

    def do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        parts = path[1:].split("/", 1)
        self.bucket = urllib.parse.unquote(parts[0])
        self.key = urllib.parse.unquote(parts[1]) if len(parts) > 1 else ""
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        try:
            self.authorize()
            with LOCK:
                status, fields, out = self.answer(body)
        except Refused as refused:
            text = f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message></Error>"
            status, fields, out = refused.status, {"Content-Type": "application/xml"}, text.encode()
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        if "Content-Length" not in fields:
            self.send_header("Content-Length", str(0 if status == 204 else len(out)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(out)
        self.wfile.flush()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do

    def authorize(self):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == "expired":
            raise Refused(401, "AuthenticationRequired", "Authentication required.")
        if token == "reader" and self.command not in ("GET", "HEAD"):
            raise Refused(403, "AccessDenied", "reader does not have storage.objects.create access")
        if self.bucket.startswith("missing"):
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")

    def answer(self, body):
        if not self.key:
            return self.listing()
        if self.command == "POST":
            return self.multipart(body)
        if self.command == "PUT":
            return self.put(body)
        found = OBJECTS.get((self.bucket, self.key))
        if self.command == "DELETE":
            if "uploadId" in self.query:
                UPLOADS.pop(self.query["uploadId"], None)
                return 204, {}, b""
            if not found:
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")
            del OBJECTS[self.bucket, self.key]
            return 204, {}, b""
        if not found:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        wanted = int(self.query.get("generation", found.generation))
        for one in (found, found.previous):
            if one and one.generation == wanted:
                return self.get(one)
        raise Refused(404, "NoSuchVersion", "The specified version does not exist.")

    def get(self, found):
        fields = {
            "ETag": found.etag,
            "Last-Modified": email.utils.formatdate(found.modified, usegmt=True),
            "x-goog-generation": str(found.generation),
            "Content-Type": "application/octet-stream",
        }
        self.check_conditions(found)
        total = len(found.body)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not match or match.groups() == ("", ""):
            return 200, fields | {"Content-Length": str(total)}, found.body
        first, last = match.groups()
        start = int(first) if first else max(0, total - int(last))
        end = min(int(last) + 1, total) if first and last else total
        if start >= total:
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        out = found.body[start:end]
        fields |= {"Content-Range": f"bytes {start}-{end - 1}/{total}", "Content-Length": str(len(out))}
        return 206, fields, out

    def check_conditions(self, found):
        get = self.headers.get
        modified = int(found.modified)
        etags = [etag.strip() for etag in (get("If-Match") or "").split(",") if etag.strip()]
        if etags and "*" not in etags and found.etag not in etags:
            raise Refused(412, "PreconditionFailed", "If-Match")
        if not etags and get("If-Unmodified-Since"):
            if modified > email.utils.parsedate_to_datetime(get("If-Unmodified-Since")).timestamp():
                raise Refused(412, "PreconditionFailed", "If-Unmodified-Since")
        etags = [etag.strip() for etag in (get("If-None-Match") or "").split(",") if etag.strip()]
        if etags and ("*" in etags or found.etag in etags):
            raise Refused(304, "NotModified")
        if not etags and get("If-Modified-Since"):
            if modified <= email.utils.parsedate_to_datetime(get("If-Modified-Since")).timestamp():
                raise Refused(304, "NotModified")

    def put(self, body):
        if "uploadId" in self.query:
            upload = UPLOADS.get(self.query["uploadId"])
            if not upload:
                raise Refused(404, "NoSuchUpload")
            upload[2][int(self.query["partNumber"])] = body
            return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
        source = self.headers.get("x-goog-copy-source")
        if source:
            bucket, _, key = urllib.parse.unquote(source).lstrip("/").partition("/")
            if (bucket, key) not in OBJECTS:
                raise Refused(404, "NoSuchKey")
            body = OBJECTS[bucket, key].body
        return self.store(body)

    def store(self, body):
        wanted = self.headers.get("x-goog-if-generation-match")
        there = OBJECTS.get((self.bucket, self.key))
        if self.bucket.startswith("careless"):
            wanted = None
        if wanted is not None and int(wanted) != (there.generation if there else 0):
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        made = OBJECTS[self.bucket, self.key] = Object(body)
        if there:
            made.previous, there.previous = there, None
        return 200, {"ETag": made.etag, "x-goog-generation": str(made.generation)}, b""

    def multipart(self, body):
        if "uploads" in self.query:
            COUNTER[0] += 1
            upload = f"upload{COUNTER[0]}"
            UPLOADS[upload] = (self.bucket, self.key, {})
            text = (
                f"<InitiateMultipartUploadResult><Bucket>{self.bucket}</Bucket><Key>{escape(self.key)}</Key>"
                f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            )
            return 200, {}, text.encode()
        upload = UPLOADS.pop(self.query.get("uploadId"), None)
        if not upload:
            raise Refused(404, "NoSuchUpload")
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
        _, fields, _ = self.store(b"".join(upload[2][number] for number in numbers))
        text = (
            f"<CompleteMultipartUploadResult><Location>x</Location><Bucket>{self.bucket}</Bucket>"
            f"<Key>{escape(self.key)}</Key><ETag>{escape(fields['ETag'])}</ETag></CompleteMultipartUploadResult>"
        )
        return 200, fields, text.encode()

    def listing(self):
        if self.command != "GET" or self.query.get("list-type") != "2":
            raise Refused(400, "InvalidArgument", "only list-type=2 is known here")
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after = max(self.query.get("start-after", ""), self.query.get("continuation-token", ""))
        limit = int(self.query.get("max-keys", 1000))
        contents, prefixes, last, more = [], [], "", False
        for bucket, key in sorted(OBJECTS):
            if bucket != self.bucket or not key.startswith(prefix) or key <= after:
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            common = key[: end + len(delimiter)] if end >= 0 else None
            if common and (common in prefixes or after.startswith(common)):
                last = key
                continue
            if len(contents) + len(prefixes) >= limit:
                more = True
                break
            (prefixes if common else contents).append(common or key)
            last = key
        out = [f"<ListBucketResult><Name>{self.bucket}</Name><IsTruncated>{str(more).lower()}</IsTruncated>"]
        if more:
            out.append(f"<NextContinuationToken>{escape(last)}</NextContinuationToken>")
        for key in contents:
            found = OBJECTS[self.bucket, key]
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.modified))
            out.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>{escape(found.etag)}</ETag><Size>{len(found.body)}</Size></Contents>"
            )
        out += [f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>" for common in prefixes]
        return 200, {"Content-Type": "application/xml"}, ("".join(out) + "</ListBucketResult>").encode()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    print("LISTENING", server.server_address[1], flush=True)
    server.serve_forever()
