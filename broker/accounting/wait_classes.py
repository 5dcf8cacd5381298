"""How long jobs waited, in a few classes: a dimension of reports (`wait`). Pure.

The sums keep a class as its place in `WAIT_CLASSES`: after a bound was changed they are made anew
(`broker accounting rebuild`).
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, NamedTuple


class WaitClass(NamedTuple):
    """Waits of less than `below_s` seconds that no class before it holds; None: of any length."""

    name: str
    below_s: int | None
    title: str
    title_ko: str


WAIT_CLASSES: Final = (
    WaitClass("0-1m", 60, "under a minute", "1분 미만"),
    WaitClass("1-10m", 600, "1 to 10 minutes", "1분~10분"),
    WaitClass("10-60m", 3600, "10 to 60 minutes", "10분~1시간"),
    WaitClass("1-6h", 6 * 3600, "1 to 6 hours", "1시간~6시간"),
    WaitClass("6-24h", 24 * 3600, "6 to 24 hours", "6시간~24시간"),
    WaitClass("over-1d", None, "a day or longer", "하루 이상"),
    WaitClass("not-started", None, "not started", "시작 안 함"),
)
"""By their number; the last is of jobs that have not begun, or ended before they did."""
NOT_STARTED: Final = len(WAIT_CLASSES) - 1
NAMES: Final = tuple(one.name for one in WAIT_CLASSES)
_BOUNDS: Final = [one.below_s for one in WAIT_CLASSES if one.below_s is not None]


def wait_class(wait_s: int | None) -> int:
    """The class of a wait; None: of a job that has not begun.

    >>> [NAMES[wait_class(wait_s)] for wait_s in (0, 59, 60, 86_400, None)]
    ['0-1m', '0-1m', '1-10m', 'over-1d', 'not-started']
    """
    return NOT_STARTED if wait_s is None else bisect_right(_BOUNDS, wait_s)


def bounds_of(name: str) -> tuple[int, int | None] | None:
    """From how many seconds on, and below how many (None: any), a class is; None: of what has not begun."""
    at = NAMES.index(name)
    return None if at == NOT_STARTED else (_BOUNDS[at - 1] if at else 0, WAIT_CLASSES[at].below_s)
