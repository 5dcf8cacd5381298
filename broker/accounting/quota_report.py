"""The report `quotas`: every tenant's standing, made of the quotas' ledger and counters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.accounting.definitions_now import LINE
from broker.accounting.measures import Sums
from broker.accounting.merging import merged
from broker.accounting.reports import Group, Scope, Wanted
from broker.accounting.standing import (
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
from broker.db import utcnow
from broker.identity.tables import TenantRow
from broker.quotas.accounts import gpu_use
from broker.quotas.ledger import HOUR_S
from broker.quotas.periods import bounds, month_of
from broker.quotas.service import UNITS, Resource, periods, quota_of
from broker.quotas.tables import ChargeRow, ReservationRow, UseRow
from broker.settings import QuotaSettings


def quota_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """The lines of the report, by tenant and resource; everybody sees the own tenant's."""
    tenants = select(TenantRow.name).where(TenantRow.active.is_(True))
    if scope.tenant is not None:
        tenants = tenants.where(TenantRow.name == scope.tenant)
    if "tenant" in wanted.filters:
        tenants = tenants.where(TenantRow.name == wanted.filters["tenant"])
    names = list(session.scalars(tenants.order_by(TenantRow.name)))
    return merged(_group(one, wanted.by) for one in standings(session, wanted.quotas, names, utcnow()))


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
    rates = {
        Resource.GPU_HOURS: _gpu_rates(session, tenants, now),
        Resource.API_CALLS: _call_rates(session, tenants, now),
        Resource.UPLOAD: _upload_rates(session, tenants, now),
    }
    found = []
    for tenant in tenants:
        quota = quota_of(session, settings, tenant)
        for resource, (period, until) in periods(now).items():
            unit, _ = UNITS[resource]
            used, reserved = _used(session, tenant, resource, period, now)
            rate = rates[resource].get(tenant, Rates(None, None))
            limit = quota.limit(resource) / unit
            total = (used + reserved) / unit
            found.append(
                Standing(
                    tenant=tenant,
                    resource=resource.value,
                    limit=limit,
                    used=used / unit,
                    reserved=reserved / unit,
                    until=until,
                    rates=rate,
                    outlook=outlook(total, limit, rate, now, until),
                )
            )
    return found


def _used(session: Session, tenant: str, resource: Resource, period: str, now: datetime) -> tuple[int, int]:
    """What is settled and what is set aside, in the unit that is counted."""
    if resource is Resource.GPU_HOURS:
        gpu = gpu_use(session, tenant, period, now)
        return gpu.settled, gpu.reserved
    row = session.get(UseRow, (tenant, resource.value, period))
    return (row.amount if row else 0), 0


# ---- GPU hours: charges of what has ended, reservations of what runs -----------------------------------


def _gpu_rates(session: Session, tenants: Sequence[str], now: datetime) -> dict[str, Rates]:
    uses: dict[str, list[Use]] = defaultdict(list)
    for tenant, use in (*_charged(session, tenants, now - LONGER), *_running(session, tenants, now)):
        uses[tenant].append(use)
    earliest = session.execute(
        select(ChargeRow.tenant, func.min(ChargeRow.started_at))
        .where(ChargeRow.tenant.in_(tenants), ChargeRow.gpu_seconds > 0)
        .group_by(ChargeRow.tenant)
    )
    first = {tenant: began for tenant, began in earliest if began is not None}
    rates = {}
    for tenant in {*first, *uses}:
        mine = uses[tenant]
        begins = [use.begin for use in mine]
        began = min([*begins, first[tenant]] if tenant in first else begins)
        rates[tenant] = Rates(mean_per_day(mine, began, now, RECENT), mean_per_day(mine, began, now, LONGER))
    return rates


def _charged(session: Session, tenants: Sequence[str], since: datetime) -> Iterable[tuple[str, Use]]:
    """What was charged and ended after `since`, in GPU hours. A job over the end of a month has a charge in
    each, of its part of the time.
    """
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
            first, after = bounds(month)
            yield tenant, Use(max(started_at or ended_at, first), min(ended_at, after), seconds / HOUR_S)


def _running(session: Session, tenants: Sequence[str], now: datetime) -> Iterable[tuple[str, Use]]:
    """What runs, up to now, in GPU hours: no more than was set aside for it."""
    rows = session.execute(
        select(
            ReservationRow.tenant, ReservationRow.gpus, ReservationRow.limit_s, ReservationRow.started_at
        ).where(
            ReservationRow.tenant.in_(tenants),
            ReservationRow.settled_at.is_(None),
        )
    )
    for tenant, gpus, limit_s, started_at in rows:
        if started_at is None:
            continue
        end = max(started_at, min(now, started_at + timedelta(seconds=limit_s)))
        yield tenant, Use(started_at, end, gpus * (end - started_at).total_seconds() / HOUR_S)


# ---- counters: of days (API calls) and months (uploads) ------------------------------------------------


def _call_rates(session: Session, tenants: Sequence[str], now: datetime) -> dict[str, Rates]:
    """Of whole days before today; of today alone where there are none yet."""
    today = now.astimezone(UTC).date()
    rates = {}
    for tenant, counted in _counters(session, tenants, Resource.API_CALLS, f"{today - LONGER}").items():
        days = {date.fromisoformat(day): amount for day, amount in counted.items()}
        first = min(days)
        before = [today - DAY * n for n in range(1, LONGER // DAY + 1) if today - DAY * n >= first] or [today]
        counts = [(DAY, days.get(day, 0.0)) for day in before]
        rates[tenant] = Rates(mean_of_counts(counts[: RECENT // DAY]), mean_of_counts(counts))
    return rates


def _upload_rates(session: Session, tenants: Sequence[str], now: datetime) -> dict[str, Rates]:
    """Of this month, and of this and the last: the counter knows no days."""
    this = month_of(now)
    begin, _ = bounds(this)
    before = month_of(begin - DAY)
    rates = {}
    for tenant, months in _counters(session, tenants, Resource.UPLOAD, before).items():
        here = (now - begin, months.get(this, 0.0))
        both = [here, (begin - bounds(before)[0], months[before])] if before in months else [here]
        rates[tenant] = Rates(mean_of_counts([here]), mean_of_counts(both))
    return rates


def _counters(
    session: Session, tenants: Sequence[str], resource: Resource, since: str
) -> Mapping[str, dict[str, float]]:
    """What was counted from a period on, by tenant and period, in the unit that people read."""
    unit, _ = UNITS[resource]
    rows = session.execute(
        select(UseRow.tenant, UseRow.period, UseRow.amount).where(
            UseRow.tenant.in_(tenants),
            UseRow.resource == resource.value,
            UseRow.period >= since,
            UseRow.amount > 0,
        )
    )
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for tenant, period, amount in rows:
        found[tenant][period] = amount / unit
    return found
