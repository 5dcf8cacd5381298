"""The one-job form of a run (GC-01): one container on GPUs, without writing a spec.

A request becomes a spec of one component, stored like any other, and a run of it. So everything that runs
can do works for a GPU job too, under the same id (`/runs/{job_id}`).
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field, JsonValue
from sqlalchemy import select

from broker.api.idempotency import IdempotencyKey, OnceByKey, Replayed, request_hash
from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Ctx, requires
from broker.errors import InvalidRequest, InvalidSpec, NotFound, Problem
from broker.identity import Permission, Principal
from broker.pipelines.service import store_parsed
from broker.pipelines.tables import PipelineRow
from broker.runs.logs import LogChoice, Stream, read_log
from broker.runs.schemas import JobView, LogChunk, RunRequest, RunView
from broker.runs.service import create_run
from broker.runs.states import RunState
from broker.runs.tables import RunRow
from broker.runs.views import find_run, view_run, visible_runs
from broker.spec import PipelineSpec, parse
from broker.spec.canonical import canonical_json
from broker.text import Name, RequestModel

router = APIRouter(prefix="/gpu-jobs", tags=["gpu-jobs"])
Reader = Annotated[Principal, Depends(requires(Permission.RUNS_READ))]
Writer = Annotated[Principal, Depends(requires(Permission.RUNS_WRITE))]

COMPONENT = "job"
PREFIX = "gpu-job."
_POINTERS = (
    ("/components/0/resources", ""),
    ("/components/0/code/entry_script", "/entry_script"),
    ("/components/0/code", "/code_source"),
    ("/components/0/image", "/image"),
    ("/components/0/args", "/script_arguments"),
    ("/components/0/params", "/script_arguments"),
    ("/components/0", ""),
    ("/env_vars", "/environment_variables"),
    ("/name", "/job_name"),
)


class CodeSource(RequestModel):
    """Where the code is: a git repository, an upload, or a folder on the cluster."""

    source: Literal["git", "upload", "path"]
    url: str | None = Field(None, max_length=1024, description="git: `https://…` or `ssh://…`")
    ref: str | None = Field(None, max_length=255, description="git: branch, tag or commit")
    upload_id: str | None = Field(None, max_length=64, description="upload: what POST /uploads answered")
    path: str | None = Field(None, max_length=1024, description="path: below an allowed root of the cluster")


class JobImage(RequestModel):
    """A container image: in a registry, or a `.sif` file on the cluster."""

    registry: str | None = Field(None, max_length=255, description="Registry and name, without tag")
    tag: str | None = Field(None, max_length=128)
    sif: str | None = Field(None, max_length=1024)


class GpuJobRequest(RequestModel):
    """One container to run."""

    job_name: Name
    image: JobImage | None = Field(None, description="Unset: the broker's `default_image`")
    code_source: CodeSource | None = Field(None, description="Unset: the image's own program runs")
    entry_script: str | None = Field(None, max_length=1024, description="The script in the code to run")
    script_arguments: list[str] | dict[str, JsonValue] = Field(
        default=[], description="A list as it is, or names and values (`--name value`)"
    )
    environment_variables: dict[str, str] = Field(default={}, description="Names and values")
    gpu_count: int = Field(1, ge=0, le=4096)
    gpu_type: str | None = Field(None, max_length=64)
    memory: str = Field("16GB", max_length=32)
    cpus: int | None = Field(None, ge=1, le=1_000_000)
    time: str | None = Field(None, max_length=32, description='Time limit, "36:00:00" or "90m"; unset: 1 h')
    nodes: int = Field(1, ge=1, le=1024)
    cluster: str | None = Field(None, max_length=64, description="Cluster by name; unset: the default one")


class GpuJob(BaseModel):
    """A GPU job. `job_id` is the id of its run; `slurm` says what Slurm calls it and what it knows."""

    job_id: str
    job_name: str
    status: RunState
    status_ko: str
    phase: str
    cluster: str
    owner: str
    error: str | None
    trouble: str | None
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    observed_at: datetime | None
    slurm: JobView


@router.post("/submit", status_code=201, response_model=GpuJob)
def submit(
    body: GpuJobRequest,
    ctx: Ctx,
    principal: Writer,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Run one container on GPUs."""
    spec, document = _spec(body, principal, ctx.settings.default_image)
    with ctx.db.write() as session:
        pipeline, version, _ = store_parsed(session, principal, spec, document)
    request = RunRequest(pipeline=pipeline.id, version=version.number, cluster=body.cluster)
    once = OnceByKey(principal, idempotency_key, request_hash("POST /gpu-jobs/submit", body), 201)
    try:
        view = create_run(ctx, principal, request, once)
    except Replayed as replayed:
        response.headers["Idempotency-Replayed"] = "true"
        return _view(RunView.model_validate_json(replayed.answer.body))
    return _view(view)


