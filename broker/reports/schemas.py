"""What the API says about reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Annotated

from pydantic import BaseModel, Field, PlainSerializer

from broker.accounting.schemas import Source
from broker.reports.measures import INFINITE, Value


def _carried(value: Value) -> Value:
    """A figure as JSON can carry it: it has no infinite numbers."""
    return INFINITE if value == math.inf else value


Carried = Annotated[Value, PlainSerializer(_carried, when_used="json")]


class MeasureView(BaseModel):
    """One figure of a report, and what it means."""

    name: str
    unit: str = Field(
        description="`jobs`, `h`, `s`, `ratio`, … of a number; `text`, `date`, `time`: no number"
    )
    title: str
    title_ko: str
    definition: str
    definition_ko: str


class DimensionValue(BaseModel):
    """A value of a dimension that has few, in their order."""

    value: str
    title: str
    title_ko: str


class ReportDescription(BaseModel):
    """A report there is."""

    name: str
    title: str
    title_ko: str
    dimensions: Sequence[str] = Field(description="What `by` takes")
    values: Mapping[str, Sequence[DimensionValue]] = Field(
        description="What the values of a dimension mean, where there are few: `wait`"
    )
    default_by: Sequence[str]
    now: bool = Field(description="It tells how things stand; the period changes nothing")
    jobs: bool = Field(description="Its lines lead down to jobs")
    measures: Sequence[MeasureView]


class ReportList(BaseModel):
    """The reports there are."""

    items: Sequence[ReportDescription]


class Coverage(BaseModel):
    """How much has the data that a figure needs, and how much should have it."""

    with_data: int
    of: int
    counted: str = Field(description="What is counted: `jobs`, or `hours` that were watched")


class Line(BaseModel):
    """One line: what it is about, its figures, and the way to the jobs behind it."""

    key: dict[str, str]
    values: dict[str, Carried] = Field(
        description=f'null: unknown, never 0; "{INFINITE}" of a number: it is infinite'
    )
    coverage: dict[str, Coverage] = Field(description="Of the figures that not everything has data for")
    jobs_url: str | None = Field(description="The jobs behind this line; null where the report is of none")


class ReportView(BaseModel):
    """A report. `url` is stable: the same period gives the same report, later with later data."""

    report: ReportDescription
    since: date
    until: date = Field(description="The first day (UTC) that is not in it any more")
    by: Sequence[str]
    filters: dict[str, str]
    scope: str = Field(description="Whose part: `all`, `tenant NAME` or `user NAME`")
    lines: Sequence[Line]
    left_out: int = Field(description="Lines beyond `limit`; they are in `total`")
    total: Line
    quantile_error: float = Field(description="Largest relative error of medians and percentiles")
    sources: Sequence[Source]
    url: str


class JobFacts(BaseModel):
    """One job of the cluster as accounting has it. What is null is unknown."""

    cluster: str
    job_id: str
    name: str
    tenant: str
    user: str
    partition: str
    qos: str
    state: str
    reason: str = Field(description="Why it waited last, in Slurm's word")
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    wait_s: int | None = Field(description="Eligible to start (contention); null: it has not begun")
    hold_s: int | None = Field(description="Submit to eligible (approval, dependency, hold)")
    slowdown: float | None = Field(
        description="Bounded slowdown, max(1, (wait + elapsed) / max(elapsed, 10 s)), of the wait since "
        "eligible; null until it has ended"
    )
    slowdown_from_submit: float | None = Field(description="The same of the wait since submission")
    elapsed_s: int
    cpus: int
    nodes: int
    gpus: int
    gpu_type: str = Field(
        description="Of several types that of most of them; `mixed`: nobody tells how many of each; "
        "empty: without GPUs, or unknown"
    )
    gpu_types: str = Field(
        description="How many GPUs of each type, where there are several: `a100=1,v100=2`; "
        "a part without a name: nobody tells their type"
    )
    memory_mib: int
    core_hours: float
    gpu_hours: float
    cpu_efficiency: float | None
    memory_efficiency: float | None = Field(description="An upper bound: tasks added up")
    gpu_efficiency: float | None
    gpu_measured_by: str | None = Field(
        description="`jobstats`, `measured` (by the broker while it ran) or `slurm`; null: by nobody"
    )
    time_accuracy: float | None
    runaway: bool = Field(description="No end in accounting, and not in the queue either")
    run_id: str | None
    advice: str = Field(description='What to submit it with next time (sbatch), "": as it was (docs: advice)')
