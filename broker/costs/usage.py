"""What there is to be paid for, read from the warehouse: from the sums per day, or job by job for runs.

Use is added up over all days on which no price changes, by line and by what prices name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
from sqlalchemy import and_, case, func, literal_column, or_, select
from sqlalchemy.orm import Session

from broker.accounting.buckets import allocated
from broker.accounting.tables import AccountingJobRow
from broker.costs.columns import OUTCOME, SPAN, Costs, costs_of
from broker.costs.corrections import Correction
from broker.costs.pricing import ANY, SUM_OF, Place, PriceBook, Resource, Use, fate
from broker.reports import days
from broker.reports.jobs import has_type
from broker.reports.measures import Report
from broker.reports.wanted import COLUMNS, PERIODS, Scope, Wanted, same

RUN: Final = "run"
BY: Final = (*(name for name in COLUMNS if name not in ("gpu_count", "size", "wait")), RUN, *PERIODS)
"""How costs can be split."""
COSTS: Final = Report("costs", "Costs", "비용", ("tenant",), ())
HAD: Final = {
    Resource.CORE: "cpus",
    Resource.GPU: "gpu_count",
    Resource.MEMORY: "mem_mib",
    Resource.BILLING: "billing",
}
"""What a job had of a resource (`accounting_jobs`)."""
_PAGE: Final = 1000
_JOB: Final = (
    *("start_at", "counted_to", "elapsed_s"),
    *("cpus", "gpu_count", "gpu_types", "mem_mib", "billing"),
)


@dataclass(frozen=True, slots=True)
class Pricing:
    """By which prices, which ends are not charged, and which prices it went by before."""

    book: PriceBook
    exempt: Sequence[str] = ()
    corrected: Sequence[Correction] = ()

    def corrections(self, wanted: Wanted) -> list[Correction]:
        """Those with which an answer about a period, and the places that it is narrowed to, was another."""
        place = Place(*(wanted.filters.get(part, ANY) for part in Place._fields))
        return [one for one in self.corrected if one.touches(wanted.since, wanted.until, place)]


def costs(
    session: Session, wanted: Wanted, scope: Scope, pricing: Pricing, *, places: bool = False
) -> Costs | None:
    """The use of a period, priced; None: there was none. `places`: say where what is unpriced was."""
    starts = [wanted.since, *pricing.book.changes(wanted.since, wanted.until)]
    if RUN in wanted.by:
        table = _of_runs(session, wanted, scope, pricing.book, starts)
    else:
        columns = [*SUM_OF.values(), *pricing.book.parts(), OUTCOME]
        spans = {SPAN: lambda day: bisect_right(starts, day) - 1}
        table = days.rows(session, "days", wanted, scope, columns, spans)
    if table is None:
        return None
    return costs_of(table, wanted.by, pricing.book, pricing.exempt, starts, places=places)


def of_job(job: Mapping[str, Any], key: tuple[str, ...], exempt: Sequence[str]) -> Iterator[Use]:
    """The use of one job (columns of `AccountingJobRow` by name), by day and GPU type."""
    place = Place(*(job[part] for part in Place._fields))
    for day, kind, sums in allocated(job):
        found = {one: sums[name] for one, name in SUM_OF.items() if name in sums}
        yield Use(key, place._replace(gpu_type=kind), day, fate(job["state"], exempt), found)


def _of_runs(
    session: Session, wanted: Wanted, scope: Scope, book: PriceBook, starts: Sequence[date]
) -> pa.Table | None:
    """Of the broker's runs, as `costs_of` takes it: added up in the database where a job ran between two
    changes of prices, day by day where it ran over one, or over an end of the period, or had GPUs of several
    types.
    """
    table = AccountingJobRow
    names = list(dict.fromkeys([*wanted.by, *book.parts(), OUTCOME]))
    bounds = [_epoch(day) for day in (*starts, wanted.until)]
    only = wanted.filters.get("gpu_type")
    # every id is more than "": said so, SQLite finds the runs' jobs by their index
    conditions = [table.run_id > "", table.start_at < bounds[-1], table.counted_to > bounds[0]]
    conditions += [_fits(name, value) for name, value in wanted.filters.items()]
    conditions += [table.tenant == scope.tenant] if scope.tenant is not None else []
    conditions += [table.user == scope.user] if scope.user is not None else []
    between = [and_(table.start_at >= begin, table.counted_to <= end) for begin, end in pairwise(bounds)]
    span = case(*((condition, at) for at, condition in enumerate(between)), else_=-1).label(SPAN)
    whole = table.counted_to - table.start_at
    ran = case((table.elapsed_s < whole, table.elapsed_s), else_=whole)  # as `buckets.spread` has it
    sums = [func.sum(ran * getattr(table, had)).label(SUM_OF[one]) for one, had in HAD.items()]
    keys = [_job_column(name).label(f"key_{at}") for at, name in enumerate(names)]
    at_once = and_(or_(*between), table.gpu_types == "")
    query = select(*keys, span, *sums).where(*conditions, at_once)
    # PostgreSQL takes an expression with parameters for another one when it comes again: grouped by name
    grouped: list[Any] = [literal_column(one) for one in (*(f"key_{at}" for at in range(len(keys))), SPAN)]
    # page by page into columns: a hundred thousand rows at once keep the garbage collector busy
    found = session.connection().execute(query.group_by(*grouped))
    tables = [_table(names, page) for page in found.partitions(_PAGE)]
    rows: list[tuple[Any, ...]] = []
    columns = [getattr(table, name) for name in (*_JOB, "state", *Place._fields)]
    for row in session.execute(select(*keys, *columns).where(*conditions, ~at_once)).all():
        for use in of_job(dict(row._mapping), (), ()):
            if wanted.since <= use.day < wanted.until and only in (None, use.place.gpu_type):
                known = [use.place.gpu_type if name == "gpu_type" else row[n] for n, name in enumerate(names)]
                amounts = (use.sums.get(one, 0) for one in SUM_OF)
                rows.append((*known, bisect_right(starts, use.day) - 1, *amounts))
    if rows:
        tables.append(_table(names, rows))
    return pa.concat_tables(tables).combine_chunks() if tables else None


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Rows of keys, span and sums as columns."""
    columns = map(_array, zip(*rows, strict=True))
    return pa.table(dict(zip((*names, SPAN, *SUM_OF.values()), columns, strict=True)))


def _array(values: Sequence[Any]) -> pa.Array:
    """A column; sums come as decimals from some databases."""
    text = isinstance(values[0], str)
    return pa.array(values, pa.string()) if text else pa.array(list(map(int, values)), pa.int64())


def _fits(name: str, value: str) -> Any:
    """Jobs whose use may be what a filter names: a job with GPUs of several types is under each of them."""
    return has_type(value) if name == "gpu_type" else same(_job_column(name), value)


def _job_column(name: str) -> Any:
    return getattr(AccountingJobRow, {RUN: "run_id", "outcome": "state"}.get(name, name))


def _epoch(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
