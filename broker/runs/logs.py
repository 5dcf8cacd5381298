"""Reading logs: from the cluster while the job runs, from the object store afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from broker.compiler.names import log_paths
from broker.context import Context
from broker.errors import InvalidRequest, NotFound, Problem
from broker.identity import Principal
from broker.objects.manifest import StoredFile
from broker.runs.collection import load_manifest
from broker.runs.log_lines import LINE_LIMIT, Level, Line, Wanted, last_level, lines, whole_lines
from broker.runs.schemas import LogChunk, LogLine, LogLines
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from broker.runs.views import attempt_jobs, find_run, newest_jobs

Stream = Literal["output", "error", "slurm"]
FILES: dict[Stream, str] = {"output": "training.log", "error": "error.log", "slurm": "slurm.log"}

SCAN = 16 << 20
"""Bytes of a log that one request looks through; the answer says where to go on."""
ANSWER = 4 << 20
"""Bytes of lines in one answer, about."""
EVERYTHING = Wanted()


@dataclass(frozen=True, slots=True)
class LogChoice:
    """Which log is read (`attempt` None: the newest), from which byte on (negative: from the end), and which
    of its lines, where it is read by line.
    """

    run_id: str
    component: str
    attempt: int | None = None
    stream: Stream = "output"
    offset: int = 0
    wanted: Wanted = EVERYTHING


@dataclass(frozen=True, slots=True)
class OpenLog:
    """A log as it is now. `read(start, length)` gives its bytes; `over`: it will not grow any more."""

    job: JobRow
    stream: Stream
    size: int
    over: bool
    source: Literal["cluster", "store", "none"]
    read: Callable[[int, int], Iterator[bytes]]

    def begin(self, offset: int) -> int:
        """An offset as a byte of the log: a negative one counts from the end."""
        return max(0, self.size + offset) if offset < 0 else min(offset, self.size)


def open_log(ctx: Context, principal: Principal, choice: LogChoice) -> OpenLog:
    """A component's log where it lies now: the object store once it is stored there, else the cluster."""
    run_id, component, attempt = choice.run_id, choice.component, choice.attempt
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        jobs = newest_jobs(session, run_id) if attempt is None else attempt_jobs(session, run_id, attempt)
    job = next((job for job in jobs if job.component == component), None)
    if job is None:
        names = ", ".join(job.component for job in jobs)
        detail = f"The run has no component {component!r} in this attempt; it has: {names or 'none'}"
        raise InvalidRequest(detail, problems=[Problem("/component", "unknown_component", detail)])
    if job.storing == "stored":
        return _in_store(ctx, job, choice.stream)
    return _on_cluster(ctx, run, job, choice.stream)


def read_log(ctx: Context, principal: Principal, choice: LogChoice, limit: int = 256 * 1024) -> LogChunk:
    """A piece of a component's log of at most `limit` bytes, whatever lines are wanted.

    An offset beyond the end gives an empty piece, so a follower asks again with `next_offset`. The text is
    cut between characters, not within one: `next_offset` says where.
    """
    found = open_log(ctx, principal, choice)
    start = found.begin(choice.offset)
    data = b"".join(found.read(start, limit)) if start < found.size else b""
    whole = start + len(data) >= found.size and found.over
    kept = data if whole else whole_characters(data)
    return LogChunk(
        component=found.job.component,
        attempt=found.job.attempt,
        stream=choice.stream,
        offset=start,
        next_offset=start + len(kept),
        size=max(found.size, start + len(kept)),
        text=kept.decode(errors="replace"),
        complete=whole,
        source=found.source,
    )


def read_lines(ctx: Context, principal: Principal, choice: LogChoice, limit: int = 200) -> LogLines:
    """At most `limit` wanted lines from byte `choice.offset` on, out of at most `SCAN` bytes of the log.

    In memory are one block and the lines found, however long the log is. A line that is still being
    written is left for the next call. An offset within a line begins a line there.
    """
    found = open_log(ctx, principal, choice)
    start = place = found.begin(choice.offset)
    kept: list[LogLine] = []
    room = ANSWER
    if start < found.size:
        for block, at, before in _blocks(found, start):
            place = at + len(block)
            for line in lines(block, at, choice.wanted, before):
                kept.append(_line(line))
                room -= len(line.data)
                if len(kept) >= limit or room <= 0:
                    place = line.next_offset
                    break
            else:
                continue
            break
    return LogLines(
        component=found.job.component,
        attempt=found.job.attempt,
        stream=choice.stream,
        offset=start,
        next_offset=place,
        size=max(found.size, place),
        lines=kept,
        complete=found.over and place >= found.size,
        source=found.source,
    )


def _blocks(found: OpenLog, start: int) -> Iterator[tuple[bytes, int, Level]]:
    """Whole lines from `start` on: (block, its offset, the level of the line above it).

    What lies just above `start` is read for its level only: that of lines which are indented.
    """
    top, end = max(0, start - LINE_LIMIT), min(found.size, start + SCAN)
    above, rest, at, before = b"", b"", start, Level.INFO
    for piece in found.read(top, end - top):
        missing = start - top - len(above)
        if missing:
            above += piece[:missing]
            before = last_level(above, Level.INFO)
        data = rest + piece[missing:]
        final = found.over and at + len(data) >= found.size
        cut = whole_lines(data, final=final)
        if cut:
            yield data[:cut], at, before
            before = last_level(data[:cut], before)
        rest, at = data[cut:], at + cut


def _line(line: Line) -> LogLine:
    return LogLine.model_construct(
        offset=line.offset, level=line.level, text=line.data.decode(errors="replace")
    )


def _in_store(ctx: Context, job: JobRow, stream: Stream) -> OpenLog:
    file = _stored_log(ctx, job, stream)
    if file is None:
        return _nothing(job, stream, over=True)
    key = file.key

    def read(start: int, length: int) -> Iterator[bytes]:
        for piece in ctx.objects.open_stream(key, start):
            yield piece[:length]
            length -= len(piece)
            if length <= 0:
                return

    return OpenLog(job, stream, file.size, over=True, source="store", read=read)


def _stored_log(ctx: Context, job: JobRow, stream: Stream) -> StoredFile | None:
    wanted = f"logs/{FILES[stream]}"
    return next((file for file in load_manifest(ctx, job).files if file.path == wanted), None)


def _on_cluster(ctx: Context, run: RunRow, job: JobRow, stream: Stream) -> OpenLog:
    over = JobState(job.state).ended and job.storing != "pending"
    if run.removed_at is not None:
        raise NotFound("The run's files were removed from the cluster, and this log was not stored")
    if job.slurm_job_id is None or (job.started_at is None and stream != "slurm"):
        return _nothing(job, stream, over=over)
    paths = log_paths(ctx.profile(run.cluster), run.id, job.component, job.attempt, job.restarts)
    path = {"output": paths.training, "error": paths.error, "slurm": paths.slurm}[stream]
    host = ctx.host_for(run.cluster, run.unix_account)
    stat = host.stat(path)
    if stat is None:
        return _nothing(job, stream, over=over)
    return OpenLog(
        job, stream, stat.size, over, "cluster", lambda start, length: host.read(path, start, length)
    )


def _nothing(job: JobRow, stream: Stream, *, over: bool) -> OpenLog:
    return OpenLog(job, stream, 0, over, "none", lambda _start, _length: iter(()))


def whole_characters(data: bytes) -> bytes:
    """`data` without a UTF-8 character that is cut off at its end (at most 3 bytes; garbage stays).

    >>> whole_characters("가".encode()[:2])
    b''
    """
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
    return data
