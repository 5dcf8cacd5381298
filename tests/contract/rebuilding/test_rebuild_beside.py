"""Sums made anew while others read, store, take turns with it or take it over."""

from __future__ import annotations

import itertools
import threading
from datetime import date
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from broker.accounting import archive, packed, rebuild
from broker.accounting.buckets import Sums
from broker.accounting.rebuild import Progress
from broker.accounting.tables import (
    AccountingDayRow,
    AccountingJobRow,
    AccountingPackedRow,
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
from tests.accounting import job, keep
from tests.harness.processes import until
from tests.rebuilding import (
    DAY,
    FIRST,
    assert_right,
    at_once,
    made_anew,
    stored,
    sums_of,
)


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
