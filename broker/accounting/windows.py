"""Which part of the past is asked for next. Pure: the cursor's arithmetic, in epoch seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from broker.errors import BrokerError
from broker.settings import AccountingSettings

FIRST_WINDOW_S = 3600
LEAST_WINDOW_S = 60
MOST_WINDOW_S = 31 * 86_400
FEW_JOBS, MANY_JOBS = 5_000, 20_000
"""A window with fewer is doubled, one with more is halved: the answer's size is what costs memory, and a job
that runs through several windows is read in each.
"""
SLOW_S = 15.0
AGAIN_AFTER_TROUBLE_S = 3600
AGAIN_DAILY_S = 86_400
_TOO_WIDE = "date range"
"""Of "Too wide of a date range in query" (slurm_errno.c; `MaxQueryTimeRange`)."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far was read: the columns of `AccountingCursorRow`."""

    settled_to: int
    read_to: int
    window_s: int = FIRST_WINDOW_S
    again_from: int | None = None
    again_at: int | None = None
    jobs: int = 0
    bad_rows: int = 0
    trouble: str | None = None


def started(cursor: Cursor | None, now: int, settings: AccountingSettings) -> Cursor:
    """Where a tick begins: at the cursor, further back when it is time to read again, or with history.

    What slurmdbd was told late is found by reading again: an hour after it came back, and daily.
    """
    if cursor is None:
        first = now - max(settings.history_days * 86_400, settings.overlap_s)  # of nothing no tick would end
        return Cursor(settled_to=first, read_to=first)
    if cursor.trouble or cursor.again_at is None or cursor.again_from is None or now < cursor.again_at:
        return cursor
    return replace(
        cursor, settled_to=min(cursor.settled_to, cursor.again_from), again_from=None, again_at=None
    )


def after(cursor: Cursor, end: int, now: int, settings: AccountingSettings) -> Cursor:
    """The cursor when everything up to `end` is stored: it stays the overlap behind the present."""
    settled = max(cursor.settled_to, min(end, now - settings.overlap_s))
    moved = replace(cursor, settled_to=settled, read_to=max(cursor.read_to, end), trouble=None)
    if cursor.trouble:
        return replace(moved, again_at=now + AGAIN_AFTER_TROUBLE_S)
    if end >= now and moved.again_at is None:
        return replace(moved, again_from=settled, again_at=now + AGAIN_DAILY_S)
    return moved


def adapted(cursor: Cursor, jobs: int, seconds: float) -> Cursor:
    """The next window's width, by how much this one gave and how long it took."""
    width = cursor.window_s
    if jobs > MANY_JOBS or seconds > SLOW_S:
        width = max(width // 2, LEAST_WINDOW_S)
    elif jobs < FEW_JOBS and seconds < SLOW_S / 4:
        width = min(width * 2, MOST_WINDOW_S)
    return replace(cursor, window_s=width, jobs=cursor.jobs + jobs)


def too_wide(cursor: Cursor, error: BrokerError) -> Cursor | None:
    """The cursor with half the window where Slurm refused its width; None: that is not the trouble."""
    if _TOO_WIDE not in error.detail or cursor.window_s <= LEAST_WINDOW_S:
        return None
    return replace(cursor, window_s=max(cursor.window_s // 2, LEAST_WINDOW_S))


def interrupted(cursor: Cursor, now: int, trouble: str) -> Cursor:
    """The cursor when a look failed: it stays, and from there is read again an hour after the first look that
    succeeds, when slurmctld has told slurmdbd all that it had kept for it.
    """
    return replace(
        cursor,
        window_s=max(cursor.window_s // 2, LEAST_WINDOW_S),
        again_from=min(cursor.settled_to, cursor.again_from or cursor.settled_to),
        again_at=now + AGAIN_AFTER_TROUBLE_S,
        trouble=trouble,
    )
