"""Quotas and use as the API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.identity.tables import UserRow
from broker.quotas.accounts import GpuUse, gpu_use
from broker.quotas.ledger import hours
from broker.quotas.periods import month_of
from broker.quotas.schemas import Meter, QuotaView, UsageView, UserUsage
from broker.quotas.service import GIB, UNITS, Quota, Resource, periods, quota_of, used
from broker.quotas.tables import ChargeRow, UseRow
from broker.settings import QuotaSettings


def view_quota(session: Session, settings: QuotaSettings, tenant: str, now: datetime) -> QuotaView:
    """A tenant's quota and what is used of it in the present day and month."""
    quota = quota_of(session, settings, tenant)
    gpu = gpu_use(session, tenant, month_of(now), now)
    meters = {resource: _meter(session, quota, resource, gpu, now) for resource in Resource}
    return QuotaView(
        tenant=tenant,
        own=quota.own,
        api_calls=meters[Resource.API_CALLS],
        gpu_hours=meters[Resource.GPU_HOURS],
        upload_gb=meters[Resource.UPLOAD],
        max_gpus=quota.max_gpus,
        version=quota.version,
    )


def _meter(session: Session, quota: Quota, resource: Resource, gpu: GpuUse, now: datetime) -> Meter:
    period, resets_at = periods(now)[resource]
    unit, _ = UNITS[resource]
    limit = quota.limit(resource)
    amount = (
        gpu if resource is Resource.GPU_HOURS else GpuUse(used(session, quota.tenant, resource, period), 0)
    )
    return Meter(
        limit=round(limit / unit, 2),
        used=round(amount.settled / unit, 2),
        reserved=round(amount.reserved / unit, 2),
        percent=round(100 * amount.total / limit, 1) if limit else 100.0,
        period=period,
        resets_at=resets_at,
    )


def view_usage(session: Session, tenant: str, month: str, now: datetime) -> UsageView:
    """What a tenant used in a month, by person, and its API calls by day."""
    gpu = gpu_use(session, tenant, month, now)
    days = select(UseRow.period, UseRow.amount).where(
        UseRow.tenant == tenant, UseRow.resource == Resource.API_CALLS, UseRow.period.startswith(f"{month}-")
    )
    return UsageView(
        tenant=tenant,
        month=month,
        gpu_hours=hours(gpu.settled),
        gpu_hours_reserved=hours(gpu.reserved),
        gpu_seconds=gpu.settled,
        upload_gb=round(used(session, tenant, Resource.UPLOAD, month) / GIB, 2),
        api_calls=dict(iter(session.execute(days.order_by(UseRow.period)))),
        users=_users(session, tenant, month),
    )


def _users(session: Session, tenant: str, month: str) -> Sequence[UserUsage]:
    seconds = func.sum(ChargeRow.gpu_seconds)
    query = (
        select(UserRow.username, seconds, func.count())
        .select_from(ChargeRow)
        .join(UserRow, UserRow.id == ChargeRow.user_id)
        .where(ChargeRow.tenant == tenant, ChargeRow.month == month)
        .group_by(UserRow.username)
        .order_by(seconds.desc(), UserRow.username)
    )
    return [
        UserUsage(username=name, gpu_hours=hours(int(total)), attempts=count)
        for name, total, count in session.execute(query)
    ]
