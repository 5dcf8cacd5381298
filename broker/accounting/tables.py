"""The accounting warehouse: every job of every cluster, and sums per day (UTC) made of them.

`accounting_jobs` is the archive (Slurm purges its own): a row is never deleted, its raw values stay. The two
sums can be made anew from it at any time (`rebuild`). Times are seconds since the epoch, as Slurm gives them.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Date, Index, LargeBinary, String, text
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime

_ONE_TREE = {"sqlite_with_rowid": False}
"""Of a table that is most of all key: SQLite keeps the rows in the key's order, and the key once."""


_PAID: Final = (
    *("run_id", "cluster", "tenant", "user", "partition", "qos", "gpu_type", "gpu_types", "gpu_count"),
    *("state", "start_at", "counted_to", "elapsed_s", "cpus", "mem_mib", "billing"),
)
"""What runs cost is made of: read without the wide rows."""
LASTING_S: Final = 14 * 86_400
LASTING: Final = (
    f"(abs(coalesce(start_at, end_at) - submit_at) > {LASTING_S}"
    f" or abs(coalesce(end_at, counted_to) - start_at) > {LASTING_S})"
)
"""Jobs whose times lie further apart (SQL): few, in an index of their own. All others that touch a day began
around it, or ended around it where they never began.
"""


class AccountingJobRow(Base):
    """One attempt of one job. A requeue submits anew, and ids are recycled: the submit time is in the key.

    `tenant`: the run's, else the one of the account. `user`: the person's name with the broker, else
    `CLUSTER:NAME` for a Unix account (`unix_user`) that no person has. `run_id`: the broker's run,
    null for others' jobs. `tasks`: elements of an array that wait together in one row, else 1. `partition` of
    a pending job may name several. `state`: Slurm's word. `gpu_type`: "" without GPUs or where unknown,
    of several types that of most, `mixed` where nobody tells how many of each; `gpu_types`: how many of each
    (`slurm.gpu_types`), "" for one type.
    `mem_mib`, `cpus`, `gpu_count`, `billing`: allocated over all nodes (`cpus` of a pending job: asked for).
    `timelimit_s` null: unlimited. `total_cpu_s`, `max_rss_mib`, `mem_in_tot_mib` (max over steps), `gpu_util`
    (per cent, mean over GPUs; `gpu_util_by` measured it: `slurm.gpu_use.GpuSource`), `energy_j`: null is "no
    data", never 0. `cpu_partial`: the job was ended from outside, `total_cpu_s` lacks what its last processes
    used. `counted_to`: the sums have its use up to here: the end, or when it was last seen in the queue.
    `runaway`: no end, and not in the queue.
    """

    __tablename__ = "accounting_jobs"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    submit_at: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    array_id: Mapped[int | None] = mapped_column(BigInteger)
    array_task: Mapped[str | None] = mapped_column(String(64))
    tasks: Mapped[int]
    name: Mapped[str]
    unix_user: Mapped[str] = mapped_column(String(64))
    account: Mapped[str] = mapped_column(String(64))
    user: Mapped[str] = mapped_column(String(160))
    tenant: Mapped[str] = mapped_column(String(64))
    qos: Mapped[str] = mapped_column(String(64))
    partition: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(20))
    exit_code: Mapped[int]
    signal: Mapped[int]
    cancelled_by: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str]
    eligible_at: Mapped[int | None] = mapped_column(BigInteger)
    start_at: Mapped[int | None] = mapped_column(BigInteger)
    end_at: Mapped[int | None] = mapped_column(BigInteger)
    elapsed_s: Mapped[int] = mapped_column(BigInteger)
    timelimit_s: Mapped[int | None] = mapped_column(BigInteger)
    cpus: Mapped[int]
    nodes: Mapped[int]
    node_list: Mapped[str]
    gpu_count: Mapped[int]
    gpu_type: Mapped[str] = mapped_column(String(64))
    gpu_types: Mapped[str]
    mem_mib: Mapped[int] = mapped_column(BigInteger)
    billing: Mapped[int] = mapped_column(BigInteger)
    total_cpu_s: Mapped[int | None] = mapped_column(BigInteger)
    cpu_partial: Mapped[bool]
    max_rss_mib: Mapped[int | None] = mapped_column(BigInteger)
    mem_in_tot_mib: Mapped[int | None] = mapped_column(BigInteger)
    gpu_util: Mapped[float | None]
    gpu_util_by: Mapped[str | None] = mapped_column(String(16))
    energy_j: Mapped[int | None] = mapped_column(BigInteger)
    run_id: Mapped[str | None] = mapped_column(String(32))
    counted_to: Mapped[int | None] = mapped_column(BigInteger)
    runaway: Mapped[bool]
    digest: Mapped[str] = mapped_column(String(32))
    raw: Mapped[dict[str, Any]] = mapped_column(JsonType)

    __table_args__ = (
        Index("ix_accounting_jobs_cluster_end_at", "cluster", "end_at"),
        Index("ix_accounting_jobs_cluster_start_at", "cluster", "start_at"),
        Index("ix_accounting_jobs_tenant_submit_at", "tenant", "submit_at"),
        Index("ix_accounting_jobs_user_submit_at", "user", "submit_at"),
        Index(
            "ix_accounting_jobs_run_id",
            *_PAID,
            sqlite_where=text("run_id IS NOT NULL"),
            postgresql_where=text("run_id IS NOT NULL"),
        ),
        Index(
            "ix_accounting_jobs_lasting",
            *("cluster", "submit_at", "start_at", "end_at", "counted_to"),
            sqlite_where=text(LASTING),
            postgresql_where=text(LASTING),
        ),
    )


