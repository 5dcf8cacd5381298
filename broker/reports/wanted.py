"""What a report is asked for, by whom, and the order of its lines.

A line is a group of rows; its figures come from the group's sums (`definitions`). Lines are made of all
groups and cut to the limit afterwards, so the total is the whole's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Final, overload

from sqlalchemy import ColumnElement, Integer, false
from typing_extensions import override

from broker.identity import Principal, Role
from broker.reports.measures import Measure, Report, Sums, Value
from broker.settings import QuotaSettings

COLUMNS: Final = (
    *("cluster", "tenant", "user", "partition", "qos", "gpu_type", "gpu_count", "size", "wait", "outcome"),
)
"""Dimensions that are columns of the sums; each is a filter too."""
PERIODS: Final = ("day", "week", "month", "quarter", "year")
DIMENSIONS: Final = (*COLUMNS, *PERIODS)
_OUTCOME: Final = "outcome"
EARLIEST: Final = date(1990, 1, 1)
LATEST: Final = date(2200, 1, 1)
"""Between these days lies every period that may be asked for."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose jobs may be seen: of this tenant, of this person; None: no bound."""

    tenant: str | None = None
    user: str | None = None

    def __str__(self) -> str:
        """What a reader is told."""
        return f"user {self.user}" if self.user else f"tenant {self.tenant}" if self.tenant else "all"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for. `since` is in the period, `until` is not (days, UTC). `quotas`: the settings, which
    hold for tenants without numbers of their own.
    """

    report: Report
    since: date
    until: date
    by: tuple[str, ...]
    filters: Mapping[str, str] = field(default_factory=dict)
    sort: str | None = None
    quotas: QuotaSettings = field(default_factory=QuotaSettings)


@dataclass(frozen=True, slots=True)
class Group:
    """A line's key, by dimension, and its sums."""

    key: Mapping[str, str]
    sums: Sums


class Groups(Sequence[Group]):
    """Groups that know by themselves what they are together, and how to stand in order: there are too many to
    be made one by one. Those that are looked at are made together.
    """

    @overload
    def __getitem__(self, index: int) -> Group: ...

    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...

    @override
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, int):
            return self.made(range(len(self))[index:][:1])[0]
        return self.made(range(len(self))[index])

    @override
    def __iter__(self) -> Iterator[Group]:
        return iter(self[:])

    @abstractmethod
    def made(self, places: range) -> list[Group]:
        """Those at these places, in this order."""

    @abstractmethod
    def whole(self) -> Sums:
        """The sums of all."""

    @abstractmethod
    def ordered(self, measure: Measure | None) -> Groups:
        """In the order of this figure, the most first; by their keys where there is none."""


def scope_of(principal: Principal) -> Scope:
    """What a person may see: an admin all, who looks at the tenant the tenant's, the others their own."""
    if principal.is_admin:
        return Scope()
    if principal.role in (Role.TENANT_ADMIN, Role.VIEWER):
        return Scope(tenant=principal.tenant)
    return Scope(tenant=principal.tenant, user=principal.username)


def dimensions(report: Report) -> tuple[str, ...]:
    """What a report can be split by: waits are of jobs that have begun, not of how they ended."""
    if report.dimensions:
        return report.dimensions
    waits = any(measure.histograms for measure in report.measures)
    return tuple(name for name in DIMENSIONS if not (waits and name == _OUTCOME))


def whole(made: Sequence[Group]) -> Sums:
    """The sums of all groups together; their texts belong to each alone."""
    if isinstance(made, Groups):
        return made.whole()
    numbers: dict[str, float] = {}
    histograms: dict[str, dict[str, int]] = {}
    for group in made:
        for name, value in group.sums.numbers.items():
            numbers[name] = numbers.get(name, 0) + value
        for name, counts in group.sums.histograms.items():
            _add(histograms.setdefault(name, {}), counts)
    return Sums(numbers, histograms)


def same(column: Any, value: str) -> ColumnElement[bool]:
    """Whether a column has the value that a filter names; a number is compared as one."""
    if not isinstance(column.type, Integer):
        return column == value  # type: ignore[no-any-return]
    return column == int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else false()


def _add(into: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        into[name] = into.get(name, 0) + (int(value) if value is not None else 0)


def ordered(made: Sequence[Group], wanted: Wanted) -> Sequence[Group]:
    """By time where time is asked for, else the most first (texts: A to Z); what is unknown comes last."""
    by_time = any(name in PERIODS for name in wanted.by) and wanted.sort is None
    measures = {measure.name: measure for measure in wanted.report.measures}
    first = measures[wanted.sort] if wanted.sort else wanted.report.measures[0]
    if isinstance(made, Groups):
        return made.ordered(None if by_time else first)
    if by_time:
        return sorted(made, key=lambda group: tuple(group.key.values()))
    total = whole(made)
    return sorted(made, key=lambda group: (*rank(first.compute(group.sums, total)), *group.key.values()))


def rank(value: Value) -> tuple[bool, float, str]:
    """Where a figure stands among others."""
    size, words = (0.0, value) if isinstance(value, str) else (-(value or 0.0), "")
    return value is None, size, words


def period_name(name: str, day: date) -> str:
    """The name of the day, ISO week, month, quarter or year that a day is in; names sort by time.

    >>> [period_name(one, date(2026, 1, 1)) for one in PERIODS]
    ['2026-01-01', '2026-W01', '2026-01', '2026-Q1', '2026']
    """
    if name == "week":
        year, week, _ = day.isocalendar()
        return f"{year}-W{week:02d}"
    quarter = f"{day.year}-Q{(day.month + 2) // 3}"
    return {"day": f"{day}", "month": f"{day:%Y-%m}", "quarter": quarter, "year": f"{day.year}"}[name]


def period_bounds(name: str, label: str) -> tuple[date, date]:
    """The first day of a named period, and the first day after it.

    >>> period_bounds("quarter", "2026-Q4") == (date(2026, 10, 1), date(2027, 1, 1))
    True
    """
    if name == "day":
        first = date.fromisoformat(label)
        return first, first + timedelta(days=1)
    if name == "week":
        first = date.fromisocalendar(int(label[:4]), int(label[-2:]), 1)
        return first, first + timedelta(days=7)
    year = int(label[:4])
    if name == "year":
        return date(year, 1, 1), date(year + 1, 1, 1)
    first_month, months = (int(label[-2:]), 1) if name == "month" else (int(label[-1]) * 3 - 2, 3)
    after = first_month + months
    return date(year, first_month, 1), date(year + after // 13, (after - 1) % 12 + 1, 1)
