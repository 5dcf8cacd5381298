"""Sums made anew part by part: what the jobs add up to, however they were wrong, and what is read for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from broker.accounting import packed, rebuild
from broker.accounting.rebuild import Progress
from broker.accounting.tables import (
    AccountingJobRow,
    AccountingPackedRow,
)
from broker.context import Context
from tests.accounting import job, keep
from tests.api_support import context
from tests.rebuilding import (
    DAY,
    FIRST,
    JOBS,
    WRONG,
    at_once,
    made_anew,
    stored,
    sums_of,
)

slowly = settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@slowly
@given(JOBS, WRONG, st.sampled_from([0, 5, 10_000]))
def test_parts_give_what_all_jobs_at_once_do_and_nothing_else_stays(
    ctx: Context, jobs: list[dict[str, Any]], wrong: str, most: int
) -> None:
    stored(ctx, jobs, wrong)
    expected = at_once(ctx)
    told: list[Progress] = []
    with mock.patch.object(rebuild, "MOST_JOBS", most):
        done = made_anew(ctx, told.append)
    assert most < 10_000 or len(told) == 1, "few jobs are one part, however many days they are of"
    assert sums_of(ctx) == expected
    assert (done.jobs, done.days) == (len(jobs), done.of)
    assert [one.days for one in told] == sorted({one.days for one in told}), "each part is told"
    assert told[-1] == done
    with ctx.db.read() as session:
        assert set(session.scalars(select(AccountingPackedRow.layout))) == {packed.LAYOUT}
        days = {row.day: row for row in packed.read(session, "days", ["core_s"], date.min, date.max)}
    for day in {key[1] for key in expected[0]}:
        core = sum(amounts[4] for key, amounts in expected[0].items() if key[1] == day)
        assert sum(days[day].columns["core_s"].to_pylist()) == core
    assert made_anew(ctx).changed == 0, "what is right is left alone"


@slowly
@given(JOBS, WRONG, st.integers(1, 4))
def test_one_that_was_killed_leaves_whole_days_and_the_next_one_ends_it(
    ctx: Context, jobs: list[dict[str, Any]], wrong: str, parts: int
) -> None:
    stored(ctx, jobs, wrong)
    before, right = sums_of(ctx), at_once(ctx)
    told: list[Progress] = []

    def killed(progress: Progress) -> None:
        told.append(progress)
        if len(told) == parts:
            raise KeyboardInterrupt

    try:
        made_anew(ctx, killed)
    except KeyboardInterrupt:
        between = sums_of(ctx)
        for part in (0, 1):
            for day in {key[1] for key in (*before[part], *right[part])}:
                one = [
                    {key: amounts for key, amounts in sums[part].items() if key[1] == day}
                    for sums in (between, before, right)
                ]
                assert one[0] in one[1:], "as it was, or as it should be"
    made_anew(ctx)
    assert sums_of(ctx) == right


def test_fortnights_with_few_jobs_are_made_together_and_no_part_has_many(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part reads what lies around it as well: as often as jobs fill memory, not for each fortnight."""
    monkeypatch.setattr(rebuild, "MOST_JOBS", 40)
    of_a_year = [job(n, FIRST + n * 4 * DAY, run_s=DAY) for n in range(1, 91)]
    stored(ctx, of_a_year + [job(200 + n, FIRST + 200 * DAY) for n in range(60)], "lost")
    counted: list[int] = []
    made_anew(ctx, lambda progress: counted.append(progress.jobs))
    assert sums_of(ctx) == at_once(ctx)
    parts = [jobs - before for before, jobs in itertools.pairwise([0, *counted])]
    assert sum(parts) == 150 and max(parts) >= 60, "a fortnight with more is one part"
    assert len(parts) <= 6 and sorted(parts)[-2] <= 40, parts


