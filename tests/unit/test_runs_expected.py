"""When a component is likely to end: the best of what is known says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from broker.runs.expected import Allowance, Left, Usual, expected_end, left_of, usual
from broker.runs.progress import Progress, Report, advance
from broker.runs.tables import JobRow

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
    found = expected_end(START, Allowance(3600), progress, earlier, START + minutes * MINUTE)
    assert (found.source, found.at, found.limit) == (source, START + end * MINUTE, START + 60 * MINUTE)
    assert found.runs == (4 if source == "history" else None)


DAY = 86400
SPENT = 2 * DAY + DAY // 2
THREE_DAYS = Allowance(time_s=3 * DAY, start_s=DAY)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def half_done(days: float) -> Progress:
    """Half of it was done in `days`."""
    return at_half_after(int(days * 24 * 60))


@pytest.mark.parametrize(
    ("allowed", "progress", "earlier", "kind", "end", "more", "enough"),
    [
        (THREE_DAYS, half_done(0.4), None, "likely", 0.8, 0, True),
        (
            THREE_DAYS,
            half_done(0.5),
            None,
            "likely",
            1,
            0,
            True,
        ),
        (THREE_DAYS, half_done(0.75), None, "not_before", 1.5, 1, True),
        (THREE_DAYS, half_done(1.25), None, "not_before", 2.5, 2, True),
        (THREE_DAYS, half_done(2), None, "not_before", 4, 3, False),  # it asked for three days
        (THREE_DAYS, None, Usual(seconds=2.5 * DAY, runs=4), "not_before", 2.5, 2, True),
        (THREE_DAYS, None, None, "this_start_at_latest", 1, None, None),
        (Allowance(3 * DAY, DAY, DAY), half_done(0.75), None, "not_before", 1.5, 1, True),
        (Allowance(3 * DAY, DAY, DAY), half_done(1.25), None, "not_before", 2.5, 2, False),  # a day is spent
        (Allowance(3 * DAY, DAY, DAY), None, Usual(seconds=2.5 * DAY, runs=4), "not_before", 1.5, 1, True),
        (Allowance(3 * DAY, DAY, SPENT), half_done(0.2), None, "likely", 0.4, 0, True),
        (
            Allowance(3 * DAY, DAY, SPENT),
            half_done(0.4),
            None,
            "likely",
            0.8,
            0,
            False,
        ),  # no start is left
        (Allowance(3 * DAY, DAY, SPENT), None, None, "at_latest", 0.5, None, None),
        (Allowance(3 * DAY, DAY, None), half_done(0.75), None, "not_before", 1.5, 1, None),
        (Allowance(3 * DAY, DAY, None), half_done(2), None, "not_before", 4, 3, False),  # whatever is spent
        (Allowance(3 * DAY, DAY, None), None, EARLIER, "this_start_at_latest", 1, None, None),
        (Allowance(DAY), half_done(0.75), None, "likely", 1.5, 0, False),
        (Allowance(DAY), None, None, "at_latest", 1, None, None),
    ],
)
def test_what_needs_more_starts_is_told_as_the_earliest_it_can_end(
    allowed: Allowance,
    progress: Progress | None,
    earlier: Usual | None,
    kind: str,
    end: float,
    more: int | None,
    enough: bool | None,
) -> None:
    found = expected_end(START, allowed, progress, earlier, START + MINUTE)
    assert (found.kind, found.at, found.more_starts, found.enough_time) == (kind, day(end), more, enough)
    assert ("not enough" in found.text) == ("부족" in found.text_ko) == (enough is False)
    if kind == "not_before":
        assert f"{more} at least" in found.text and f"적어도 {more}번" in found.text_ko


@pytest.mark.parametrize("work", [0.3 * DAY, DAY, DAY + 1, 1.5 * DAY, 2 * DAY, 2.9 * DAY])
@pytest.mark.parametrize("wait", [0, 30, 7200])
def test_no_job_that_is_started_again_and_again_ends_before_it_was_said_to(work: float, wait: float) -> None:
    """Played through: each start works to its limit, then waits; what is said at its begin must hold."""
    clock, spent, ends = 0.0, 0.0, []
    while True:
        allowed = Allowance(3 * DAY, DAY, int(spent))
        said = expected_end(
            START + timedelta(seconds=clock), allowed, None, Usual(seconds=work, runs=1), day(0)
        )
        ends.append((said, clock))
        if work - spent <= allowed.this_start_s:
            break
        clock, spent = clock + DAY + wait, spent + DAY
    end = START + timedelta(seconds=clock + work - spent)
    for number, (said, _) in enumerate(ends):
        assert said.more_starts == len(ends) - 1 - number
        assert said.at <= end if said.kind == "not_before" else said.at == end


def test_the_last_start_ends_when_the_time_asked_for_does_and_is_followed_by_none() -> None:
    found = expected_end(START, Allowance(3 * DAY, DAY, SPENT + 30), None, None, START)
    assert (found.limit - START, found.another_start) == (timedelta(days=0.5), False)  # in whole minutes
    found = expected_end(START, THREE_DAYS, None, None, START)
    assert (found.limit - START, found.another_start) == (timedelta(days=1), True)


def test_one_long_run_does_not_make_the_usual_time() -> None:
    assert usual([60.0, 80.0, 86400.0]) == Usual(seconds=80, runs=3)
    assert usual([]) is None


def test_what_an_earlier_start_than_the_last_reported_tells_nothing_of_what_is_left() -> None:
    """The last one has done some of it since, and said nothing."""
    said = at_half_after(10)
    job = JobRow(resources={"time_s": 7200, "start_s": 3600}, restarts=1, spent_s=None, usual=None)
    job.progress = said.model_dump(mode="json")
    assert left_of(job) == Left(600, "progress")
    job.restarts = 2
    assert left_of(job) is None


def test_what_took_longer_than_it_usually_does_is_not_said_to_be_done() -> None:
    """As while it runs: history was wrong of it, and tells nothing more."""
    job = JobRow(resources={"time_s": 7200, "start_s": 3600}, restarts=1, progress=None)
    job.usual, job.spent_s = EARLIER.model_dump(), 600
    assert left_of(job) == Left(1200, "history", 4)
    job.spent_s = 1801
    assert left_of(job) is None
