"""The report `quotas`: every tenant's standing, made of the quotas' ledger and counters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.accounting.schemas import Source
from broker.db import utcnow
from broker.identity.tables import TenantRow
from broker.quotas.accounts import gpu_use
from broker.quotas.ledger import HOUR_S
from broker.quotas.periods import bounds, day_of, month_of
from broker.quotas.service import GIB, UNITS, Resource, periods, quota_of
from broker.quotas.tables import ChargeRow, ReservationRow, UseRow
from broker.reports.definitions_now import LINE
from broker.reports.measures import Sums
from broker.reports.merging import merged
from broker.reports.standing import (
    DAY,
    LONGER,
    RECENT,
    Rates,
    Standing,
    Use,
    in_words,
    mean_of_counts,
    mean_per_day,
    outlook,
)
from broker.reports.wanted import Group, Scope, Wanted
from broker.runs.tables import ClusterRow
from broker.settings import QuotaSettings

NOTHING: Final = Rates(None, None)
"""Of who has used nothing yet."""


def quota_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """The lines of the report, by tenant and resource; everybody sees the own tenant's."""
    tenants = select(TenantRow.name).where(TenantRow.active.is_(True))
    if scope.tenant is not None:
        tenants = tenants.where(TenantRow.name == scope.tenant)
    if "tenant" in wanted.filters:
        tenants = tenants.where(TenantRow.name == wanted.filters["tenant"])
    names = list(session.scalars(tenants.order_by(TenantRow.name)))
    return merged(_group(one, wanted.by) for one in standings(session, wanted.quotas, names, utcnow()))


def settled_at(session: Session) -> list[Source]:
    """When each cluster was last looked at: the ledger is settled with every look."""
    rows = session.scalars(
        select(ClusterRow).where(ClusterRow.polled_at.is_not(None)).order_by(ClusterRow.name)
    )
    return [
        Source(
            cluster=row.name,
            complete_until=row.polled_at,
            read_until=row.polled_at,
            trouble=row.trouble is not None,
        )
        for row in rows
        if row.polled_at is not None
    ]


def _group(one: Standing, by: Sequence[str]) -> Group:
    keys = {"tenant": one.tenant, "resource": one.resource}
    numbers = {
        "limit": one.limit,
        "used": one.used,
        "reserved": one.reserved,
        "rate_recent": one.rates.recent,
        "rate_longer": one.rates.longer,
        LINE: 1.0,
    }
    told = {
        "runs_out": in_words(one.outlook.earliest, known=one.outlook.known, until=one.until),
        "runs_out_latest": in_words(one.outlook.latest, known=one.outlook.known, until=one.until),
    }
    return Group(
        {name: keys[name] for name in by},
        Sums(
            {name: value for name, value in numbers.items() if value is not None},
            texts={name: value for name, value in told.items() if value is not None},
        ),
    )


def standings(
    session: Session, settings: QuotaSettings, tenants: Sequence[str], now: datetime
) -> list[Standing]:
    """How the tenants stand, each with every resource that has a quota."""
    today, month, current = day_of(now), month_of(now), periods(now)
    calls = _counted(session, tenants, Resource.API_CALLS, day_of(now - LONGER))
    uploads = _counted(session, tenants, Resource.UPLOAD, month_of(bounds(month)[0] - DAY))
    gpu_rates = _gpu_rates(session, tenants, now)
    found = []
    for tenant in tenants:
        quota, gpu = quota_of(session, settings, tenant), gpu_use(session, tenant, month, now)
        amounts = {
            Resource.GPU_HOURS: (gpu.settled, gpu.reserved, gpu_rates.get(tenant, NOTHING)),
            Resource.API_CALLS: (calls[tenant].get(today, 0), 0, _call_rates(calls[tenant], now)),
            Resource.UPLOAD: (uploads[tenant].get(month, 0), 0, _upload_rates(uploads[tenant], now)),
        }
        for resource, (used, reserved, rates) in amounts.items():
            unit, until = UNITS[resource][0], current[resource][1]
            limit, total = quota.limit(resource) / unit, (used + reserved) / unit
            found.append(
                Standing(
                    tenant=tenant,
                    resource=resource.value,
                    limit=limit,
                    used=used / unit,
                    reserved=reserved / unit,
                    until=until,
                    rates=rates,
                    outlook=outlook(total, limit, rates, now, until),
                )
            )
    return found


# ---- GPU hours: charges of what has ended, reservations of what runs -----------------------------------


