"""What is concluded from what squeue, sacct and the completion marker say."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from broker.runs.observation import (
    Known,
    Sighting,
    change,
    culprits,
    job_state,
    never_starts,
    parse_marker,
    unseen,
)
from broker.runs.sightings import began
from broker.runs.states import JobState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEADLINE = timedelta(hours=1)


def known(state: JobState = JobState.RUNNING, **changes: object) -> Known:
    facts: dict[str, object] = {
        "state": state,
        "reason": None,
        "restarts": 0,
        "started_at": NOW,
        "observed_at": NOW,
        "unknown_since": None,
    }
    return Known(**{**facts, **changes})  # type: ignore[arg-type]


def test_absence_everywhere_is_unknown_and_not_an_end() -> None:
    seen = unseen(known(), NOW, DEADLINE)
    assert seen.state is JobState.UNKNOWN
    assert not seen.state.ended


def test_absence_beyond_the_deadline_is_given_up_as_lost() -> None:
    seen = unseen(known(JobState.UNKNOWN, unknown_since=NOW - DEADLINE - timedelta(seconds=1)), NOW, DEADLINE)
    assert seen.state is JobState.FAILED
    assert seen.reason is not None
    assert seen.reason.startswith("Lost")


def test_a_snapshot_older_than_the_row_changes_nothing() -> None:
    old = NOW - timedelta(seconds=1)
    assert change(known(), Sighting(JobState.COMPLETED), old) is None


def test_what_was_seen_before_is_not_written_again() -> None:
    assert change(known(), Sighting(JobState.RUNNING, restarts=0), NOW) is None


def test_an_end_is_not_undone_by_a_later_look() -> None:
    assert change(known(JobState.COMPLETED), Sighting(JobState.UNKNOWN), NOW) is None
    assert change(known(JobState.FAILED), Sighting(JobState.COMPLETED), NOW) is None


def test_a_requeue_after_an_end_is_a_new_start() -> None:
    seen = Sighting(JobState.PENDING, restarts=1)
    assert change(known(JobState.NODE_FAIL), seen, NOW) is seen


def test_a_child_of_a_failure_stays_upstream_failed_whatever_slurm_says_of_its_end() -> None:
    assert change(known(JobState.UPSTREAM_FAILED), Sighting(JobState.CANCELLED, restarts=3), NOW) is None


def test_a_word_that_no_release_has_yet_is_unknown() -> None:
    assert job_state("HIBERNATING") is JobState.UNKNOWN


def test_the_culprit_is_the_component_that_failed_by_itself() -> None:
    parents = {"a": [], "b": ["a"], "c": ["b"], "d": []}
    assert culprits(parents, {"a": JobState.FAILED}, ["b", "c", "d"]) == {"b": "a", "c": "a"}


def test_a_component_that_still_can_run_has_no_culprit() -> None:
    parents = {"a": [], "b": [], "c": ["b"]}
    assert culprits(parents, {"a": JobState.FAILED}, ["c"]) == {}


def test_a_job_that_no_node_could_ever_run_is_told_from_one_that_waits() -> None:
    assert never_starts(Sighting(JobState.PENDING, reason="BadConstraints"))
    assert not never_starts(Sighting(JobState.PENDING, reason="Resources"))
    assert not never_starts(Sighting(JobState.PENDING, reason="ReqNodeNotAvail, UnavailableNodes:a100-1"))
    assert not never_starts(Sighting(JobState.CANCELLED, reason="BadConstraints"))


def test_a_marker_that_was_cut_short_is_no_marker() -> None:
    whole = json.dumps(
        {
            "job_id": 7,
            "exit_code": 0,
            "restart": 0,
            "started_at": "2026-01-02T03:04:05Z",
            "ended_at": "2026-01-02T03:05:05Z",
            "output_dir": "/o",
            "log_dir": "/l",
        }
    ).encode()
    marker = parse_marker(whole)
    assert marker is not None
    assert marker.exit_code == 0
    assert marker.started_at == NOW
    for length in range(len(whole)):
        assert parse_marker(whole[:length]) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 65536,  # deeper than Python follows
        '{"job_id": 1e999, "exit_code": 0, "restart": 0, "output_dir": "/o", "log_dir": "/l"}',
        '{"job_id": 7, "exit_code": 0, "restart": 99999999999, "output_dir": "/o", "log_dir": "/l"}',
        '{"job_id": 7, "exit_code": -1, "restart": 0, "output_dir": "/o", "log_dir": "/l"}',
        '{"job_id": 7, "exit_code": 0, "restart": 0, "started_at": "0001-01-01T00:00:00+23:00"}',
        "[]",
    ],
)
def test_what_a_person_puts_in_the_markers_place_is_no_marker(text: str) -> None:
    assert parse_marker(text.encode()) is None


def test_a_job_that_ended_between_two_looks_has_begun_all_the_same() -> None:
    assert began(Sighting(JobState.COMPLETED))
    assert began(Sighting(JobState.FAILED, started_at=NOW))
    assert not began(Sighting(JobState.PENDING))
    assert not began(Sighting(JobState.FAILED))
    assert not began(Sighting(JobState.CANCELLED, started_at=NOW))  # Slurm dates the start of a wait's end
