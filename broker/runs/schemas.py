"""What the API says about runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from broker.pipelines.schemas import NeedsApproval
from broker.runs.expected import ExpectedEnd
from broker.runs.log_lines import Level
from broker.runs.progress import Progress
from broker.runs.run_end import RunEnd
from broker.runs.states import JobState, Phase, RunState
from broker.settings import PriorityClass
from broker.spec import Overrides
from broker.text import RequestModel

Priority = Literal["high", "normal", "low"]


class RunRequest(RequestModel):
    """A request to run a stored pipeline (WR-01..04)."""

    pipeline: str = Field(max_length=200, description="Pipeline id, or the `pipeline_id` of its spec")
    version: int | Literal["latest"] = Field("latest", description="Version number")
    kind: Literal["normal", "test"] = Field(
        "normal", description="A test run behaves exactly like a normal one"
    )
    cluster: str | None = Field(None, max_length=64, description="Cluster by name; the default one if unset")
    overrides: Overrides | None = Field(None, description="Resources that replace the spec's (WR-02)")
    test_run_ref: str | None = Field(
        None, max_length=64, description="An earlier test run of this pipeline (WR-03)"
    )
    priority_class: PriorityClass = Field(
        "training", description="What kind of work it is: its QOS in Slurm, and what may preempt it"
    )
    priority: Priority = Field("normal", description="Its place among the runs of its class")


class RetryRequest(RequestModel):
    """Which components run again; without a list those that failed. Their descendants always follow."""

    components: list[str] | None = Field(None, max_length=5000)


class GpuIdle(BaseModel):
    """GPUs that a running job holds and leaves idle, as measured."""

    gpus: int = Field(description="GPUs that idle …")
    measured: int = Field(description="… of those that somebody measures …")
    of: int = Field(description="… of those that it has")
    gpu_util: float | None = Field(description="Per cent: the mean of those that idle, when it was told")
    since: datetime = Field(description="Since when, at the latest")


class JobView(BaseModel):
    """One component of a run in its newest attempt (or, in `attempts`, an earlier one)."""

    component: str
    attempt: int
    state: JobState
    reason: str | None = Field(description="Slurm's reason, or why it failed")
    culprit: str | None = Field(description="UPSTREAM_FAILED: the component whose failure is the cause")
    failure_class: str | None = Field(description="temporary | resource | upstream | cancelled | permanent")
    slurm_job_id: int | None
    slurm_job_name: str
    exit_code: int | None
    signal: int | None
    restarts: int
    nodes: str | None
    resources: dict[str, Any] = Field(
        description="gpu_type, gpu_count, memory_mib, cpus, time_s; start_s where one start takes less of it"
    )
    submitted_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    stored: Literal["none", "pending", "stored", "failed"]
    stored_files: int | None
    stored_bytes: int | None
    store_error: str | None
    metrics: dict[str, Any] | None
    progress: Progress | None = Field(
        description="What the program reported; null: nothing, which is not 0 %"
    )
    expected_end: ExpectedEnd | None = Field(
        description="When it is likely to end, or can at the earliest, and what says so; null: it has ended "
        "or is about to, is suspended or not seen, or waits in a run that is being cancelled"
    )
    heartbeat_at: datetime | None = Field(description="Last sign of life that the broker saw while it ran")
    stalled_since: datetime | None = Field(description="Flagged: no sign of life for `heartbeat_timeout_s`")
    gpu_idle: GpuIdle | None = Field(
        description="While it runs: GPUs measured to be idle for `gpu_idle_after_s`; null: none, or unknown"
    )


class RunView(BaseModel):
    """A run as people see it. `observed_at` is the age of what is shown about its jobs."""

    id: str
    number: int
    name: str
    kind: Literal["normal", "test"]
    state: RunState
    state_ko: str
    phase: Phase
    approval: Literal["not_required", "pending", "approved", "rejected"]
    needs_approval: list[NeedsApproval] = Field(description="Components that reach a threshold")
    holds: list[str] = Field(description="submission | approval | quota | admin: why Slurm must not start it")
    priority_class: PriorityClass
    priority: Priority
    request_id: str | None = Field(
        description="`X-Request-ID` of the request that last asked for something of it: finds it in the log"
    )
    unix_account: str | None = Field(description="Whom the jobs belong to; null: the broker's own account")
    pipeline_id: str
    pipeline_version: int
    cluster: str
    tenant: str
    owner: str
    test_run_ref: str | None
    attempt: int
    error_code: str | None
    error: str | None = Field(description="Why it failed, in a sentence with the remedy")
    trouble: str | None = Field(description="What stands in the way just now; the broker goes on trying")
    cancel_requested_at: datetime | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    observed_at: datetime | None
    expected_end: RunEnd | None = Field(
        description="When its last component is likely to end, or can at the earliest, and which components "
        "keep more from being known; null: all of it has ended, it is being cancelled, or this is an earlier "
        "attempt"
    )
    jobs: list[JobView]
    version: int = Field(description="Grows with every change; the `ETag`")


class RunSummary(BaseModel):
    """A run in a list."""

    id: str
    number: int
    name: str
    kind: Literal["normal", "test"]
    state: RunState
    state_ko: str
    phase: Phase
    cluster: str
    tenant: str
    owner: str
    pipeline_id: str
    pipeline_version: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    components: int
    completed: int


class EventView(BaseModel):
    """Something that happened to a run."""

    seq: int
    at: datetime
    type: str
    data: dict[str, Any]


class LogChunk(BaseModel):
    """A piece of a log. `next_offset` goes into the next request; `complete`: nothing more will come."""

    component: str
    attempt: int
    stream: Literal["output", "error", "slurm"]
    offset: int
    next_offset: int
    size: int = Field(description="Bytes the log has now")
    text: str = Field(description="UTF-8; a byte that is none is shown as U+FFFD")
    complete: bool
    source: Literal["cluster", "store", "none"]


class LogLine(BaseModel):
    """A line of a log, or a piece of one that is longer than 16 KiB."""

    offset: int = Field(description="Byte of the log at which it begins")
    level: Level
    text: str = Field(description="UTF-8; a byte that is none is shown as U+FFFD")


class LogLines(BaseModel):
    """Lines of a log that were asked for, in order. Go on at `next_offset`, until `complete`."""

    component: str
    attempt: int
    stream: Literal["output", "error", "slurm"]
    offset: int
    next_offset: int
    size: int
    lines: list[LogLine]
    complete: bool = Field(description="The log has ended, and all of it was looked at")
    source: Literal["cluster", "store", "none"]


class StoredFile(BaseModel):
    """A file of a run that lies in the object store."""

    component: str
    attempt: int
    path: str
    size: int
    sha256: str
    key: str
    url: str = Field(description="Presigned; expires")


class RunScript(BaseModel):
    """What was submitted, exactly."""

    attempt: int
    plan_hash: str
    submission: str = Field(description="The script that ran on the login node")
    jobs: list[dict[str, Any]]
