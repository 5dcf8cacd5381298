"""Events of a run: what people watch, numbered per run under the run's lock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.db import utcnow
from broker.runs.journal import note_request, run_event
from broker.runs.tables import EventRow, RunRow
from broker.runs.telling import tell

EVENT_TYPES = {
    "run_requested": "The run was asked for",
    "run_prepared": "Images are on the cluster and the plan is stored",
    "job_submitted": "Slurm has every job of the attempt, held",
    "run_waits_for_quota": "The tenant's GPU hours have no room for it; it goes on by itself when they have",
    "run_priority_changed": "Its place in the queue was changed; `state` says whether Slurm followed",
    "run_held": "An administrator holds what waits of it",
    "run_hold_lifted": "An administrator's hold was lifted",
    "approval_requested": "It asks for more than may run without approval, and can be decided about now",
    "approval_kept": "What runs again is exactly what was approved",
    "approved": "Somebody approved it; `comment` may say why",
    "rejected": "Somebody rejected it, or nobody decided in time; `comment` says why",
    "hold_confirmed": "Slurm shows an administrator's hold on every waiting job",
    "hold_lost": "A job that must wait was not held any more; it is held again",
    "release_refused": "Slurm does not hold what was approved (`differences`): nothing was released",
    "job_outgrew_approval": "A job was made larger than what was approved after its release; it was ended",
    "run_released": "The jobs were released; Slurm may start them",
    "job_started": "Slurm started a component",
    "job_requeued": "Slurm put a component back into the queue (node failure, preemption, an administrator)",
    "job_stalled": "A running component gives no sign of life; `silent_since` says since when",
    "job_alive_again": "A component that was flagged as stalled gave a sign of life",
    "job_ended_for_silence": "A stalled component was ended; `on_lost_heartbeat` says what follows",
    "gpu_idle": "A running component leaves GPUs idle: `gpus_idle` of `gpus`, since when, how busy they are",
    "gpu_busy": "A component that left GPUs idle uses them again; `idle_s` says how long it did not",
    "job_completed": "A component ended well",
    "job_failed": "A component ended otherwise; `state` and `reason` say how",
    "job_unknown": "Nothing on the cluster knows a component any more; the broker keeps asking",
    "job_stored": "Logs (and outputs) of a component lie verified in the object store",
    "model_ready": "A model version was made from a component's outputs",
    "run_trouble": "Something stands in the way; the broker goes on trying",
    "run_retried": "Components run again as a new attempt",
    "cancel_requested": "Somebody asked to cancel the run",
    "run_finished": "The run has ended; `state` says how",
    "run_files_removed": "The run directory was removed from the cluster",
}
"""Every type of event and what it says; `docs/states.md` lists them and a test compares."""


def emit(session: Session, run: RunRow, event: str, **data: Any) -> None:
    """Append an event to a run that is locked by the caller's write transaction, log it, and tell people."""
    assert event in EVENT_TYPES, event
    run.event_seq += 1
    run.updated_at = utcnow()
    note_request(run)
    session.add(EventRow(run_id=run.id, seq=run.event_seq, at=run.updated_at, type=event, data=data))
    tell(session, run, event, data)
    run_event(run, event, data)


def events_after(session: Session, run_id: str, seq: int, limit: int = 500) -> list[EventRow]:
    """Events of a run with a number above `seq`, in order."""
    query = select(EventRow).where(EventRow.run_id == run_id, EventRow.seq > seq)
    return list(session.scalars(query.order_by(EventRow.seq).limit(limit)))
