"""A broker with a month of jobs, an object store, and the worker's exporter."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from broker.accounting.tables import AccountingCursorRow
from broker.db import leases
from broker.db.leases import Lease
from broker.objects import ObjectStore
from broker.reports.export_tables import ReportExportRow
from broker.reports.exporter import Exporter
from broker.settings import ReportExportSettings
from tests.accounting import at, job, keep
from tests.api_support import Api

NOVEMBER = datetime(2026, 11, 1, 7, tzinfo=UTC)
READ = at("2026-11-01T05:00")
TO_OCTOBER = {"name": "monthly", "since": "2026-07-15", "until": "2026-10-01"}
"""What is asked for of two whole months: August and September."""
BOTH = ReportExportSettings(report="usage", by=("tenant", "user"), formats=("parquet", "csv"))


class Place:
    """A broker with one month of jobs, an object store and the worker's exporter."""

    def __init__(self, api: Api, objects: ObjectStore) -> None:
        self.api, self.ctx, self.objects = api, api.ctx, objects
        lease = leases.acquire(self.ctx.db, "reports", "test", 3600)
        assert lease is not None
        self.lease: Lease = lease

    def tick(self, now: datetime = NOVEMBER) -> None:
        Exporter(self.ctx).tick(self.lease, now)

    def rows(self) -> list[ReportExportRow]:
        order = (ReportExportRow.period, ReportExportRow.version)
        with self.ctx.db.read() as session:
            return list(session.scalars(select(ReportExportRow).order_by(*order)))

    def stored(self) -> list[str]:
        return [found.key for found in self.objects.list(f"{self.ctx.settings.reports.prefix}/")]

    def manifest(self, period: str = "2026-10") -> dict[str, Any]:
        key = f"{self.ctx.settings.reports.prefix}/monthly/{period}/manifest.json"
        found: dict[str, Any] = json.loads(self.objects.get_bytes(key, 1 << 20))
        return found

    def add(self, number: int, **more: Any) -> None:
        with self.ctx.db.write() as session:
            keep(session, job(number, at("2026-10-20T10:00"), **more), read_to=READ)

    def read_to(self, text: str) -> None:
        with self.ctx.db.write() as session:
            session.get_one(AccountingCursorRow, "main").settled_to = at(text)


def ask(place: Place, who: str = "root", **body: Any) -> list[tuple[str, str]]:
    """Ask for exports; what the answer says of each period."""
    answer = place.api.call("POST", "/report-exports", who, json=body)
    assert answer.status_code == 202, answer.text
    return [(one["period"], one["state"]) for one in answer.json()["items"]]
