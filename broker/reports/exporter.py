"""The worker's exports: finished periods, and those somebody asks for, are written to the object store once.

What will be written is decided and committed before the first byte is sent; what lies there already, by size
and SHA-256, is not sent again; the manifest comes last. Figures that have changed since (accounting learned
of something late) are a new version beside the old one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from broker import metrics
from broker.accounting.schemas import Source
from broker.audit import record
from broker.checks import Check
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease, LeaseLost
from broker.errors import (
    BrokerError,
    ConfigurationError,
    Denied,
    IntegrityError,
    NotFound,
    Unreachable,
)
from broker.identity import SYSTEM
from broker.objects import ObjectStore
from broker.reports.definitions import REPORTS
from broker.reports.export_plan import (
    TYPES,
    StoredReport,
    Version,
    digest,
    due_periods,
    file_key,
    manifest,
    manifest_key,
    midnight,
    rendered,
    to_check,
    unread,
)
from broker.reports.export_rows import add_version, decide_alone, drop, lost, newest_of, versions_of
from broker.reports.export_tables import ReportExportRow
from broker.reports.schemas import ReportView
from broker.reports.sources import ages, read_up_to
from broker.reports.views import view_report
from broker.reports.wanted import Scope, Wanted, dimensions, period_bounds, period_name
from broker.runs.telemetry import contained
from broker.settings import ReportExportSettings, ReportSettings

log = structlog.get_logger("broker.reports")

_LIKELY = (ConfigurationError, Denied, IntegrityError, NotFound, Unreachable, BrokerError)
FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(hours=1)
"""After a failure; each further pause is twice as long, up to the longest."""


def wanted_of(name: str, export: ReportExportSettings, period: str) -> Wanted:
    """What an export asks for; raises `ConfigurationError` for what there is not."""
    report = REPORTS.get(export.report)
    where = f"reports.exports.{name}"
    if report is None:
        raise ConfigurationError(
            f"{where}.report: there is no report {export.report!r}: {', '.join(REPORTS)}"
        )
    if report.now:
        raise ConfigurationError(f"{where}.report: {report.name} tells how things stand now, not of a period")
    unknown = [one for one in export.by if one not in dimensions(report)]
    if unknown:
        known = ", ".join(dimensions(report))
        raise ConfigurationError(
            f"{where}.by: {report.name} has no dimension {unknown[0]!r}; it has: {known}"
        )
    since, until = period_bounds(export.period, period)
    return Wanted(report, since, until, export.by or report.by)


def check_exports(settings: ReportSettings) -> Iterator[Check]:
    """What `broker doctor` says of the exports that are set; nothing where there are none."""
    for name, export in settings.exports.items():
        try:
            wanted = wanted_of(name, export, period_name(export.period, utcnow().date()))
        except BrokerError as error:
            yield Check(f"export {name}", "fail", error.detail, "Mend `[reports]` in the settings")
            continue
        by, formats = ", ".join(wanted.by), ", ".join(export.formats)
        yield Check(f"export {name}", "ok", f"{export.report} by {by}, each {export.period}, as {formats}")


class Exporter:
    """Writes what is due. Used by one thread, behind a lease. `goes_on`: whether to begin another period."""

    def __init__(self, ctx: Context, goes_on: Callable[[], bool] = lambda: True) -> None:
        self._ctx, self._settings, self._goes_on = ctx, ctx.settings.reports, goes_on
        self._other: ObjectStore | None = None
        for name in self._settings.exports:  # so that the first of a kind is an increase
            metrics.REPORT_EXPORTS.labels(name)
            for error in _LIKELY:
                metrics.REPORT_EXPORT_FAILURES.labels(name, error.code)

    @property
    def _objects(self) -> ObjectStore:
        """The store; of another bucket where one is set."""
        bucket = self._settings.bucket
        if bucket is None or bucket == self._ctx.objects.bucket:
            return self._ctx.objects
        if self._other is None:
            self._other = ObjectStore(replace(self._ctx.objects.config, bucket=bucket))
        return self._other

    def tick(self, lease: Lease, now: datetime | None = None) -> None:
        """Write what is due now. What fails is noted, counted and tried again; the rest goes on."""
        now = now or utcnow()
        self._drop(lease)
        for name, export in self._settings.exports.items():
            for period in self._due(name, export, now):
                if not self._goes_on():
                    return
                with contained("report_export_broken", export=name, period=period):
                    self._try(lease, name, export, period, now)

    def _drop(self, lease: Lease) -> None:
        """End what the settings don't know any more: it would be wanted, or waited for, for ever."""
        with self._ctx.db.read() as session:
            found = lost(session, self._settings.exports)
        for name, period, version, wrong in found:
            with self._ctx.db.write() as session:
                lease.confirm(session)
                drop(session, name, period, version, wrong)
            log.warning("report_export_dropped", export=name, period=period, detail=wrong)

    def _try(self, lease: Lease, name: str, export: ReportExportSettings, period: str, now: datetime) -> None:
        """Write a period, or note why not. A defect of ours is raised as well, for the log has its traceback;
        what it says of itself may hold anything, so its kind alone is told.
        """
        try:
            self._write(lease, name, export, period, now)
        except BrokerError as error:
            log.warning("report_export_failed", export=name, period=period, detail=error.detail)
            self._failed(lease, name, export, period, error.code, error.detail, now)
        except LeaseLost:
            raise
        except Exception as error:
            told = f"A defect of the broker ({type(error).__name__}): see `report_export_broken` in its log"
            self._failed(lease, name, export, period, BrokerError.code, told, now)
            raise

    def _failed(
        self,
        lease: Lease,
        name: str,
        export: ReportExportSettings,
        period: str,
        code: str,
        trouble: str,
        now: datetime,
    ) -> None:
        metrics.REPORT_EXPORT_FAILURES.labels(name, code).inc()
        self._note(lease, name, export, period, trouble, now, failed=True)

    def _due(self, name: str, export: ReportExportSettings, now: datetime) -> list[str]:
        """The periods to compare once more, those to write, and those that somebody has asked for."""
        with self._ctx.db.read() as session:
            newest = newest_of(session, name, export)
        stored = {period for period, row in newest.items() if row.state == "stored"}
        again = [
            period
            for period in sorted(stored)
            if to_check(
                midnight(newest[period].until),
                newest[period].checked_at or newest[period].made_at,
                now,
                self._settings.revise_days,
            )
        ]
        regular = [period for period, row in newest.items() if not row.by_hand]
        due = due_periods(export.period, now, self._settings.hour, regular, stored)
        asked = sorted(period for period, row in newest.items() if row.asked_at is not None)
        wanted = dict.fromkeys((*again, *due, *asked))
        return [period for period in wanted if not _paused(newest.get(period), now)]

    def _write(
        self, lease: Lease, name: str, export: ReportExportSettings, period: str, now: datetime
    ) -> None:
        """Write a period, if its figures are whole and not what lies there already."""
        wanted = wanted_of(name, export, period)
        with self._ctx.db.read() as session:
            read: dict[str, datetime] = {}
            for one in (*read_up_to(session), *ages(session, wanted)):  # of events: those, and the jobs
                read[one.cluster] = min(read.get(one.cluster, one.complete_until), one.complete_until)
            behind = unread(midnight(wanted.until), read, self._ctx.settings.clusters)
            view = view_report(session, wanted, Scope(), None) if behind is None else None
        if view is None:
            self._note(lease, name, export, period, behind, now)
            return
        with self._ctx.db.write() as session:
            lease.confirm(session)
            intent = _intend(session, name, export, period, view, now)
        if intent is None:
            return
        version, earlier = intent
        aged = view.model_copy(update={"sources": [Source.model_validate(one) for one in version.sources]})
        files = [self._send(name, period, version.version, aged, format) for format in export.formats]
        made = replace(version, files=files)
        self._objects.put_bytes(
            manifest_key(self._settings.prefix, name, period),
            manifest(name, period, aged, [*earlier, made]),
            content_type=TYPES["json"],
        )
        with self._ctx.db.write() as session:
            lease.confirm(session)
            _conclude(session, name, period, made, now)
        metrics.REPORT_EXPORTS.labels(name).inc()
        log.info("report_exported", export=name, period=period, version=made.version)

    def _send(self, name: str, period: str, version: int, view: ReportView, format: str) -> StoredReport:
        """Put one file where it belongs, unless it lies there already."""
        data = rendered(view, format)
        key = file_key(self._settings.prefix, name, period, version, view.report.name, format)
        file = StoredReport(format, key, len(data), hashlib.sha256(data).hexdigest())
        if not self._objects.already_stored(key, file.size, file.sha256):
            self._objects.put_bytes(key, data, content_type=TYPES[format])
        return file

    def _note(
        self,
        lease: Lease,
        name: str,
        export: ReportExportSettings,
        period: str,
        trouble: str | None,
        now: datetime,
        *,
        failed: bool = False,
    ) -> None:
        """Write down why a period is not written yet; after a failure the next try has a pause before it."""
        with self._ctx.db.write() as session:
            lease.confirm(session)
            decide_alone(session, name)
            rows = versions_of(session, name, period)
            row = rows[-1] if rows else add_version(session, name, export, period, 1, now)
            row.trouble = trouble
            if row.state == "dropped":  # its setting is back
                row.state = "waiting"
            if failed:
                row.tries += 1
                row.next_try_at = now + min(FIRST_PAUSE * 2 ** min(row.tries - 1, 10), LONGEST_PAUSE)


