"""When a component is likely to end, and what says so: of one that runs here, of the others in `run_end`.

From its own progress where it reports some; else from how long the same component took in earlier runs of the
pipeline with the same resources; else from its time limit, at which Slurm ends it whatever it has done. What
asked for more time than one start may take (CD-06) goes on in another one. How long that waits in the queue
nobody knows: the end of what needs another start is told as the earliest there can be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from statistics import median
from typing import Any, Final, Literal

from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.compiler.profile import DEFAULT_TIME_S
from broker.runs.progress import Progress
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow

EARLIER = 20
"""Runs of a component that its usual time is the median of: the newest that ended well."""
LOOKED_AT = 100
"""Runs of the pipeline that they are looked for in: a job's start waits for this …"""
MOST_JOBS = 20_000
"""… and of large ones as few as have so many jobs: a submission waits for this."""
Source = Literal["progress", "history", "time_limit"]
StartSource = Literal["slurm", "retry", "components"]
Kind = Literal["likely", "not_before", "at_latest", "this_start_at_latest", "unknown"]
_ALIKE = ("gpu_type", "gpu_count", "cpus", "memory_mib")
"""Resources that decide how long a program takes; its time limit does not."""
TEXTS: Final[Mapping[Kind, tuple[str, str]]] = {
    "likely": ("It is likely to end at this time.", "이 시각에 끝날 것으로 예상됩니다."),
    "not_before": (
        "It can't end before this time. Starts that it needs after this one: {starts} at least; how long "
        "each of them waits in the queue is not known.",
        "이 시각 전에는 끝날 수 없습니다. 적어도 {starts}번 더 시작해야 하며, "
        "대기열에서 얼마나 기다릴지는 알 수 없습니다.",
    ),
    "at_latest": (
        "Slurm ends it at this time at the latest; nothing says when it will be done.",
        "늦어도 이 시각에는 Slurm이 끝냅니다. 언제 완료될지는 알 수 없습니다.",
    ),
    "this_start_at_latest": (
        "Slurm ends this start at this time at the latest; what is not done then goes on in another start.",
        "늦어도 이 시각에는 이번 실행이 끝납니다. 남은 일은 다시 시작하여 이어집니다.",
    ),
}
"""What each kind of end of what runs means, in English and Korean."""
TOO_SHORT: Final = (
    "The time that it asked for is not enough for that.",
    "요청한 시간으로는 부족합니다.",
)


class Usual(BaseModel):
    """How long a component usually takes."""

    seconds: float
    runs: int = Field(ge=1, description="Earlier runs that it is the median of")


class ExpectedEnd(BaseModel):
    """When a component that has not ended is likely to."""

    at: datetime | None = Field(description="What it is, `kind` says; null: unknown")
    kind: Kind = Field(
        description="What `at` is: when it is likely to end; the earliest that it can end, since it waits or "
        "needs more starts than this one, and how long that takes is unknown; its limit, where "
        "nothing else is known; or the limit of this start, after which it goes on"
    )
    source: Source | None = Field(
        description="What says so: its own progress at its speed so far; the median of its earlier runs with "
        "the same resources; or nothing but the limit; null: it waits, and nothing says how long it takes"
    )
    runs: int | None = Field(description="`history`: how many earlier runs")
    starts_at: datetime | None = Field(
        None, description="While it waits: the start that `at` counts from; null: it counts from now …"
    )
    start_source: StartSource | None = Field(
        None,
        description="… and what says so: Slurm's estimate; the next try, before which it can't start; or the "
        "end of what it waits for, at the earliest",
    )
    limit: datetime | None = Field(
        description="When Slurm ends this start; progress that ends later will not end well …"
    )
    another_start: bool = Field(
        description="… unless this: it goes on from its checkpoint in another start while it has time left"
    )
    more_starts: int | None = Field(
        description="Starts that the work needs after this one, at least; null: nothing says how much it is"
    )
    enough_time: bool | None = Field(
        description="Whether the time it asked for, over all its starts, is enough; null: unknown"
    )
    text: str = Field(description="The kind of end in a sentence, and whether the time is too short")
    text_ko: str


