"""The ledger of GPU hours in the database: reserve at release, settle from accounting, sum up.

A tenant's sums change under one lock, so that two releases at once can't both take the last room. What is
used of a month is the sum of its charges and of what is reserved and not settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.db.locks import exclusive
from broker.quotas.ledger import Charge, Reserved, carried, charges, committed, hours, knows_end, over
from broker.quotas.periods import moment_text, month_of, next_month
from broker.quotas.service import Resource, quota_of, tell
from broker.quotas.tables import ChargeRow, ReservationRow
from broker.settings import QuotaSettings
from broker.slurm import AccountingJob


@dataclass(frozen=True, slots=True)
class Want:
    """GPU time that a job needs: its id with the broker, GPUs over all nodes, time limit in seconds."""

    job_id: str
    gpus: int
    limit_s: int


@dataclass(frozen=True, slots=True)
class GpuUse:
    """GPU-seconds of a tenant in a month."""

    settled: int
    reserved: int

    @property
    def total(self) -> int:
        """What counts against the quota."""
        return self.settled + self.reserved


def gpu_seconds(wants: Sequence[Want]) -> int:
    """What a run reserves."""
    return sum(want.gpus * want.limit_s for want in wants)


def gpu_use(session: Session, tenant: str, month: str, now: datetime) -> GpuUse:
    """What a tenant has used and set aside."""
    settled = session.scalar(
        select(func.sum(ChargeRow.gpu_seconds)).where(ChargeRow.tenant == tenant, ChargeRow.month == month)
    )
    return GpuUse(int(settled or 0), committed(_open(session, tenant), month, now))


def taken(session: Session, tenant: str, now: datetime) -> int:
    """GPU-seconds that another run has to do without: of this month, or of the next one where that is more.

    So what is begun at the end of a month takes no more of the next one than there is.
    """
    this_month = gpu_use(session, tenant, month_of(now), now).total
    return max(this_month, carried(_open(session, tenant), now))


def _open(session: Session, tenant: str) -> list[Reserved]:
    query = select(ReservationRow.gpus, ReservationRow.limit_s, ReservationRow.started_at).where(
        ReservationRow.tenant == tenant, ReservationRow.settled_at.is_(None)
    )
    return [Reserved(*row) for row in session.execute(query)]


def lock_ledger(session: Session, tenant: str) -> None:
    """One change of a tenant's ledger at a time."""
    exclusive(session, f"gpu hours {tenant}")


def reserve(
    session: Session,
    settings: QuotaSettings,
    *,
    tenant: str,
    user_id: str,
    cluster: str,
    run_id: str,
    wants: Sequence[Want],
    now: datetime,
) -> str | None:
    """Set aside what the jobs of an attempt may use. None: done (now, or before); else why there is no room.

    All of it or nothing. Repeating it changes nothing.
    """
    wants = [want for want in wants if want.gpus]
    if not wants:
        return None
    lock_ledger(session, tenant)
    known = set(session.scalars(select(ReservationRow.job_id).where(ReservationRow.run_id == run_id)))
    missing = [want for want in wants if want.job_id not in known]
    if not missing:
        return None
    limit, before = quota_of(session, settings, tenant).gpu_seconds, taken(session, tenant, now)
    need = gpu_seconds(missing)
    if need > limit:
        return (
            f"The run needs {hours(need)} GPU hours and the tenant {tenant} has only "
            f"{hours(limit)} a month by now: have an admin raise the quota, or cancel the run"
        )
    if before + need > limit:
        tell_use(session, settings, tenant, now, full=True)
        return (
            f"The tenant {tenant} has used or set aside {hours(before)} of its {hours(limit)} GPU hours a "
            f"month and this run needs {hours(need)}: it goes on by itself when there is room; "
            f"the next month begins {moment_text(next_month(now))}"
        )
    session.add_all(
        ReservationRow(
            job_id=want.job_id,
            run_id=run_id,
            tenant=tenant,
            user_id=user_id,
            cluster=cluster,
            gpus=want.gpus,
            limit_s=want.limit_s,
            reserved_at=now,
            restarts=0,
        )
        for want in missing
    )
    session.flush()
    tell_use(session, settings, tenant, now)
    return None


def settle(
    session: Session,
    reservation: ReservationRow,
    attempts: Sequence[AccountingJob],
    *,
    restarts: int,
    began: datetime | None,
    ended: bool,
    now: datetime,
) -> bool:
    """Charge the attempts (oldest first) that are over, each once; when the job has ended, close its account.

    `restarts`, `began`: how often the job was put back into the queue, and when it began last. Accounting has
    to know so many attempts, and one, and an end after that, to be believed: it may be told late. False: the
    account stays open. The caller has locked the tenant's ledger.
    """
    for attempt in attempts:
        for charge in charges(attempt, reservation.gpus):
            _charge(session, reservation, attempt.job_id, charge, "sacct", now)
    ends = sum(map(over, attempts))
    closed = ended and ends > restarts and over(attempts[-1]) and knows_end(attempts, began)
    reservation.settled_at = now if closed else None
    reservation.restarts = restarts if closed else min(restarts, ends)
    return closed


def settle_observed(
    session: Session,
    reservation: ReservationRow,
    slurm_job_id: int,
    restarts: int,
    observed: Sequence[Charge],
    now: datetime,
) -> None:
    """Close the account of a job that accounting does not know: by what the broker itself has seen of it."""
    for charge in observed:
        _charge(session, reservation, slurm_job_id, charge, "observed", now)
    reservation.settled_at, reservation.restarts = now, restarts


def _charge(
    session: Session,
    reservation: ReservationRow,
    slurm_job_id: int,
    charge: Charge,
    source: str,
    now: datetime,
) -> None:
    key = (reservation.cluster, slurm_job_id, charge.submitted_at, charge.month)
    if session.get(ChargeRow, key) is not None:
        return
    session.add(
        ChargeRow(
            cluster=reservation.cluster,
            slurm_job_id=slurm_job_id,
            submitted_at=charge.submitted_at,
            month=charge.month,
            tenant=reservation.tenant,
            user_id=reservation.user_id,
            run_id=reservation.run_id,
            job_id=reservation.job_id,
            gpus=charge.gpus,
            elapsed_s=charge.elapsed_s,
            gpu_seconds=charge.gpu_seconds,
            started_at=charge.started_at,
            ended_at=charge.ended_at,
            source=source,
            charged_at=now,
        )
    )


def tell_use(
    session: Session, settings: QuotaSettings, tenant: str, now: datetime, *, full: bool = False
) -> None:
    """Tell the tenant's admin when the month's use has come to a level, or (`full`) a run has no room."""
    month, limit = month_of(now), quota_of(session, settings, tenant).gpu_seconds
    amount = gpu_use(session, tenant, month, now).total
    tell(session, tenant, Resource.GPU_HOURS, month, amount, limit, full=full)
