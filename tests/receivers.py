"""Real receivers for what the broker sends: a web server that checks signatures, a mail server."""

from __future__ import annotations

import json
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from standardwebhooks import Webhook, WebhookVerificationError

from tests.harness.processes import free_port


@dataclass
class Request:
    """What arrived: `verified` is what the convention's own library says of it."""

    path: str
    headers: dict[str, str]
    body: bytes
    verified: bool
    json: Any


@dataclass
class Receiver:
    """A web server on loopback. `answers` are given in turn, the last one for ever: (status, headers)."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=lambda: [(204, {})])
    secrets: list[str] = field(default_factory=list)
    requests: queue.Queue[Request] = field(default_factory=queue.Queue)
    hold: threading.Event | None = None
    """When given, no answer is sent before it is set."""
    url: str = ""

    def next(self, timeout: float = 20) -> Request:
        """The next request, awaited."""
        return self.requests.get(timeout=timeout)

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """Note a request and answer it."""
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        verified = bool(self.secrets) and all(_fits(secret, body, headers) for secret in self.secrets)
        self.requests.put(Request(handler.path, headers, body, verified, json.loads(body)))
        if self.hold is not None:
            self.hold.wait(20)
        status, more = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        handler.send_response(status)
        for name, value in more.items():
            handler.send_header(name, value)
        handler.send_header("content-length", "0")
        handler.end_headers()


def _fits(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


@contextmanager
def web_server(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self)

        do_GET = do_POST  # noqa: N815 - http.server's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "https" if tls else "http"
    receiver.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


class MailServer:
    """An SMTP server on loopback; `refusals` are given to the next messages instead of taking them."""

    def __init__(self) -> None:
        self.mails: queue.Queue[tuple[list[str], EmailMessage]] = queue.Queue()
        self.refusals: list[str] = []
        self.port = 0

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
        """aiosmtpd's hook."""
        if self.refusals:
            return self.refusals.pop(0)
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.put((envelope.rcpt_tos, message))
        return "250 OK"

    def next(self, timeout: float = 20) -> tuple[list[str], EmailMessage]:
        """The next mail, awaited: its recipients and the message."""
        return self.mails.get(timeout=timeout)


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """Run a mail server until the block ends."""
    handler = MailServer()
    handler.port = free_port()
    # its own 5 s until it answers are too few where other programs have the processors
    controller = Controller(handler, hostname="127.0.0.1", port=handler.port, ready_timeout=60)
    controller.start()
    try:
        yield handler
    finally:
        controller.stop()
