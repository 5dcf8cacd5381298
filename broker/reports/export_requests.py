"""Exports of earlier periods that somebody asks for: which periods are meant, and the intent for the worker.

What is asked for is written down (`ReportExportRow.asked_at`) with its audit row. The exporter then writes
each period under the same keys as by itself, or finds that what lies there holds; from here nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from typing import Final, NoReturn

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.accounting.tables import AccountingDayRow
from broker.audit import record
from broker.errors import InvalidRequest, Problem
from broker.identity import Principal
from broker.reports.definitions import REPORTS
from broker.reports.export_plan import due_periods
from broker.reports.export_rows import add_version, decide_alone, newest_of
from broker.reports.export_tables import ReportExportRow
from broker.reports.wanted import EARLIEST, period_bounds, period_name
from broker.settings import ReportExportSettings, ReportSettings
from broker.text import RequestModel

MOST_ASKED: Final = 400
"""Periods of one request: a year of days, and some."""
_LIKE: Final = {"day": "2026-11-21", "week": "2026-W47", "month": "2026-11"}


class ExportRequest(RequestModel):
    """Periods of an export that are wanted now: one by its name, or every whole one of some days."""

    name: str = Field(max_length=40, description="The export: NAME of a setting `reports.exports.NAME`")
    period: str | None = Field(
        None,
        max_length=10,
        description="A finished day, week or month (UTC), as the export has them: `2026-09`",
    )
    since: date | None = Field(None, description="Instead of `period`: from this day (UTC) on")
    until: date | None = Field(None, description="With `since`: the first day not in it; unset: today")


def ask_for_exports(
    session: Session,
    principal: Principal,
    request: ExportRequest,
    settings: ReportSettings,
    clusters: Iterable[str],
    now: datetime,
) -> list[ReportExportRow]:
    """Write down that periods of an export are wanted; gives the newest version of each, the latest first.

    What is asked for again before it is done stays one wish. Raises `InvalidRequest`.
    """
    export = settings.exports.get(request.name)
    if export is None:
        known = ", ".join(settings.exports) or "none (see `[reports]` in the settings)"
        _refuse("/name", "unknown_export", f"There is no export {request.name!r}; there are: {known}")
    periods = asked_periods(export.period, request, now.date())
    _check_known(session, export, periods[0], request, clusters)
    decide_alone(session, request.name)
    newest = newest_of(session, request.name, export)
    scheduled = [one for one, row in newest.items() if not row.by_hand]
    due = due_periods(export.period, now, settings.hour, scheduled, ())
    found = []
    for period in periods:
        row = newest.get(period)
        if row is None:
            row = add_version(session, request.name, export, period, 1, now, by_hand=period not in due)
        row.asked_at = row.asked_at or now
        row.trouble, row.next_try_at = None, None  # it is tried at once
        if row.state == "dropped":
            row.state = "waiting"
        found.append(row)
    asked = {"report": export.report, "periods": periods}
    record(session, principal, "report.export_ask", "report_export", request.name, None, asked)
    return found[::-1]


def asked_periods(kind: str, request: ExportRequest, today: date) -> list[str]:
    """The names of the periods (`day`, `week`, `month`) that a request means, in order; raises
    `InvalidRequest`.

    >>> asked_periods("month", ExportRequest(name="x", period="2026-09"), date(2026, 11, 21))
    ['2026-09']
    >>> days = {"since": date(2026, 7, 15), "until": date(2026, 10, 1)}
    >>> asked_periods("month", ExportRequest(name="x", **days), date(2026, 11, 21))
    ['2026-08', '2026-09']
    """
    if request.period is not None:
        if request.since or request.until:
            _refuse("/period", "period_or_days", "Name a period, or its days with since and until, not both")
        return [_named(kind, request.period, today)]
    if request.since is None:
        _refuse(
            "/period", "period_or_days", f"Name a period like {_LIKE[kind]}, or days with since and until"
        )
    return _within(kind, request.since, request.until or today, today)


def _named(kind: str, label: str, today: date) -> str:
    try:
        since, until = period_bounds(kind, label)
    except (ValueError, OverflowError):  # … after the calendar's last day
        since, until = today, today
    if period_name(kind, since) != label:
        _refuse("/period", "invalid_period", f"This export is of each {kind}: name one like {_LIKE[kind]}")
    if until > today:
        _refuse("/period", "period_not_over", f"{label} is not over: ask from {until} (UTC) on")
    return label


def _within(kind: str, since: date, until: date, today: date) -> list[str]:
    """The periods that lie whole in the days."""
    if until > today:
        _refuse("/until", "period_not_over", f"{until} is yet to come: name {today} or a day before it")
    if not EARLIEST <= since < until:
        _refuse(
            "/since", "invalid_period", f"since has to be {EARLIEST} or later, and before until ({until})"
        )
    found: list[str] = []
    first, after = period_bounds(kind, period_name(kind, since))
    while after <= until and len(found) <= MOST_ASKED:
        if first >= since:
            found.append(period_name(kind, first))
        first, after = period_bounds(kind, period_name(kind, after))
    if not found:
        _refuse(
            "/since", "no_whole_period", f"No whole {kind} lies in the days from {since} to before {until}"
        )
    if len(found) > MOST_ASKED:
        _refuse("/since", "too_many_periods", f"More than {MOST_ASKED} periods: ask for a part of them first")
    return found


def _check_known(
    session: Session,
    export: ReportExportSettings,
    label: str,
    request: ExportRequest,
    clusters: Iterable[str],
) -> None:
    """Refuse periods of which the first (`label`) lies before the first job that is known: its report would
    be of nothing, not of no use.
    """
    report = REPORTS.get(export.report)
    if report is None or report.source != "days":  # the worker tells what is wrong with the setting
        return
    of_cluster = (
        session.scalar(select(func.min(AccountingDayRow.day)).where(AccountingDayRow.cluster == name))
        for name in clusters
    )
    first = min((day for day in of_cluster if day is not None), default=None)
    _, until = period_bounds(export.period, label)
    if first is None or until <= first:
        begins = "no accounting has been read yet (`broker accounting status` says why)"
        if first is not None:
            begin, _ = period_bounds(export.period, period_name(export.period, first))
            begins = f"accounting is known from {first} (UTC) on; ask from {begin} on"
        pointer = "/period" if request.period is not None else "/since"
        _refuse(pointer, "nothing_known", f"Of {label} nothing is known: {begins}")


def _refuse(pointer: str, code: str, detail: str) -> NoReturn:
    raise InvalidRequest(detail, problems=[Problem(pointer, code, detail)])