def _paused(row: ReportExportRow | None, now: datetime) -> bool:
    return row is not None and row.next_try_at is not None and row.next_try_at > now


def _intend(
    session: Session,
    name: str,
    export: ReportExportSettings,
    period: str,
    view: ReportView,
    now: datetime,
) -> tuple[Version, list[Version]] | None:
    """Decide which version this is (without its files), and tell the earlier ones; None: the newest holds.

    What was begun and not concluded goes on under its number; with the same figures it keeps the age that it
    was given, so the same bytes are written, or found.
    """
    decide_alone(session, name)
    rows = versions_of(session, name, period)
    stored = [row for row in rows if row.state == "stored"]
    figures = digest(view)
    if stored and stored[-1] is rows[-1] and stored[-1].digest == figures:
        stored[-1].checked_at, stored[-1].asked_at = now, None
        stored[-1].trouble, stored[-1].next_try_at, stored[-1].tries = None, None, 0
        return None
    row = rows[-1] if rows and rows[-1].state != "stored" else None
    if row is None:
        row = add_version(session, name, export, period, len(rows) + 1, now)
        if rows:  # the wish goes on to what is written for it
            row.by_hand, row.asked_at, rows[-1].asked_at = rows[-1].by_hand, rows[-1].asked_at, None
    if row.digest != figures:
        row.digest, row.made_at = figures, now
        row.sources = [source.model_dump(mode="json") for source in view.sources]
    row.state, row.report = "intended", export.report
    return _version(row), [_version(one) for one in stored]


def _conclude(session: Session, name: str, period: str, made: Version, now: datetime) -> None:
    """The version lies in the store: say so, with its audit row."""
    row = session.get_one(ReportExportRow, (name, period, made.version))
    row.state, row.files = "stored", [asdict(file) for file in made.files]
    row.stored_at = row.checked_at = now
    row.trouble, row.next_try_at, row.tries, row.asked_at = None, None, 0, None
    record(
        session,
        SYSTEM,
        "report.export",
        "report_export",
        f"{name}/{period}/v{made.version}",
        None,
        {"report": row.report, "since": f"{row.since}", "until": f"{row.until}", "files": row.files},
    )


def _version(row: ReportExportRow) -> Version:
    files = [StoredReport(**file) for file in row.files]
    return Version(row.version, row.made_at.isoformat(), row.digest or "", row.sources, files)