@dataclass(frozen=True, slots=True)
class Left:
    """What a component that waits takes from its next start on."""

    seconds: float
    source: Literal["progress", "history"]
    runs: int | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """When it starts by Slurm's estimate, or (`retry`) the moment before which it can't."""

    at: datetime
    source: Literal["slurm", "retry"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """The time that a job has, seconds: `time_s` over all its starts, of which one takes `start_s` at most
    (None: all of it) and earlier ones took `spent_s` (None: not known).
    """

    time_s: int = DEFAULT_TIME_S
    start_s: int | None = None
    spent_s: int | None = 0

    @property
    def left_s(self) -> int | None:
        """What was left when this start began; None: not known."""
        return None if self.spent_s is None else max(0, self.time_s - self.spent_s)

    @property
    def another(self) -> bool:
        """Whether it goes on after this start."""
        return self.start_s is not None and (self.left_s is None or self.left_s > self.start_s)

    @property
    def this_start_s(self) -> int:
        """When Slurm ends this start. The last one lowers its limit to the rest, in whole minutes
        (`templates/job/starts.sh.j2`).
        """
        if self.start_s is None or self.another:
            return self.start_s or self.time_s
        return min(self.start_s, -(-(self.left_s or 0) // 60) * 60)

    def enough_for(self, seconds: float) -> bool | None:
        """Whether a program that takes so long from this start on has the time; None: not known."""
        if not self.another:
            return seconds <= self.this_start_s
        if self.left_s is None:
            return False if seconds > self.time_s else None
        return seconds <= self.left_s

    def more_starts(self, seconds: float) -> int:
        """Starts after this one that such a program needs, if each works to its limit: it may need more."""
        over = seconds - self.this_start_s
        return ceil(over / self.start_s) if self.start_s and self.another and over > 0 else 0


def usual_times(session: Session, run: RunRow, jobs: Sequence[JobRow]) -> dict[str, Usual]:
    """How long the components of jobs took before, by name, where they ran: in the newest runs of the
    pipeline, here, with such resources.
    """
    newest = (
        select(RunRow.id)
        .where(
            RunRow.pipeline_id == run.pipeline_id, RunRow.cluster == run.cluster, RunRow.tenant == run.tenant
        )
        .order_by(RunRow.id.desc())
        .limit(min(LOOKED_AT, max(1, MOST_JOBS // max(1, len(jobs)))))
    )
    query = (
        select(JobRow.component, JobRow.resources, JobRow.started_at, JobRow.ended_at, JobRow.spent_s)
        .where(
            JobRow.run_id.in_(newest),
            JobRow.component.in_([job.component for job in jobs]),
            JobRow.state == JobState.COMPLETED,
            # Of several starts the row has the last one's times, and what earlier ones took if that counts.
            (JobRow.restarts == 0) | JobRow.spent_s.is_not(None),
            JobRow.started_at.is_not(None),
            JobRow.ended_at.is_not(None),
            JobRow.id.not_in([job.id for job in jobs]),
        )
        .order_by(JobRow.ended_at.desc())
    )
    needs = {job.component: _needs(job.resources) for job in jobs}
    took: dict[str, list[float]] = defaultdict(list)
    for name, resources, started_at, ended_at, spent_s in session.execute(query):
        if _needs(resources) == needs[name] and len(took[name]) < EARLIER:
            took[name].append((ended_at - started_at).total_seconds() + (spent_s or 0))
    return {name: found for name, seconds in took.items() if (found := usual(seconds)) is not None}


def usual(seconds: Sequence[float]) -> Usual | None:
    """The median of what it took; None when it never ran.

    >>> usual([60.0, 80.0, 4000.0])
    Usual(seconds=80.0, runs=3)
    """
    return Usual(seconds=median(seconds), runs=len(seconds)) if seconds else None


def _needs(resources: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(resources.get(name) for name in _ALIKE)


def expected_end(
    started: datetime, allowed: Allowance, progress: Progress | None, earlier: Usual | None, now: datetime
) -> ExpectedEnd:
    """The best that is known. What says a moment that has passed was wrong: the next best is believed."""
    if progress is not None and progress.expected_end is not None and progress.expected_end > now:
        return _told(started, allowed, "progress", progress.expected_end)
    if earlier is not None and allowed.spent_s is not None:
        end = started + timedelta(seconds=earlier.seconds - allowed.spent_s)
        if end > now:
            return _told(started, allowed, "history", end, earlier.runs)
    return _told(started, allowed, "time_limit", None)


def _told(
    started: datetime, allowed: Allowance, source: Source, end: datetime | None, runs: int | None = None
) -> ExpectedEnd:
    """`end`: when the work is done if it goes on without a pause; None: nothing says."""
    limit = started + timedelta(seconds=allowed.this_start_s)
    kind: Kind = "this_start_at_latest" if allowed.another else "at_latest"
    more: int | None = None
    enough: bool | None = None
    if end is not None:
        seconds = (end - started).total_seconds()
        more, enough = allowed.more_starts(seconds), allowed.enough_for(seconds)
        kind = "not_before" if more else "likely"
    said = [text.format(starts=more) for text in TEXTS[kind]]
    text, text_ko = map(" ".join, zip(said, TOO_SHORT, strict=True)) if enough is False else said
    return ExpectedEnd(
        at=end or limit,
        kind=kind,
        source=source,
        runs=runs,
        limit=limit,
        another_start=allowed.another,
        more_starts=more,
        enough_time=enough,
        text=text,
        text_ko=text_ko,
    )


def allowance(job: JobRow) -> Allowance:
    """The time that a job has, by what it asked for and what its script has counted (`heartbeat`)."""
    time_s, start_s = job.resources.get("time_s") or DEFAULT_TIME_S, job.resources.get("start_s")
    counted = start_s is not None and job.restarts > 0
    return Allowance(time_s, start_s, job.spent_s if counted else 0)


def left_of(job: JobRow) -> Left | None:
    """What a job that waits takes from its next start on; None: not known.

    One that goes on from its checkpoint has done what the start before reported; any other begins anew.
    """
    allowed = allowance(job)
    goes_on = allowed.start_s is not None and job.restarts > 0
    said = Progress.model_validate(job.progress) if job.progress and goes_on else None
    if said is not None and said.restart == job.restarts - 1 and said.expected_end is not None:
        return Left(max(0.0, (said.expected_end - said.at).total_seconds()), "progress")
    if not job.usual or allowed.spent_s is None:
        return None
    earlier = Usual.model_validate(job.usual)
    seconds = earlier.seconds - allowed.spent_s
    return Left(seconds, "history", earlier.runs) if seconds >= 0 else None


def end_of(job: JobRow, now: datetime) -> ExpectedEnd | None:
    """A job's expected end; None unless it runs."""
    if job.state != JobState.RUNNING or job.started_at is None:
        return None
    said = Progress.model_validate(job.progress) if job.progress else None
    if said is not None and said.restart != job.restarts:
        said = None  # of an earlier start
    earlier = Usual.model_validate(job.usual) if job.usual else None
    return expected_end(job.started_at, allowance(job), said, earlier, now)