def test_a_part_reads_what_is_near_it_however_long_the_history(ctx: Context) -> None:
    """By the work of the database itself: SQLite's steps, the rows that PostgreSQL looks at."""
    never: dict[str, Any] = {"start_at": None, "counted_to": None, "elapsed_s": 0, "state": "CANCELLED"}
    of_a_part = []
    for fortnights in (8, 40):
        times = [FIRST + n * DAY for n in range(fortnights * 14)]
        several = [job(10 * at + n, at, run_s=n * DAY) for at in times for n in (0, 5)]
        several += [job(10 * at + 7, at, end_at=at + DAY, **never) for at in times]
        several += [job(10 * at + 8, at, wait_s=20 * DAY) for at in times[::14]]
        with ctx.db.write() as session:
            session.execute(delete(AccountingJobRow))
            keep(session, *several)
        if not ctx.db.is_sqlite:  # its own daemon does so in a while
            with ctx.db.write() as session:
                session.execute(text("analyze accounting_jobs"))
        of_a_part.append(work_of_a_part(ctx, fortnights))
    assert of_a_part[1] < 2 * of_a_part[0], of_a_part


def test_jobs_that_last_are_found_by_their_own_index_whichever_was_made_last(tmp_path: Path) -> None:
    """SQLite takes the last one of several that seem as good, and a migration may make any of them anew."""
    way = next(rebuild._touching(FIRST, FIRST + DAY))
    query = select(AccountingJobRow.job_id).where(AccountingJobRow.cluster == "main", *way)
    with context(tmp_path) as ctx:
        for name in ("cluster_start_at", "cluster_end_at"):
            index = text("select sql from sqlite_master where name = :name")
            with ctx.db.write() as session:
                made = session.scalar(index.bindparams(name=f"ix_accounting_jobs_{name}"))
                session.execute(text(f"drop index ix_accounting_jobs_{name}"))
                session.execute(text(made))
                asked = query.compile(session.connection(), compile_kwargs={"literal_binds": True})
                plan = session.execute(text(f"explain query plan {asked}")).all()
            assert [" ix_accounting_jobs_lasting " in step.detail for step in plan] == [True], plan


def work_of_a_part(ctx: Context, fortnights: int) -> float:
    """What finding a part's errors takes on average."""
    worked = []
    with rebuild._alone(ctx.db, "main", "test", lambda _: None) as kept:
        for first in range(FIRST // DAY, FIRST // DAY + fortnights * 14, 14):
            part = rebuild.Part(first, first + 14, 1)
            with rebuild._snapshot(ctx.db) as session, work_of(session) as count:
                rebuild._errors(session, "main", part, kept)
                worked.append(count())
    return sum(worked) / len(worked)


@contextmanager
def work_of(session: Session) -> Iterator[Callable[[], int]]:
    """What the database does for a session in here, as a number that can be asked for at the end."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("set local enable_seqscan = off"))  # so few rows are as fast to read whole
        read = "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = :name"
        rows = text(read).bindparams(name=AccountingJobRow.__tablename__)
        before = session.scalar(rows) or 0  # transactions that ended a moment ago are in it too
        yield lambda: (session.scalar(rows) or 0) - before
        return
    steps = itertools.count()
    driver: Any = session.connection().connection.dbapi_connection
    driver.set_progress_handler(lambda: next(steps) < 0, 10)
    yield lambda: next(steps)
    driver.set_progress_handler(None, 10)


def test_sums_that_no_job_accounts_for_fill_no_part_either(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be taken away is in memory as well as what is to be added."""
    monkeypatch.setattr(rebuild, "MOST_JOBS", 40)
    stored(ctx, [job(n, FIRST + n * 4 * DAY, run_s=DAY, user=f"u{n}") for n in range(1, 91)], "")
    with ctx.db.write() as session:
        session.execute(delete(AccountingJobRow))
    parts: list[Progress] = []
    made_anew(ctx, parts.append)
    assert sums_of(ctx) == ({}, {}) and len(parts) >= 4, parts
