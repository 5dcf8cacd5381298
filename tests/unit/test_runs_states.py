"""The state of a run is a pure function of its jobs' states."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from broker.runs.states import FailureClass, JobState, RunState, derive_run_state, failure_class
from broker.slurm.states import SlurmState


@dataclass
class Job:
    state: JobState
    started: bool = False


def derive(*states: JobState, cancel: bool = False, stored: bool = True) -> RunState:
    return derive_run_state([Job(state) for state in states], cancel_requested=cancel, stored=stored)


S = JobState


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([S.INTENDED, S.INTENDED], RunState.QUEUED),
        ([S.PENDING, S.PENDING], RunState.QUEUED),
        ([S.RUNNING, S.PENDING], RunState.RUNNING),
        ([S.COMPLETED, S.PENDING], RunState.RUNNING),
        ([S.COMPLETED, S.COMPLETED], RunState.SUCCEEDED),
        ([S.COMPLETED, S.FAILED, S.UPSTREAM_FAILED], RunState.FAILED),
        ([S.FAILED, S.PENDING], RunState.RUNNING),
        ([S.COMPLETED, S.UNKNOWN], RunState.RUNNING),
        ([S.REQUEUED, S.PENDING], RunState.QUEUED),
    ],
)
def test_run_state_follows_from_its_jobs(states: list[JobState], expected: RunState) -> None:
    assert derive(*states) is expected


def test_a_run_whose_results_are_not_stored_yet_is_no_success() -> None:
    assert derive(S.COMPLETED, stored=False) is RunState.RUNNING


def test_unknown_is_neither_success_nor_failure() -> None:
    assert not S.UNKNOWN.ended
    assert not derive(S.UNKNOWN, S.COMPLETED).final


def test_a_run_that_started_does_not_seem_to_wait_again_when_nobody_knows_of_it() -> None:
    lost = Job(S.UNKNOWN, started=True)
    assert derive_run_state([lost], cancel_requested=False, stored=True) is RunState.RUNNING
    assert derive(S.UNKNOWN) is RunState.QUEUED


def test_a_cancelled_run_that_had_completed_everything_is_a_success() -> None:
    assert derive(S.COMPLETED, S.COMPLETED, cancel=True) is RunState.SUCCEEDED


def test_cancelling_explains_what_did_not_complete() -> None:
    assert derive(S.COMPLETED, S.CANCELLED, cancel=True) is RunState.CANCELLED
    assert derive(S.COMPLETED, S.CANCELLED) is RunState.FAILED


def test_every_state_of_slurm_is_a_state_of_a_job() -> None:
    missing = {state.value for state in SlurmState} - {state.value for state in JobState}
    assert missing <= {"UNKNOWN", "OTHER"}


def test_every_failed_state_has_a_class_and_no_other_has() -> None:
    for state in JobState:
        assert (failure_class(state) is not None) == state.failed, state


def test_the_clusters_own_failures_are_temporary_and_lack_of_memory_is_not() -> None:
    assert failure_class(S.NODE_FAIL) is FailureClass.TEMPORARY
    assert failure_class(S.OUT_OF_MEMORY) is FailureClass.RESOURCE
    assert failure_class(S.FAILED) is FailureClass.PERMANENT


@pytest.mark.parametrize(
    ("state", "approval", "expected"),
    [
        (S.PENDING, "pending", RunState.PENDING_APPROVAL),
        (S.PENDING, "approved", RunState.QUEUED),
        (S.RUNNING, "pending", RunState.RUNNING),  # somebody let it start: shown as it is
        (S.CANCELLED, "pending", RunState.CANCELLED),
        (S.CANCELLED, "rejected", RunState.REJECTED),
        (S.PENDING, "rejected", RunState.QUEUED),  # not over before Slurm is rid of it
    ],
)
def test_a_decision_is_part_of_the_state(state: JobState, approval: str, expected: RunState) -> None:
    derived = derive_run_state([Job(state)], cancel_requested=True, stored=True, approval=approval)
    assert derived is expected
