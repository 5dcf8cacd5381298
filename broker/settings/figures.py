"""Settings of what is measured and reported: accounting, costs, reports, resources."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.settings.base import Section

BadEnd = Literal[
    "BOOT_FAIL",
    "CANCELLED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REQUEUED",
    "TIMEOUT",
]
"""How an attempt ends that did not complete (Slurm's states)."""


class AccountingSettings(Section):
    """The warehouse of all jobs that the reports are made of."""

    interval_s: float = Field(300, gt=0, description="Time between two looks at a cluster's accounting")
    overlap_s: int = Field(
        3600, ge=60, description="How late accounting may learn of a job; so much is read again each time"
    )
    history_days: int = Field(365, ge=0, description="How far back the first reading goes")
    sample_s: int = Field(
        30,
        ge=0,
        description="Time between two looks of Slurm at what jobs use (`JobAcctGatherFrequency`): advice "
        "takes no peak of a shorter job for all that it needs",
    )


class CostSettings(Section):
    """What use costs. An admin enters prices with `broker prices set`."""

    currency: str = Field(
        "KRW",
        pattern=r"^[A-Z]{3}$",
        description="Currency of the prices (ISO 4217); those entered in another one do not hold",
    )
    exempt_outcomes: tuple[BadEnd, ...] = Field(
        (),
        description="Ends (Slurm's states) whose attempts are not charged: `NODE_FAIL`, `PREEMPTED`, …; "
        "holds for the past as well",
    )


ExportName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class ReportExportSettings(Section):
    """One report that is written to the object store when a period (UTC) is over."""

    report: str = Field(description="Name of the report; `broker report` lists them")
    by: tuple[str, ...] = Field((), max_length=4, description="Dimensions; none: the report's own")
    period: Literal["day", "week", "month"] = Field(
        "month", description="What it is about: the last whole one"
    )
    formats: tuple[Literal["parquet", "csv", "json"], ...] = Field(
        ("parquet",), min_length=1, description="Formats of the files"
    )


class ReportSettings(Section):
    """Reports that are written to the object store by themselves."""

    exports: dict[ExportName, ReportExportSettings] = Field(
        {}, description="Exports by name (a-z, 0-9, `-`), which is a part of the files' keys"
    )
    bucket: str | None = Field(
        None, min_length=3, max_length=63, description="Bucket, which exists; unset: the one for results"
    )
    prefix: str = Field(
        "reports", pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", description="Before the files' keys"
    )
    hour: int = Field(
        6, ge=0, le=23, description="Hour (UTC) of the day after a period from which on it is written"
    )
    revise_days: int = Field(
        7,
        ge=0,
        description="Days after a period's end in which it is compared with new figures once a day; what has "
        "changed is written as a new version",
    )


class ResourceSettings(Section):
    """What is kept of the use of clusters over time."""

    sample_interval_s: float = Field(
        300, ge=1, description="Time between two looks at the nodes that are kept; the last one always is"
    )
    raw_days: float = Field(7, gt=0, description="Days that each of these is kept")
    hourly_days: float = Field(366, gt=0, description="Days that the means of hours are kept")
    usage_raw_days: float = Field(
        2, gt=0, description="Days that each look at what a job used is kept; its hours stay `hourly_days`"
    )
    gpu_idle_after_s: float = Field(
        1800, ge=0, description="A running job is told to leave GPUs idle after so long; 0: never"
    )
    gpu_idle_below: float = Field(
        5, gt=0, le=50, description="Idle: measured to be busy less than this (per cent) on the mean"
    )
