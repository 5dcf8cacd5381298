"""Requests straight to the application, streams included: a test client waits for a stream's end for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

QUIET_S = 0.3


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, or the beginning of an event stream."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    app: ASGIApp,
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    *,
    until: str = "",
) -> Answer:
    """One request; `body` is sent as it is (bytes) or as JSON.

    A stream is left when `until` has come and it is quiet for a moment.
    """
    return asyncio.run(_ask(app, method, url, dict(headers or {}), body, until.encode()))


async def _ask(
    app: ASGIApp, method: str, url: str, headers: dict[str, str], body: Any, until: bytes
) -> Answer:
    path, _, query = url.partition("?")
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
    data = body or b""
    sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [*sent, (b"host", b"testserver"), (b"content-length", str(len(data)).encode())],
        "client": ("testclient", 50000),
        "server": ("testserver", 80),
        "state": {},
    }
    begun = [False]
    gone, news = asyncio.Event(), asyncio.Event()
    status, answered, parts = [0], {}, []

    async def receive() -> Message:
        if not begun[0]:
            begun[0] = True
            return {"type": "http.request", "body": data, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            status[0] = message["status"]
            answered.update({name.decode(): value.decode() for name, value in message["headers"]})
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            news.set()

    async def leave() -> None:
        while True:
            await news.wait()
            news.clear()
            try:
                await asyncio.wait_for(news.wait(), QUIET_S)
            except TimeoutError:
                if until in b"".join(parts) and answered.get("content-type", "").startswith(
                    "text/event-stream"
                ):
                    gone.set()
                    return

    leaver = asyncio.create_task(leave())
    try:
        await asyncio.wait_for(app(scope, receive, send), 30)
    finally:
        leaver.cancel()
    return Answer(status[0], answered, b"".join(parts))
