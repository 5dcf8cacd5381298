"""The rows of exports: deciding on them alone, a period's versions, a new one, the newest of each period."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.db.locks import exclusive
from broker.reports.export_tables import ReportExportRow
from broker.reports.wanted import period_bounds, period_name
from broker.settings import ReportExportSettings


def decide_alone(session: Session, name: str) -> None:
    """Let no other transaction decide on an export's versions and wishes until this one has ended."""
    exclusive(session, f"report export {name}")


def versions_of(session: Session, name: str, period: str) -> list[ReportExportRow]:
    """The versions of an export's period, in order."""
    query = select(ReportExportRow).where(ReportExportRow.name == name, ReportExportRow.period == period)
    return list(session.scalars(query.order_by(ReportExportRow.version)))


def newest_of(session: Session, name: str, export: ReportExportSettings) -> dict[str, ReportExportRow]:
    """The newest version of each period that an export has, as long as its setting says what it does now."""
    query = select(ReportExportRow).where(ReportExportRow.name == name).order_by(ReportExportRow.version)
    rows = session.scalars(query)
    return {row.period: row for row in rows if row.period == period_name(export.period, row.since)}


def add_version(
    session: Session,
    name: str,
    export: ReportExportSettings,
    period: str,
    version: int,
    now: datetime,
    *,
    by_hand: bool = False,
) -> ReportExportRow:
    """A version that is to be written."""
    since, until = period_bounds(export.period, period)
    row = ReportExportRow(
        name=name,
        period=period,
        version=version,
        report=export.report,
        since=since,
        until=until,
        state="waiting",
        sources=[],
        files=[],
        made_at=now,
        tries=0,
        by_hand=by_hand,
    )
    session.add(row)
    return row
