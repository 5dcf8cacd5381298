"""Why a run's jobs must not start: the set of its holds, and what it makes the worker do in Slurm.

The intent is a row (`RunHoldRow`), put and taken by these functions inside the caller's transaction, with
the run locked. Its effect is one administrator hold on every job of the run that waits: the owner can't
release that, also not where the jobs belong to the owner's own Unix account. `RunRow.gate` says how far Slurm
follows:

    open ── a hold is added ──► closing ── Slurm has confirmed it, job by job ──► closed
      ▲                                                                             │
      └──────── released ──── opening ◄── the last hold is lifted, whatever the gate ┘

The gate matters only for jobs that were submitted: they are submitted under a hold of their own
(`submission`), which goes with the last `sbatch`.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from broker.db import utcnow
from broker.runs.events import emit
from broker.runs.states import Gate, RunState
from broker.runs.tables import RunHoldRow, RunRow

HoldKind = Literal["approval", "quota", "admin"]


def add_hold(session: Session, run: RunRow, kind: HoldKind, reason: str) -> bool:
    """Hold a run, which the caller has locked; the worker makes Slurm follow. False: it was held so already.

    `reason` is shown to the person who waits. Components that run already are not touched.
    """
    if session.get(RunHoldRow, (run.id, kind)) is not None:
        return False
    session.add(RunHoldRow(run_id=run.id, kind=kind, reason=reason, since=utcnow()))
    session.flush()
    run.gate, run.next_try_at = Gate.CLOSING, None
    return True


def lift_hold(session: Session, run: RunRow, kind: HoldKind) -> bool:
    """Take a hold from a run, which the caller has locked; the jobs are released when it was the last.

    False: the run had no such hold.
    """
    row = session.get(RunHoldRow, (run.id, kind))
    if row is None:
        return False
    session.delete(row)
    session.flush()
    if not _held(session, run) and run.gate != Gate.OPEN:
        run.gate, run.next_try_at = Gate.OPENING, None
    return True


def drop_holds(session: Session, run: RunRow) -> None:
    """Forget every hold of a run that has ended, or will: nothing of it is left to be held or released."""
    session.execute(delete(RunHoldRow).where(RunHoldRow.run_id == run.id))
    run.gate = Gate.OPEN


def begin_attempt(session: Session, run: RunRow) -> None:
    """Put the holds of an attempt that is about to be submitted; those that stand go on standing."""
    session.merge(RunHoldRow(run_id=run.id, kind="submission", reason="It is submitted", since=utcnow()))
    run.gate = Gate.CLOSING if _held(session, run) else Gate.OPEN
    if run.needs_approval:
        request_approval(session, run)


def _held(session: Session, run: RunRow) -> bool:
    beyond = select(RunHoldRow.kind).where(RunHoldRow.run_id == run.id, RunHoldRow.kind != "submission")
    return session.scalar(beyond.limit(1)) is not None


NEEDS = "It asks for more than may run without approval"


def request_approval(session: Session, run: RunRow, reason: str = NEEDS) -> None:
    """Let a run wait for a decision: nothing of it may start, though it may be submitted."""
    run.approval, run.approval_requested_at = "pending", utcnow()
    if run.state == RunState.QUEUED:
        run.state = RunState.PENDING_APPROVAL
    if not add_hold(session, run, "approval", reason):
        session.get_one(RunHoldRow, (run.id, "approval")).reason = reason


def why_refused(session: Session, run: RunRow) -> str | None:
    """Why a run that was approved waits for a decision again; None: it does not."""
    row = session.get(RunHoldRow, (run.id, "approval"))
    return row.reason if row is not None and row.reason != NEEDS else None


def grant_approval(session: Session, run: RunRow) -> None:
    """Let a run go on, as far as approval is concerned: it is released when no other hold is left."""
    run.approval = "approved"
    if run.state == RunState.PENDING_APPROVAL:
        run.state = RunState.QUEUED
    run.trouble = None
    lift_hold(session, run, "approval")


def is_approved(run: RunRow, plan_hash: str) -> bool:
    """Whether exactly this was approved, and not too long ago to be used."""
    in_time = run.approved_until is not None and run.approved_until > utcnow()
    return in_time and run.approved_plan_hash == plan_hash


def plan_known(session: Session, run: RunRow, plan_hash: str) -> None:
    """From now on an attempt can be decided about: a retry of what was approved keeps its approval."""
    if run.approval != "pending":
        return
    if is_approved(run, plan_hash):
        grant_approval(session, run)
        emit(session, run, "approval_kept", plan_hash=plan_hash)
    else:
        emit(session, run, "approval_requested", plan_hash=plan_hash, needs=run.needs_approval)
