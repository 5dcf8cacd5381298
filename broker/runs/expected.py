"""When a running component is likely to end, and what says so.

From its own progress where it reports some; else from how long the same component took in earlier runs of the
pipeline with the same resources; else from its time limit, at which Slurm ends it whatever it has done. What
asked for more time than one start may take (CD-06) goes on in another one: then that is this start's limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.compiler.profile import DEFAULT_TIME_S
from broker.runs.journal import duration
from broker.runs.progress import Progress
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow

EARLIER = 20
"""Runs of a component that its usual time is the median of: the newest that ended well."""
LOOKED_AT = 100
"""Runs of the pipeline that they are looked for in: a job's start waits for this."""
Source = Literal["progress", "history", "time_limit"]
_ALIKE = ("gpu_type", "gpu_count", "cpus", "memory_mib")
"""Resources that decide how long a program takes; its time limit does not."""


class Usual(BaseModel):
    """How long a component usually takes."""

    seconds: float
    runs: int = Field(ge=1, description="Earlier runs that it is the median of")


class ExpectedEnd(BaseModel):
    """When a running component is likely to end."""

    at: datetime
    source: Source = Field(
        description="What says so: its own progress at its speed so far; the median of its earlier runs with "
        "the same resources, of those that took one start; or nothing but the limit"
    )
    runs: int | None = Field(description="`history`: how many earlier runs")
    limit: datetime = Field(
        description="When Slurm ends this start; progress that ends later will not end well …"
    )
    another_start: bool = Field(
        description="… unless this: it goes on from its checkpoint in another start while it has time left"
    )


def usual_of(session: Session, run: RunRow, job: JobRow) -> Usual | None:
    """How long this component took before: the newest runs of the pipeline, here, with such resources."""
    newest = (
        select(RunRow.id)
        .where(
            RunRow.pipeline_id == run.pipeline_id, RunRow.cluster == run.cluster, RunRow.tenant == run.tenant
        )
        .order_by(RunRow.id.desc())
        .limit(LOOKED_AT)
    )
    query = (
        select(JobRow)
        .where(
            JobRow.run_id.in_(newest),
            JobRow.component == job.component,
            JobRow.state == JobState.COMPLETED,
            JobRow.restarts == 0,  # of several starts only the last one's time is known
            JobRow.id != job.id,
        )
        .order_by(JobRow.ended_at.desc())
    )
    alike = [found for found in session.scalars(query) if _needs(found) == _needs(job)]
    return usual([duration(found) for found in alike[:EARLIER]])


def usual(seconds: Sequence[float]) -> Usual | None:
    """The median of what it took; None when it never ran.

    >>> usual([60.0, 80.0, 4000.0])
    Usual(seconds=80.0, runs=3)
    """
    return Usual(seconds=median(seconds), runs=len(seconds)) if seconds else None


def _needs(job: JobRow) -> tuple[object, ...]:
    return tuple(job.resources.get(name) for name in _ALIKE)


def expected_end(
    started: datetime,
    time_s: int | None,
    progress: Progress | None,
    earlier: Usual | None,
    now: datetime,
    start_s: int | None = None,
) -> ExpectedEnd:
    """The best that is known. What says a moment that has passed was wrong: the next best is believed.

    `start_s`: the most that one start takes of `time_s`; None: all of it.
    """
    limit = started + timedelta(seconds=start_s or time_s or DEFAULT_TIME_S)

    def found(at: datetime, source: Source, runs: int | None = None) -> ExpectedEnd:
        return ExpectedEnd(at=at, source=source, runs=runs, limit=limit, another_start=start_s is not None)

    if progress is not None and progress.expected_end is not None and progress.expected_end > now:
        return found(progress.expected_end, "progress")
    if earlier is not None and (end := started + timedelta(seconds=earlier.seconds)) > now:
        return found(end, "history", earlier.runs)
    return found(limit, "time_limit")


def end_of(job: JobRow, now: datetime) -> ExpectedEnd | None:
    """A job's expected end; None unless it runs."""
    if job.state != JobState.RUNNING or job.started_at is None:
        return None
    said = Progress.model_validate(job.progress) if job.progress else None
    if said is not None and said.restart != job.restarts:
        said = None  # of an earlier start
    earlier = Usual.model_validate(job.usual) if job.usual else None
    time_s, start_s = (job.resources.get(name) for name in ("time_s", "start_s"))
    return expected_end(job.started_at, time_s, said, earlier, now, start_s)
