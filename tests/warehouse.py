"""One cluster's accounting warehouse: filled by the ingest, from a stand-in of slurmdbd."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import delete, func, select

from broker.accounting.ingest import Ingester
from broker.accounting.tables import (
    AccountingCursorRow,
    AccountingDayRow,
    AccountingJobRow,
    AccountingWaitRow,
)
from broker.context import Context
from tests.accounting_support import DAY, NOON, Slurmdbd, job, step
from tests.api_support import worker_lease

TABLES = (AccountingJobRow, AccountingDayRow, AccountingWaitRow)


class Warehouse:
    """One cluster's warehouse, with its clock in our hands."""

    def __init__(self, ctx: Context) -> None:
        self.ctx, self.slurm, self.now = ctx, Slurmdbd(), NOON
        self.lease = worker_lease(ctx)
        with ctx.db.write() as session:  # what another test left in the same database
            for table in (*TABLES, AccountingCursorRow):
                session.execute(delete(table))

    def tick(self, at: int | None = None, **more: Any) -> None:
        self.now = self.now if at is None else at
        Ingester(
            self.ctx,
            "main",
            self.lease,
            slurm=self.slurm,  # type: ignore[arg-type]
            clock=lambda: datetime.fromtimestamp(self.now, UTC),
            **more,
        ).tick()

    def rows(self) -> dict[int, AccountingJobRow]:
        with self.ctx.db.read() as session:
            return {row.job_id: row for row in session.scalars(select(AccountingJobRow))}

    def all(self) -> list[list[tuple[Any, ...]]]:
        with self.ctx.db.read() as session:
            return [
                sorted((tuple(row) for row in session.execute(select(*table.__table__.columns))), key=str)
                for table in TABLES
            ]

    def days(self) -> dict[date, int]:
        query = select(AccountingDayRow.day, func.sum(AccountingDayRow.elapsed_s)).group_by("day")
        with self.ctx.db.read() as session:
            return {day: int(seconds) for day, seconds in session.execute(query) if seconds}

    def cursor(self) -> AccountingCursorRow:
        with self.ctx.db.read() as session:
            return session.get_one(AccountingCursorRow, "main")


def fill(house: Warehouse) -> None:
    """Give slurmdbd a month of jobs: three people's, one of them put back into the queue."""
    for number in range(1, 60):
        row = job(
            number, submit=NOON - 29 * DAY + number * 40_000, run=number * 3000, User=f"user{number % 3}"
        )
        house.slurm.add(row, step(row, TotalCPU="01:00:00", TRESUsageInTot="mem=1073741824"))
    house.slurm.add(
        job(90, submit=NOON - 900, run=300, State="REQUEUED"),
    )
    house.slurm.add(job(90, submit=NOON - 500, run=None, State="PENDING", Start="Unknown"))
