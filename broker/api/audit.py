"""Reading the audit trail: an admin all of it, a tenant's admin the tenant's."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime

from broker.api.pagination import Page, PageParams, paginate
from broker.api.security import Ctx, requires
from broker.audit.reading import Filter, csv_lines
from broker.audit.schemas import AuditView
from broker.audit.tables import AuditRow
from broker.db import utcnow
from broker.identity import Permission, Principal

router = APIRouter(tags=["audit"])
_Text = Annotated[str | None, Query(max_length=64)]
_Moment = Annotated[AwareDatetime | None, Query(description="With time zone")]


async def wanted_rows(
    principal: Annotated[Principal, Depends(requires(Permission.AUDIT_READ))],
    actor: Annotated[str | None, Query(max_length=64, description="User id or name")] = None,
    action: Annotated[str | None, Query(max_length=64, description="`run.cancel`, or `run.*`")] = None,
    object_type: _Text = None,
    object_id: _Text = None,
    tenant: _Text = None,
    since: _Moment = None,
    until: _Moment = None,
) -> Filter | None:
    """The rows that a request asks for, of those that it may see; None: there are none."""
    if not principal.is_admin and tenant not in (None, principal.tenant):
        return None
    return Filter(
        tenant=tenant if principal.is_admin else principal.tenant,
        actor=actor,
        action=action,
        object_type=object_type,
        object_id=object_id,
        since=since,
        until=until,
    )


Wanted = Annotated[Filter | None, Depends(wanted_rows)]


@router.get("/audit")
def list_audit(ctx: Ctx, page: PageParams, wanted: Wanted) -> Page[AuditView]:
    """What was changed, newest first; every filter narrows."""
    if wanted is None:
        return Page[AuditView](items=[], next_cursor=None)
    with ctx.db.read() as session:
        rows = paginate(session, wanted.query(), AuditRow.id, page, AuditView.model_validate)
    return Page[AuditView](**rows)


@router.get(
    "/audit/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def export_audit(ctx: Ctx, wanted: Wanted) -> StreamingResponse:
    """The same rows up to now as CSV, oldest first, streamed.

    UTF-8 with a byte order mark; every field is quoted, and what a spreadsheet would take for a formula
    begins with an apostrophe. `before` and `after` are JSON.
    """
    now = utcnow()
    nothing = Filter(until=now, since=now)
    bounded = nothing if wanted is None else replace(wanted, until=min(wanted.until or now, now))
    return StreamingResponse(
        csv_lines(ctx.db, bounded),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="audit-{now:%Y%m%dT%H%M%SZ}.csv"'},
    )
