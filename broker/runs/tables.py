"""Tables of the life of a run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class RunRow(Base):
    """One execution of one pipeline version. `row_version` guards every update (optimistic lock).

    `needs_approval`: the components that reach a threshold (`spec.thresholds.Excess`), as the thresholds were
    at the request. `approved_plan_hash`, `approved_until`: what was approved, and how long that may be used.
    `gate`: how far the administrator hold in Slurm follows the set of holds (`holding`).
    `unix_account`: whom the jobs belong to; null: the broker's own account. `requested_qos`: the QOS that the
    jobs are moved to before they are released; null: they stay in that of the plan. `request_id`: of the
    request that last asked for something of it (`journal`).
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(8))
    cluster: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str] = mapped_column(String(64))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    pipeline_id: Mapped[str] = mapped_column(ForeignKey("pipelines.id"))
    pipeline_version_id: Mapped[str] = mapped_column(ForeignKey("pipeline_versions.id"))
    test_run_ref: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    overrides: Mapped[dict[str, Any]] = mapped_column(JsonType)
    state: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str] = mapped_column(String(12))
    approval: Mapped[str] = mapped_column(String(16))
    needs_approval: Mapped[list[dict[str, Any]] | None] = mapped_column(JsonType)
    approval_requested_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    approved_plan_hash: Mapped[str | None] = mapped_column(String(80))
    approved_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    gate: Mapped[str] = mapped_column(String(8), default="open", server_default="open")
    unix_account: Mapped[str | None] = mapped_column(String(32))
    priority_class: Mapped[str] = mapped_column(String(20), default="training", server_default="training")
    priority: Mapped[str] = mapped_column(String(8), default="normal", server_default="normal")
    requested_qos: Mapped[str | None] = mapped_column(String(64))
    attempt: Mapped[int]
    auto_retries: Mapped[int] = mapped_column(default=0)
    resolved: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    error_code: Mapped[str | None] = mapped_column(String(40))
    error: Mapped[str | None]
    trouble: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    cancelled_by: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    next_try_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    tries: Mapped[int] = mapped_column(default=0)
    removed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    event_seq: Mapped[int] = mapped_column(default=0)
    request_id: Mapped[str | None] = mapped_column(String(64))
    row_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": row_version}  # noqa: RUF012 - SQLAlchemy's own form
    __table_args__ = (
        Index("ix_runs_cluster_phase", "cluster", "phase"),
        Index("ix_runs_tenant_id", "tenant", "id"),
        Index("ix_runs_owner_id_id", "owner_id", "id"),
        Index("ix_runs_pipeline_id_id", "pipeline_id", "id"),
    )


class RunHoldRow(Base):
    """Why a run's jobs are held: `submission | approval | quota | admin`.

    `scontrol release` is issued only when a run has no row here; any kind but `submission` is also an
    administrator hold in Slurm (`holding`).
    """

    __tablename__ = "run_holds"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(12), primary_key=True)
    reason: Mapped[str] = mapped_column(default="")
    since: Mapped[datetime] = mapped_column(UTCDateTime)


class SubmissionRow(Base):
    """The intent to submit one attempt of a run: committed before anything is sent to the cluster.

    `plan` is the compiled plan (zlib-compressed JSON, `planning.encode`): what was submitted can be shown
    for ever, even after the templates have changed.
    """

    __tablename__ = "submissions"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    plan: Mapped[bytes] = mapped_column(LargeBinary)
    plan_hash: Mapped[str] = mapped_column(String(80))
    intended_at: Mapped[datetime] = mapped_column(UTCDateTime)
    submitted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    released_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class JobRow(Base):
    """One component in one attempt. `name` is the unique key by which its Slurm job is found again.

    `progress`: `progress.Progress`. `usual`: `expected.Usual`, as known when it was planned, and anew when it
    started. `spent_s`: seconds of the time asked for that earlier starts took, as the script counts them
    (`names.spent_path`); null: not read.
    `heartbeat_mark`: what the last sign of life looked like (`heartbeat`), `heartbeat_at`: when the broker
    saw it. `stall_ended_at`: the broker ended it then for its silence. `gpu_idle`: what was told of GPUs
    that it leaves idle (`schemas.GpuIdle`); null: nothing, or that they are busy again.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    component: Mapped[str] = mapped_column(String(63))
    position: Mapped[int]
    attempt: Mapped[int]
    name: Mapped[str] = mapped_column(String(255), unique=True)
    slurm_job_id: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str | None]
    culprit: Mapped[str | None] = mapped_column(String(63))
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    restarts: Mapped[int] = mapped_column(default=0)
    nodes: Mapped[str | None]
    resources: Mapped[dict[str, Any]] = mapped_column(JsonType)
    submitted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    observed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    unknown_since: Mapped[datetime | None] = mapped_column(UTCDateTime)
    reap: Mapped[bool] = mapped_column(default=False)
    storing: Mapped[str] = mapped_column(String(8), default="none")
    store_tries: Mapped[int] = mapped_column(default=0)
    store_next_try_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    store_error: Mapped[str | None]
    output_dir: Mapped[str | None]
    manifest_key: Mapped[str | None]
    manifest_sha256: Mapped[str | None] = mapped_column(String(64))
    stored_files: Mapped[int | None]
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    usual: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    spent_s: Mapped[int | None]
    heartbeat_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    heartbeat_mark: Mapped[str | None] = mapped_column(String(40))
    stalled_since: Mapped[datetime | None] = mapped_column(UTCDateTime)
    stall_ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    gpu_idle: Mapped[dict[str, Any] | None] = mapped_column(JsonType)

    __table_args__ = (
        UniqueConstraint("run_id", "component", "attempt"),
        Index("ix_jobs_storing", "storing"),
        Index("ix_jobs_slurm_job_id", "slurm_job_id"),
    )


class EventRow(Base):
    """What happened to a run, numbered per run from 1 without gaps."""

    __tablename__ = "run_events"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JsonType)


class ImageRow(Base):
    """An image that lies in a cluster's SIF cache, and what its tag pointed at when last asked."""

    __tablename__ = "images"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    reference: Mapped[str] = mapped_column(String(500), primary_key=True)
    digest: Mapped[str] = mapped_column(String(80))
    sif: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    resolved_at: Mapped[datetime] = mapped_column(UTCDateTime)


class CounterRow(Base):
    """A number that only grows (`run`: the number of the newest run)."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int]


class ClusterRow(Base):
    """How the last look at a cluster went; read by `/clusters` and `/readyz`, written by the worker."""

    __tablename__ = "clusters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    polled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    slurm_version: Mapped[str | None] = mapped_column(String(32))
    trouble: Mapped[str | None]
    trouble_since: Mapped[datetime | None] = mapped_column(UTCDateTime)


class QueueRow(Base):
    """What waited in a cluster's queue when it was last looked at: one row, replaced as a whole.

    `jobs`: Slurm job id (as text) → `queueing.snapshot.Seen`, which keeps it. `parts_at`: when sprio was last
    asked.
    """

    __tablename__ = "queue_snapshots"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    taken_at: Mapped[datetime] = mapped_column(UTCDateTime)
    parts_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    jobs: Mapped[dict[str, dict[str, Any]]] = mapped_column(JsonType)
