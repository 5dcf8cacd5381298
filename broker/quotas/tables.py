"""Quotas, counters, admissions, and the ledger of GPU hours."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, UTCDateTime


class QuotaRow(Base):
    """A tenant's own quota; what is null is the setting's."""

    __tablename__ = "quotas"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    api_calls_per_day: Mapped[int | None] = mapped_column(BigInteger)
    gpu_hours_per_month: Mapped[float | None]
    upload_gb_per_month: Mapped[float | None]
    max_gpus: Mapped[int | None]
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    row_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": row_version}  # noqa: RUF012 - SQLAlchemy's own form


class UseRow(Base):
    """What a tenant has used of something in a day or month: API calls, uploaded bytes."""

    __tablename__ = "quota_use"

    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    resource: Mapped[str] = mapped_column(String(16), primary_key=True)
    period: Mapped[str] = mapped_column(String(10), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class AdmissionRow(Base):
    """A request for a run (or for another attempt of one) that was let in: the rates count these."""

    __tablename__ = "admissions"

    run_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(String(32))
    tenant: Mapped[str] = mapped_column(String(64))
    admitted_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (Index("ix_admissions_user_id_admitted_at", "user_id", "admitted_at"),)


class ReservationRow(Base):
    """GPU time that was set aside for a job at its release; open until `settled_at`.

    `started_at`: when the present attempt began, null while it waits. `restarts`: how many requeues have been
    charged. `job_id` is the broker's id of the job, not Slurm's.
    """

    __tablename__ = "gpu_reservations"

    job_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32))
    tenant: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(32))
    cluster: Mapped[str] = mapped_column(String(64))
    gpus: Mapped[int]
    limit_s: Mapped[int]
    reserved_at: Mapped[datetime] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    restarts: Mapped[int] = mapped_column(default=0)
    settled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (
        Index("ix_gpu_reservations_tenant_settled_at", "tenant", "settled_at"),
        Index("ix_gpu_reservations_cluster_settled_at", "cluster", "settled_at"),
        Index("ix_gpu_reservations_run_id", "run_id"),
    )


class ChargeRow(Base):
    """What one attempt of one Slurm job used in one month, once: the key is accounting's own."""

    __tablename__ = "gpu_charges"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    slurm_job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    submitted_at: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True)
    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    user_id: Mapped[str] = mapped_column(String(32))
    run_id: Mapped[str] = mapped_column(String(32))
    job_id: Mapped[str] = mapped_column(String(32))
    gpus: Mapped[int]
    elapsed_s: Mapped[int] = mapped_column(BigInteger)
    gpu_seconds: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    source: Mapped[str] = mapped_column(String(12))
    charged_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (
        Index("ix_gpu_charges_tenant_month", "tenant", "month"),
        Index("ix_gpu_charges_job_id", "job_id"),
    )
