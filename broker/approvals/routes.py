"""Approvals over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Ctx, requires
from broker.approvals.review import review
from broker.approvals.schemas import ApprovalSummary, Approve, Reject, Review
from broker.approvals.service import State, approve, reject, requests, summaries
from broker.identity import Permission, Principal
from broker.runs.tables import RunRow

router = APIRouter(prefix="/approvals", tags=["approvals"])
Reader = Annotated[Principal, Depends(requires(Permission.APPROVALS_READ))]
Decider = Annotated[Principal, Depends(requires(Permission.APPROVALS_DECIDE))]


@router.get("")
def list_approvals(
    ctx: Ctx,
    page: PageParams,
    principal: Reader,
    state: Annotated[
        State | None, Query(description="Only these; `pending` waits for a decision now")
    ] = None,
) -> Page[ApprovalSummary]:
    """Requests of the runs one may see that need, or needed, a decision, newest first."""
    with ctx.db.read() as session:
        rows, cursor = fetch(session, requests(principal, state), RunRow.id, page)
        items = summaries(session, rows, ctx.settings.approval.expires_days)
        return Page(items=items, next_cursor=cursor)


@router.get("/{run_id}")
def show_approval(run_id: str, ctx: Ctx, principal: Reader) -> Review:
    """All there is to know before deciding: spec, scripts, resources, requester, usage, test run, changes."""
    return review(ctx, principal, run_id)


@router.post("/{run_id}/approve")
def approve_run(run_id: str, ctx: Ctx, principal: Decider, body: Approve | None = None) -> Review:
    """Let a run start, exactly as it was compiled (`plan_hash`). Nobody decides about their own request."""
    approve(ctx, principal, run_id, body or Approve())
    return review(ctx, principal, run_id)


@router.post("/{run_id}/reject")
def reject_run(run_id: str, ctx: Ctx, principal: Decider, body: Reject) -> Review:
    """Reject a run for ever, saying why; nothing of it stays in Slurm."""
    reject(ctx, principal, run_id, body)
    return review(ctx, principal, run_id)
