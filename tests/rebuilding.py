"""Jobs whose sums are made anew, what the sums are and what they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from broker.accounting import archive, packed, rebuild
from broker.accounting.buckets import Sums
from broker.accounting.rebuild import Progress
from broker.accounting.tables import (
    AccountingDayRow,
    AccountingJobRow,
    AccountingPackedRow,
    AccountingWaitRow,
)
from broker.context import Context
from broker.db import leases
from tests.accounting import at, job, keep

FIRST = at("2026-01-05T00:00")
DAY = 86_400
TABLES = (AccountingJobRow, AccountingDayRow, AccountingWaitRow, AccountingPackedRow)
Amounts = dict[tuple[Any, ...], tuple[int, ...]]

JOBS = st.lists(
    st.builds(
        lambda number, submit, wait_s, run_s, **more: job(number, FIRST + submit, wait_s, run_s, **more),
        st.integers(1, 1 << 40),
        st.integers(0, 60 * DAY),
        st.sampled_from([0, 90, 200_000, 20 * DAY, -20 * DAY]),  # Slurm's times may be in any order
        st.sampled_from([0, 1, 4000, 3 * DAY, 40 * DAY]),
        user=st.sampled_from(["ann", "우진"]),
        state=st.sampled_from(["COMPLETED", "FAILED"]),
        gpu_count=st.sampled_from([0, 2]),
    )
    | st.builds(
        lambda number, submit: job(
            number, FIRST + submit, state="PENDING", start_at=None, end_at=None, counted_to=None, elapsed_s=0
        ),
        st.integers(1 << 41, 1 << 42),
        st.integers(0, 60 * DAY),
    )
    | st.builds(
        lambda number, submit, end: job(
            number,
            FIRST + submit,
            state="CANCELLED",
            start_at=None,
            end_at=FIRST + end,
            counted_to=None,
            elapsed_s=0,
        ),
        st.integers(1 << 43, 1 << 44),
        st.integers(0, 60 * DAY),
        st.integers(0, 60 * DAY),
    )
    | st.builds(
        lambda number, submit, wait_s, seen_s: job(
            number, FIRST + submit, wait_s, seen_s, state="RUNNING", end_at=None, elapsed_s=40 * DAY
        ),
        st.integers(1 << 45, 1 << 46),
        st.integers(0, 60 * DAY),
        st.sampled_from([0, 20 * DAY]),
        st.sampled_from([0, 3 * DAY, 40 * DAY]),
    )
    | st.builds(
        lambda number, start: job(
            number, FIRST, wait_s=start, end_at=FIRST, counted_to=FIRST + start, elapsed_s=0
        ),
        st.integers(1 << 47, 1 << 48),
        st.integers(1, 60 * DAY),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one["job_id"],
)
WRONG = st.sampled_from(["nothing", "lost", "doubled", "of nobody", "wrong columns"])


def stored(ctx: Context, jobs: list[dict[str, Any]], wrong: str) -> None:
    """The jobs, with sums that are right, or wrong in some way; the days packed as they are."""
    with ctx.db.write() as session:
        for table in (*TABLES, leases.LeaseRow):
            session.execute(delete(table))
        keep(session, *jobs)
        if wrong == "lost":
            session.execute(delete(AccountingWaitRow))
            session.execute(delete(AccountingDayRow).where(AccountingDayRow.user == "ann"))
        if wrong == "doubled":
            session.execute(update(AccountingDayRow).values(core_s=AccountingDayRow.core_s * 2))
            session.execute(update(AccountingWaitRow).values(jobs=AccountingWaitRow.jobs + 1))
        if wrong == "of nobody":
            sums = Sums()
            sums.add(job(7, FIRST - 100 * DAY, user="nobody"))
            archive.add_sums(session, "main", sums)
        packed.pack(session, "main", 1000)
        if wrong == "wrong columns":
            session.execute(update(AccountingPackedRow).values(days=AccountingPackedRow.waits))


def sums_of(ctx: Context) -> tuple[Amounts, Amounts]:
    """What the tables of sums have, by key."""
    found: list[Amounts] = []
    with ctx.db.read() as session:
        for table in (AccountingDayRow.__table__, AccountingWaitRow.__table__):
            keys = len(table.primary_key.columns)  # type: ignore[attr-defined]
            rows = [tuple(row) for row in session.execute(select(table))]
            found.append({row[:keys]: row[keys:] for row in rows})
    return found[0], found[1]


def at_once(ctx: Context) -> tuple[Amounts, Amounts]:
    """What they should have: all jobs added up at once."""
    sums = Sums()
    with ctx.db.read() as session:
        for row in session.execute(select(AccountingJobRow.__table__)).mappings():
            sums.add(dict(row))
    sums.settle()
    days = {
        ("main", day, *who, outcome): tuple(amounts.values())
        for (day, who, outcome), amounts in sums.days.items()
    }
    return days, {("main", day, *who, kind, n): (jobs,) for (day, who, kind, n), jobs in sums.waits.items()}


def made_anew(ctx: Context, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
    return rebuild.rebuild(ctx.db, "main", "test", tell)


def assert_right(ctx: Context) -> None:
    """The sums are the jobs', rows of nothing (a job that changed) aside."""
    found, right = sums_of(ctx), at_once(ctx)
    assert {key: amounts for key, amounts in found[0].items() if any(amounts)} == right[0]
    assert {key: amounts for key, amounts in found[1].items() if any(amounts)} == right[1]
