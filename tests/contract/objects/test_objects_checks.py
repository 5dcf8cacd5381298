"""`broker doctor`'s questions to an S3 endpoint, asked of real servers: good, wrong and lying ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from broker.objects import EmbeddedObjectStore, ObjectStore, S3Config
from broker.objects.checks import check_store

ORIGIN = "http://console.example:8080"
NAMES = [
    "S3 endpoint",
    "S3 keys",
    "S3 bucket",
    "S3 clock",
    "S3 storing",
    "S3 multipart",
    "S3 checksums",
    "S3 presigned URLs",
    "S3 anonymous access",
    "S3 CORS",
    "S3 unfinished uploads",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Iterator[S3Config]:
    with EmbeddedObjectStore(tmp_path_factory.mktemp("objects"), cors_origins=[ORIGIN]) as endpoint:
        config = replace(endpoint.config("models"), max_attempts=1)
        ObjectStore(config).ensure_bucket()
        yield config


def found(store: ObjectStore, **options) -> dict[str, tuple[str, str]]:
    checks = check_store(store, **options)
    assert all(check.remedy for check in checks if check.status != "ok")
    assert all(check.detail and not check.remedy for check in checks if check.status == "ok")
    return {check.name: (check.status, check.detail) for check in checks}


def failing(store: ObjectStore, **options) -> list[str]:
    return [name for name, (status, _) in found(store, **options).items() if status != "ok"]


def test_embedded_server_passes_every_check_and_nothing_is_left_behind(config):
    store = ObjectStore(config)
    checks = found(store, origins=[ORIGIN])
    assert list(checks) == NAMES
    assert {status for status, _ in checks.values()} == {"ok"}
    assert list(store.list("")) == []
    assert store.abort_stale_uploads(timedelta(hours=-1)) == 0


def test_server_that_is_away_is_the_only_finding(config):
    checks = found(ObjectStore(replace(config, endpoint_url="http://127.0.0.1:9")))
    assert {name: status for name, (status, _) in checks.items()} == {"S3 endpoint": "fail"}


@pytest.mark.parametrize("wrong", [{"access_key": "NOBODY"}, {"secret_key": "wrong"}])
def test_wrong_keys_are_told_from_an_absent_server(config, wrong):
    checks = found(ObjectStore(replace(config, **wrong)))
    assert [(name, status) for name, (status, _) in checks.items()] == [
        ("S3 endpoint", "ok"),
        ("S3 keys", "fail"),
    ]


def test_missing_bucket_is_told_from_wrong_keys(config):
    assert failing(ObjectStore(replace(config, bucket="nobodys"))) == ["S3 bucket"]


def test_origin_that_is_not_let_in_is_named(config):
    checks = found(ObjectStore(config), origins=[ORIGIN, "http://other.example"])
    assert checks["S3 CORS"][0] == "fail"
    assert "http://other.example" in checks["S3 CORS"][1]
    assert ORIGIN not in checks["S3 CORS"][1]


def test_abandoned_upload_is_counted(config):
    store = ObjectStore(config)
    upload_id = store.create_upload("abandoned")
    assert failing(store, stale_after=timedelta(seconds=-5)) == ["S3 unfinished uploads"]
    assert failing(store) == []
    store.abort_upload("abandoned", upload_id)


def test_public_url_that_leads_elsewhere_is_found(config):
    public = config.endpoint_url.replace("127.0.0.1", "localhost")
    assert failing(ObjectStore(replace(config, public_url=public))) == []
    assert "S3 presigned URLs" in failing(ObjectStore(replace(config, public_url="http://127.0.0.1:9")))


_HOP_BY_HOP = ("content-length", "connection", "transfer-encoding")


class Relay(BaseHTTPRequestHandler):
    """Passes requests to the real server, in the way the subclass spoils."""

    protocol_version = "HTTP/1.1"
    endpoint = ""

    def spoil_request(self, headers: dict[str, str]) -> None:
        """Change what goes up."""

    def spoil_answer(self, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """Change what comes down."""
        return body

    def relay(self) -> None:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name != "Expect"}
        self.spoil_request(headers)
        upstream = HTTPConnection(urlsplit(self.endpoint).netloc, timeout=30)
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        sent = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP]
        content = self.spoil_answer(sent, answer.read())
        self.send_response_only(answer.status)
        for name, value in sent:
            self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = relay  # noqa: N815

    def log_message(self, *_args) -> None:
        """Keep the tests' output clean."""


@contextmanager
def relayed(config: S3Config, handler: type[Relay]) -> Iterator[ObjectStore]:
    bound = type("Bound", (handler,), {"endpoint": config.endpoint_url})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as relay:
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        try:
            yield ObjectStore(replace(config, endpoint_url=f"http://127.0.0.1:{relay.server_port}"))
        finally:
            relay.shutdown()
            thread.join()


class Wrong(Relay):
    def spoil_answer(self, headers, body):
        headers[:] = [(name, value) for name, value in headers if name.lower() != "date"]
        headers.append(("Date", "Mon, 01 Jan 2024 00:00:00 GMT"))
        return body


class Forgetful(Relay):
    def spoil_answer(self, headers, body):
        headers[:] = [(name, value) for name, value in headers if not name.lower().startswith("x-amz-meta")]
        return body


class Damaging(Relay):
    def spoil_answer(self, headers, body):
        return body.replace(b"0123456789", b"012345678X") if self.command == "GET" else body


def test_honest_relay_changes_nothing(config):
    with relayed(config, Relay) as store:
        assert failing(store, origins=[ORIGIN]) == []


@pytest.mark.parametrize(
    ("handler", "name"), [(Wrong, "S3 clock"), (Forgetful, "S3 storing"), (Damaging, "S3 storing")]
)
def test_spoiling_endpoint_is_found_out(config, handler, name):
    with relayed(config, handler) as store:
        assert name in failing(store)
