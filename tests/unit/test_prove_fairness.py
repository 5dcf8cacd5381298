"""How the proof of fair share counts: only the time in which both tenants were queueing."""

from __future__ import annotations

from prove.fairness import Start, describe, shared


def test_only_the_time_counts_in_which_both_queue() -> None:
    starts = [Start("greedy-1", 0, 60), Start("modest-1", 0, 60), Start("modest-1", 60, 120)]
    starts += [Start("greedy-1", at, at + 60) for at in (60, 120, 180)]
    found = shared(starts)
    assert found.seconds == 60, "the modest one has nothing left to start after its second job began"
    assert found.gpu_s == {"greedy-1": 60, "modest-1": 60}


def test_a_job_that_runs_yet_counts_up_to_the_end_of_that_time() -> None:
    starts = [Start("greedy-1", 0, float("inf")), Start("greedy-1", 50, 60)]
    starts += [Start("modest-1", 0, 10), Start("modest-1", 30, 40)]
    assert shared(starts).gpu_s == {"greedy-1": 30, "modest-1": 10}


def test_a_tenant_that_had_a_quarter_more_than_its_share_is_no_proof() -> None:
    starts = [Start("greedy-1", 0, 125), Start("modest-1", 0, 100)]
    starts += [Start("greedy-1", 125, 130), Start("modest-1", 125, 130)]
    text, holds = describe(shared(starts))
    assert "ratio 1.250" in text
    assert not holds
