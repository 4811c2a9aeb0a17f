"""A real HTTP server that speaks S3 (moto), for tests: one bucket, one user with keys. Every request
but those that make the two is checked for its signature, and so are links, which moto alone does not.

    server.py BUCKET [ADDRESS]     listens there (127.0.0.1); prints "PORT KEY SECRET" when it answers, then serves until it is killed

Beside S3, for the test that started it:

    GET /-/fault/NAME/N/SKIP  after SKIP requests the next N go wrong: busy (503 SlowDown), refused
                              (400), closed (no answer), cut (half of a GET's bytes, then the
                              connection breaks); N 0: none
    GET /-/seen               the requests since the last /-/seen: METHOD PATH?QUERY RANGE, a line each
    GET /-/cut/KEY/N          the object KEY has its first N bytes alone, its metadata as they are
    GET /-/flip/KEY/N         its byte N is another, likewise
    GET /-/keys/PREFIX        keys that begin so, a line each
    GET /-/many/PREFIX/N      N empty objects more, PREFIX0 to PREFIX(N - 1)
"""

import logging
import os
import sys
from threading import Lock, Thread
from urllib.parse import parse_qsl, quote, unquote, urlencode

os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
for name, value in (("AWS_ACCESS_KEY_ID", "none"), ("AWS_SECRET_ACCESS_KEY", "none")):
    os.environ[name] = value
for name in ("http_proxy", "HTTP_PROXY", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
    os.environ.pop(name, None)

import boto3  # noqa: E402
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402
from moto import settings  # noqa: E402
from moto.core import DEFAULT_ACCOUNT_ID  # noqa: E402
from moto.s3.models import s3_backends  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

POLICY = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}'
SLOW_DOWN = (b'<?xml version="1.0"?><Error><Code>SlowDown</Code>'
             b'<Message>Please reduce your request rate.</Message></Error>')


class Front:
    """What stands before moto: faults, the list of requests, links."""

    def __init__(self, app, bucket):
        self.app, self.bucket, self.keys = app, bucket, None
        self.lock, self.fault, self.left, self.skip, self.seen = Lock(), "", 0, 0, []

    def __call__(self, environ, start):
        path = environ["PATH_INFO"]
        if path.startswith("/-/"):
            return self.control(path, start)
        fault = self.note(environ, path)
        if fault in ("busy", "refused"):
            start("503 Slow Down" if fault == "busy" else "400 Bad Request",
                  [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN]
        if fault == "closed":
            raise ConnectionError("closed")
        if self.keys and "X-Amz-Signature" in environ["QUERY_STRING"] and not self.resign(environ):
            start("403 Forbidden", [("Content-Length", "0")])
            return []
        answer = self.app(environ, start)
        return self.half(answer) if fault == "cut" else answer

    def note(self, environ, path):
        with self.lock:
            query = environ["QUERY_STRING"]
            self.seen.append(f'{environ["REQUEST_METHOD"]} {path}{"?" if query else ""}{query} '
                             f'{environ.get("HTTP_RANGE", "-")}\n')
            gets = environ["REQUEST_METHOD"] == "GET" and path.count("/") > 1
            if not self.left or (self.fault == "cut" and not gets) or not self.keys:
                return ""
            if self.skip:
                self.skip -= 1
                return ""
            self.left -= 1
            return self.fault

    @staticmethod
    def half(answer):
        whole = b"".join(answer)
        yield whole[:len(whole) // 2]
        raise ConnectionError("cut")

    def control(self, path, start):
        _, _, what, *words = path.split("/")
        text = ""
        with self.lock:
            if what == "fault":
                self.fault, self.left, self.skip = words[0], int(words[1]), int(words[2])
            elif what == "seen":
                text, self.seen = "".join(self.seen), []
            elif what == "keys":
                keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.bucket].keys
                text = "".join(k + "\n" for k in keys if k.startswith("/".join(words)))
            else:
                self.change(what, unquote("/".join(words[:-1])), int(words[-1]))
        start("200 OK", [("Content-Length", str(len(text)))])
        return [text.encode()]

    def change(self, what, name, n):
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        if what == "many":
            for i in range(n):
                backend.put_object(self.bucket, f"{name}{i}", b"")
            return
        key = backend.get_object(self.bucket, name)
        if what == "cut":
            key.value = key.value[:n]
        else:
            key.value = key.value[:n] + bytes([key.value[n] ^ 1]) + key.value[n + 1:]

    def resign(self, environ):
        """A link whose signature is right becomes a request that moto can check."""
        pairs = parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)
        given = dict(pairs)
        path = quote(environ["PATH_INFO"].encode("latin-1"), safe="/-._~")
        host = environ["HTTP_HOST"]
        unsigned = urlencode([p for p in pairs if p[0] != "X-Amz-Signature"], quote_via=quote,
                             safe="-._~")
        keys = Credentials(*self.keys)
        link = AWSRequest(environ["REQUEST_METHOD"], f"http://{host}{path}?{unsigned}")
        link.context["timestamp"] = given["X-Amz-Date"]
        by_link = S3SigV4QueryAuth(keys, "s3", "us-east-1")
        text = by_link.string_to_sign(link, by_link.canonical_request(link))
        if by_link.signature(text, link) != given["X-Amz-Signature"]:
            return False
        rest = urlencode([p for p in pairs if not p[0].startswith("X-Amz-")], quote_via=quote,
                         safe="-._~")
        request = AWSRequest(environ["REQUEST_METHOD"], f"http://{host}{path}?{rest}")
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
        for name, value in request.headers.items():
            environ["HTTP_" + name.upper().replace("-", "_")] = value
        environ["QUERY_STRING"] = rest
        environ["REQUEST_URI"] = environ["RAW_URI"] = f"{path}?{rest}"
        return True


class Quiet(WSGIRequestHandler):
    """HTTP/1.1, whose connections stay; one that is cut on purpose is no error."""

    protocol_version = "HTTP/1.1"

    def log(self, *args):
        pass

    def run_wsgi(self):
        try:
            super().run_wsgi()
        except ConnectionError:
            self.close_connection = True

    def connection_dropped(self, error, environ=None):
        self.close_connection = True


def make_all(url, bucket):
    """The bucket and a user who may do everything with S3; the user's keys."""
    def client(name):
        return boto3.client(name, endpoint_url=url, region_name="us-east-1")
    client("s3").create_bucket(Bucket=bucket)
    iam = client("iam")
    iam.create_user(UserName="sluice")
    iam.put_user_policy(UserName="sluice", PolicyName="all", PolicyDocument=POLICY)
    key = iam.create_access_key(UserName="sluice")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def main():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    front = Front(DomainDispatcherApplication(create_backend_app), sys.argv[1])
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    server = make_server(address, 0, front, threaded=True, request_handler=Quiet)
    thread = Thread(target=server.serve_forever)
    thread.start()
    keys = make_all(f"http://{address}:{server.port}", sys.argv[1])
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0.0
    front.keys = keys
    print(server.port, *keys, flush=True)
    thread.join()


main()
