"""When a component is likely to end: the best of what is known says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from broker.runs.expected import Usual, expected_end, usual
from broker.runs.progress import Progress, Report, advance

START = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EARLIER = Usual(seconds=1800, runs=4)


def at_half_after(minutes: int) -> Progress:
    first = advance(None, Report(0, 10, "step", 0.0), "file", START, 0)
    return advance(first, Report(5, 10, "step", 0.5), "file", START + minutes * MINUTE, 0)


@pytest.mark.parametrize(
    ("progress", "earlier", "minutes", "source", "end"),
    [
        (at_half_after(10), EARLIER, 11, "progress", 20),
        (None, EARLIER, 11, "history", 30),
        (advance(None, Report(1, 10, "step", 0.1), "log", START, 0), EARLIER, 1, "history", 30),
        (None, None, 11, "time_limit", 60),
        (None, EARLIER, 31, "time_limit", 60),  # it is late: history was wrong
        (at_half_after(10), EARLIER, 25, "history", 30),  # it has stood still since
        (at_half_after(40), None, 41, "progress", 80),  # later than its limit: both are shown
    ],
)
def test_the_best_that_is_known_says_when_it_ends(
    progress: Progress | None, earlier: Usual | None, minutes: int, source: str, end: int
) -> None:
    found = expected_end(START, 3600, progress, earlier, START + minutes * MINUTE)
    assert (found.source, found.at, found.limit) == (source, START + end * MINUTE, START + 60 * MINUTE)
    assert found.runs == (4 if source == "history" else None)


def test_what_takes_several_starts_is_ended_by_the_limit_of_one_and_goes_on() -> None:
    day = timedelta(days=1)
    ends = [
        expected_end(START, 3 * 86400, progress, None, START + 41 * MINUTE, start_s)
        for progress, start_s in ((None, 86400), (at_half_after(40), 86400), (None, None))
    ]
    assert [(end.source, end.limit - START, end.another_start) for end in ends] == [
        ("time_limit", day, True),
        ("progress", day, True),
        ("time_limit", 3 * day, False),
    ]


def test_one_long_run_does_not_make_the_usual_time() -> None:
    assert usual([60.0, 80.0, 86400.0]) == Usual(seconds=80, runs=3)
    assert usual([]) is None
