"""What was seen of a job, and its row: read as the pure functions take it, written with what happened."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from broker.compiler import ClusterProfile
from broker.compiler.names import status_path
from broker.db import utcnow
from broker.hosts import Host
from broker.runs import journal
from broker.runs.events import emit
from broker.runs.expected import usual_times
from broker.runs.journal import duration
from broker.runs.observation import Known, Marker, Sighting, parse_marker
from broker.runs.states import NO_HEARTBEAT, JobState
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import job_ended


def known(job: JobRow) -> Known:
    """A row as the pure functions take it."""
    return Known(
        state=JobState(job.state),
        reason=job.reason,
        restarts=job.restarts,
        started_at=job.started_at,
        observed_at=job.observed_at,
        unknown_since=job.unknown_since,
    )


def read_marker(host: Host, profile: ClusterProfile, job: JobRow) -> Marker | None:
    """The completion marker of a job, or None; `host` acts as the account of the job's run.

    A folder or a link at its place is none: what one account does there must not end the look at all others.
    """
    path = status_path(profile, job.run_id, job.component, job.attempt)
    found = host.stat(path)
    if found is None or found.kind != "file":
        return None
    return parse_marker(b"".join(host.read(path, 0, 64 * 1024)))


def write_sighting(session: Session, run: RunRow, job: JobRow, seen: Sighting, taken_at: datetime) -> None:
    """Write what was seen into the row, and say what happened."""
    before = JobState(job.state)
    if job.stall_ended_at is not None and seen.state is JobState.CANCELLED:  # by the broker: no person's wish
        seen = replace(seen, state=JobState.FAILED, reason=NO_HEARTBEAT)
    requeued = seen.restarts is not None and seen.restarts > job.restarts
    job.state, job.reason, job.observed_at = seen.state, seen.reason, taken_at
    job.exit_code, job.signal = seen.exit_code, seen.signal
    job.restarts = max(job.restarts, seen.restarts or 0)
    job.nodes = seen.nodes or job.nodes
    job.started_at = seen.started_at or job.started_at
    job.ended_at = (seen.ended_at or taken_at) if seen.state.ended else None
    job.unknown_since = (job.unknown_since or taken_at) if seen.state is JobState.UNKNOWN else None
    about = {"component": job.component, "job_id": job.slurm_job_id, "state": seen.state}
    if requeued:
        job.spent_s = None  # what the start before took comes to it
        emit(session, run, "job_requeued", **about, restarts=job.restarts)
    if seen.state is JobState.UNKNOWN and before is not JobState.UNKNOWN:
        emit(session, run, "job_unknown", **about)
    if began(seen) and not before.occupies_nodes:
        path = f"{run.id}/{job.component}"
        emit(session, run, "job_started", **about, nodes=job.nodes, cluster_path=path)
        journal.job_started(run, job, path)
        earlier = usual_times(session, run, [job]).get(job.component)
        job.usual = earlier.model_dump() if earlier is not None else None
    if seen.state.ended:
        ran = job.started_at is not None or seen.state is JobState.COMPLETED
        job.storing = "pending" if ran else "none"
        if seen.state is JobState.COMPLETED:
            emit(session, run, "job_completed", **about, duration_s=duration(job))
        else:
            emit(session, run, "job_failed", **about, reason=job.reason, exit_code=job.exit_code)
        journal.job_ended(run, job)
        job_ended(run, job, ran=began(seen) or duration(job) > 0)
    if run.started_at is None and job.started_at is not None:
        run.started_at = job.started_at


def began(seen: Sighting) -> bool:
    """Whether a job has started, be it that it ended before anybody looked. One that was cancelled while it
    waited may carry a start as well: that of its end.
    """
    if seen.state.occupies_nodes or seen.state is JobState.COMPLETED:
        return True
    return seen.state.ended and seen.started_at is not None and seen.state is not JobState.CANCELLED


def give_up(session: Session, run: RunRow, job: JobRow) -> None:
    """Give up a job that Slurm would let wait for ever; the tick ends it in Slurm."""
    job.state, job.reap, job.ended_at = JobState.FAILED, True, utcnow()
    about = {"component": job.component, "job_id": job.slurm_job_id, "state": job.state}
    emit(session, run, "job_failed", **about, reason=job.reason, exit_code=None)
    journal.job_ended(run, job)
    job_ended(run, job, ran=False)
