"""Deciding about runs: approve, reject, let requests expire. Nothing here talks to a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, cast

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from broker import metrics
from broker.approvals.schemas import ApprovalSummary, Approve, DecisionView, Reject, Verdict
from broker.approvals.tables import DecisionRow
from broker.audit import record
from broker.context import Context
from broker.db import new_id, utcnow
from broker.db.leases import Lease
from broker.errors import Conflict, Denied
from broker.identity import SYSTEM, Principal
from broker.identity.tables import UserRow
from broker.pipelines.schemas import NeedsApproval
from broker.runs.events import emit
from broker.runs.holding import grant_approval
from broker.runs.states import RUN_STATE_KO, RunState
from broker.runs.tables import RunRow, SubmissionRow
from broker.runs.views import find_run, visible_runs
from broker.settings import PriorityClass
from broker.tenancy.objects import qos_name

State = Literal["pending", "approved", "rejected"]

OWN = "Nobody decides about their own request: ask another administrator"
NOT_COMPILED = (
    "What would run is not known yet: its images and code are being resolved. Look again in a moment; "
    "it can be rejected already"
)


def requests(principal: Principal, state: State | None) -> Select[RunRow]:
    """The runs one may see that need, or needed, a decision; `pending`: those that wait for one now."""
    query = visible_runs(principal).where(RunRow.approval != "not_required")
    if state is not None:
        query = query.where(RunRow.approval == state)
    if state == "pending":
        final = [one for one in RunState if one.final]
        query = query.where(RunRow.state.not_in(final), RunRow.cancel_requested_at.is_(None))
    return query


def approve(ctx: Context, principal: Principal, run_id: str, wish: Approve) -> None:
    """Approve exactly what was compiled; its jobs are released as soon as nothing else holds them.

    `Denied` on one's own request; `Conflict` when there is nothing to decide, not yet, or something else.
    """
    with ctx.db.write() as session:
        run = find_run(session, principal, run_id, lock=True)
        plan_hash = _decidable(session, principal, run)
        if plan_hash is None:
            raise Conflict(NOT_COMPILED)
        if wish.plan_hash is not None and wish.plan_hash != plan_hash:
            raise Conflict(f"What would run has changed since it was reviewed; it is {plan_hash} now")
        _write(session, run, principal, "approved", plan_hash, wish.comment)
        run.approved_plan_hash = plan_hash
        run.approved_until = utcnow() + timedelta(days=ctx.settings.approval.expires_days)
        cluster = ctx.cluster(run.cluster)
        if run.unix_account is not None and cluster.priority_classes:
            run.requested_qos = qos_name(cluster, cast("PriorityClass", run.priority_class), approved=True)
        grant_approval(session, run)
        emit(session, run, "approved", by=principal.username, comment=wish.comment, plan_hash=plan_hash)
    ctx.wake()


def reject(ctx: Context, principal: Principal, run_id: str, wish: Reject) -> None:
    """Reject a run for ever: it ends, and nothing of it stays in Slurm. The requester reads the comment."""
    with ctx.db.write() as session:
        run = find_run(session, principal, run_id, lock=True)
        plan_hash = _decidable(session, principal, run)
        _reject(session, run, principal, "rejected", plan_hash, wish.comment)
    ctx.wake()


def expire(ctx: Context, lease: Lease) -> int:
    """Reject what nobody decided about in time; how many those were. Called again and again by a worker."""
    days = ctx.settings.approval.expires_days
    due = requests(SYSTEM, "pending").where(RunRow.approval_requested_at <= utcnow() - timedelta(days=days))
    with ctx.db.read() as session:
        ids = session.scalars(due.with_only_columns(RunRow.id)).all()
    for run_id in ids:
        with ctx.db.write() as session:
            lease.confirm(session)
            run = session.scalar(due.where(RunRow.id == run_id).with_for_update())
            if run is not None:
                comment = f"Nobody decided within {days:g} days; request it again if it is still wanted"
                _reject(session, run, SYSTEM, "expired", None, comment)
    if ids:
        ctx.wake()
    return len(ids)


def why_not(session: Session, principal: Principal, run: RunRow) -> str | None:
    """Why this person may not decide about this run now; None: they may."""
    try:
        _decidable(session, principal, run)
    except (Conflict, Denied) as error:
        return error.detail
    return None


def _decidable(session: Session, principal: Principal, run: RunRow) -> str | None:
    """The hash of what is decided about; None while it is being compiled."""
    if run.owner_id == principal.user_id:
        raise Denied(OWN)
    if run.approval == "not_required":
        raise Conflict("The run needs no approval")
    if run.approval != "pending":
        raise Conflict(f"The run is {run.approval} already")
    if RunState(run.state).final:
        raise Conflict(f"The run has ended ({run.state}); there is nothing to decide")
    if run.cancel_requested_at is not None:
        raise Conflict("The run is being cancelled; there is nothing to decide")
    return session.scalar(
        select(SubmissionRow.plan_hash).where(
            SubmissionRow.run_id == run.id, SubmissionRow.attempt == run.attempt
        )
    )


def _reject(
    session: Session, run: RunRow, principal: Principal, verdict: Verdict, plan_hash: str | None, comment: str
) -> None:
    _write(session, run, principal, verdict, plan_hash, comment)
    run.approval, run.error_code, run.error = "rejected", "rejected", comment
    run.cancel_requested_at, run.cancelled_by = utcnow(), principal.user_id
    run.next_try_at = run.trouble = None
    emit(session, run, "rejected", by=principal.username, comment=comment)


def _write(
    session: Session, run: RunRow, principal: Principal, verdict: Verdict, plan_hash: str | None, comment: str
) -> None:
    """The decision and its audit row."""
    metrics.APPROVAL_WAIT.labels(verdict).observe((utcnow() - requested_at(run)).total_seconds())
    session.add(
        DecisionRow(
            id=new_id("dec"),
            run_id=run.id,
            attempt=run.attempt,
            decision=verdict,
            plan_hash=plan_hash,
            comment=comment,
            decided_by=None if principal is SYSTEM else principal.user_id,
            decided_at=utcnow(),
        )
    )
    action = "run.approve" if verdict == "approved" else "run.reject"
    after = {"approval": verdict, "attempt": run.attempt, "plan_hash": plan_hash}
    before = {"approval": run.approval}
    record(session, principal, action, "run", run.id, before, after, comment, tenant=run.tenant)


# ---- reading ------------------------------------------------------------------------------------------


def summaries(session: Session, runs: Sequence[RunRow], expires_days: float) -> list[ApprovalSummary]:
    """Requests as list entries: two queries, however many."""
    ids = [run.id for run in runs]
    newest: dict[str, DecisionView] = {}
    for run_id, view in reversed(_decisions(session, ids)):
        newest[run_id] = view
    people = select(UserRow.id, UserRow.username).where(UserRow.id.in_({run.owner_id for run in runs}))
    owners = {row.id: row.username for row in session.execute(people)}
    return [
        ApprovalSummary(
            run_id=run.id,
            number=run.number,
            name=run.name,
            kind="test" if run.kind == "test" else "normal",
            tenant=run.tenant,
            requester=owners[run.owner_id],
            cluster=run.cluster,
            state=RunState(run.state),
            state_ko=RUN_STATE_KO[RunState(run.state)],
            approval=run.approval,
            needs_approval=[NeedsApproval(**over) for over in run.needs_approval or []],
            test_run_ref=run.test_run_ref,
            requested_at=requested_at(run),
            expires_at=expires_at(run, expires_days),
            decision=newest.get(run.id),
        )
        for run in runs
    ]


def requested_at(run: RunRow) -> datetime:
    """Since when a run waits, or waited, for a decision."""
    return run.approval_requested_at or run.created_at


def expires_at(run: RunRow, expires_days: float) -> datetime | None:
    """Until when a run can be decided about; None when it can't be, any more."""
    waits = run.approval == "pending" and not RunState(run.state).final
    return requested_at(run) + timedelta(days=expires_days) if waits else None


def decisions_of(session: Session, run_id: str) -> list[DecisionView]:
    """Everything that was decided about a run, newest first."""
    return [view for _, view in _decisions(session, [run_id])]


def _decisions(session: Session, run_ids: Sequence[str]) -> list[tuple[str, DecisionView]]:
    query = (
        select(DecisionRow, UserRow.username)
        .outerjoin(UserRow, UserRow.id == DecisionRow.decided_by)
        .where(DecisionRow.run_id.in_(run_ids))
        .order_by(DecisionRow.id.desc())
    )
    return [
        (
            row.run_id,
            DecisionView(
                decision=row.decision,
                attempt=row.attempt,
                plan_hash=row.plan_hash,
                comment=row.comment,
                decided_by=username,
                decided_at=row.decided_at,
            ),
        )
        for row, username in session.execute(query)
    ]
