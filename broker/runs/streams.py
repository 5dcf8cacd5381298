"""What happens to a run and what it logs, live: server-sent events (WHATWG HTML, section 9.2), WebSockets.

A log is followed by looking: where it lies now is decided at every look, so a follower goes on from the
cluster's file to the stored one without noticing. The reader's right is checked at every look, at events too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.concurrency import run_in_threadpool

from broker.api.sockets import Who
from broker.context import Context
from broker.identity import Principal
from broker.runs.events import events_after
from broker.runs.log_lines import LINE_LIMIT
from broker.runs.logs import LogChoice, read_lines
from broker.runs.schemas import LogLines
from broker.runs.states import RunState
from broker.runs.views import find_run

LOOK_S = 0.5
KEEP_ALIVE_S = 15.0
LOG_LOOK_S = 1.0
LOG_LINES = 2000
"""Lines in one message at most: what a slow reader has not taken is not read from the log either."""


async def event_stream(ctx: Context, who: Who, run_id: str, after: int) -> AsyncIterator[str]:
    """Frames with the events above `after`, as they come; ends when the run has ended and all were sent.

    The first frame comes at once; `NotFound` is raised before it, at any time what `who` raises. A comment
    every 15 s keeps proxies from closing a quiet connection.
    """

    def look(principal: Principal, seen: int) -> tuple[list[tuple[int, str]], bool]:
        with ctx.db.read() as session:
            run = find_run(session, principal, run_id)
            events = events_after(session, run_id, seen)
            frames = [
                (
                    event.seq,
                    f"id: {event.seq}\nevent: {event.type}\n"
                    f"data: {json.dumps({'at': event.at.isoformat(), **event.data}, default=str)}\n\n",
                )
                for event in events
            ]
            return frames, RunState(run.state).final and run.event_seq <= (frames[-1][0] if frames else seen)

    frames, over = await run_in_threadpool(look, await who(), after)
    yield "retry: 2000\n\n"
    quiet = 0.0
    while True:
        for number, frame in frames:
            after = number
            yield frame
        if over:
            return
        quiet = 0.0 if frames else quiet + LOOK_S
        if quiet >= KEEP_ALIVE_S:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_S)
        frames, over = await run_in_threadpool(look, await who(), after)


async def follow_log(ctx: Context, who: Who, choice: LogChoice) -> AsyncIterator[LogLines | None]:
    """The wanted lines as they come, until the log is complete; None when nothing came for a while.

    The first item comes at once. At most one piece of `SCAN` bytes is in memory, however long the log is
    and however slow its reader. Raises what `who` raises, and what `read_lines` does.
    """
    offset, quiet_since, first = choice.offset, time.monotonic(), True
    while True:
        principal = await who()
        place = replace(choice, offset=offset)
        found = await run_in_threadpool(read_lines, ctx, principal, place, LOG_LINES)
        offset, left = found.next_offset, found.size - found.next_offset
        if found.lines or found.complete or first:
            first, quiet_since = False, time.monotonic()
            yield found
        elif time.monotonic() - quiet_since >= KEEP_ALIVE_S:
            quiet_since = time.monotonic()
            yield None
        if found.complete:
            return
        if offset == found.offset or (left < LINE_LIMIT and len(found.lines) < LOG_LINES):
            await asyncio.sleep(LOG_LOOK_S)  # up to half a line, that was all: a look is two commands


def log_frame(found: LogLines | None) -> str:
    """Lines as a server-sent event; its id is the offset to go on from, `end` the type of the last one."""
    if found is None:
        return ": still here\n\n"
    kind = "end" if found.complete else "lines"
    return f"id: {found.next_offset}\nevent: {kind}\ndata: {found.model_dump_json()}\n\n"
