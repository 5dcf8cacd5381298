"""Quotas of tenants, counters of what they use, the admission of runs: all in the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker.audit import Actor, record
from broker.db import utcnow
from broker.db.locks import exclusive
from broker.errors import InvalidRequest, LimitReached, Problem
from broker.identity import Principal
from broker.notifications.service import notify
from broker.quotas.ledger import HOUR_S
from broker.quotas.limits import HOUR, UserUse, backstop, check_user, larger_than_quota, limit_reached
from broker.quotas.periods import bounds, day_of, month_of, next_day, next_month
from broker.quotas.schemas import QuotaChange
from broker.quotas.tables import AdmissionRow, QuotaRow, UseRow
from broker.settings import QuotaSettings

GIB = 1 << 30
LEVELS = (80, 100)
"""Per cent of a quota at which the tenant's admin is told, once for each day or month (CD-02)."""


class Resource(StrEnum):
    """What a tenant has a quota of."""

    API_CALLS = "api_calls"
    GPU_HOURS = "gpu_hours"
    UPLOAD = "upload_gb"


UNITS = {
    Resource.API_CALLS: (1, "API calls of today"),
    Resource.GPU_HOURS: (HOUR_S, "GPU hours of this month"),
    Resource.UPLOAD: (GIB, "GiB of uploads of this month"),
}
"""How many of what is counted (calls, GPU-seconds, bytes) are one of what people read, and its name."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may use: calls a day; GPU-seconds and bytes a month; GPUs at once (None: any)."""

    tenant: str
    api_calls: int
    gpu_seconds: int
    upload_bytes: int
    max_gpus: int | None
    version: int
    own: QuotaChange

    def limit(self, resource: Resource) -> int:
        """The limit in the unit that is counted."""
        return {
            Resource.API_CALLS: self.api_calls,
            Resource.GPU_HOURS: self.gpu_seconds,
            Resource.UPLOAD: self.upload_bytes,
        }[resource]


def quota_of(session: Session, settings: QuotaSettings, tenant: str) -> Quota:
    """A tenant's quota: its own numbers, else the settings'. A tenant without a row has version 0."""
    row = session.get(QuotaRow, tenant)
    own = QuotaChange(**{name: getattr(row, name, None) for name in QuotaChange.model_fields})
    numbers = settings.model_dump() | own.model_dump(exclude_none=True)
    return Quota(
        tenant=tenant,
        api_calls=numbers["api_calls_per_day"],
        gpu_seconds=round(numbers["gpu_hours_per_month"] * HOUR_S),
        upload_bytes=round(numbers["upload_gb_per_month"] * GIB),
        max_gpus=own.max_gpus,
        version=row.row_version if row else 0,
        own=own,
    )


def lock_quota(session: Session, tenant: str) -> None:
    """One change of a tenant's own numbers at a time: call this before looking at them to change them."""
    exclusive(session, f"quota {tenant}")


def set_quota(session: Session, principal: Actor, tenant: str, change: QuotaChange) -> QuotaRow:
    """Replace a tenant's own numbers (None: the setting's); the next upload and run see them, calls within a
    second. Call `lock_quota` first, in the same transaction.
    """
    row = session.get(QuotaRow, tenant)
    fields = list(QuotaChange.model_fields)
    before = {name: getattr(row, name) for name in fields} if row else None
    if row is None:
        row = QuotaRow(tenant=tenant)
        session.add(row)
    for name, value in change.model_dump().items():
        setattr(row, name, value)
    row.updated_at = utcnow()
    record(session, principal, "quota.set", "tenant", tenant, before, change.model_dump(), tenant=tenant)
    session.flush()
    return row


def slurm_limits(session: Session, settings: QuotaSettings, tenant: str) -> dict[str, str]:
    """What `broker cluster sync` writes to the tenant's association: the backstop behind the ledger."""
    quota = quota_of(session, settings, tenant)
    return backstop(quota.gpu_seconds / HOUR_S, quota.max_gpus)


# ---- counters -----------------------------------------------------------------------------------------


def used(session: Session, tenant: str, resource: Resource, period: str) -> int:
    """What was counted in a period, in the unit that is counted."""
    row = session.get(UseRow, (tenant, resource.value, period), populate_existing=True)
    return row.amount if row else 0


def add(session: Session, tenant: str, resource: Resource, period: str, amount: int) -> int:
    """Count; the sum after it. The counter stays locked until the transaction ends."""
    grow = (
        update(UseRow)
        .where(UseRow.tenant == tenant, UseRow.resource == resource, UseRow.period == period)
        .values(amount=UseRow.amount + amount)
        .returning(UseRow.amount)
    )
    total = session.scalar(grow)
    if total is None:  # the first of the period, perhaps counted twice at once
        exclusive(session, f"use {tenant} {resource} {period}")
        total = session.scalar(grow)
    if total is None:
        session.add(UseRow(tenant=tenant, resource=resource, period=period, amount=amount))
        session.flush()
        return amount
    return total


