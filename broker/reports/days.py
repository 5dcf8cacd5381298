"""Reports out of the days' sums (`Report.source` "days"): columns of all days, grouped by what is asked for.

A line is a group of rows; its figures come from the group's sums (`definitions`). There may be hundreds of
thousands: they stay columns, and become groups where they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.orm import Session
from typing_extensions import override

from broker.accounting import packed, wait_classes
from broker.reports.definitions import LOST
from broker.reports.grouping import Grouped, Label, group, labelled
from broker.reports.measures import Measure, Sums
from broker.reports.wanted import PERIODS, Group, Groups, Scope, Wanted, period_name

_OUTCOME: Final = "outcome"
_HISTOGRAMS: Final = {"wait": "waits", "slowdown": "slowdowns"}
"""The part of the sums (`packed.PARTS`) that a histogram is in."""
_PARTIAL: Final = {
    "lost_jobs": ("ended", _OUTCOME),
    "lost_core_s": ("core_s", _OUTCOME),
    "lost_gpu_s": ("gpu_s", _OUTCOME),
    "gpu_core_s": ("core_s", "gpu_count"),
    "gpu_ended": ("ended", "gpu_count"),
}
"""Sums over a part of the jobs: the column, and by what they are chosen: a lost outcome, GPUs."""
_NUMBERS: Final = frozenset({"gpu_count", "size", "wait"})
_BEGINNINGS: Final[Mapping[str, Callable[[date], date]]] = {
    "day": lambda day: day,
    "week": lambda day: day - timedelta(days=day.weekday()),
    "month": lambda day: day.replace(day=1),
    "quarter": lambda day: day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1),
    "year": lambda day: day.replace(month=1, day=1),
}


def groups(session: Session, wanted: Wanted, scope: Scope) -> Groups:
    """The groups of a report that is made of the days' sums."""
    measures = wanted.report.measures
    numbers = sorted({name for measure in measures for name in measure.numbers})
    table = rows(session, "days", wanted, scope, _columns(numbers))
    if table is None:
        return Lines(wanted, Grouped((), pa.array([], pa.int64()), {}, {}))
    counts = {}
    for name in sorted({name for measure in measures for name in measure.histograms}):
        found = rows(session, _HISTOGRAMS[name], wanted, scope, ("bucket", "jobs"))
        if found is not None:
            counts[name] = found
    return Lines(wanted, group(_with_partial(table, numbers), wanted.by, numbers, counts).filled())


def _columns(numbers: Sequence[str]) -> list[str]:
    """The columns that these sums are made of."""
    return sorted({part for name in numbers for part in _PARTIAL.get(name, (name,))})


def rows(
    session: Session,
    part: str,
    wanted: Wanted,
    scope: Scope,
    columns: Sequence[str],
    spans: Mapping[str, Callable[[date], int]] | None = None,
) -> pa.Table | None:
    """The rows that are asked for, and that may be seen; None: there are none at all.

    They have `columns` and the dimensions of `wanted.by`, times as the number of their first day; `spans`:
    more columns that follow from the day.
    """
    filters = dict(wanted.filters)
    cluster = filters.pop("cluster", None)
    wide = {*wanted.by, *filters, *columns}
    wide |= {name for name in ("tenant", "user") if getattr(scope, name) is not None}
    names = [name for name in packed.COLUMNS[part] if name in wide]
    days = packed.read(session, part, names, wanted.since, wanted.until, cluster)
    places = {name: period_place(name) for name in wanted.by if name in PERIODS} | dict(spans or {})
    table = labelled(days, places, cluster="cluster" in {*wanted.by, *columns})
    if table is None:
        return None
    bounds = [*filters.items(), ("tenant", scope.tenant), ("user", scope.user)]
    for name, value in bounds:
        if value is not None:
            table = table.filter(_same(table[name], name, value))
    return table if table.num_rows else None


def period_place(name: str) -> Callable[[date], int]:
    """The number of the first day of the week, month, … that a day is in."""
    return lambda day: _BEGINNINGS[name](day).toordinal()


def _same(column: Any, name: str, value: str) -> Any:
    """Which rows have the value that a filter names; a number is compared as one."""
    if name not in _NUMBERS:
        return pc.equal(column.cast(pa.string()), value)
    if name == "wait":
        return pc.equal(column, wait_classes.NAMES.index(value) if value in wait_classes.NAMES else -1)
    known = value.isascii() and value.isdecimal() and len(value) < 10
    return pc.equal(column, int(value) if known else -1)


def _with_partial(days: pa.Table, numbers: Sequence[str]) -> pa.Table:
    for name in numbers:
        if name in _PARTIAL:
            column, by = _PARTIAL[name]
            chosen = (
                pc.is_in(days[by].cast(pa.string()), pa.array(LOST))
                if by == _OUTCOME
                else pc.greater(days[by], 0)
            )
            days = days.append_column(name, pc.if_else(chosen, days[column], 0))
    return days


@dataclass(frozen=True)
class Lines(Groups):
    """Groups that are columns until they are looked at. `order`: their places, None: as they stand."""

    wanted: Wanted
    grouped: Grouped
    order: Sequence[int] | None = None

    @override
    def __len__(self) -> int:
        return len(self.grouped.keys)

    @override
    def made(self, places: range) -> list[Group]:
        return self._made(places if self.order is None else [self.order[place] for place in places])

    def _made(self, places: Sequence[int]) -> list[Group]:
        """Those at these places among the columns."""
        at = pa.array(places, pa.int64())
        keys = self.grouped.keys.take(at).to_pylist()
        columns = {name: column.take(at).to_pylist() for name, column in self.grouped.columns.items()}
        histograms = self.grouped.histograms(keys)
        return [
            Group(
                dict(
                    zip(self.wanted.by, map(label, self.wanted.by, self.grouped.labels_of(key)), strict=True)
                ),
                Sums({name: column[n] or 0 for name, column in columns.items()}, histograms[key]),
            )
            for n, key in enumerate(keys)
        ]

    @override
    def whole(self) -> Sums:
        return self._whole

    @cached_property
    def _whole(self) -> Sums:
        return Sums(self.grouped.totals(), self.grouped.whole())

    @override
    def ordered(self, measure: Measure | None) -> Lines:
        """By their keys; by a figure, the most first, where one is given."""
        if measure is None:
            return Lines(self.wanted, self.grouped)
        if measure.quantile is not None:
            figures = self.grouped.quantiles(measure.histograms[0], measure.quantile)
        else:
            total, one = self.whole(), _Row(self.grouped)
            values = [measure.compute(one, total) for one.place in range(len(self))]  # type: ignore[arg-type]
            figures = pa.array(values, pa.float64())
        order = pc.array_sort_indices(figures, order="descending", null_placement="at_end")
        return Lines(self.wanted, self.grouped, order.to_pylist())


class _Row:
    """The sums of one place after the other, as a measure asks for them: nothing is made for each."""

    def __init__(self, grouped: Grouped) -> None:
        self.place = 0
        self._columns = {name: column.to_pylist() for name, column in grouped.columns.items()}

    def __getitem__(self, name: str) -> float:
        column = self._columns.get(name)
        return (column[self.place] or 0) if column is not None else 0


def label(name: str, value: Label) -> str:
    """What a dimension's value is called."""
    if name == "wait":
        return wait_classes.NAMES[int(value)]
    return period_name(name, date.fromordinal(int(value))) if name in PERIODS else str(value)
