"""Live events of a run as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from broker.context import Context
from broker.identity import Principal
from broker.runs.events import events_after
from broker.runs.states import RunState
from broker.runs.views import find_run

LOOK_S = 0.5
KEEP_ALIVE_S = 15.0


async def event_stream(ctx: Context, principal: Principal, run_id: str, after: int) -> AsyncIterator[str]:
    """Frames with the events above `after`, as they come; ends when the run has ended and all were sent.

    The first frame comes at once; `NotFound` is raised before it. A comment every 15 s keeps proxies from
    closing a quiet connection.
    """

    def look(seen: int) -> tuple[list[tuple[int, str]], bool]:
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

    frames, over = await run_in_threadpool(look, after)
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
        frames, over = await run_in_threadpool(look, after)
