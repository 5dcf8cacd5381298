"""Logs of runs over HTTP: in pieces, line by line, live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError

from broker.api.security import Auth, Credentials, Ctx, requires
from broker.api.sockets import Who, reader, serve_socket
from broker.api.streams import EVENT_STREAM, Streams
from broker.context import Context
from broker.errors import BrokerError, InvalidRequest, Problem
from broker.identity import Permission, Principal
from broker.runs.log_lines import Level, Wanted
from broker.runs.logs import LogChoice, Stream, read_lines, read_log
from broker.runs.schemas import LogChunk, LogLines
from broker.runs.streams import follow_log, log_frame

router = APIRouter(prefix="/runs/{run_id}/components/{component}/logs", tags=["runs"])
Reader = Annotated[Principal, Depends(requires(Permission.RUNS_READ))]
FAR = 1 << 40
Attempt = Annotated[
    int | None, Query(ge=1, description="An earlier attempt; unset: the newest of each component")
]
Which = Annotated[Stream, Query(description="Program's output, its errors, or Slurm's own log")]
Offset = Annotated[int, Query(ge=-FAR, le=FAR, description="Negative: from the end")]
Least = Annotated[
    Level, Query(description="Only lines of this level or above; one that shows none counts as `info`")
]
Text = Annotated[
    str, Query(alias="q", max_length=200, description="Only lines with this text; case does not count")
]


async def chosen_log(
    run_id: str, component: str, attempt: Attempt = None, stream: Which = "output", offset: Offset = 0
) -> LogChoice:
    """The log that a request names, all of its lines."""
    return LogChoice(run_id, component, attempt, stream, offset)


async def chosen_lines(
    log: Annotated[LogChoice, Depends(chosen_log)], level: Least = Level.DEBUG, q: Text = ""
) -> LogChoice:
    """The lines of it that a request asks for."""
    return replace(log, wanted=Wanted(level, q))


@router.get("")
def show_log(
    ctx: Ctx,
    principal: Reader,
    choice: Annotated[LogChoice, Depends(chosen_log)],
    limit: Annotated[int, Query(ge=1, le=4 << 20, description="Bytes at most")] = 256 * 1024,
) -> LogChunk:
    """A piece of a component's log, while it runs or afterwards; go on at `next_offset`."""
    return read_log(ctx, principal, choice, limit)


@router.get("/lines")
def search_log(
    ctx: Ctx,
    principal: Reader,
    choice: Annotated[LogChoice, Depends(chosen_lines)],
    limit: Annotated[int, Query(ge=1, le=1000, description="Lines at most")] = 200,
) -> LogLines:
    """Search a log by text and level; at most 16 MiB are looked through at once, go on at `next_offset`."""
    return read_lines(ctx, principal, choice, limit)


@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses=EVENT_STREAM,
)
async def stream_log(
    ctx: Ctx,
    auth: Auth,
    credentials: Credentials,
    principal: Reader,
    streams: Streams,
    choice: Annotated[LogChoice, Depends(chosen_lines)],
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^\d{1,13}$")] = None,
) -> StreamingResponse:
    """The same live, as server-sent events, until the log is complete; resumes at `Last-Event-ID`.

    The token is checked all the while: the stream ends when it does.
    """
    assert credentials is not None  # `Reader` has refused a request without
    if last_event_id is not None:
        choice = replace(choice, offset=int(last_event_id))
    news = follow_log(ctx, reader(auth, credentials), choice)
    first = await anext(news)  # a run that is not visible is a 404, not a broken stream

    async def body() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        yield log_frame(first)
        with suppress(BrokerError):  # the reader comes again, and then gets the error
            async for found in news:
                yield log_frame(found)

    return streams.respond(principal, body())


class _Asked(BaseModel):
    """What a WebSocket's reader asks for, in its query or its first message."""

    attempt: int | None = Field(None, ge=1)
    stream: Stream = "output"
    offset: int = Field(0, ge=-FAR, le=FAR)
    level: Level = Level.DEBUG
    q: str = Field("", max_length=200)


@router.websocket("/ws")
async def follow_log_by_socket(socket: WebSocket, run_id: str, component: str) -> None:
    """The same over a WebSocket, one JSON document per piece; closed with 1000 when the log is complete."""
    ctx: Context = socket.app.state.context

    async def messages(who: Who, said: dict[str, Any]) -> AsyncIterator[str]:
        choice = _choice(run_id, component, said)
        async for found in follow_log(ctx, who, choice):
            if found is not None:
                yield found.model_dump_json()

    await serve_socket(socket, messages, _Asked.model_fields)


def _choice(run_id: str, component: str, said: dict[str, Any]) -> LogChoice:
    try:
        asked = _Asked.model_validate(said)
    except ValidationError as error:
        problems = [
            Problem(f"/{item['loc'][0]}", "bad_value", item["msg"])
            for item in error.errors(include_url=False)
        ]
        detail = "; ".join(f"{problem.pointer[1:]}: {problem.detail}" for problem in problems)
        raise InvalidRequest(detail, problems=problems) from None
    wanted = Wanted(asked.level, asked.q)
    return LogChoice(run_id, component, asked.attempt, asked.stream, asked.offset, wanted)
