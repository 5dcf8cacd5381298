"""What became of the exports of reports, and asking for those of earlier periods."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import select

from broker.api.security import Ctx, requires
from broker.context import Context
from broker.db import utcnow
from broker.identity import Permission, Principal
from broker.reports.export_requests import ExportRequest, ask_for_exports
from broker.reports.export_tables import ReportExportRow

router = APIRouter(tags=["reports"])
Reader = Annotated[Principal, Depends(requires(Permission.EXPORTS_READ))]
Manager = Annotated[Principal, Depends(requires(Permission.EXPORTS_MANAGE))]


class ExportedFile(BaseModel):
    """One file of a version."""

    format: str
    key: str
    size: int
    sha256: str


class ExportView(BaseModel):
    """One version of one export of one period."""

    name: str
    period: str
    version: int = Field(description="Above 1: the figures had changed since the version before")
    report: str
    since: date
    until: date = Field(description="The first day (UTC) that is not in it any more")
    state: Literal["waiting", "intended", "stored", "dropped"] = Field(
        description="`dropped`: the settings don't say how to write it any more; `trouble` has the remedy"
    )
    files: Sequence[ExportedFile]
    stored_at: datetime | None
    checked_at: datetime | None = Field(
        description="When its figures were last compared with the present ones"
    )
    tries: int = Field(description="Tries that failed since the last one that did not")
    next_try_at: datetime | None
    trouble: str | None = Field(description="Why it waits, or what failed last")
    asked_at: datetime | None = Field(description="Since when somebody wants it now; null when that is done")


class ExportList(BaseModel):
    """The exports, and where they are written."""

    bucket: str
    prefix: str
    items: Sequence[ExportView]


@router.get("/report-exports")
def list_report_exports(
    ctx: Ctx,
    principal: Reader,
    name: Annotated[str | None, Query(max_length=40, description="Only this export")] = None,
    asked: Annotated[
        bool, Query(description="Only what somebody has asked for and does not have yet")
    ] = False,
    since: Annotated[
        date | None, Query(description="Only of periods that begin on this day (UTC) or later")
    ] = None,
    until: Annotated[
        date | None, Query(description="Only of periods that are over when this day begins")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ExportList:
    """The scheduled exports of reports (`[reports]` in the settings), the latest periods first.

    They are of all tenants, so only admins see them.
    """
    query = select(ReportExportRow)
    if name is not None:
        query = query.where(ReportExportRow.name == name)
    if asked:
        query = query.where(ReportExportRow.asked_at.is_not(None))
    if since is not None:
        query = query.where(ReportExportRow.since >= since)
    if until is not None:
        query = query.where(ReportExportRow.until <= until)
    order = (ReportExportRow.until.desc(), ReportExportRow.name, ReportExportRow.version.desc())
    with ctx.db.read() as session:
        rows = session.scalars(query.order_by(*order).limit(limit)).all()
        return _listed(ctx, rows)


@router.post("/report-exports", status_code=202)
def ask_for_report_exports(body: ExportRequest, ctx: Ctx, principal: Manager) -> ExportList:
    """Ask for exports of earlier periods, by the period's name or all whole ones of some days.

    The worker writes them within a minute or so, under the same keys and with the same manifest as its own.
    What lies there with the same figures is not written again; with others it becomes a new version.
    """
    with ctx.db.write() as session:
        settings = ctx.settings
        rows = ask_for_exports(session, principal, body, settings.reports, settings.clusters, utcnow())
        return _listed(ctx, rows)


def _listed(ctx: Context, rows: Sequence[ReportExportRow]) -> ExportList:
    items = [ExportView.model_validate(row, from_attributes=True) for row in rows]
    settings = ctx.settings.reports
    return ExportList(bucket=settings.bucket or ctx.objects.bucket, prefix=settings.prefix, items=items)
