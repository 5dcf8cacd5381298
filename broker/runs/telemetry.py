"""What the life of a run tells Prometheus (names: DD-14 and `broker.metrics`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from broker import metrics
from broker.db.leases import LeaseLost
from broker.errors import BrokerError, OutcomeUnknown
from broker.hosts import Host, SshHost
from broker.runs.journal import duration
from broker.runs.states import JobState, Phase
from broker.runs.tables import JobRow, RunRow

log = structlog.get_logger("broker.tracking")


@contextmanager
def slurm_call(cluster: str, operation: str) -> Iterator[None]:
    """Time a call to a cluster and count its failures by class."""
    began = time.perf_counter()
    try:
        yield
    except BrokerError as error:
        metrics.SLURM_ERRORS.labels(cluster, operation, error.code).inc()
        if isinstance(error, OutcomeUnknown):
            metrics.OUTCOME_UNKNOWN.labels(operation).inc()
        raise
    finally:
        metrics.SLURM_SECONDS.labels(cluster, operation).observe(time.perf_counter() - began)


@contextmanager
def contained(event: str, *, but: tuple[type[Exception], ...] = (), **about: str) -> Iterator[None]:
    """What goes wrong meanwhile, with one run or one part of a look, is logged, counted and holds up nothing
    else. What is everybody's (`everybodys`) is raised; so is what `but` names: within a transaction that
    others share, `SQLAlchemyError`, after which PostgreSQL keeps nothing of it.
    """
    try:
        yield
    except Exception as error:
        if everybodys(error) or isinstance(error, but):
            raise
        log.exception(event, **about)
        metrics.WORKER_DEFECTS.inc()


def everybodys(error: Exception) -> bool:
    """Whether an error is no defect in what concerns one run: the lease is lost, or the database is away,
    full, has no connection left, or is in a transaction that failed before. A value it does not take, or a
    lock that one row is under, is one run's.
    """
    if isinstance(error, OperationalError):
        state = getattr(error.orig, "sqlstate", None)
        return state is None or state.startswith(_AWAY)
    return isinstance(error, (LeaseLost, InterfaceError, InternalError, PendingRollbackError, PoolTimeout))


_AWAY = ("08", "53", "57P", "58")
"""Of SQLSTATE (PostgreSQL, appendix A): connection, resources, shutdown, system. SQLite has none, nor has a
server that was not reached.
"""


@contextmanager
def collecting() -> Iterator[None]:
    """Time the collection of one job's files."""
    with metrics.TRANSFER_DURATION.labels("collect").time():
        yield


def polled(cluster: str, taken_at: datetime | None, watched: int = 0) -> None:
    """A cluster was looked at (`taken_at` None: in vain): jobs that live there."""
    if taken_at is None:
        metrics.POLL_FAILURES.labels(cluster).inc()
    else:
        metrics.POLLED_AT.labels(cluster).set(taken_at.timestamp())
        metrics.JOBS_ACTIVE.labels(cluster).set(watched)


@contextmanager
def connection(cluster: str, host: Host) -> Iterator[None]:
    """How busy a cluster's connection is after a look, a failed one too; this machine has none."""
    try:
        yield
    finally:
        if isinstance(host, SshHost):
            metrics.CONNECTIONS_ACTIVE.labels(cluster).set(host.open_channels)
            metrics.SSH_WAITING.labels(cluster).set(host.waiting)


def submission_failed(run: RunRow, error: BrokerError) -> None:
    """Something stood in a run's way into Slurm; what stands in the way of ending it is not counted."""
    if run.phase in {Phase.PREPARING, Phase.SUBMITTING} and run.cancel_requested_at is None:
        metrics.SUBMISSION_FAILURES.labels(run.cluster, error.code, error.mender).inc()


def submitted(run: RunRow, jobs: int, seconds: float) -> None:
    """A graph has all its ids."""
    metrics.JOBS_SUBMITTED.labels(run.cluster).inc(jobs)
    metrics.USER_JOBS.labels(run.owner_id).inc(jobs)
    metrics.SUBMISSION_SECONDS.labels(run.cluster).observe(seconds)


def job_ended(run: RunRow, job: JobRow, *, ran: bool) -> None:
    """A job ended, one way or the other. `ran`: it had begun, be it for less than the second Slurm tells."""
    if job.state == JobState.COMPLETED:
        metrics.JOBS_COMPLETED.labels(run.cluster).inc()
    else:
        metrics.JOBS_FAILED.labels(run.cluster, job.state).inc()
    if ran:
        seconds = duration(job)
        metrics.JOB_DURATION.labels(run.cluster).observe(seconds)
        gpus = job.resources.get("gpu_count") or 0
        if gpus:
            kind = str(job.resources.get("gpu_type") or "any")
            metrics.GPU_HOURS.labels(run.cluster, kind).inc(gpus * seconds / 3600)


def gpus_idle(cluster: str, runs: int, gpus: int) -> None:
    """Runs that leave GPUs idle as of the last look, and how many GPUs."""
    metrics.RUNS_GPU_IDLE.labels(cluster).set(runs)
    metrics.GPUS_HELD_IDLE.labels(cluster).set(gpus)


def stored(cluster: str, size: int) -> None:
    """A job's results are safe."""
    metrics.STORED_BYTES.labels(cluster).inc(size)


def store_failed(cluster: str) -> None:
    """A try to store failed."""
    metrics.STORE_FAILURES.labels(cluster).inc()


def run_ended(run: RunRow) -> None:
    """A run ended."""
    metrics.RUNS.labels(run.cluster, run.state).inc()


def model_stored(pipeline: str, values: dict[str, Any] | None) -> None:
    """The newest model's figures, under the names people use for them."""
    for gauge, names in (
        (metrics.MODEL_ACCURACY, ("final_accuracy", "accuracy", "val_accuracy")),
        (metrics.TRAINING_LOSS, ("final_loss", "loss", "train_loss")),
    ):
        value = next((v for n in names if isinstance(v := (values or {}).get(n), int | float)), None)
        if value is not None:
            gauge.labels(pipeline).set(value)
