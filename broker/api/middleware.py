"""What surrounds every request: id, address, body limit, a log line, metrics, and the last catch of errors.

Pure ASGI and thin: it runs on the event loop for each of thousands of reads.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker import metrics
from broker.api.problems import problem_response
from broker.audit import source_ip
from broker.errors import BodyTooLarge, BrokerError, InvalidRequest, Problem

log = structlog.get_logger("broker.api")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
JSON_LIMIT = 4 << 20
"""A spec has at most 1 MiB; with every character as a JSON escape inside an envelope still below this."""


class RequestScope:
    """The middleware. `limit_of` gives the largest body of a path, in bytes."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int]) -> None:
        self.app, self.limit_of = app, limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        client = scope.get("client")
        address = source_ip.set(client[0] if client else None)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if scope["type"] == "websocket":
            try:
                await self.app(scope, receive, _greeting(send, request_id))
            finally:
                source_ip.reset(address)
            return
        exchange = _Exchange(scope, receive, send, request_id, self.limit_of(scope["path"]))
        try:
            if refused := _refuse(scope, headers, exchange.limit):
                await problem_response(refused, request_id)(scope, receive, exchange.send)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("request_crashed", method=scope["method"], path=scope["path"])
            if exchange.status is not None:
                raise  # the answer is under way: only cutting the connection tells the client
            error = BrokerError(f"The broker failed; an admin finds the cause in its log under {request_id}")
            await problem_response(error, request_id)(scope, receive, exchange.send)
        finally:
            exchange.finish()
            source_ip.reset(address)


def _greeting(send: Send, request_id: str) -> Send:
    """The same, with the request's id in the answer that opens a WebSocket."""

    async def sending(message: Message) -> None:
        if message["type"] == "websocket.accept":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
        await send(message)

    return sending


class _Exchange:
    """One request and its answer: counts what comes in, notes what goes out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str, limit: int) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self._id, self.limit = request_id, limit
        self._received, self._started = 0, time.perf_counter()
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self.limit:
            raise HTTPException(413)  # the one kind FastAPI lets through while it reads a body
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.setdefault("headers", [])
            headers.append((b"x-request-id", self._id.encode()))
            headers.append((b"x-content-type-options", b"nosniff"))
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
        await self._send(message)

    def finish(self) -> None:
        took = time.perf_counter() - self._started
        route = getattr(self.scope.get("route"), "path", "unknown")
        method, status = self.scope["method"], self.status or 499
        metrics.HTTP_REQUESTS.labels(method=method, route=route, status=str(status)).inc()
        metrics.HTTP_SECONDS.labels(route=route).observe(took)
        quiet = status < 400 and method in {"GET", "HEAD", "OPTIONS"}
        (log.debug if quiet else log.info)(
            "request", method=method, path=self.scope["path"], status=status, ms=round(took * 1000, 1)
        )


def _refuse(scope: Scope, headers: Headers, limit: int) -> BrokerError | None:
    if "\x00" in scope["path"] or b"%00" in scope.get("query_string", b""):
        problem = Problem("", "unstorable_text", "The address has a NUL character: remove it")
        return InvalidRequest(problem.detail, problems=[problem])
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length[:20]) > limit:
        return BodyTooLarge(f"The request's body is larger than the {limit >> 20} MiB this address takes")
    return None
