"""The live stream of notices, as server-sent events and over a WebSocket.

However many people look, the database is asked twice a second for one number: how far the outbox goes. Only
when it has grown does each stream read what is new for its reader. A stream ends with its token: the account
is checked at every look, as for any other request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from broker.api.sockets import Who
from broker.db import Database
from broker.identity.permissions import Principal
from broker.notifications.kinds import Channel, Kind, wanted
from broker.notifications.outbox import user_owner
from broker.notifications.schemas import NoticeView, notice_view
from broker.notifications.service import visible
from broker.notifications.tables import NotificationRow, PreferenceRow

LOOK_S = 0.5
KEEP_ALIVE_S = 15.0
_AT_ONCE = 200


class Feed:
    """How far the outbox goes, read at most once per `LOOK_S` for all streams of a process."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._head = 0
        self._read_at = float("-inf")

    async def head(self) -> int:
        """The number of the newest notice, at most `LOOK_S` old."""
        now = time.monotonic()
        if now - self._read_at >= LOOK_S:
            self._read_at = now  # before the wait: others go by what is known meanwhile
            self._head = await run_in_threadpool(self.read)
        return self._head

    def read(self) -> int:
        """The number, from the database."""
        with self._db.read() as session:
            return session.scalar(select(func.max(NotificationRow.seq))) or 0


async def follow(db: Database, feed: Feed, who: Who, after: int | None) -> AsyncIterator[list[NoticeView]]:
    """What is new for a reader, as it comes: lists, an empty one when nothing came for a while.

    `after` is the last number the reader has (None: only what comes from now on). The first list comes at
    once. Raises what `who` raises.
    """
    principal = await who()
    newest = await run_in_threadpool(feed.read)
    seen = newest if after is None else min(after, newest)
    yield []
    quiet_since = time.monotonic()
    while True:
        head = await feed.head()
        if head > seen:
            found, seen = await run_in_threadpool(read_news, db, principal, seen, head)
            if found:
                quiet_since = time.monotonic()
                yield found
            continue
        if time.monotonic() - quiet_since >= KEEP_ALIVE_S:
            quiet_since = time.monotonic()
            yield []
        await asyncio.sleep(LOOK_S)
        principal = await who()


def read_news(db: Database, principal: Principal, seen: int, head: int) -> tuple[list[NoticeView], int]:
    """The reader's notices above `seen`, up to `head`; and how far that was."""
    query = visible(principal).where(NotificationRow.seq > seen, NotificationRow.seq <= head)
    with db.read() as session:
        rows = session.scalars(query.order_by(NotificationRow.seq).limit(_AT_ONCE)).all()
        choice = session.get(PreferenceRow, user_owner(principal.user_id))
    chosen = choice.channels if choice else {}
    far = (rows[-1].seq or head) if len(rows) == _AT_ONCE else head
    return [notice_view(row) for row in rows if wanted(chosen, Kind(row.kind), Channel.STREAM)], far


def frame(notice: NoticeView) -> str:
    """A notice as a server-sent event (WHATWG HTML, 9.2); its id is the number to go on from."""
    return f"id: {notice.seq}\nevent: {notice.kind}\ndata: {notice.model_dump_json()}\n\n"
