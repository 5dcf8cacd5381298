"""Fair shares as they were at the last look within a period, or within each day, week, … of it, for whom one
may see.

Each day of a year of people is a few hundred thousand lines: the database groups, orders and counts them, and
what is shown is fetched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, and_, case, cast, extract, false, func, or_, select
from sqlalchemy.orm import Session
from typing_extensions import override

from broker.accounting.event_tables import AccountingLookRow, AccountingShareRow
from broker.accounting.looks import SHARES
from broker.accounting.schemas import Source
from broker.reports.definitions_cluster import LINE
from broker.reports.measures import TEXTS, Measure, Sums
from broker.reports.spans import DAY_S
from broker.reports.wanted import PERIODS, Group, Groups, Scope, Wanted, period_name

_NUMBERS: Final = ("level_fs", "fair_share", "norm_shares", "effective_usage", "raw_usage")
_DAY: Final = "day"
_PLACES: Final[dict[str, Callable[[Any], ColumnElement[Any]]]] = {
    _DAY: lambda day: day,
    "week": lambda day: (cast(extract("epoch", day), BigInteger) // DAY_S + 3) // 7,  # day 0 is a Thursday
    "month": lambda day: extract("year", day) * 12 + extract("month", day),
    "quarter": lambda day: extract("year", day) * 4 + (cast(extract("month", day), BigInteger) + 2) // 3,
    "year": lambda day: extract("year", day),
}
"""The place of the period that a day is in, in the order of time."""
Row = AccountingShareRow


def share_groups(session: Session, wanted: Wanted, scope: Scope) -> Sequence[Group]:
    """People's associations where people are asked for, or may be seen alone; else the accounts'."""
    within = [Row.day >= wanted.since, Row.day < wanted.until]
    within += [getattr(Row, name) == value for name, value in wanted.filters.items() if name == "cluster"]
    people = "user" in {*wanted.by, *wanted.filters} or scope.user is not None
    seen = [Row.unix_user != "" if people else Row.unix_user == ""]
    seen += [getattr(Row, name) == value for name, value in wanted.filters.items()]
    seen += [Row.tenant == scope.tenant] if scope.tenant is not None else []
    seen += [Row.user == scope.user] if scope.user is not None else []
    if _DAY not in wanted.by:  # else every look is its day's last
        within = [_last_looks(session, wanted, within)]
    return Shares(session, wanted, (*within, *seen))


def _last_looks(
    session: Session, wanted: Wanted, within: Sequence[ColumnElement[bool]]
) -> ColumnElement[bool]:
    """Whether a row is of its cluster's last look within one of the periods."""
    periods = [name for name in wanted.by if name in PERIODS]
    looks = select(Row.cluster, Row.day).where(*within).distinct().order_by(Row.cluster, Row.day)
    last: dict[tuple[str, ...], tuple[str, date]] = {}
    for cluster, day in session.execute(looks):
        last[cluster, *(period_name(name, day) for name in periods)] = (cluster, day)
    days = defaultdict(list)
    for cluster, day in last.values():
        days[cluster].append(day)
    return or_(false(), *(and_(Row.cluster == name, Row.day.in_(some)) for name, some in days.items()))


@dataclass(frozen=True)
class Shares(Groups):
    """Lines as the database makes them. `measure`: it orders them."""

    session: Session
    wanted: Wanted
    chosen: Sequence[ColumnElement[bool]]
    measure: Measure | None = None

    def _keys(self) -> list[ColumnElement[Any]]:
        """What lines are told apart by: a day says which week it is of."""
        periods = [name for name in self.wanted.by if name in PERIODS]
        told = {_DAY} if _DAY in periods else periods
        return [
            _PLACES[name](Row.day) if name in told else getattr(Row, name)
            for name in self.wanted.by
            if name in told or name not in periods
        ]

    @override
    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        # GROUP BY, for SQLite takes four times as long for DISTINCT.
        lines = select(func.count()).select_from(Row).where(*self.chosen).group_by(*self._keys()).subquery()
        return self.session.scalar(select(func.count()).select_from(lines)) or 0

    @override
    def made(self, places: range) -> list[Group]:
        """One after the other: the database skips to the first."""
        if places.step != 1:
            return [group for place in places for group in self.made(range(place, place + 1))]
        names = [name for name in self.wanted.by if name not in PERIODS]
        query = (
            select(*_sums(), func.max(Row.day), *(getattr(Row, name) for name in names))
            .where(*self.chosen)
            .group_by(*self._keys())
            .order_by(*self._order())
            .offset(places.start)
            .limit(len(places))
        )
        groups = []
        for taken_at, lines, *more in self.session.execute(query):
            numbers, (day, *values) = more[: len(_NUMBERS)], more[len(_NUMBERS) :]
            known = dict(zip(names, values, strict=True))
            key = {name: known[name] if name in known else period_name(name, day) for name in self.wanted.by}
            seen = datetime.fromtimestamp(taken_at, UTC).isoformat().replace("+00:00", "Z")
            groups.append(Group(key, replace(_added_up(lines, numbers), texts={"seen": seen})))
        return groups

    def _order(self) -> list[ColumnElement[Any]]:
        """As `wanted.rank` has it: the most first, what is unknown last; then by their keys."""
        day = Row.day if _DAY in self.wanted.by else func.max(Row.day)
        keys = [_PLACES[name](day) if name in PERIODS else getattr(Row, name) for name in self.wanted.by]
        if self.measure is None:
            return keys
        if self.measure.unit in TEXTS:
            return [func.max(Row.taken_at), *keys]
        alone = case((func.count() == 1, func.max(getattr(Row, self.measure.name))))
        return [alone.desc().nulls_last(), *keys]

    @override
    def whole(self) -> Sums:
        return self._whole

    @cached_property
    def _whole(self) -> Sums:
        lines = self.session.scalar(select(func.count()).select_from(Row).where(*self.chosen)) or 0
        only = self.made(range(1)) if lines == 1 else []
        return replace(only[0].sums, texts={}) if only else _added_up(lines, ())

    @override
    def ordered(self, measure: Measure | None) -> Shares:
        return replace(self, measure=measure)


def _sums() -> list[ColumnElement[Any]]:
    """When they were looked at last, how many associations they are, the numbers (if it is one: its own)."""
    return [func.max(Row.taken_at), func.count(), *(func.max(getattr(Row, name)) for name in _NUMBERS)]


def _added_up(lines: int, numbers: Sequence[float | None]) -> Sums:
    """The numbers of one association; of several there are none, but that they are several."""
    known = zip(_NUMBERS, numbers, strict=True) if lines == 1 else ()
    return Sums({LINE: float(lines)} | {name: value for name, value in known if value is not None})


def shares_ages(session: Session) -> list[Source]:
    """When each cluster's shares were looked at last."""
    looks = select(AccountingLookRow).where(AccountingLookRow.what == SHARES)
    return [
        Source(
            cluster=row.cluster,
            complete_until=datetime.fromtimestamp(row.read_to, UTC),
            read_until=datetime.fromtimestamp(row.read_to, UTC),
            trouble=row.trouble is not None,
        )
        for row in session.scalars(looks.order_by(AccountingLookRow.cluster))
    ]
