"""Jobs of accounts that nobody had, given the names of today: those and no others, their sums with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker.accounting import packed, rebuild, renaming
from broker.accounting.archive import People
from broker.accounting.tables import AccountingJobRow
from broker.audit.tables import AuditRow
from broker.cli import main
from broker.context import Context
from broker.identity.tables import UserRow
from tests.accounting import at, job, two_tenants
from tests.api_support import Api, context
from tests.postgres import database_of

SUBMIT = at("2026-10-05T20:00")
KIM = {"unix_user": "kim", "user": "main:kim"}
OCTOBER = {"since": "2026-10-01", "until": "2026-11-01"}
JOBS = [
    *(job(n, SUBMIT + n * 9000, wait_s=600, run_s=20_000, **KIM) for n in range(1, 6)),  # over midnights
    job(6, SUBMIT, unix_user="kim", user="bob"),  # kim's account was bob's then
    job(7, SUBMIT, unix_user="lee", user="main:lee"),  # nobody's still
    job(8, SUBMIT, **KIM | {"run_id": "run-1"}),  # a run knows whose it is
    job(10, SUBMIT, unix_user="park", user="main:park", account="hpc", tenant="hpc"),
]


@pytest.fixture(params=["sqlite", "postgres"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    with context(tmp_path, database_of(request)) as made:
        yield made


@pytest.fixture
def api(ctx: Context) -> Api:
    """Ann has kim's account by now."""
    made = two_tenants(ctx, JOBS)
    with ctx.db.write() as session:
        session.execute(update(UserRow).where(UserRow.username == "ann").values(unix_account="kim"))
        elsewhere = KIM | {"cluster": "other", "user": "other:kim"}
        session.add(AccountingJobRow(**job(9, SUBMIT, **elsewhere)))
    return made


def renamed(ctx: Context, default: str | None = None) -> list[tuple[str, str, int]]:
    found = renaming.rename(ctx.db, People("main", default), "asked for")
    return [(one.renaming.before, one.renaming.after, one.jobs) for one in found]


def assert_sums_are_right(ctx: Context) -> None:
    """As soon as the worker has packed what changed, a rebuild finds nothing wrong."""
    with ctx.db.write() as session:
        packed.pack(session, "main", 1000)
    assert rebuild.rebuild(ctx.db, "main", "test").changed == 0


def owners(ctx: Context) -> dict[int, tuple[str, str]]:
    with ctx.db.read() as session:
        return {row.job_id: (row.user, row.tenant) for row in session.scalars(select(AccountingJobRow))}


def core_hours(api: Api) -> dict[str, Any]:
    lines = api.call("GET", "/reports/usage", "root", params=OCTOBER | {"by": "user"}).json()["lines"]
    return {line["key"]["user"]: line["values"]["core_hours"] for line in lines}


def test_jobs_of_an_account_that_had_nobody_become_those_of_whom_it_belongs_to(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, before, hours = api.ctx, owners(api.ctx), core_hours(api)
    monkeypatch.setattr(renaming, "BATCH", 2)
    assert renamed(ctx) == [("main:kim", "ann", 5)]
    changed = {number: owner for number, owner in owners(ctx).items() if owner != before[number]}
    assert changed == dict.fromkeys(range(1, 6), ("ann", "team-a"))
    now = core_hours(api)
    assert now["ann"] == pytest.approx(5 * 4 * 20_000 / 3600)
    assert sum(now.values()) == pytest.approx(sum(hours.values()))
    assert_sums_are_right(ctx)
    assert renamed(ctx) == [], "once"
    with ctx.db.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action == "accounting.rename")).all()
    assert sorted(row.after["jobs"] for row in rows if row.after) == [1, 2, 2], "with each transaction"
    assert {(row.object_id, row.note) for row in rows} == {("main/kim", "asked for")}
    mine = api.call("GET", "/reports/usage/jobs", "ann", params=OCTOBER).json()["items"]
    assert {one["job_id"] for one in mine} == {"1", "2", "3", "4", "5"}, "she sees them now"


def test_a_rebuild_alone_renames_nothing(api: Api) -> None:
    before = owners(api.ctx)
    rebuild.rebuild(api.ctx.db, "main", "test")
    assert owners(api.ctx) == before


def test_one_that_ends_midway_leaves_whole_batches_and_the_next_one_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renaming, "BATCH", 2)
    real, begun = renaming.add_sums, iter(range(9))

    def ended(*more: Any) -> None:
        if next(begun) == 1:
            raise KeyboardInterrupt
        real(*more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(renaming, "add_sums", ended)
        renamed(api.ctx)
    assert [user for user, _ in owners(api.ctx).values()].count("main:kim") == 4, "three, and a run's"
    assert_sums_are_right(api.ctx)
    assert renamed(api.ctx) == [("main:kim", "ann", 3)]


def test_an_account_that_passes_to_another_person_meanwhile_gives_the_first_no_more_jobs(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renaming, "BATCH", 2)
    real = renaming._some

    def some(session: Session, *more: Any) -> int:
        jobs = real(session, *more)
        for name, account in (("ann", None), ("bob", "kim")):
            session.execute(update(UserRow).where(UserRow.username == name).values(unix_account=account))
        return jobs

    with monkeypatch.context() as patch:
        patch.setattr(renaming, "_some", some)
        assert renamed(api.ctx) == [("main:kim", "ann", 2)]
    assert renamed(api.ctx) == [("main:kim", "bob", 3)]
    assert_sums_are_right(api.ctx)


def test_jobs_of_the_default_tenants_account_go_to_it_unless_they_are_another_tenants(api: Api) -> None:
    assert renamed(api.ctx, "team-a") == [("main:kim", "ann", 5)], "there is a tenant of that name"
    assert renamed(api.ctx, "hpc") == [("hpc", "default", 1)]
    assert owners(api.ctx)[10] == ("main:park", "default")
    assert_sums_are_right(api.ctx)


def test_the_command_tells_what_it_renamed(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKER_DATA_DIR", str(api.ctx.settings.data_dir))
    monkeypatch.setenv("BROKER_DATABASE_URL", api.ctx.settings.sqlalchemy_url)
    monkeypatch.setenv("BROKER_CLUSTERS__MAIN__TRANSPORT", "local")
    assert main(["accounting", "rebuild", "--names"]) == 0
    told = capsys.readouterr()
    assert "main: 5 jobs of kim: user main:kim is ann now" in told.err
    assert told.out.split()[-3:] == ["main", "9", "5"]