class AccountingDayRow(Base):
    """Sums of a day (UTC), per who, where, how large and how it ended.

    `outcome`: Slurm's state; `gpu_count` per job; `size`: CPUs per job as a power of two (3: 8 to 15);
    `wait`: how long it waited (`wait_classes`). A job with GPUs of several types counts under that of most of
    them; its GPUs of the others have a row each, with their `gpu_s` alone.
    Spread over the days a job ran in, clipped at midnight: `elapsed_s`, `core_s`, `gpu_s`, `mem_mib_s`
    (allocated memory times elapsed), `billing_s`. Once, on the day of it: `submitted`, `started`, `ended`
    (jobs). Once, on the day of the start: `hold_s` (submit to eligible) and `wait_s` (eligible to start), and
    over those that have ended (`slowdown_jobs`), in thousandths, `slowdowns` and `submit_slowdowns`
    (`buckets.slowdown` of the wait since eligible, and since submission). Once, on the day of the end, over
    the jobs that have the data (`…_jobs` of them): `cpu_used_s` of `cpu_alloc_s`; `mem_used_mib_s` of
    `mem_alloc_mib_s`; `limit_used_s` of `limit_s`; `gpu_used_s` of `gpu_alloc_s`. Ratios of these sums are
    the efficiencies.
    """

    __tablename__ = "accounting_days"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(String(160), primary_key=True)
    partition: Mapped[str] = mapped_column(String(255), primary_key=True)
    qos: Mapped[str] = mapped_column(String(64), primary_key=True)
    gpu_type: Mapped[str] = mapped_column(String(64), primary_key=True)
    gpu_count: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(primary_key=True)
    wait: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(String(20), primary_key=True)
    submitted: Mapped[int] = mapped_column(BigInteger)
    started: Mapped[int] = mapped_column(BigInteger)
    ended: Mapped[int] = mapped_column(BigInteger)
    elapsed_s: Mapped[int] = mapped_column(BigInteger)
    core_s: Mapped[int] = mapped_column(BigInteger)
    gpu_s: Mapped[int] = mapped_column(BigInteger)
    mem_mib_s: Mapped[int] = mapped_column(BigInteger)
    billing_s: Mapped[int] = mapped_column(BigInteger)
    hold_s: Mapped[int] = mapped_column(BigInteger)
    wait_s: Mapped[int] = mapped_column(BigInteger)
    slowdown_jobs: Mapped[int] = mapped_column(BigInteger)
    slowdowns: Mapped[int] = mapped_column(BigInteger)
    submit_slowdowns: Mapped[int] = mapped_column(BigInteger)
    cpu_jobs: Mapped[int] = mapped_column(BigInteger)
    cpu_used_s: Mapped[int] = mapped_column(BigInteger)
    cpu_alloc_s: Mapped[int] = mapped_column(BigInteger)
    mem_jobs: Mapped[int] = mapped_column(BigInteger)
    mem_used_mib_s: Mapped[int] = mapped_column(BigInteger)
    mem_alloc_mib_s: Mapped[int] = mapped_column(BigInteger)
    limit_jobs: Mapped[int] = mapped_column(BigInteger)
    limit_used_s: Mapped[int] = mapped_column(BigInteger)
    limit_s: Mapped[int] = mapped_column(BigInteger)
    gpu_jobs: Mapped[int] = mapped_column(BigInteger)
    gpu_used_s: Mapped[int] = mapped_column(BigInteger)
    gpu_alloc_s: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = _ONE_TREE


