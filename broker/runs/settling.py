"""How a run ends: its state derived from its jobs, another try, or the end with its reason in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from broker.context import Context
from broker.db import utcnow
from broker.errors import SlurmRefused
from broker.runs.events import emit
from broker.runs.observation import NEVER_STARTS
from broker.runs.service import start_attempt
from broker.runs.states import (
    NO_HEARTBEAT,
    FailureClass,
    JobState,
    Phase,
    RunState,
    derive_run_state,
    failure_class,
)
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import run_ended
from broker.runs.views import newest_jobs


def settle(ctx: Context, session: Session, run: RunRow) -> None:
    """Derive the run's state from its jobs and end it when nothing is left to do (run locked by caller).

    A run is not over before Slurm is rid of what was given up of it.
    """
    if run.phase not in {Phase.RELEASING, Phase.ACTIVE, Phase.STORING}:
        return
    session.flush()
    jobs = newest_jobs(session, run.id)
    states = [JobState(job.state) for job in jobs]
    stored = all(job.storing in {"none", "stored", "failed"} for job in jobs)
    state = derive_run_state(
        [_Facts(JobState(job.state), job.started_at is not None) for job in jobs],
        cancel_requested=run.cancel_requested_at is not None,
        stored=stored,
        approval=run.approval,
    )
    if all(value.ended for value in states) and not state.final:
        run.phase = Phase.STORING
    if state is RunState.SUCCEEDED and any(job.storing == "failed" for job in jobs):
        state = RunState.FAILED
        lost = next(job for job in jobs if job.storing == "failed")
        run.error_code, run.error = "integrity", f"Storing {lost.component} failed: {lost.store_error}"
    if not state.final:
        run.state = state
        return
    if any(job.reap and job.slurm_job_id for job in jobs):
        return
    if state is RunState.FAILED and _worth_another_try(ctx, run, jobs):
        run.auto_retries += 1
        start_attempt(ctx, session, run, None, run.owner_id)
        return
    run.state, run.phase, run.ended_at = state, Phase.DONE, utcnow()
    run.trouble = run.next_try_at = None
    if state is RunState.FAILED and run.error is None:
        run.error_code, run.error = explain(jobs)
    emit(session, run, "run_finished", state=state, error=run.error)
    run_ended(run)


def _worth_another_try(ctx: Context, run: RunRow, jobs: Sequence[JobRow]) -> bool:
    """Only when every failure was the cluster's, and not for ever (DD-13)."""
    silent = any(job.reason == NO_HEARTBEAT for job in jobs)
    if silent and ctx.cluster(run.cluster).on_lost_heartbeat != "retry":
        return False
    classes = {failure_class(JobState(job.state), job.reason) for job in jobs if job.culprit is None}
    own = classes - {None, FailureClass.UPSTREAM}
    return own == {FailureClass.TEMPORARY} and run.auto_retries < ctx.cluster(run.cluster).max_auto_retries


REMEDIES = {
    FailureClass.TEMPORARY: "The cluster failed, not the program: `broker run retry` goes on from here",
    FailureClass.RESOURCE: "It needed more than it asked for: raise `memory` or `time` and run it again",
    FailureClass.CANCELLED: "It was cancelled on the cluster",
    FailureClass.PERMANENT: "The program failed: read its log (`broker run logs`), mend it, run it again",
}


def explain(jobs: Sequence[JobRow]) -> tuple[str, str]:
    """Why a run failed: the first component that failed by itself, in a sentence with the remedy."""
    for job in jobs:
        if job.reason == NEVER_STARTS:
            return SlurmRefused.code, (
                f"Slurm can never start {job.component} ({NEVER_STARTS}): no node of the cluster has the "
                "GPUs, memory and CPUs it asks for. Change its resources and run it again."
            )
        if job.reason == NO_HEARTBEAT:
            return "job_temporary", (
                f"{job.component} gave no sign of life for too long and was ended ({NO_HEARTBEAT}): neither "
                "its progress file nor its logs, outputs or checkpoints changed. Read its log "
                "(`broker run logs`); if it only says little, let it write `PROGRESS_FILE`; then "
                "`broker run retry`."
            )
        state = JobState(job.state)
        kind = failure_class(state)
        if kind in REMEDIES:
            status = f", exit status {job.exit_code}" if job.exit_code else ""
            reason = f" ({job.reason})" if job.reason and job.reason != "NonZeroExitCode" else ""
            return f"job_{kind}", f"{job.component} ended {state}{status}{reason}. {REMEDIES[kind]}."
    return "job_permanent", "The run failed."


@dataclass(frozen=True, slots=True)
class _Facts:
    state: JobState
    started: bool
