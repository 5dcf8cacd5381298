"""Answers that stay open (server-sent events, WebSockets), and how many of them one account may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from broker import metrics
from broker.errors import LimitReached
from broker.identity import Principal

COME_AGAIN_S = 5


class OpenStreams:
    """The streams that each account has open at this process. For the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, principal: Principal) -> Iterator[None]:
        """A place for the time of the block; `LimitReached` when the account has all of its own in use."""
        if self._open[principal.user_id] >= self._most:
            raise LimitReached(
                f"You have {self._most} live streams open, which is all that one account may "
                "(`api.streams_per_account`): close one, or ask now and then instead",
                retry_after_s=COME_AGAIN_S,
            )
        self._open[principal.user_id] += 1
        metrics.STREAMS_OPEN.inc()
        try:
            yield
        finally:
            metrics.STREAMS_OPEN.dec()
            self._open[principal.user_id] -= 1
            self._open += Counter()  # forget who has none

    def respond(self, principal: Principal, frames: AsyncIterable[str]) -> StreamingResponse:
        """Server-sent events as they come, in a place of the account's; raises what `hold` raises."""
        with ExitStack() as place:
            place.enter_context(self.hold(principal))
            return _Live(frames, place.pop_all())
        raise AssertionError("unreachable")


class _Live(StreamingResponse):
    """Gives its place back when it ends, however it ends, also before its first byte."""

    def __init__(self, frames: AsyncIterable[str], place: ExitStack) -> None:
        super().__init__(frames, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def get_streams(request: Request) -> OpenStreams:
    """The application's open streams."""
    streams: OpenStreams = request.app.state.streams
    return streams


Streams = Annotated[OpenStreams, Depends(get_streams)]
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
"""`responses` of a route that answers so."""
