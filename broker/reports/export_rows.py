"""The rows of exports: deciding on them alone, a period's versions, a new one, the newest of each period, and
those that no setting tells how to write any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db.locks import exclusive
from broker.identity import SYSTEM
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
    return {row.period: row for row in session.scalars(query) if _of(row, export)}


def _of(row: ReportExportRow, export: ReportExportSettings) -> bool:
    """Whether a period is of the kind (`day`, `week`, `month`) that the setting has now."""
    return row.period == period_name(export.period, row.since)


def lost(session: Session, exports: Mapping[str, ReportExportSettings]) -> list[tuple[str, str, int, str]]:
    """What is wanted or not written yet, and no setting tells how: name, period, version, what is wrong."""
    unfinished = or_(
        ReportExportRow.asked_at.is_not(None), ReportExportRow.state.in_(("waiting", "intended"))
    )
    found = []
    for row in session.scalars(select(ReportExportRow).where(unfinished)):
        export, where = exports.get(row.name), f"`reports.exports.{row.name}`"
        if export is None:
            found.append((row.name, row.period, row.version, f"The worker's settings have no {where}"))
        elif not _of(row, export):
            wrong = f"{where} is of each {export.period} now, and {row.period} is none"
            found.append((row.name, row.period, row.version, wrong))
    return found


def drop(session: Session, name: str, period: str, version: int, wrong: str) -> None:
    """End what nobody can write any more, and the wish for it, with its audit row. What is stored stays."""
    decide_alone(session, name)
    row = session.get_one(ReportExportRow, (name, period, version))
    before = {"state": row.state, "asked_at": row.asked_at and row.asked_at.isoformat()}
    if row.state != "stored":
        row.state = "dropped"
    row.asked_at, row.next_try_at, row.tries = None, None, 0
    row.trouble = f"{wrong}: mend the settings, start the worker anew, and ask for it again"
    after = {"state": row.state, "asked_at": None, "trouble": row.trouble}
    record(
        session, SYSTEM, "report.export_drop", "report_export", f"{name}/{period}/v{version}", before, after
    )


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
