"""Sums made anew part by part: what the jobs add up to, whatever happens beside it or in its midst."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from broker.accounting import archive, packed, rebuild
from broker.accounting.buckets import Sums
from broker.accounting.rebuild import Progress
from broker.accounting.tables import (
    AccountingDayRow,
    AccountingJobRow,
    AccountingPackedRow,
    AccountingWaitRow,
)
from broker.cli import main
from broker.context import Context
from broker.db import leases
from broker.db.leases import LeaseLost
from broker.db.locks import exclusive
from broker.errors import Conflict
from broker.reports.definitions import REPORTS
from broker.reports.views import view_report
from broker.reports.wanted import Scope, Wanted
from tests.accounting import at, job, keep
from tests.api_support import context
from tests.harness.processes import until
from tests.postgres import database_of

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


@pytest.fixture(params=["sqlite", "postgres"], scope="module")
def ctx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    url = database_of(request)
    with context(Path(tmp_path_factory.mktemp("rebuild")), url) as made:
        yield made


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


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has one fortnight: there are too few jobs here to fill any."""
    monkeypatch.setattr(rebuild, "MOST_JOBS", 0)


def made_anew(ctx: Context, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
    return rebuild.rebuild(ctx.db, "main", "test", tell)


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


def test_what_is_stored_or_changes_meanwhile_counts_once(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each part's snapshot, before its days are corrected: a job is new, another one ends otherwise."""
    jobs = [job(n, FIRST + n * 5 * DAY, run_s=20 * DAY) for n in range(1, 9)]
    stored(ctx, jobs, "doubled")
    correct, changed = rebuild._correct, itertools.count(100)

    def beside(session: Session, cluster: str, day: date, sums: Sums) -> None:
        number = next(changed)
        before = jobs[number % len(jobs)]
        after = before | {"state": "FAILED" if before["state"] == "COMPLETED" else "COMPLETED"}
        jobs[number % len(jobs)] = after
        delta = Sums()
        delta.add(before, -1)
        delta.add(after)
        archive.add_sums(session, "main", delta)
        keep(session, job(number, FIRST + (number % 60) * DAY, run_s=30 * DAY))
        session.execute(
            update(AccountingJobRow)
            .where(AccountingJobRow.job_id == after["job_id"])
            .values(state=after["state"])
        )
        correct(session, cluster, day, sums)

    monkeypatch.setattr(rebuild, "_correct", beside)
    made_anew(ctx)
    assert next(changed) > 130, "days were corrected"
    assert_right(ctx)


def assert_right(ctx: Context) -> None:
    """The sums are the jobs', rows of nothing (a job that changed) aside."""
    found, right = sums_of(ctx), at_once(ctx)
    assert {key: amounts for key, amounts in found[0].items() if any(amounts)} == right[0]
    assert {key: amounts for key, amounts in found[1].items() if any(amounts)} == right[1]


def test_a_reader_and_a_writer_beside_it_wait_for_nothing_and_see_whole_days(ctx: Context) -> None:
    jobs = [job(n, FIRST + n * 3600, run_s=2 * DAY) for n in range(1, 600)]
    stored(ctx, jobs, "nothing")
    wanted = Wanted(REPORTS["usage"], date(2026, 1, 1), date(2026, 3, 1), ("day",))
    with ctx.db.read() as session:
        right = view_report(session, wanted, Scope(), None).lines
    with ctx.db.write() as session:
        session.execute(update(AccountingDayRow).values(core_s=0))
        packed.stale(session, "main", set(session.scalars(select(AccountingPackedRow.day))))
    seen: list[Any] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            with ctx.db.read() as session:
                seen.append(view_report(session, wanted, Scope(), None).lines)
            with ctx.db.write() as session:  # and somebody else writes
                session.execute(update(AccountingJobRow).values(reason=f"look {len(seen)}"))

    def looked_at_again(_: Progress) -> None:
        before = len(seen)
        until(lambda: len(seen) > before + 1, 60, "somebody reads and writes between two parts")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        made_anew(ctx, looked_at_again)
    finally:
        ended.set()
        reader.join()
    of_day = {line.key["day"]: line.values["core_hours"] for line in right}
    for lines in seen:
        for line in lines:
            assert line.values["core_hours"] in (0, of_day[line.key["day"]]), "no day is half or twice"
    with ctx.db.read() as session:
        assert view_report(session, wanted, Scope(), None).lines == right


def test_what_a_part_should_be_and_is_are_read_at_one_moment(ctx: Context) -> None:
    stored(ctx, [job(1, FIRST)], "nothing")
    counts = [select(func.count()).select_from(table) for table in (AccountingJobRow, AccountingDayRow)]
    with rebuild._snapshot(ctx.db) as reading:
        assert reading.scalar(counts[0]) == 1
        with ctx.db.write() as session:
            keep(session, job(2, FIRST, user="bob", cpus=64))
        assert [reading.scalar(count) for count in counts] == [1, 1]
    with ctx.db.read() as session:
        assert [session.scalar(count) for count in counts] == [2, 2]


def test_columns_that_are_lost_are_made_again(ctx: Context) -> None:
    """Of a day that is right, and has no row of columns any more: reports would find nothing."""
    stored(ctx, [job(n, FIRST + n * DAY) for n in range(1, 30)], "nothing")
    wanted = Wanted(REPORTS["usage"], date(2026, 1, 1), date(2026, 3, 1), ("day",))
    with ctx.db.read() as session:
        right = view_report(session, wanted, Scope(), None).lines
    with ctx.db.write() as session:
        session.execute(delete(AccountingPackedRow).where(AccountingPackedRow.day > date(2026, 1, 10)))
    assert made_anew(ctx).changed == 0
    with ctx.db.read() as session:
        assert view_report(session, wanted, Scope(), None).lines == right
        assert set(session.scalars(select(AccountingPackedRow.layout))) == {packed.LAYOUT}


def test_it_takes_turns_with_an_ingest_that_changes_the_same_days(ctx: Context) -> None:
    """Whoever marks a day holds it until it has marked all: two that each wait for a day of the other's end
    only by one of them being broken off.
    """
    stored(ctx, [job(n, FIRST + n * DAY) for n in range(1, 4)], "nothing")
    failed: list[BaseException] = []

    def beside() -> None:
        try:
            made_anew(ctx)
        except Exception as error:
            failed.append(error)

    other = threading.Thread(target=beside)
    with ctx.db.write() as session:
        exclusive(session, "accounting main")
        packed.stale(session, "main", [date(2026, 1, 8)])
        other.start()
        while not ctx.db.is_sqlite and not waits(ctx):
            assert other.is_alive()
        packed.stale(session, "main", [date(2026, 1, 6)])
    other.join(timeout=60)
    assert not other.is_alive() and not failed, failed
    with ctx.db.read() as session:
        assert set(session.scalars(select(AccountingPackedRow.layout))) == {packed.LAYOUT}


def waits(ctx: Context) -> bool:
    """Whether any transaction of this database waits for another one's lock."""
    mine = "select count(*) from pg_stat_activity where datname = current_database()"
    with ctx.db.read() as session:
        return bool(session.scalar(text(f"{mine} and wait_event_type = 'Lock'")))


def test_a_second_one_waits_and_who_lost_the_lease_changes_nothing_more(ctx: Context) -> None:
    stored(ctx, [job(n, FIRST + n * DAY) for n in range(1, 30)], "doubled")
    before = sums_of(ctx)
    lease = leases.acquire(ctx.db, "rebuild:main", "another", 3600)
    assert lease is not None
    told: list[str] = []
    waiting = (ctx.db, "main", "test", lambda _: None, told.append)
    second = threading.Thread(target=rebuild.rebuild, args=waiting)
    second.start()
    until(lambda: bool(told), 60, "the second one says that it waits")
    second.join(timeout=0.5)
    assert second.is_alive() and sums_of(ctx) == before
    leases.release(ctx.db, lease)
    second.join(timeout=60)
    assert told == ["another"], "once"
    assert sums_of(ctx) == at_once(ctx)
    stored(ctx, [job(n, FIRST + n * DAY) for n in range(1, 30)], "doubled")

    def taken(progress: Progress) -> None:
        with ctx.db.write() as session:
            session.execute(update(leases.LeaseRow).values(token=leases.LeaseRow.token + 1))

    with pytest.raises(LeaseLost):
        made_anew(ctx, taken)
    assert sums_of(ctx) != at_once(ctx), "the rest is the other one's"


@pytest.fixture
def on_its_machine(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the database."""
    monkeypatch.setenv("BROKER_DATA_DIR", str(ctx.settings.data_dir))
    monkeypatch.setenv("BROKER_DATABASE_URL", ctx.settings.sqlalchemy_url)
    monkeypatch.setenv("BROKER_CLUSTERS__MAIN__TRANSPORT", "local")


@pytest.mark.usefixtures("on_its_machine")
def test_the_command_says_whom_it_waits_for(ctx: Context, capfd: pytest.CaptureFixture[str]) -> None:
    stored(ctx, [job(1, FIRST)], "doubled")
    lease = leases.acquire(ctx.db, "rebuild:main", "login1:4711", 3600)
    assert lease is not None
    codes: list[int] = []
    command = threading.Thread(target=lambda: codes.append(main(["accounting", "rebuild"])))
    command.start()
    seen = ""

    def said() -> bool:
        nonlocal seen
        seen += capfd.readouterr().err
        return "main: another rebuild works (process 4711 on login1); waiting" in seen

    until(said, 60, "the command says whom it waits for")
    leases.release(ctx.db, lease)
    command.join(timeout=60)
    assert codes == [0] and sums_of(ctx) == at_once(ctx)


@pytest.mark.usefixtures("on_its_machine")
def test_the_command_says_that_another_one_took_over(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(ctx, [job(n, FIRST + n * DAY) for n in range(1, 30)], "doubled")
    pack = rebuild._pack

    def frozen(*more: Any) -> None:
        pack(*more)
        with ctx.db.write() as session:
            session.execute(update(leases.LeaseRow).values(token=leases.LeaseRow.token + 1))

    monkeypatch.setattr(rebuild, "_pack", frozen)
    assert main(["accounting", "rebuild"]) == Conflict.exit_code
    assert "Another rebuild of main took over" in capsys.readouterr().err
