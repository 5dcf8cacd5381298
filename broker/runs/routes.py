"""Runs over HTTP."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse

from broker.api.conditional import IfNoneMatch, etag, matches
from broker.api.idempotency import IdempotencyKey, OnceByKey, Replayed, request_hash
from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Auth, Credentials, Ctx, requires
from broker.api.sockets import reader
from broker.api.streams import EVENT_STREAM, Streams
from broker.compiler import preview, submission_script
from broker.errors import BrokerError, NotFound
from broker.identity import Permission, Principal
from broker.pipelines.service import find_pipeline
from broker.runs.collection import load_manifest
from broker.runs.events import events_after
from broker.runs.planning import load_plan
from broker.runs.schemas import (
    EventView,
    RetryRequest,
    RunRequest,
    RunScript,
    RunSummary,
    RunView,
    StoredFile,
)
from broker.runs.service import cancel_run, create_run, retry_run
from broker.runs.states import RunState
from broker.runs.streams import event_stream
from broker.runs.tables import RunRow, SubmissionRow
from broker.runs.views import attempt_jobs, find_run, newest_jobs, summarise, view_run, visible_runs

router = APIRouter(prefix="/runs", tags=["runs"])
Reader = Annotated[Principal, Depends(requires(Permission.RUNS_READ))]
Writer = Annotated[Principal, Depends(requires(Permission.RUNS_WRITE))]
Attempt = Annotated[
    int | None, Query(ge=1, description="An earlier attempt; unset: the newest of each component")
]


@router.post("", status_code=201, response_model=RunView)
def request_run(
    body: RunRequest, ctx: Ctx, principal: Writer, response: Response, idempotency_key: IdempotencyKey = None
) -> Any:
    """Ask for a stored pipeline to be run; it is submitted at once, this answer does not wait for Slurm."""
    once = OnceByKey(principal, idempotency_key, request_hash("POST /runs", body), 201)
    try:
        view = create_run(ctx, principal, body, once)
    except Replayed as replayed:
        return replayed.answer.response()
    response.headers["Location"] = f"/api/v1/runs/{view.id}"
    return view


@router.get("")
def list_runs(
    ctx: Ctx,
    page: PageParams,
    principal: Reader,
    state: Annotated[list[RunState] | None, Query(description="Only these states")] = None,
    kind: Annotated[str | None, Query(pattern="^(normal|test)$")] = None,
    pipeline: Annotated[str | None, Query(max_length=200, description="Only runs of this pipeline")] = None,
    mine: Annotated[bool, Query(description="Only my own")] = False,
) -> Page[RunSummary]:
    """The runs one may see, newest first."""
    query = visible_runs(principal)
    if state:
        query = query.where(RunRow.state.in_(state))
    if kind:
        query = query.where(RunRow.kind == kind)
    if mine:
        query = query.where(RunRow.owner_id == principal.user_id)
    with ctx.db.read() as session:
        if pipeline:
            query = query.where(RunRow.pipeline_id == find_pipeline(session, principal, pipeline).id)
        rows, cursor = fetch(session, query, RunRow.id, page)
        return Page(items=summarise(session, rows), next_cursor=cursor)


@router.get("/{run_id}", response_model=RunView)
def show_run(
    run_id: str,
    ctx: Ctx,
    principal: Reader,
    attempt: Attempt = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A run with its jobs. `observed_at` says how old the picture of its jobs is."""
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        tag = etag(f"{run.row_version}-{attempt or 0}")
        if matches(if_none_match, tag):
            return Response(status_code=304, headers={"ETag": tag})
        view = view_run(session, run, attempt)
    # Dumped by pydantic's core: FastAPI would validate the whole view once more, for every reader.
    return Response(view.model_dump_json(), media_type="application/json", headers={"ETag": tag})


@router.post("/{run_id}/cancel", status_code=202)
def cancel(run_id: str, ctx: Ctx, principal: Writer) -> RunView:
    """Cancel the whole graph; the run is `cancelled` once Slurm has ended every job."""
    return cancel_run(ctx, principal, run_id)


@router.post("/{run_id}/retry", status_code=202, response_model=RunView)
def retry(
    run_id: str,
    ctx: Ctx,
    principal: Writer,
    body: RetryRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Run what failed (or the named components) and all that follows from it again."""
    request = body or RetryRequest()
    once = OnceByKey(principal, idempotency_key, request_hash(f"POST /runs/{run_id}/retry", request), 202)
    try:
        return retry_run(ctx, principal, run_id, request.components, once)
    except Replayed as replayed:
        return replayed.answer.response()


@router.get("/{run_id}/events")
def list_events(
    run_id: str,
    ctx: Ctx,
    principal: Reader,
    after: Annotated[int, Query(ge=0, description="Events above this number")] = 0,
) -> list[EventView]:
    """What happened to the run, in order; at most 500 at a time."""
    with ctx.db.read() as session:
        find_run(session, principal, run_id)
        return [
            EventView(seq=event.seq, at=event.at, type=event.type, data=event.data)
            for event in events_after(session, run_id, after)
        ]


@router.get(
    "/{run_id}/events/stream",
    response_class=StreamingResponse,
    responses=EVENT_STREAM,
)
async def follow_events(
    run_id: str,
    ctx: Ctx,
    auth: Auth,
    credentials: Credentials,
    principal: Reader,
    streams: Streams,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^\d{1,9}$")] = None,
) -> StreamingResponse:
    """The same as server-sent events, live, until the run has ended; resumes after `Last-Event-ID`.

    The token is checked all the while: the stream ends when it does.
    """
    assert credentials is not None  # `Reader` has refused a request without
    frames = event_stream(ctx, reader(auth, credentials), run_id, int(last_event_id or 0))
    first = await anext(frames)  # a run that is not visible is a 404, not a broken stream

    async def body() -> Any:
        yield first
        with suppress(BrokerError):  # the reader comes again, and then gets the error
            async for frame in frames:
                yield frame

    return streams.respond(principal, body())


@router.get("/{run_id}/script")
def show_script(run_id: str, ctx: Ctx, principal: Reader, attempt: Attempt = None) -> RunScript:
    """Exactly what was submitted: the submission script and every job's script."""
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        number = attempt or run.attempt
        plan = load_plan(session, run.id, number)
        row = session.get(SubmissionRow, (run.id, number))
    if plan is None or row is None:
        raise NotFound(f"Attempt {number} of the run has no plan yet: its images are being fetched")
    return RunScript(
        attempt=number,
        plan_hash=row.plan_hash,
        submission=submission_script(plan),
        jobs=preview(plan)["jobs"],
    )


@router.get("/{run_id}/outputs")
def list_outputs(run_id: str, ctx: Ctx, principal: Reader, attempt: Attempt = None) -> list[StoredFile]:
    """Every stored file of the run, with presigned URLs."""
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        jobs = newest_jobs(session, run.id) if attempt is None else attempt_jobs(session, run.id, attempt)
    expires = ctx.settings.s3.presign_expires_s
    return [
        StoredFile(
            component=job.component,
            attempt=job.attempt,
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            key=file.key,
            url=ctx.objects.presign_get(file.key, expires),
        )
        for job in jobs
        if job.manifest_key
        for file in load_manifest(ctx, job).files
    ]
