"""Reading logs: from the cluster while the job runs, from the object store afterwards."""

from __future__ import annotations

from typing import Literal

from broker.compiler.names import log_paths
from broker.context import Context
from broker.errors import InvalidRequest, NotFound, Problem
from broker.identity import Principal
from broker.objects.manifest import StoredFile
from broker.runs.collection import load_manifest
from broker.runs.schemas import LogChunk
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from broker.runs.views import attempt_jobs, find_run, newest_jobs

Stream = Literal["output", "error", "slurm"]
FILES: dict[Stream, str] = {"output": "training.log", "error": "error.log", "slurm": "slurm.log"}


def read_log(
    ctx: Context,
    principal: Principal,
    run_id: str,
    component: str,
    *,
    attempt: int | None = None,
    stream: Stream = "output",
    offset: int = 0,
    limit: int = 256 * 1024,
) -> LogChunk:
    """A piece of a component's log from byte `offset`; a negative one counts from the end.

    An offset beyond the end gives an empty piece, so a follower asks again with `next_offset`. The text is
    cut between characters, not within one: `next_offset` says where.
    """
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        jobs = newest_jobs(session, run_id) if attempt is None else attempt_jobs(session, run_id, attempt)
    job = next((job for job in jobs if job.component == component), None)
    if job is None:
        names = ", ".join(job.component for job in jobs)
        detail = f"The run has no component {component!r} in this attempt; it has: {names or 'none'}"
        raise InvalidRequest(detail, problems=[Problem("/component", "unknown_component", detail)])
    if job.storing == "stored":
        return _from_store(ctx, job, stream, offset, limit)
    return _from_cluster(ctx, run, job, stream, offset, limit)


def _from_store(ctx: Context, job: JobRow, stream: Stream, offset: int, limit: int) -> LogChunk:
    file = _stored_log(ctx, job, stream)
    if file is None:
        return _chunk(job, stream, 0, 0, b"", complete=True, source="none")
    start = _start(offset, file.size)
    data = bytearray()
    if start < file.size:
        for piece in ctx.objects.open_stream(file.key, start):
            data += piece
            if len(data) >= limit:
                break
    return _chunk(job, stream, start, file.size, bytes(data[:limit]), complete=True, source="store")


def _stored_log(ctx: Context, job: JobRow, stream: Stream) -> StoredFile | None:
    wanted = f"logs/{FILES[stream]}"
    return next((file for file in load_manifest(ctx, job).files if file.path == wanted), None)


def _from_cluster(
    ctx: Context, run: RunRow, job: JobRow, stream: Stream, offset: int, limit: int
) -> LogChunk:
    over = JobState(job.state).ended and job.storing != "pending"
    if run.removed_at is not None:
        raise NotFound("The run's files were removed from the cluster, and this log was not stored")
    if job.slurm_job_id is None or (job.started_at is None and stream != "slurm"):
        return _chunk(job, stream, 0, 0, b"", complete=over, source="none")
    paths = log_paths(ctx.profile(run.cluster), run.id, job.component, job.attempt, job.restarts)
    path = {"output": paths.training, "error": paths.error, "slurm": paths.slurm}[stream]
    host = ctx.host_for(run.cluster, run.unix_account)
    stat = host.stat(path)
    if stat is None:
        return _chunk(job, stream, 0, 0, b"", complete=over, source="none")
    start = _start(offset, stat.size)
    data = b"".join(host.read(path, start, limit)) if start < stat.size else b""
    return _chunk(job, stream, start, stat.size, data, complete=over, source="cluster")


def _start(offset: int, size: int) -> int:
    return max(0, size + offset) if offset < 0 else min(offset, size)


def _chunk(
    job: JobRow,
    stream: Stream,
    start: int,
    size: int,
    data: bytes,
    *,
    complete: bool,
    source: Literal["cluster", "store", "none"],
) -> LogChunk:
    whole = start + len(data) >= size and complete
    kept = data if whole else whole_characters(data)
    return LogChunk(
        component=job.component,
        attempt=job.attempt,
        stream=stream,
        offset=start,
        next_offset=start + len(kept),
        size=max(size, start + len(kept)),
        text=kept.decode(errors="replace"),
        complete=whole,
        source=source,
    )


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
