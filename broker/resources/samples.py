"""Amounts over time: one look in so many seconds is kept raw for days, and added to its hour for a year.

The hour is made with the look itself, in the same transaction: nothing has to be thinned out afterwards, and
what a crash leaves is whole. A year is 8,760 rows of each name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broker.errors import InvalidRequest, Problem
from broker.resources.snapshot import Amount, Amounts, Look
from broker.resources.tables import SampleRow
from broker.settings import ResourceSettings

HOUR: Final = 3600
DAY: Final = 86_400
SCOPES: Final = ("cluster", "gpu_type", "partition", "tenant")
RESOURCES: Final = ("gpu", "cpu", "memory")
MOST_POINTS: Final = 100_000
"""In one answer; a hundred names by hour for a month are 74,400."""
_KEY = [column.name for column in SampleRow.__table__.primary_key]
_SUMS = ("samples", "total", "allocated", "idle", "unavailable", "measured", "measured_of", "used")


@dataclass(frozen=True, slots=True)
class Point:
    """The mean of a span that begins at `at`. `used` None: it was never measured in it.

    `measured`: on how much of `total` it was, in the looks that had it.
    """

    name: str
    at: datetime
    total: float
    allocated: float
    idle: float
    unavailable: float
    used: float | None
    measured: float


def samples_of(
    cluster: str, at: datetime, look: Look, tenants: Mapping[str, Amounts]
) -> Iterator[dict[str, Any]]:
    """The rows of one look. `tenants`: what the running jobs of each tenant have."""
    parts = [("cluster", "", look.cluster)]
    parts += [("partition", name, amounts) for name, amounts in look.partitions.items()]
    parts += [("tenant", name, amounts) for name, amounts in tenants.items()]
    for scope, name, amounts in parts:
        for resource, amount in zip(
            RESOURCES, (amounts.all_gpus(), amounts.cpus, amounts.memory_mib), strict=True
        ):
            yield _row(cluster, at, scope, resource, name, amount)
    for name, amount in look.cluster.gpus.items():
        yield _row(cluster, at, "gpu_type", "gpu", name, amount)


def _row(cluster: str, at: datetime, scope: str, resource: str, name: str, amount: Amount) -> dict[str, Any]:
    return {
        "cluster": cluster,
        "step_s": 0,
        "scope": scope,
        "resource": resource,
        "name": name[:100],
        "at": int(at.timestamp()),
        "samples": 1,
        "total": amount.total,
        "allocated": amount.allocated,
        "idle": amount.idle,
        "unavailable": amount.unavailable,
        "measured": int(amount.used is not None),
        "measured_of": amount.measured,
        "used": amount.used or 0.0,
    }


def keep_samples(session: Session, rows: list[dict[str, Any]]) -> None:
    """Store one look's rows, and add them to their hours."""
    dialect = session.get_bind().dialect.name
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    hourly = insert(SampleRow)
    added = {name: getattr(SampleRow, name) + hourly.excluded[name] for name in _SUMS}
    hours = [row | {"step_s": HOUR, "at": row["at"] - row["at"] % HOUR} for row in rows]
    session.execute(insert(SampleRow), rows)
    session.execute(hourly.on_conflict_do_update(index_elements=_KEY, set_=added), hours)


def forget_samples(session: Session, cluster: str, settings: ResourceSettings, now: datetime) -> None:
    """Delete what has been kept long enough."""
    for step, days in ((0, settings.raw_days), (HOUR, settings.hourly_days)):
        before = int((now - timedelta(days=days)).timestamp())
        mine = (SampleRow.cluster == cluster, SampleRow.step_s == step, SampleRow.at < before)
        session.execute(delete(SampleRow).where(*mine))


def step_for(since: datetime, until: datetime, now: datetime, raw_days: float) -> int:
    """The step in which a period is shown unless somebody asks for another: some hundred points at most."""
    if until - since <= timedelta(hours=26) and since >= now - timedelta(days=raw_days):
        return 0
    return HOUR if until - since <= timedelta(days=31) else DAY


def history(
    session: Session,
    cluster: str,
    scope: str,
    resource: str,
    since: datetime,
    until: datetime,
    step_s: int,
    name: str | None = None,
) -> list[Point]:
    """Means over time, by name and time; `step_s` 0 (each look), 3600 or 86400 (UTC).

    They are means over all looks at the cluster in the span: a tenant that had 8 GPUs in every second look
    had 4. A name that no look of a span had is absent from it. `InvalidRequest` for more than `MOST_POINTS`.
    """
    span = (since, until, step_s)
    looks = {point[1]: point[2] for point in _sums(session, cluster, "cluster", resource, "", *span)}
    found = []
    for label, at, samples, total, allocated, idle, unavailable, measured, of, used in _sums(
        session, cluster, scope, resource, name, *span
    ):
        n = looks.get(at, samples)
        found.append(
            Point(
                name=label,
                at=datetime.fromtimestamp(at, UTC),
                total=float(total) / n,
                allocated=float(allocated) / n,
                idle=float(idle) / n,
                unavailable=float(unavailable) / n,
                used=float(used) / measured if measured else None,
                measured=float(of) / measured if measured else 0.0,
            )
        )
    return found


def _sums(
    session: Session,
    cluster: str,
    scope: str,
    resource: str,
    name: str | None,
    since: datetime,
    until: datetime,
    step_s: int,
) -> list[tuple[Any, ...]]:
    """(name, beginning of the span, sums of `_SUMS`); one range of the primary key per name."""
    span = SampleRow.at - SampleRow.at % (step_s or 1)
    chosen = [
        SampleRow.cluster == cluster,
        SampleRow.step_s == min(step_s, HOUR),
        SampleRow.scope == scope,
        SampleRow.resource == resource,
        SampleRow.at >= int(since.timestamp()),
        SampleRow.at < math.ceil(until.timestamp()),  # a look of this very second is in it
    ]
    if name is not None:
        chosen.append(SampleRow.name == name)
    sums = [func.sum(getattr(SampleRow, column)) for column in _SUMS]
    query = select(SampleRow.name, span, *sums).where(*chosen).group_by(SampleRow.name, span)
    found = session.execute(query.order_by(SampleRow.name, span).limit(MOST_POINTS + 1)).all()
    if len(found) > MOST_POINTS:
        detail = f"More than {MOST_POINTS} points: ask for a shorter period, a longer step, or one name"
        raise InvalidRequest(detail, problems=[Problem("/since", "too_many_points", detail)])
    return [tuple(row) for row in found]


def tenants_amounts(jobs: list[tuple[str, int, int, int]]) -> dict[str, Amounts]:
    """What tenants have: (tenant, GPUs, CPUs, MiB) of each running job, added up."""
    found: dict[str, Amounts] = defaultdict(Amounts)
    for tenant, gpus, cpus, memory in jobs:
        mine = found[tenant]
        mine.gpus.setdefault("", Amount()).allocated += gpus
        mine.cpus.allocated += cpus
        mine.memory_mib.allocated += memory
    return found
