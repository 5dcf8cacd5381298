"""Periods as people name them: `--last`, or `--since` and `--until`."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final

import typer

from broker.errors import InvalidRequest

LAST: Final = ("day", "week", "month", "quarter", "year")
Last = Annotated[
    str | None,
    typer.Option("--last", metavar="PERIOD", help=f"The last whole one (UTC): {', '.join(LAST)}."),
]
Since = Annotated[str | None, typer.Option("--since", metavar="DATE", help="First day (UTC): `2026-11-01`.")]
Until = Annotated[
    str | None, typer.Option("--until", metavar="DATE", help="First day that is not in it any more.")
]


def today() -> date:
    """The day that it is (UTC)."""
    return datetime.now(UTC).date()


def last_whole(period: str, day: date) -> tuple[date, date]:
    """The last whole period (UTC) before the one that a day lies in: its first day, and the first after it.

    >>> [f"{day}" for day in last_whole("quarter", date(2026, 1, 3))]
    ['2025-10-01', '2026-01-01']
    """
    if period == "day":
        return day - timedelta(days=1), day
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return monday - timedelta(days=7), monday
    months = {"month": 1, "quarter": 3, "year": 12}[period]
    count = (day.year * 12 + day.month - 1) // months * months
    after, first = (date(at // 12, at % 12 + 1, 1) for at in (count, count - months))
    return first, after


def chosen_period(last: str | None, since: str | None, until: str | None) -> dict[str, str | None]:
    """`--last`, or `--since` and `--until`, as the API takes them."""
    if last is None:
        return {"since": chosen_day("--since", since), "until": chosen_day("--until", until)}
    if since or until:
        raise InvalidRequest("--last names the whole period: leave out --since and --until")
    if last not in LAST:
        raise InvalidRequest(f"--last {last}: there is no such period; there are: {', '.join(LAST)}")
    first, after = last_whole(last, today())
    return {"since": f"{first}", "until": f"{after}"}


def chosen_day(option: str, word: str | None) -> str | None:
    """The day that an option names.

    >>> chosen_day("--since", "2026-11-01"), chosen_day("--since", None)
    ('2026-11-01', None)
    """
    try:
        return f"{date.fromisoformat(word)}" if word is not None else None
    except ValueError:
        raise InvalidRequest(f"{option} {word}: write a day (UTC) like 2026-11-01") from None