class AccountingWaitRow(Base):
    """How long the jobs that began on a day (UTC) had waited: histograms, one row per bucket.

    `kind`: `wait` (eligible to start: contention) or `slowdown` (`buckets.slowdown`, of those that have
    ended). `bucket`: `histograms.bucket` of the seconds; of a slowdown, 0 where it is 1. Dimensions as in
    `accounting_days`.
    """

    __tablename__ = "accounting_waits"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    user: Mapped[str] = mapped_column(String(160), primary_key=True)
    partition: Mapped[str] = mapped_column(String(255), primary_key=True)
    qos: Mapped[str] = mapped_column(String(64), primary_key=True)
    gpu_type: Mapped[str] = mapped_column(String(64), primary_key=True)
    gpu_count: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(primary_key=True)
    wait: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    jobs: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = _ONE_TREE


class AccountingPackedRow(Base):
    """The sums of a cluster's day once more, as compressed Arrow columns: what reports read (`packed`).

    `layout`: which columns these are; anything else than today's (`packed.LAYOUT`) means that the rows have
    changed since, and are read themselves. `lessened`: something was taken away since, so that rows may have
    come to nothing.
    """

    __tablename__ = "accounting_packed"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    layout: Mapped[str] = mapped_column(String(16))
    lessened: Mapped[bool] = mapped_column(server_default="0")
    days: Mapped[bytes | None] = mapped_column(LargeBinary)
    waits: Mapped[bytes | None] = mapped_column(LargeBinary)
    slowdowns: Mapped[bytes | None] = mapped_column(LargeBinary)


class AccountingCursorRow(Base):
    """How far a cluster's accounting has been read (seconds since the epoch).

    `settled_to`: everything that ended before is here; the next look begins there. `read_to`: the end of the
    last look. `window_s`: how much one query asks for; halved when it was too much. `again_from`, `again_at`:
    from where, and when, to read once more, for what slurmdbd was told late.
    """

    __tablename__ = "accounting_cursors"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    settled_to: Mapped[int] = mapped_column(BigInteger)
    read_to: Mapped[int] = mapped_column(BigInteger)
    window_s: Mapped[int]
    again_from: Mapped[int | None] = mapped_column(BigInteger)
    again_at: Mapped[int | None] = mapped_column(BigInteger)
    jobs: Mapped[int] = mapped_column(BigInteger)
    bad_rows: Mapped[int] = mapped_column(BigInteger)
    trouble: Mapped[str | None]
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
