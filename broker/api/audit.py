"""Reading the audit trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime
from sqlalchemy import select

from broker.api.pagination import Page, PageParams, paginate
from broker.api.security import Ctx, requires
from broker.audit.schemas import AuditView
from broker.audit.tables import AuditRow
from broker.identity import Permission

router = APIRouter(tags=["audit"])
_Text = Annotated[str | None, Query(max_length=64)]


@router.get("/audit", dependencies=[Depends(requires(Permission.AUDIT_READ))])
def list_audit(
    ctx: Ctx,
    page: PageParams,
    actor: Annotated[str | None, Query(max_length=64, description="User id or name")] = None,
    action: _Text = None,
    object_type: _Text = None,
    object_id: _Text = None,
    since: Annotated[AwareDatetime | None, Query(description="With time zone")] = None,
    until: Annotated[AwareDatetime | None, Query(description="With time zone")] = None,
) -> Page[AuditView]:
    """What was changed, newest first; every filter narrows."""
    query = select(AuditRow)
    if actor is not None:
        query = query.where((AuditRow.actor_id == actor) | (AuditRow.actor_name == actor))
    for column, value in (
        (AuditRow.action, action),
        (AuditRow.object_type, object_type),
        (AuditRow.object_id, object_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(AuditRow.at >= since)
    if until is not None:
        query = query.where(AuditRow.at < until)
    with ctx.db.read() as session:
        return Page[AuditView](**paginate(session, query, AuditRow.id, page, AuditView.model_validate))