@router.get("")
def list_jobs(
    ctx: Ctx,
    page: PageParams,
    principal: Reader,
    status: Annotated[list[RunState] | None, Query(description="Only these states")] = None,
) -> Page[GpuJob]:
    """The GPU jobs one may see, newest first."""
    mine = select(PipelineRow.id).where(PipelineRow.external_id.startswith(PREFIX, autoescape=True))
    query = visible_runs(principal).where(RunRow.pipeline_id.in_(mine))
    if status:
        query = query.where(RunRow.state.in_(status))
    with ctx.db.read() as session:
        rows, cursor = fetch(session, query, RunRow.id, page)
        return Page(items=[_view(view_run(session, row)) for row in rows], next_cursor=cursor)


@router.get("/{job_id}/status")
def show_status(job_id: str, ctx: Ctx, principal: Reader) -> GpuJob:
    """The state of a GPU job; answered from the database, `observed_at` says how old the picture is."""
    return _find(ctx, principal, job_id)


@router.get("/{job_id}/logs")
def show_logs(
    job_id: str,
    ctx: Ctx,
    principal: Reader,
    stream: Annotated[Stream, Query(description="Output, errors, or Slurm's own log")] = "output",
    offset: Annotated[int, Query(ge=-(1 << 40), le=1 << 40, description="Negative: from the end")] = 0,
    limit: Annotated[int, Query(ge=1, le=4 << 20, description="Bytes at most")] = 256 * 1024,
) -> LogChunk:
    """A piece of the job's log, while it runs or afterwards; go on at `next_offset`."""
    _find(ctx, principal, job_id)
    choice = LogChoice(job_id, COMPONENT, stream=stream, offset=offset)
    return read_log(ctx, principal, choice, limit)


def _spec(body: GpuJobRequest, principal: Principal, default_image: str | None) -> tuple[PipelineSpec, str]:
    document = canonical_json(_document(body, principal, default_image)).decode()
    try:
        return parse(document), document
    except InvalidSpec as error:
        problems = [Problem(_back(p.pointer), p.code, p.detail) for p in error.problems]
        raise InvalidRequest("The GPU job can't be run as it is described", problems=problems) from None


def _document(body: GpuJobRequest, principal: Principal, default_image: str | None) -> dict[str, Any]:
    """The request as a spec; what is wrong in it is left for the spec's own checks to say."""
    arguments = body.script_arguments
    resources = body.model_dump(
        include={"gpu_count", "gpu_type", "memory", "cpus", "time", "nodes"}, exclude_none=True
    )
    component: dict[str, Any] = {
        "order": 1,
        "name": COMPONENT,
        "type": "trainer",
        "image": _image(body, default_image),
        "resources": resources,
        "params" if isinstance(arguments, dict) else "args": arguments,
    }
    if body.code_source is not None:
        code = body.code_source.model_dump(exclude_none=True)
        component["code"] = code | ({"entry_script": body.entry_script} if body.entry_script else {})
    elif body.entry_script is not None:
        detail = "An entry script needs `code_source`: say where it is, or leave it out"
        raise InvalidRequest(detail, problems=[Problem("/entry_script", "missing", detail)])
    return {
        "pipeline_id": _pipeline_id(body.job_name, principal),
        "name": body.job_name,
        "version": "1",
        "env_vars": body.environment_variables,
        "components": [component],
        "workflow": [],
    }


def _image(body: GpuJobRequest, default: str | None) -> dict[str, str]:
    if body.image is not None:
        return body.image.model_dump(exclude_none=True)
    if default is None:
        detail = "No image is given, and the broker has no `default_image`: name one"
        raise InvalidRequest(detail, problems=[Problem("/image", "missing", detail)])
    if default.startswith("/"):
        return {"sif": default}
    registry, _, tag = default.rpartition(":")
    return {"registry": registry, "tag": tag}


def _pipeline_id(job_name: str, principal: Principal) -> str:
    """One pipeline for each of a person's job names: its versions are the job's history."""
    key = hashlib.sha256(f"{principal.user_id}\n{job_name}".encode()).hexdigest()[:12]
    slug = re.sub(r"[^a-z0-9]+", "-", job_name.lower()).strip("-")[:40]
    return f"{PREFIX}{key}.{slug}" if slug else f"{PREFIX}{key}"


def _back(pointer: str) -> str:
    """A pointer into the spec as one into the request."""
    for place, name in _POINTERS:
        if pointer == place or pointer.startswith(place + "/"):
            return name + pointer.removeprefix(place)
    return pointer


def _find(ctx: Ctx, principal: Principal, job_id: str) -> GpuJob:
    with ctx.db.read() as session:
        run = find_run(session, principal, job_id)
        if not session.get_one(PipelineRow, run.pipeline_id).external_id.startswith(PREFIX):
            raise NotFound(f"{job_id!r} is a run of a pipeline, not a GPU job: see /api/v1/runs/{job_id}")
        return _view(view_run(session, run))


def _view(run: RunView) -> GpuJob:
    return GpuJob(
        job_id=run.id,
        job_name=run.name,
        status=run.state,
        status_ko=run.state_ko,
        phase=run.phase,
        cluster=run.cluster,
        owner=run.owner,
        error=run.error,
        trouble=run.trouble,
        submitted_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        observed_at=run.observed_at,
        slurm=run.jobs[0],
    )
