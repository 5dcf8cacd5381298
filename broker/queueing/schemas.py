"""What the API says about the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker.queueing.wishes import MAX_NUMBER
from broker.runs.priority import Level
from broker.runs.states import JobState, RunState
from broker.text import RequestModel


class WhyView(BaseModel):
    """Why something waits; `code` is for programs."""

    model_config = ConfigDict(from_attributes=True)

    code: str
    en: str
    ko: str


class PriorityParts(BaseModel):
    """What Slurm adds up to the priority (sprio(1)), weighted; `nice` is taken off."""

    age: int
    fair_share: int
    job_size: int
    partition: int
    qos: int
    nice: int


class WaitingJobView(BaseModel):
    """One waiting component."""

    position: int = Field(description="Among all waiting jobs of the cluster, from 1")
    component: str
    state: JobState
    slurm_job_id: int | None
    resources: str = Field(description="`A100 x 4, 128GB`, `CPU x 8, 32GB`; over all nodes, GB are GiB")
    requested: dict[str, Any] = Field(description="gpu_type, gpu_count, memory_mib, cpus, time_s")
    priority: int | None = Field(description="Slurm's number; 0: held; null: not seen in Slurm yet")
    parts: PriorityParts | None = Field(description="null: held, explicit, or not told yet")
    frozen: bool = Field(description="It has an explicit priority: age, fair share and nice do not count")
    nice: int | None
    submitted_at: datetime | None
    expected_start: datetime | None = Field(description="Slurm's estimate")
    why: WhyView


class PriorityChange(BaseModel):
    """What was last wished for a run, and what came of it."""

    wish: Literal["level", "number", "before", "after", "scheduler"]
    level: Level | None
    number: int | None = Field(description="The explicit priority; null: the scheduler's")
    other_run_id: str | None
    state: Literal["pending", "applied", "failed"]
    message: str = Field(description="How many jobs it reached, and Slurm's words where it did not")
    asked_by: str
    asked_at: datetime
    applied_at: datetime | None
    jobs: list[dict[str, Any]] = Field(
        description="component, slurm_job_id, outcome; priority and nice before and after, as Slurm showed"
    )


class QueueEntry(BaseModel):
    """A run of which something waits. What it says of the priority is that of its first waiting job."""

    position: int = Field(description="Among all waiting runs of the cluster, from 1")
    run_id: str
    number: int
    name: str
    kind: Literal["normal", "test"]
    cluster: str
    state: RunState
    state_ko: str
    owner: str
    tenant: str
    priority_class: str
    level: Level
    level_ko: str
    priority: int | None
    parts: PriorityParts | None
    frozen: bool
    resources: str = Field(description="The most that any one waiting component asks for")
    requested: dict[str, Any]
    holds: list[str]
    requested_at: datetime
    submitted_at: datetime | None
    expected_start: datetime | None
    why: WhyView
    change: PriorityChange | None
    waiting: int = Field(description="Components that wait")
    jobs: list[WaitingJobView]


class QueueSource(BaseModel):
    """How old what is shown of a cluster is."""

    cluster: str
    observed_at: datetime | None
    age_s: float | None
    trouble: str | None


class QueueView(BaseModel):
    """What waits, in the order in which Slurm would start it; only runs one may see, at their true places."""

    items: list[QueueEntry]
    total: int = Field(description="Waiting runs that one may see")
    sources: list[QueueSource]


class PriorityRequest(RequestModel):
    """Where a run shall stand. Exactly one field."""

    level: Level | None = Field(None, description="Among the runs of its class; works on held runs too")
    number: int | None = Field(
        None, ge=1, le=MAX_NUMBER, description="An explicit priority; given when the run is not held"
    )
    before: str | None = Field(None, max_length=64, description="Id of the run to come just before")
    after: str | None = Field(None, max_length=64, description="Id of the run to come just after")
    scheduler: Literal[True] | None = Field(None, description="Give the priority back to the scheduler")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise ValueError("give exactly one of level, number, before, after, scheduler")
        return self


class PriorityView(BaseModel):
    """The priority of a run."""

    run_id: str
    level: Level
    level_ko: str
    change: PriorityChange | None


class HoldRequest(RequestModel):
    """Why a run is held, or released; it is shown to the person who waits and kept in the audit trail."""

    reason: str = Field(min_length=1, max_length=500)
