"""What the API says about advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from broker.accounting.schemas import Source
from broker.advice.rules import Confidence, Resource, Rule
from broker.pipelines.schemas import PipelineView, VersionSummary
from broker.runs.states import JobState
from broker.text import RequestModel

MOST_RUNS = 100


class Saving(BaseModel):
    """What the jobs that were looked at would have left to others."""

    amount: float
    unit: Literal["GiB h", "GPU h", "core h"]


class FindingView(BaseModel):
    """What is to be said of one resource. `suggested` null: nothing is advised, `rule` says why."""

    resource: Resource
    rule: Rule
    asked: str | int | None = Field(
        description="As a spec writes it, 0 GPUs where it names none; null: left to broker and cluster (CPUs)"
    )
    suggested: str | int | None
    sbatch: str | None = Field(description="The option that asks for it, for jobs of one's own")
    text: str
    text_ko: str
    because: Mapping[str, float] = Field(description="The numbers; `_mib`, `_s`, `_share` name their unit")
    jobs: int = Field(description="Jobs that were looked at …")
    measured: int = Field(description="… and how many of them have the data")
    confidence: Confidence | None
    saves: Saving | None
    overridden: int = Field(description="Jobs for which their run, not the pipeline, had set this resource")


class ComponentAdvice(BaseModel):
    """What is to be said of a component."""

    component: str
    pointer: str = Field(description="Where its resources stand in the spec (JSON pointer)")
    findings: Sequence[FindingView]


class UnreadJob(BaseModel):
    """A job that has ended and is not in accounting yet, so nothing is told from it."""

    run: str
    component: str
    cluster: str
    ended_at: datetime | None
    read_until: datetime | None = Field(description="How far accounting was read; null: it never was")
    text: str
    text_ko: str


class PipelineAdvice(BaseModel):
    """Advice for the newest version of a pipeline, from its last runs."""

    pipeline: str = Field(description="The broker's id")
    pipeline_id: str
    version: int = Field(description="The newest version: name it to apply the advice to it")
    runs: int = Field(description="Runs that were looked at, of those that one may see")
    components: Sequence[ComponentAdvice]
    unread: Sequence[UnreadJob]
    sources: Sequence[Source]


class RunComponentAdvice(ComponentAdvice):
    """What is to be said of a component: `findings` from this run's jobs, and from its last runs."""

    state: JobState | None = Field(description="Of its newest job; null: it has none")
    over_last_runs: Sequence[FindingView] = Field(
        description="For the newest version of the pipeline; empty where that has no such component"
    )


class RunAdvice(BaseModel):
    """Advice from one run, and from the last runs of its pipeline."""

    run: str
    pipeline: str
    version: int | None = Field(description="The newest version of the pipeline; null: it was removed")
    runs: int = Field(description="Last runs that were looked at")
    components: Sequence[RunComponentAdvice]
    unread: Sequence[UnreadJob]
    sources: Sequence[Source]


class Choice(RequestModel):
    """One piece of advice to apply. `suggested`: what was read; if it has changed since, nothing is done."""

    component: str = Field(max_length=63)
    resource: Resource
    suggested: str | int | None = None


class ApplyRequest(RequestModel):
    """Which advice becomes a new version of the pipeline."""

    version: int = Field(ge=1, description="The version that the advice was read for; it must be the newest")
    choose: Sequence[Choice] | None = Field(None, max_length=20_000, description="Unset: all of it")
    runs: int = Field(20, ge=1, le=MOST_RUNS, description="How many of the last runs to tell from")


class Change(BaseModel):
    """A resource that the new version asks for differently."""

    component: str
    resource: Resource
    pointer: str
    before: str | int | None
    after: str | int


class AppliedAdvice(BaseModel):
    """The new version, and what is different in it."""

    pipeline: PipelineView
    version: VersionSummary
    changes: Sequence[Change]