def _gpu_rates(session: Session, tenants: Sequence[str], now: datetime) -> dict[str, Rates]:
    since = now - LONGER
    uses: dict[str, list[Use]] = defaultdict(list)
    for tenant, use in (*_charged(session, tenants, since), *_running(session, tenants, now)):
        uses[tenant].append(use)
    first = _first_uses(session, tenants, since)
    rates = {}
    for tenant in {*first, *uses}:
        mine = uses[tenant]
        begins = [use.begin for use in mine]
        began = min([*begins, first[tenant]] if tenant in first else begins)
        rates[tenant] = Rates(mean_per_day(mine, began, now, RECENT), mean_per_day(mine, began, now, LONGER))
    return rates


def _first_uses(session: Session, tenants: Sequence[str], since: datetime) -> dict[str, datetime]:
    """When the tenants first used a GPU: the moment where that is in the month of `since` or later, else the
    end of the first month with a charge. Nothing but the index is read of the months before.
    """
    month = month_of(since)
    mine = ChargeRow.tenant == TenantRow.name
    earliest = select(TenantRow.name, select(func.min(ChargeRow.month)).where(mine).scalar_subquery())
    moments = (
        select(ChargeRow.tenant, func.min(ChargeRow.started_at))
        .where(ChargeRow.tenant.in_(tenants), ChargeRow.month >= month, ChargeRow.gpu_seconds > 0)
        .group_by(ChargeRow.tenant)
    )
    first = {tenant: began for tenant, began in session.execute(moments) if began is not None}
    older = session.execute(earliest.where(TenantRow.name.in_(tenants)))
    return first | {name: bounds(at)[1] for name, at in older if at is not None and at < month}


def _charged(session: Session, tenants: Sequence[str], since: datetime) -> Iterable[tuple[str, Use]]:
    """What was charged and ended after `since`, in GPU hours. A job over the end of a month has a charge in
    each, of its part of the time.
    """
    month_bounds = cache(bounds)
    rows = session.execute(
        select(
            ChargeRow.tenant, ChargeRow.month, ChargeRow.gpu_seconds, ChargeRow.started_at, ChargeRow.ended_at
        ).where(
            ChargeRow.tenant.in_(tenants),
            ChargeRow.month >= month_of(since),
            ChargeRow.ended_at > since,
            ChargeRow.gpu_seconds > 0,
        )
    )
    for tenant, month, seconds, started_at, ended_at in rows:
        if ended_at is not None:
            first, after = month_bounds(month)
            yield tenant, Use(max(started_at or ended_at, first), min(ended_at, after), seconds / HOUR_S)


def _running(session: Session, tenants: Sequence[str], now: datetime) -> Iterable[tuple[str, Use]]:
    """What runs, up to now, in GPU hours: no more than was set aside for it."""
    rows = session.execute(
        select(
            ReservationRow.tenant, ReservationRow.gpus, ReservationRow.limit_s, ReservationRow.started_at
        ).where(ReservationRow.tenant.in_(tenants), ReservationRow.settled_at.is_(None))
    )
    for tenant, gpus, limit_s, started_at in rows:
        if started_at is not None:
            end = max(started_at, min(now, started_at + timedelta(seconds=limit_s)))
            yield tenant, Use(started_at, end, gpus * (end - started_at).total_seconds() / HOUR_S)


# ---- counters: of days (API calls) and months (uploads) ------------------------------------------------


def _call_rates(counted: Mapping[str, int], now: datetime) -> Rates:
    """Of whole days before today; of today alone where there are none yet."""
    if not counted:
        return NOTHING
    today, first = now.astimezone(UTC).date(), min(counted)
    before = [day for n in range(1, LONGER // DAY + 1) if (day := f"{today - DAY * n}") >= first]
    counts = [(DAY, float(counted.get(day, 0))) for day in before or [f"{today}"]]
    return Rates(mean_of_counts(counts[: RECENT // DAY]), mean_of_counts(counts))


def _upload_rates(counted: Mapping[str, int], now: datetime) -> Rates:
    """Of this month, and of this and the last (in GiB a day): the counter knows no days."""
    begin, _ = bounds(month_of(now))
    before = month_of(begin - DAY)
    here = (now - begin, counted.get(month_of(now), 0) / GIB)
    last = [(begin - bounds(before)[0], counted[before] / GIB)] if before in counted else []
    return Rates(mean_of_counts([here]), mean_of_counts([here, *last]))


def _counted(
    session: Session, tenants: Sequence[str], resource: Resource, since: str
) -> defaultdict[str, dict[str, int]]:
    """What was counted from a period on, by tenant and period, in the unit that is counted."""
    rows = session.execute(
        select(UseRow.tenant, UseRow.period, UseRow.amount).where(
            UseRow.tenant.in_(tenants),
            UseRow.resource == resource.value,
            UseRow.period >= since,
            UseRow.amount > 0,
        )
    )
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for tenant, period, amount in rows:
        found[tenant][period] = amount
    return found