def count_calls(
    session: Session, settings: QuotaSettings, tenant: str, day: str, calls: int
) -> tuple[int, int]:
    """Add API calls that were made in a day; the day's sum, and the quota as it is now."""
    total = add(session, tenant, Resource.API_CALLS, day, calls)
    limit = quota_of(session, settings, tenant).api_calls
    tell(session, tenant, Resource.API_CALLS, day, total, limit)
    return total, limit


def check_upload(session: Session, settings: QuotaSettings, tenant: str, size: int, now: datetime) -> None:
    """Raise `LimitReached` when so many bytes have no room this month any more. Counts nothing."""
    before = used(session, tenant, Resource.UPLOAD, month_of(now))
    _has_room(quota_of(session, settings, tenant), before, size, now)


def count_upload(session: Session, settings: QuotaSettings, tenant: str, size: int, now: datetime) -> None:
    """Count an upload (or, negative, one that failed after all); `LimitReached` when it has no room.

    Counted first and compared then: of uploads at the same moment each sees those before it.
    """
    month, quota = month_of(now), quota_of(session, settings, tenant)
    total = add(session, tenant, Resource.UPLOAD, month, size)
    _has_room(quota, total - size, size, now)
    tell(session, tenant, Resource.UPLOAD, month, total, quota.upload_bytes)


def _has_room(quota: Quota, before: int, size: int, now: datetime) -> None:
    if size > 0 and before + size > quota.upload_bytes:
        said = (
            f"The tenant {quota.tenant} has uploaded {before / GIB:.2f} of its "
            f"{quota.upload_bytes / GIB:.2f} GiB of this month, and this upload has {size / GIB:.2f}"
        )
        raise limit_reached(Resource.UPLOAD, said, next_month(now), now)


def calls_exceeded(tenant: str, limit: int, now: datetime) -> LimitReached:
    """The refusal of an API call."""
    said = f"The tenant {tenant} has made its {limit} API calls of today"
    return limit_reached(Resource.API_CALLS, said, next_day(now), now)


def tell(
    session: Session,
    tenant: str,
    resource: Resource,
    period: str,
    amount: int,
    limit: int,
    *,
    full: bool = False,
) -> None:
    """Tell the tenant's admin that use has come to a level; once a period, again after a change of quota.

    `full`: something had no room any more, although less than all is used.
    """
    unit, name = UNITS[resource]
    for level in LEVELS:
        if (amount > 0 and amount * 100 >= limit * level) or (full and level == LEVELS[-1]):
            notify(
                session,
                f"quota_{level}",
                tenant,
                subject=f"{tenant}: {name}{', runs wait' if full else ''}",
                data={
                    "tenant": tenant,
                    "resource": resource.value,
                    "period": period,
                    "used": round(amount / unit, 2),
                    "limit": round(limit / unit, 2),
                },
                once=f"quota {level} {tenant} {resource} {period} {limit}",
            )


# ---- people -------------------------------------------------------------------------------------------


def lock_user(session: Session, user_id: str) -> None:
    """One admission of a person at a time: call this before counting their active runs."""
    exclusive(session, f"admissions {user_id}")


def user_use(session: Session, user_id: str, active: int, now: datetime) -> UserUse:
    """What a person has asked for since the day began or within the last hour."""
    midnight = next_day(now) - timedelta(days=1)
    query = select(AdmissionRow.admitted_at).where(
        AdmissionRow.user_id == user_id, AdmissionRow.admitted_at > min(midnight, now - HOUR)
    )
    return UserUse(active, list(session.scalars(query)))


def admit(
    session: Session,
    settings: QuotaSettings,
    principal: Principal,
    *,
    run_id: str,
    attempt: int,
    tenant: str,
    active: int,
    gpu_seconds: int,
    now: datetime,
) -> None:
    """Let a run (or another attempt of one) in, or raise; call `lock_user` first, in the same transaction.

    `active`: the person's runs that have not ended; `gpu_seconds`: what the run would reserve at its release.
    Raises `InvalidRequest` when no month has room for it and `LimitReached` when it is too soon.
    """
    quota = quota_of(session, settings, tenant)
    if (refusal := larger_than_quota(gpu_seconds, quota.gpu_seconds, tenant)) is not None:
        raise refusal
    check_user(user_use(session, principal.user_id, active, now), settings, principal.role, now)
    session.add(
        AdmissionRow(
            run_id=run_id, attempt=attempt, user_id=principal.user_id, tenant=tenant, admitted_at=now
        )
    )


def periods(now: datetime) -> dict[Resource, tuple[str, datetime]]:
    """The present period of each resource, and when it ends."""
    month = (month_of(now), next_month(now))
    return {
        Resource.API_CALLS: (day_of(now), next_day(now)),
        Resource.GPU_HOURS: month,
        Resource.UPLOAD: month,
    }


def checked_month(text: str | None, now: datetime) -> str:
    """A month as it is asked for; the present one if none is. Raises `InvalidRequest`."""
    if text is None:
        return month_of(now)
    try:
        return month_of(bounds(text)[0])
    except (ValueError, OverflowError):  # no month, or the last one there is: it has no end
        detail = f"{text[:20]!r} is no month: write it like {month_of(now)}"
        raise InvalidRequest(detail, problems=[Problem("?month", "bad_month", detail)]) from None
