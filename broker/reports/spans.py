"""Spans of time: cut to a period, without what another one covers, by day (UTC). Pure; epoch seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from functools import lru_cache
from typing import Final

DAY_S: Final = 86_400
_EPOCH: Final = date(1970, 1, 1).toordinal()
Span = tuple[int, int]
"""From its first second to the first after it."""


def cut(span: Span, period: Span) -> Span | None:
    """The part of a span within a period.

    >>> cut((0, 10), (5, 20)), cut((0, 5), (5, 20))
    ((5, 10), None)
    """
    start, end = max(span[0], period[0]), min(span[1], period[1])
    return (start, end) if start < end else None


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time in as few spans as possible, in order.

    >>> merged([(5, 9), (0, 5), (7, 8), (20, 21)])
    [(0, 9), (20, 21)]
    """
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif start < end:
            found.append((start, end))
    return found


def without(span: Span, others: Iterable[Span]) -> Iterator[Span]:
    """What is left of a span; `others` as `merged` gives them.

    >>> list(without((0, 10), [(2, 3), (8, 20)]))
    [(0, 2), (3, 8)]
    """
    at, end = span
    for start, after in others:
        if after <= at:
            continue
        if start >= end:
            break
        if start > at:
            yield at, start
        at = after
    if at < end:
        yield at, end


def by_day(span: Span) -> Iterator[tuple[date, int]]:
    """The seconds of each day (UTC) that a span touches.

    >>> [(f"{day}", seconds) for day, seconds in by_day((86_000, 87_000))]
    [('1970-01-01', 400), ('1970-01-02', 600)]
    """
    return ((day_numbered(number), seconds) for number, seconds in seconds_by_day(*span))


def seconds_by_day(begin: int, end: int) -> list[tuple[int, int]]:
    """The same, the days as numbers (0: 1970-01-01).

    >>> seconds_by_day(86_000, 87_000), seconds_by_day(5, 5)
    ([(0, 400), (1, 600)], [])
    """
    number = begin // DAY_S
    if begin < end <= (number + 1) * DAY_S:  # as nearly all of them
        return [(number, end - begin)]
    found = []
    while begin < end:
        after = min(end, (number + 1) * DAY_S)
        found.append((number, after - begin))
        begin, number = after, number + 1
    return found


@lru_cache(4096)  # ten years
def day_numbered(number: int) -> date:
    """The day with a number."""
    return date.fromordinal(_EPOCH + number)
