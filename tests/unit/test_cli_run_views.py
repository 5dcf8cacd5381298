"""What a run looks like, what changed, and the verdict at its end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from rich.console import Console, RenderableType

from broker.cli import run_views
from broker.cli.output import when
from broker.cli.report_words import Language
from broker.runs.expected import Kind
from broker.runs.run_end import RunKind

NOW = datetime(2024, 5, 1, 12, 0, 30, tzinfo=UTC)


def job(component: str, state: str, **fields: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "component": component,
        "attempt": 1,
        "state": state,
        "reason": None,
        "culprit": None,
        "failure_class": None,
        "slurm_job_id": 42,
        "exit_code": None,
        "signal": None,
        "nodes": None,
        "resources": {
            "gpu_type": "A100",
            "gpu_count": 4,
            "memory_mib": 128 << 10,
            "cpus": None,
            "time_s": None,
        },
        "started_at": None,
        "ended_at": None,
        "stored": "none",
        "stored_files": None,
        "stored_bytes": None,
        "store_error": None,
    }
    return plain | fields


def run(state: str, *jobs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "id": "run-1",
        "number": 7,
        "name": "demo",
        "kind": "normal",
        "state": state,
        "phase": "active",
        "approval": "not_required",
        "needs_approval": [],
        "holds": [],
        "pipeline_id": "pl-1",
        "pipeline_version": 2,
        "cluster": "main",
        "tenant": "default",
        "owner": "kim",
        "test_run_ref": None,
        "attempt": 1,
        "error": None,
        "trouble": None,
        "created_at": "2024-05-01T12:00:00Z",
        "started_at": "2024-05-01T12:00:00Z",
        "ended_at": None,
        "observed_at": None,
        "jobs": list(jobs),
    }
    return plain | fields


def text_of(shown: RenderableType) -> str:
    console = Console(width=200, record=True, markup=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


FAILED = run(
    "failed",
    job("loader", "COMPLETED"),
    job("trainer", "OUT_OF_MEMORY", failure_class="resource", exit_code=137, reason="OutOfMemory"),
    job("evaluator", "UPSTREAM_FAILED", failure_class="upstream", culprit="trainer"),
)


def test_the_verdict_on_a_failed_run_names_component_reason_and_remedy() -> None:
    told = run_views.verdict(FAILED)
    assert "trainer: OUT_OF_MEMORY (OutOfMemory, exit code 137); it needs more than it asked for" in told
    assert "1 component after that never started" in told
    assert "broker run logs run-1 trainer" in told and "broker run retry run-1" in told
    assert "loader:" not in told and "evaluator:" not in told


def test_results_that_were_not_stored_are_a_reason_too() -> None:
    told = run_views.verdict(
        run("failed", job("a", "COMPLETED", stored="failed", store_error="no room in the bucket"))
    )
    assert "a: COMPLETED (no room in the bucket)" in told


def test_a_cancelled_run_blames_nobody() -> None:
    told = run_views.verdict(run("cancelled", job("a", "CANCELLED", failure_class="cancelled")))
    assert told == "Run run-1 was cancelled."


def test_only_changes_are_told_and_only_once() -> None:
    before = run("queued", job("a", "INTENDED", slurm_job_id=None), phase="submitting")
    after = run("running", job("a", "RUNNING"))
    assert run_views.changes(None, before) == ["run run-1: queued (submitting)"]
    assert run_views.changes(before, after) == ["run run-1: running (active)", "a [42]: RUNNING"]
    assert run_views.changes(after, after) == []


def test_the_end_of_a_job_and_its_results_are_both_told() -> None:
    before = run("running", job("a", "RUNNING"))
    after = run("running", job("a", "COMPLETED", stored="stored", stored_files=3, stored_bytes=2048))
    assert run_views.changes(before, after) == ["a [42]: COMPLETED", "a: results 3 files, 2.0 KiB"]


def test_what_stands_in_the_way_is_told_when_it_changes() -> None:
    free, stuck = run("queued"), run("queued", trouble="the login node does not answer")
    assert run_views.changes(free, stuck) == ["run run-1: in the way: the login node does not answer"]
    assert run_views.changes(stuck, stuck) == []


def test_a_reason_that_is_over_is_not_shown() -> None:
    assert run_views.why(job("a", "COMPLETED", reason="Dependency")) == ""
    assert run_views.why(job("a", "PENDING", reason="Resources")) == "Resources"
    assert run_views.why(job("c", "UPSTREAM_FAILED", culprit="a")) == "a failed"
    assert run_views.why(job("a", "FAILED", signal=9, exit_code=0, reason="None")) == "signal 9"


def test_resources_are_shown_as_people_write_them() -> None:
    assert run_views.needs({"gpu_type": "A100", "gpu_count": 4, "memory_mib": 131072}) == "A100 x 4, 128 GiB"
    assert run_views.needs({"gpu_count": 0, "cpus": 8, "memory_mib": 32768}) == "CPU x 8, 32 GiB"


def test_a_run_shows_its_state_its_jobs_and_what_went_wrong() -> None:
    shown = text_of(run_views.run_view(run("running", *FAILED["jobs"], trouble="slurmctld is away"), NOW))
    for part in (
        "run-1  no. 7  demo",
        "running (active)",
        "1 of 3 components",
        "slurmctld is away",
        "00:00:30",
    ):
        assert part in shown
    assert "trainer failed" in shown


def test_a_huge_run_is_shown_by_what_moves() -> None:
    jobs = [job(f"c{n}", "COMPLETED") for n in range(500)] + [job("busy", "RUNNING")]
    shown = text_of(run_views.run_view(run("running", *jobs), NOW, brief=True))
    assert "busy" in shown and "c17 " not in shown and "501 components: 500 COMPLETED, 1 RUNNING" in shown


def test_what_a_job_is_expected_to_end_at_says_which_kind_of_end_it_is() -> None:
    def shown(**fields: Any) -> str:
        at, limit = "2024-05-03T14:30:00Z", "2024-05-02T14:30:00Z"
        end = {"at": at, "limit": limit, "runs": None, "another_start": False, "more_starts": 0}
        end |= {"kind": "likely", "source": "progress", "enough_time": True}
        return run_views.progress(job("trainer", "RUNNING", progress=None, expected_end=end | fields))

    at, limit = when("2024-05-03T14:30:00Z"), when("2024-05-02T14:30:00Z")
    several = {"another_start": True, "more_starts": 2, "kind": "not_before"}
    assert shown() == f"ends {at}"
    assert shown(source="history", runs=4) == f"ends {at} as its last 4 did"
    assert shown(enough_time=False) == f"ends {at}, its limit is {limit}"
    assert shown(**several) == f"not before {at} (more starts: ≥ 2)"
    assert shown(**several, enough_time=False).endswith("≥ 2), the time it asked for is too short")
    waits = {"kind": "not_before", "limit": None}
    assert shown(**waits, source="history", runs=4) == f"not before {at} as its last 4 did"
    assert shown(limit=None, enough_time=False) == f"ends {at}, the time it asked for is too short"
    assert shown(**waits | {"kind": "unknown", "at": None}, source=None, more_starts=None) == ""
    assert shown(kind="at_latest", enough_time=None) == f"ends by {at}"
    assert shown(kind="this_start_at_latest", another_start=True) == f"this start ends by {at}"


def test_steps_in_millions_are_written_out() -> None:
    found = {"fraction": 0.25, "unit": "step", "step": 1_250_000, "total": 5_000_000}
    shown = run_views.progress(job("trainer", "RUNNING", progress=found, expected_end=None))
    assert shown == "25 % (step 1,250,000/5,000,000)"


def test_a_run_says_when_it_ends_by_which_way_and_what_is_not_known() -> None:
    early, late = "2024-05-03T14:30:00Z", "2024-05-03T18:00:00Z"
    gap = {"code": "queue", "components": ["b"], "text": "It waits: b.", "text_ko": "대기: b."}
    end = {"kind": "not_before", "at": early, "earliest": early, "latest": None, "path": ["a", "b"]}

    def told(lang: Language = "en", **fields: Any) -> str:
        return run_views.run_end(end | {"gaps": [gap]} | fields, lang)

    assert told() == f"Not before {when(early)}. It waits: b."
    assert told("ko") == f"빨라야 {when(early)}. 대기: b."
    assert told(kind="likely", gaps=[]) == f"Likely {when(early)}."
    assert told(kind="at_latest", at=late, latest=late, gaps=[]) == (
        f"Not before {when(early)}, by {when(late)} at the latest."
    )
    assert told(kind="at_latest", at=late, earliest=None, gaps=[]) == f"By {when(late)} at the latest."
    assert told("ko", kind="unknown", at=None, earliest=None) == "알 수 없음. 대기: b."
    shown = text_of(run_views.run_view(run("running", expected_end=end | {"gaps": [gap]}), NOW))
    assert "a → b" in shown and "It waits: b." in shown
    long = end | {"path": [f"c{number}" for number in range(20)], "gaps": []}
    assert "c2 → … → c17" in text_of(run_views.run_view(run("running", expected_end=long), NOW))


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_no_kind_of_end_that_the_server_tells_of_is_without_words(lang: Language) -> None:
    at = "2024-05-03T14:30:00Z"
    for kind in get_args(RunKind):
        told = at if kind != "unknown" else None
        assert run_views.run_end({"kind": kind, "at": told, "earliest": None, "gaps": []}, lang)
    rest = {"source": None, "limit": None, "more_starts": None, "enough_time": None, "another_start": False}
    for kind in get_args(Kind):
        end = {"kind": kind, "at": at if kind != "unknown" else None, **rest}
        assert bool(run_views.progress(job("a", "PENDING", expected_end=end))) == (kind != "unknown")
