"""How tenants stand against their quotas, and the day a quota runs out. Pure, but for `standings`.

What is used comes from the quotas' own ledger, never from Slurm's RawUsage, which decays. A forecast is a
straight line: it goes on from what is used and set aside at the mean rate of the last 7 days, and at that of
the last 28; the two days it gives are a range. It ends with the period: then every quota begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

DAY: Final = timedelta(days=1)
RECENT: Final = timedelta(days=7)
LONGER: Final = timedelta(days=28)


@dataclass(frozen=True, slots=True)
class Use:
    """An amount that was used evenly from `begin` to `end`."""

    begin: datetime
    end: datetime
    amount: float

    def within(self, first: datetime, after: datetime) -> float:
        """The part of it between two moments."""
        length = (self.end - self.begin).total_seconds()
        if length <= 0:
            return self.amount if first <= self.end < after else 0.0
        overlap = (min(self.end, after) - max(self.begin, first)).total_seconds()
        return self.amount * max(0.0, overlap) / length


@dataclass(frozen=True, slots=True)
class Rates:
    """Mean amounts per day: over the recent days, and over a longer time. None: nothing was used yet."""

    recent: float | None
    longer: float | None

    @property
    def known(self) -> Sequence[float]:
        """Those that are known, the highest first."""
        return sorted((rate for rate in (self.recent, self.longer) if rate is not None), reverse=True)


@dataclass(frozen=True, slots=True)
class Outlook:
    """When a quota runs out: days (UTC). `known` False: nobody knows; a day that is None lies beyond the
    period's end, so it is not reached.
    """

    known: bool
    earliest: date | None = None
    latest: date | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A tenant and one resource in the present period, which ends at `until`. Amounts in the unit that people
    read (GPU hours, GiB, calls); rates per day.
    """

    tenant: str
    resource: str
    limit: float
    used: float
    reserved: float
    until: datetime
    rates: Rates
    outlook: Outlook


def mean_per_day(
    uses: Iterable[Use], first_use: datetime | None, now: datetime, over: timedelta
) -> float | None:
    """The mean amount per day in the time `over` before `now`; None where nothing was ever used.

    Where the first use is younger than that, only the time since it counts, but no less than a day: who
    began two days ago uses more a day than a quarter of that, and who began an hour ago not 24 times as much.
    """
    if first_use is None or first_use >= now:
        return None
    span = max(DAY, min(over, now - first_use))
    begin = now - min(over, span)
    return sum(use.within(begin, now) for use in uses) / (span / DAY)


def mean_of_counts(counts: Sequence[tuple[timedelta, float]]) -> float | None:
    """The mean amount per day of counters, each of so much time; None where they have counted nothing.

    >>> mean_of_counts([(timedelta(days=2), 10.0), (timedelta(days=8), 10.0)])
    2.0
    """
    span = sum((length for length, _ in counts), timedelta())
    total = sum(amount for _, amount in counts)
    return total / (max(span, DAY) / DAY) if total else None


def reached(total: float, limit: float, rate: float, now: datetime, until: datetime) -> date | None:
    """The day on which `total` comes to `limit` at a rate per day; None: not before `until`.

    >>> now, until = datetime(2026, 11, 10, 12, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    >>> [str(reached(total, 100, rate, now, until)) for total, rate in ((60, 4), (60, 1), (100, 0))]
    ['2026-11-20', 'None', '2026-11-10']
    """
    if total >= limit:
        return now.astimezone(UTC).date()
    left = (until - now) / DAY
    days = (limit - total) / rate if rate > 0 else left
    return (now + days * DAY).astimezone(UTC).date() if days < left else None


def outlook(total: float, limit: float, rates: Rates, now: datetime, until: datetime) -> Outlook:
    """The range of days on which a quota runs out at the known rates. What is used up is used up today."""
    if total >= limit:
        today = reached(total, limit, 0, now, until)
        return Outlook(True, today, today)
    known = rates.known
    if not known:
        return Outlook(False)
    days = [reached(total, limit, rate, now, until) for rate in known]
    return Outlook(True, days[0], days[-1])


def in_words(day: date | None, *, known: bool, until: datetime) -> str | None:
    """What a reader is told: a day, that it is not before the period's end, or nothing."""
    if not known:
        return None
    return f"not before {until.astimezone(UTC):%Y-%m-%d}" if day is None else f"{day}"
