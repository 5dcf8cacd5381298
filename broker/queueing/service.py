"""Use cases: wish for a place in the queue, hold, release. Nothing here talks to a cluster."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.context import Context
from broker.db import utcnow
from broker.errors import Conflict, InvalidRequest, Problem
from broker.identity import Principal
from broker.queueing.schemas import PriorityChange, PriorityRequest, PriorityView
from broker.queueing.snapshot import WAITING
from broker.queueing.tables import PriorityRow
from broker.runs.events import emit
from broker.runs.holding import add_hold, lift_hold
from broker.runs.priority import LEVEL_KO, Level
from broker.runs.schemas import RunView
from broker.runs.states import JobState, RunState
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import find_run, view_run


def set_priority(ctx: Context, principal: Principal, run_id: str, wanted: PriorityRequest) -> PriorityView:
    """Store where a run shall stand; the worker tells Slurm at once, or when the run is released.

    A wish replaces the one before it. Raises `NotFound`, `Conflict` (nothing of it waits), `InvalidRequest`
    (the other run).
    """
    with ctx.db.write() as session:
        run = find_run(session, principal, run_id, lock=True)
        _something_waits(session, run)
        other = _other(session, run, wanted)
        row = session.get(PriorityRow, run.id)
        if row is None:
            row = PriorityRow(run_id=run.id)
        elif row.state == "pending" and row.attempt == run.attempt:
            replaced = {"wish": row.kind, "level": row.level, "number": row.number}
            note = "Replaced before it was applied"
            record(session, principal, "run.priority", "run", run.id, replaced, None, note, tenant=run.tenant)
        (kind,) = wanted.model_fields_set & wanted.model_dump(exclude_none=True).keys()
        row.ask(run.attempt, principal, kind, wanted.level, wanted.number, other.id if other else None)
        session.add(row)
        run.updated_at = utcnow()
        session.flush()
        view = _view(run, row)
    ctx.wake()
    return view


def show_priority(ctx: Context, principal: Principal, run_id: str) -> PriorityView:
    """The level of a run, and what became of the last wish."""
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        row = session.get(PriorityRow, run.id)
        return _view(run, row if row is not None and row.attempt == run.attempt else None)


def hold_run(ctx: Context, principal: Principal, run_id: str, reason: str) -> RunView:
    """Hold what waits of a run; components that run already go on. `Conflict`: held so already, or nothing
    waits.
    """
    with ctx.db.write() as session:
        run = find_run(session, principal, run_id, lock=True)
        _something_waits(session, run)
        before = _hold_kinds(session, run)
        if not add_hold(session, run, "admin", reason):
            raise Conflict("An administrator holds the run already: release it first to give another reason")
        view = _changed(session, principal, run, "run.hold", before, reason)
    ctx.wake()
    return view


def release_run(ctx: Context, principal: Principal, run_id: str, reason: str) -> RunView:
    """Lift an administrator's hold. Other holds (approval, quota) stand; Slurm releases when none is left."""
    with ctx.db.write() as session:
        run = find_run(session, principal, run_id, lock=True)
        before = _hold_kinds(session, run)
        if not lift_hold(session, run, "admin"):
            others = [kind for kind in before if kind != "submission"]
            why = f"it is held by: {', '.join(others)}" if others else "nothing holds it"
            raise Conflict(f"No administrator holds the run; {why}")
        view = _changed(session, principal, run, "run.release", before, reason)
    ctx.wake()
    return view


def change_view(row: PriorityRow) -> PriorityChange:
    """A wish as people see it."""
    columns = {name: getattr(row, name) for name in PriorityChange.model_fields if name != "wish"}
    return PriorityChange(wish=row.kind, **columns)


def _view(run: RunRow, row: PriorityRow | None) -> PriorityView:
    level = Level(run.priority)
    change = change_view(row) if row is not None else None
    if change is not None and change.state == "pending" and RunState(run.state).final:
        told = f"The run was {run.state} before it could be applied"
        change = change.model_copy(update={"state": "failed", "message": told})
    return PriorityView(run_id=run.id, level=level, level_ko=LEVEL_KO[level], change=change)


def _something_waits(session: Session, run: RunRow) -> None:
    if RunState(run.state).final or run.cancel_requested_at is not None:
        raise Conflict(f"The run is {run.state if RunState(run.state).final else 'being cancelled'}")
    waiting = select(JobRow.id).where(
        JobRow.run_id == run.id,
        JobRow.attempt == run.attempt,
        JobRow.state.in_([*WAITING, JobState.INTENDED]),
    )
    if session.scalar(waiting.limit(1)) is None:
        raise Conflict("Every component of the run has started: what runs is never touched")


def _other(session: Session, run: RunRow, wanted: PriorityRequest) -> RunRow | None:
    name = "before" if wanted.before is not None else "after"
    run_id = wanted.before or wanted.after
    if run_id is None:
        return None
    other = session.get(RunRow, run_id)
    detail = ""
    if other is None:
        detail = f"There is no run {run_id!r}"
    elif other.id == run.id:
        detail = "A run has no place before or after itself"
    elif other.cluster != run.cluster:
        detail = f"{run_id} waits on {other.cluster}, this run on {run.cluster}: each has a queue of its own"
    elif RunState(other.state).final:
        detail = f"{run_id} does not wait any more, it is {other.state}"
    if detail:
        raise InvalidRequest(detail, problems=[Problem(f"/{name}", "no_such_place", detail)])
    return other


def _hold_kinds(session: Session, run: RunRow) -> list[str]:
    return sorted(session.scalars(select(RunHoldRow.kind).where(RunHoldRow.run_id == run.id)))


def _changed(
    session: Session, principal: Principal, run: RunRow, action: str, before: list[str], reason: str
) -> RunView:
    session.flush()
    after = _hold_kinds(session, run)
    event = "run_held" if action == "run.hold" else "run_hold_lifted"
    emit(session, run, event, by=principal.username, reason=reason)
    holds = {"holds": before}, {"holds": after, "reason": reason}
    record(session, principal, action, "run", run.id, *holds, tenant=run.tenant)
    session.flush()
    return view_run(session, run)
