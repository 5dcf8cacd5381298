"""What the metrics of jobs count."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import REGISTRY

from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import job_ended

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def counted(cluster: str) -> float:
    return REGISTRY.get_sample_value("gpu_job_duration_seconds_count", {"cluster": cluster}) or 0.0


def test_a_job_that_ended_in_the_second_it_began_is_counted_and_one_that_never_began_is_not() -> None:
    run = RunRow(id="run-1", cluster="telemetry")
    for ran in (True, False):  # Slurm gives what was cancelled while it waited its end for a start
        job = JobRow(state=JobState.CANCELLED, started_at=NOW, ended_at=NOW, resources={})
        job_ended(run, job, ran=ran)
        assert counted("telemetry") == 1.0
