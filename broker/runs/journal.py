"""What the life of a job says in the log (DD-15), and the ids by which one run is followed through all of it.

A run keeps the id of the request that last asked for something of it. Whoever works on the run binds both
ids, so that every line below, of commands on the cluster too, carries them: one search for either finds the
API's lines and the worker's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars, get_contextvars

from broker.compiler.profile import DEFAULT_TIME_S
from broker.logging import Event
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow

log = structlog.get_logger("broker.runs")


@contextmanager
def concerning(run: RunRow) -> Iterator[None]:
    """Every line that is logged meanwhile carries the run's id, and that of the request behind it."""
    ids = {"run_id": run.id} | ({"request_id": run.request_id} if run.request_id else {})
    with bound_contextvars(**ids):
        yield


def note_request(run: RunRow) -> None:
    """Keep the id of the request that is being served, if any: it asks for something of this run."""
    run.request_id = get_contextvars().get("request_id") or run.request_id


def run_event(run: RunRow, event: str, data: Mapping[str, Any]) -> None:
    """Log an event of a run. Those of single jobs have lines of their own (below), with DD-15's fields."""
    if event not in _OF_JOBS:
        log.info(event, **{**data, "run_id": run.id, "user_id": run.owner_id, **_request(run)})


_OF_JOBS = frozenset(Event)


def job_submitted(run: RunRow, job: JobRow, slurm_job_id: int) -> None:
    """Slurm has a job."""
    resources = job.resources
    log.info(
        Event.JOB_SUBMITTED,
        **_about(run, job) | {"process_id": slurm_job_id},
        user_id=run.owner_id,
        gpu_count=resources.get("gpu_count") or 0,
        estimated_duration=resources.get("time_s") or DEFAULT_TIME_S,
    )


def job_started(run: RunRow, job: JobRow, cluster_path: str) -> None:
    """Slurm has started a job, perhaps once more."""
    log.info(Event.JOB_STARTED, **_about(run, job), cluster_path=cluster_path, nodes=job.nodes)


def job_ended(run: RunRow, job: JobRow) -> None:
    """A job ended otherwise than well. (That it ended well is told with its metrics: `job_stored`.)"""
    if job.state == JobState.CANCELLED:
        log.info(Event.JOB_CANCELLED, **_about(run, job), duration=duration(job))
    elif job.state != JobState.COMPLETED:
        log.info(
            Event.JOB_FAILED,
            **_about(run, job),
            duration=duration(job),
            state=job.state,
            reason=job.reason,
            exit_code=job.exit_code,
        )


def job_stored(run: RunRow, job: JobRow) -> None:
    """What is to be kept of a job is stored, or was given up (`store_error`)."""
    if job.storing == "stored":
        log.info(Event.RESULTS_STORED, **_about(run, job), files=job.stored_files, bytes=job.stored_bytes)
    if job.state == JobState.COMPLETED:
        log.info(Event.JOB_COMPLETED, **_about(run, job), duration=duration(job), final_metrics=job.metrics)


def duration(job: JobRow) -> float:
    """Seconds a job ran; 0 when it never started."""
    began: datetime | None = job.started_at
    return (job.ended_at - began).total_seconds() if job.ended_at and began else 0.0


def _about(run: RunRow, job: JobRow) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "process_id": job.slurm_job_id,
        "run_id": run.id,
        "component": job.component,
        "attempt": job.attempt,
        **_request(run),
    }


def _request(run: RunRow) -> dict[str, str]:
    return {"request_id": run.request_id} if run.request_id else {}
