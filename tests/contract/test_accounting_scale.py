"""A year of jobs, small: what `benchmarks.accounting` measures with a million must hold with fewer as well.

Slurm is not here: what sacct would print is made from a seed (`benchmarks.workload`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select

from benchmarks import accounting
from benchmarks.accounting import Watched
from broker.accounting.packed import LAYOUT
from broker.accounting.rebuild import rebuild
from broker.accounting.tables import AccountingDayRow, AccountingPackedRow
from broker.context import Context
from broker.db.leases import Lease
from broker.reports.definitions import REPORTS
from broker.reports.views import view_report
from broker.reports.wanted import Scope, Wanted
from tests.api_support import context, worker_lease
from tests.postgres import database_of

JOBS = 12_000
GROWTH_MIB = 24
"""The second half of the jobs would be three times as much, were they kept."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched(JOBS, tmp_path_factory.mktemp("sacct") / "year.txt")


@pytest.fixture(params=["sqlite", "postgres"], scope="module")
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, slurm: Watched
) -> Iterator[tuple[Context, Lease, accounting.Read, float]]:
    url = database_of(request)
    with context(tmp_path_factory.mktemp("scale"), url) as ctx:
        lease = worker_lease(ctx)
        read = accounting.read_year(ctx, slurm, lease)
        yield ctx, lease, read, slurm.most_mib(1) - slurm.most_mib(0.5)


House = tuple[Context, Lease, accounting.Read, float]


def test_every_job_is_stored_once_and_memory_does_not_grow_with_them(house: House) -> None:
    _, _, read, growth = house
    assert read.jobs == JOBS
    assert growth < GROWTH_MIB


def test_every_day_is_packed_when_a_reading_has_ended(house: House) -> None:
    ctx = house[0]
    row = AccountingPackedRow
    with ctx.db.read() as session:
        found = session.execute(select(row.layout, func.count()).group_by(row.layout)).all()
        days = session.scalar(select(func.count(AccountingDayRow.day.distinct())))
    assert [tuple(one) for one in found] == [(LAYOUT, days)]


def test_a_year_read_again_or_made_anew_is_the_same_to_the_last_sum(house: House, slurm: Watched) -> None:
    ctx, lease, *_ = house
    wanted = Wanted(REPORTS["waste"], accounting.SINCE, accounting.UNTIL, ("user", "month"))
    with ctx.db.read() as session:
        before = view_report(session, wanted, Scope(), None)
    _, same = accounting.repeated(ctx, slurm, lease)
    assert same
    kept = accounting.digest(ctx)
    assert rebuild(ctx.db, "main", "test").jobs == JOBS
    assert accounting.digest(ctx) == kept
    with ctx.db.read() as session:
        after = view_report(session, wanted, Scope(), None)
    assert (after.lines, after.total) == (before.lines, before.total)
