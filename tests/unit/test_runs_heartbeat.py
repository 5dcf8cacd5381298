"""What follows from silence, and what a job that was ended for it is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from broker.runs.heartbeat import Verdict, judge, mark_of
from broker.runs.states import NO_HEARTBEAT, FailureClass, JobState, failure_class

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
HOUR, GRACE = timedelta(hours=1), timedelta(minutes=10)


@pytest.mark.parametrize(
    ("silent", "flagged", "verdict"),
    [
        (timedelta(0), None, Verdict.ALIVE),
        (HOUR, None, Verdict.ALIVE),
        (HOUR + timedelta(seconds=1), None, Verdict.STALLED),
        (10 * HOUR, None, Verdict.STALLED),  # however long nobody looked: people see the flag first
        (2 * HOUR, GRACE - timedelta(seconds=1), Verdict.STALLED),
        (2 * HOUR, GRACE, Verdict.OVER),
        (timedelta(seconds=1), GRACE, Verdict.ALIVE),  # a sign of life lifts the flag
    ],
)
def test_silence_is_flagged_and_then_ended(
    silent: timedelta, flagged: timedelta | None, verdict: Verdict
) -> None:
    since = None if flagged is None else NOW - flagged
    assert judge(NOW - silent, since, NOW, HOUR, GRACE) is verdict


def test_without_a_timeout_silence_means_nothing() -> None:
    assert judge(NOW - 1000 * HOUR, NOW - HOUR, NOW, timedelta(0), GRACE) is Verdict.ALIVE


def test_any_change_of_any_file_and_another_start_are_signs_of_life() -> None:
    still = mark_of(0, [(10, 1.5), None])
    assert mark_of(0, [(10, 1.5), None]) == still and len(still) <= 40
    others = [[(11, 1.5), None], [(10, 1.6), None], [(10, 1.5), (0, 1.0)], [None, (10, 1.5)]]
    assert len({still, mark_of(1, [(10, 1.5), None]), *(mark_of(0, signs) for signs in others)}) == 6


def test_silence_may_be_the_clusters_fault() -> None:
    assert failure_class(JobState.FAILED, NO_HEARTBEAT) is FailureClass.TEMPORARY
    assert failure_class(JobState.FAILED, "NonZeroExitCode") is FailureClass.PERMANENT
