"""The days and months in which use is counted: UTC, always. Pure.

A period is named by text that sorts by time: `2026-11-21`, `2026-11`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def day_of(at: datetime) -> str:
    """The day of a moment.

    >>> day_of(datetime(2026, 11, 21, 23, 59, tzinfo=UTC))
    '2026-11-21'
    """
    return at.astimezone(UTC).date().isoformat()


def month_of(at: datetime) -> str:
    """The month of a moment."""
    return day_of(at)[:7]


def next_day(at: datetime) -> datetime:
    """The first moment of the day after: when counters of the day begin at nothing."""
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=1)


def next_month(at: datetime) -> datetime:
    """The first moment of the month after."""
    return bounds(month_of(at))[1]


def bounds(month: str) -> tuple[datetime, datetime]:
    """The first moment of a month and of the one after. Raises ValueError for what is no month.

    >>> [f"{at:%Y-%m-%d}" for at in bounds("2026-12")]
    ['2026-12-01', '2027-01-01']
    """
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    return first, (first + timedelta(days=31)).replace(day=1)


def moment_text(at: datetime) -> str:
    """A moment as the sentences of this package name it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
