"""What there is to be paid for, read from the warehouse: from the sums per day, or job by job for runs.

Use is added up in the database over all days on which no price changes, by line and by what prices name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, func, literal_column, or_, select
from sqlalchemy.orm import Session

from broker.accounting.buckets import allocated
from broker.accounting.measures import Report
from broker.accounting.reports import COLUMNS, PERIODS, Scope, Wanted, grouped, same
from broker.accounting.tables import AccountingDayRow, AccountingJobRow
from broker.costs.pricing import FAULTS, SUM_OF, Fate, Place, PriceBook, Resource, Use, fate

RUN: Final = "run"
BY: Final = (*(name for name in COLUMNS if name not in ("gpu_count", "size")), RUN, *PERIODS)
"""How costs can be split."""
FILTERS: Final = tuple(name for name in BY if name not in (RUN, *PERIODS))
COSTS: Final = Report("costs", "Costs", "비용", ("tenant",), ())
_SPAN, _FATE = "cost_span", "cost_fate"
_HAD: Final = {
    Resource.CORE: "cpus",
    Resource.GPU: "gpu_count",
    Resource.MEMORY: "mem_mib",
    Resource.BILLING: "billing",
}
"""What a job had of a resource (`accounting_jobs`)."""
_JOB: Final = ("start_at", "end_at", "counted_to", "elapsed_s", "cpus", "gpu_count", "mem_mib", "billing")


@dataclass(frozen=True, slots=True)
class Pricing:
    """By which prices, and which ends are not charged."""

    book: PriceBook
    exempt: Sequence[str] = ()


def uses(session: Session, wanted: Wanted, scope: Scope, pricing: Pricing) -> Iterator[Use]:
    """The use of a period, by its lines' keys."""
    if RUN in wanted.by:
        return _of_runs(session, wanted, scope, pricing)
    return _of_days(session, wanted, scope, pricing)


def of_job(job: Mapping[str, Any], key: tuple[str, ...], exempt: Sequence[str]) -> Iterator[Use]:
    """The use of one job (columns of `AccountingJobRow` by name), day by day."""
    place = Place(*(job[part] for part in Place._fields))
    for day, sums in allocated(job):
        yield Use(
            key, place, day, fate(job["state"], exempt), {one: sums[name] for one, name in SUM_OF.items()}
        )


def _of_days(session: Session, wanted: Wanted, scope: Scope, pricing: Pricing) -> Iterator[Use]:
    table = AccountingDayRow
    starts = [wanted.since, *pricing.book.changes(wanted.since, wanted.until)]
    sums = {one: func.sum(getattr(table, SUM_OF[one])) for one in pricing.book.counted()}
    chosen, more = _classes(
        table,
        pricing,
        table.outcome,
        _span([(table.day >= day) for day in starts[1:]]),
    )
    chosen += [column.label(one) for one, column in sums.items()]
    for key, row in grouped(session, table, wanted, scope, chosen, more):
        yield _use(key, dict(row), starts, pricing, sums)


def _of_runs(session: Session, wanted: Wanted, scope: Scope, pricing: Pricing) -> Iterator[Use]:
    """Of the broker's runs: added up in the database where a job ran between two changes of prices, day by
    day where it ran over one, or over an end of the period.
    """
    table = AccountingJobRow
    starts = [wanted.since, *pricing.book.changes(wanted.since, wanted.until)]
    first, *changes, last = (_epoch(day) for day in (*starts, wanted.until))
    keys = [_job_column(name) for name in wanted.by]
    conditions = [table.run_id.is_not(None), table.start_at < last, table.counted_to > first]
    conditions += [same(_job_column(name), value) for name, value in wanted.filters.items()]
    conditions += [table.tenant == scope.tenant] if scope.tenant is not None else []
    conditions += [table.user == scope.user] if scope.user is not None else []
    bounds = [first, *changes, last]
    within = or_(*(and_(table.start_at >= begin, table.counted_to <= end) for begin, end in pairwise(bounds)))
    whole = table.counted_to - table.start_at
    ran = case((and_(table.end_at.is_not(None), table.elapsed_s < whole), table.elapsed_s), else_=whole)
    sums = {one: func.sum(ran * getattr(table, _HAD[one])) for one in pricing.book.counted()}
    chosen, more = _classes(table, pricing, table.state, _span([(table.start_at >= at) for at in changes]))
    named = [column.label(f"key_{at}") for at, column in enumerate(keys)]
    query = select(*named, *chosen, *(column.label(one) for one, column in sums.items()))
    for row in session.execute(query.where(*conditions, within).group_by(*keys, *more)).mappings():
        key = tuple(str(row[f"key_{at}"]) for at in range(len(keys)))
        yield _use(key, dict(row), starts, pricing, sums)
    columns = [getattr(table, name) for name in (*_JOB, "state", *Place._fields)]
    for row in session.execute(select(*named, *columns).where(*conditions, ~within)).mappings():
        key = tuple(str(row[f"key_{at}"]) for at in range(len(keys)))
        for use in of_job(dict(row), key, pricing.exempt):
            if wanted.since <= use.day < wanted.until:
                yield use


def _classes(
    table: type[AccountingDayRow] | type[AccountingJobRow],
    pricing: Pricing,
    outcome: Any,
    span: ColumnElement[Any] | None,
) -> tuple[list[ColumnElement[Any]], list[Any]]:
    """What tells use of different prices apart: columns, and what to group by. PostgreSQL takes an expression
    with parameters for another one when it comes again, so these are grouped by their names.
    """
    places = [getattr(table, part) for part in pricing.book.parts()]
    known = case(
        *([(outcome.in_(pricing.exempt), Fate.EXEMPT.value)] if pricing.exempt else []),
        (outcome.in_(FAULTS), Fate.FAULT.value),
        else_=Fate.OWN.value,
    )
    spans = [] if span is None else [span.label(_SPAN)]
    chosen = [*(column.label(f"at_{column.key}") for column in places), known.label(_FATE), *spans]
    return chosen, [*places, literal_column(_FATE), *(literal_column(_SPAN) for _ in spans)]


def _span(begun: Sequence[ColumnElement[bool]]) -> ColumnElement[Any] | None:
    """How many changes of prices had come; None: there is none in the period."""
    if not begun:
        return None
    return case(*((begun[at - 1], at) for at in range(len(begun), 0, -1)), else_=0)


def _use(
    key: tuple[str, ...],
    row: Mapping[str, Any],
    starts: Sequence[date],
    pricing: Pricing,
    sums: Mapping[Resource, Any],
) -> Use:
    place = Place()._replace(**{part: row[f"at_{part}"] for part in pricing.book.parts()})
    day = starts[row[_SPAN]] if len(starts) > 1 else starts[0]
    return Use(key, place, day, Fate(row[_FATE]), {one: int(row[one] or 0) for one in sums})


def _job_column(name: str) -> Any:
    return getattr(AccountingJobRow, {RUN: "run_id", "outcome": "state"}.get(name, name))


def _epoch(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
