"""What jobs were measured to use: the newest look at each, and how that went over time.

Filled by `broker.resources.gauge` while a job runs; read for a run's page, and by the warehouse, which has no
measurement of GPUs from Slurm on most clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class JobUsageRow(Base):
    """The newest look at a job's use, and sums over this start of it (`restart`).

    `cpus`, `memory_mib`, `gpus`: allocated. `use`: `broker.resources.usage.JobUse` as JSON. `gpu_util_sum`:
    per cent, over the `gpu_util_looks` that knew it. `memory_peak_mib`: the largest that a look saw; null:
    none did. `gpu_spans`: how busy each GPU was lately (`broker.resources.idle`).
    """

    __tablename__ = "job_usage"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32))
    cluster: Mapped[str] = mapped_column(String(64))
    slurm_job_id: Mapped[int] = mapped_column(BigInteger)
    restart: Mapped[int]
    first_at: Mapped[datetime] = mapped_column(UTCDateTime)
    taken_at: Mapped[datetime] = mapped_column(UTCDateTime)
    cpus: Mapped[int]
    memory_mib: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int]
    use: Mapped[dict[str, Any]] = mapped_column(JsonType)
    gpu_util_sum: Mapped[float]
    gpu_util_looks: Mapped[int]
    memory_peak_mib: Mapped[float | None]
    gpu_spans: Mapped[dict[str, Any] | None] = mapped_column(JsonType)

    __table_args__ = (
        Index("ix_job_usage_run_id", "run_id"),
        Index("ix_job_usage_cluster_slurm_job_id", "cluster", "slurm_job_id"),
    )


class JobUsageSampleRow(Base):
    """A job's use over time. `step_s` 0: one look; 3600: the sums over the looks of an hour, from `at` on.

    `at`: seconds since the epoch. `…_n`: the looks that knew the figure; the figure itself is their sum.
    `gpu_util` in per cent (mean over the job's GPUs), memory in MiB.
    """

    __tablename__ = "job_usage_samples"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step_s: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cpu_n: Mapped[int]
    cpu_cores: Mapped[float]
    memory_n: Mapped[int]
    memory_mib: Mapped[float]
    gpu_util_n: Mapped[int]
    gpu_util: Mapped[float]
    gpu_memory_n: Mapped[int]
    gpu_memory_mib: Mapped[float]

    __table_args__ = (Index("ix_job_usage_samples_step_s_at", "step_s", "at"),)


@dataclass(frozen=True, slots=True)
class MeasuredGpu:
    """The mean utilisation of a start of a job, per cent; `first_at`, `last_at`: seconds since the epoch."""

    percent: float
    first_at: int
    last_at: int

    def of_attempt(self, start_at: int | None, end_at: int | None) -> float | None:
        """The mean, if these looks were at the attempt that ran then: ids are kept by a requeue."""
        if start_at is None or self.last_at < start_at or (end_at is not None and self.first_at > end_at):
            return None
        return self.percent


def measured_gpus(session: Session, cluster: str, slurm_job_ids: Iterable[int]) -> dict[int, MeasuredGpu]:
    """What was measured of the broker's own among these jobs, by Slurm's id."""
    query = (
        select(JobUsageRow)
        .where(
            JobUsageRow.cluster == cluster,
            JobUsageRow.slurm_job_id.in_(sorted(set(slurm_job_ids))),
            JobUsageRow.gpu_util_looks > 0,
        )
        .order_by(JobUsageRow.taken_at)
    )
    return {
        row.slurm_job_id: MeasuredGpu(
            round(row.gpu_util_sum / row.gpu_util_looks, 2),
            int(row.first_at.timestamp()),
            int(row.taken_at.timestamp()),
        )
        for row in session.scalars(query)
    }
