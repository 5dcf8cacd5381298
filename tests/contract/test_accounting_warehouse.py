"""The warehouse on a real database: filled by parts, repeated, interrupted, and made anew from its own rows.

Slurm is not here: `Slurmdbd` prints what sacct would (its rules stand in tests/accounting_support.py).
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update

from broker import metrics
from broker.accounting import ingest
from broker.accounting.rebuild import rebuild
from broker.accounting.tables import (
    AccountingCursorRow,
    AccountingDayRow,
    AccountingJobRow,
    AccountingWaitRow,
)
from broker.db.leases import LeaseLost
from broker.errors import Unreachable
from broker.identity import Role
from broker.identity.tables import UserRow
from broker.reports.definitions import REPORTS
from broker.reports.jobs import job_facts
from broker.reports.views import view_report
from broker.reports.wanted import Scope, Wanted, dimensions
from broker.runs.measured import JobUsageRow
from broker.runs.tables import JobRow
from broker.settings import AccountingSettings
from broker.slurm.tres import Tres
from tests.accounting_support import DAY, NOON, job, step
from tests.api_support import Api, context
from tests.postgres import database_of
from tests.warehouse import Warehouse, fill

MIDNIGHT = NOON + DAY // 2


@pytest.fixture(params=["sqlite", "postgres"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Warehouse]:
    url = database_of(request)
    settings: dict[str, Any] = {"accounting": AccountingSettings(history_days=30)}
    with context(tmp_path / "data", url, **settings) as ctx:
        yield Warehouse(ctx)


def test_a_repeated_ingest_changes_nothing(house: Warehouse) -> None:
    fill(house)
    house.tick()
    before = house.all()
    assert len(before[0]) == 61
    with house.ctx.db.write() as session:
        session.execute(delete(AccountingCursorRow))
    house.tick()
    assert house.all() == before


def test_what_sacct_said_comes_back_from_the_archive_as_it_was_said(house: Warehouse) -> None:
    row = job(7, submit=NOON - DAY, JobName='학습 "β" \\ \x01\t🚀\n{}')
    house.slurm.add(row, step(row, TotalCPU="00:01"))
    house.tick()
    with house.ctx.db.read() as session:
        raw = session.scalars(select(AccountingJobRow.raw)).one()
    (kept,) = raw.pop("steps")
    assert raw == {name: value for name, value in row.items() if value}
    assert kept["TotalCPU"] == "00:01"


def test_sums_can_be_made_anew_from_the_rows(house: Warehouse) -> None:
    fill(house)
    house.tick()
    before = house.all()
    with house.ctx.db.write() as session:
        session.execute(delete(AccountingWaitRow))
        session.execute(AccountingDayRow.__table__.update().values(core_s=0))
    assert rebuild(house.ctx.db, "main", "test").jobs == 61
    assert house.all() == before


def test_days_are_clipped_at_midnight_and_their_sum_is_what_sacct_says(house: Warehouse) -> None:
    house.slurm.add(job(7, submit=MIDNIGHT - 1060, run=4000))
    house.tick(MIDNIGHT + 9000)
    assert house.days() == {date(2026, 11, 10): 1000, date(2026, 11, 11): 3000}


def test_attempts_of_one_id_and_recycled_ids_are_jobs_of_their_own(house: Warehouse) -> None:
    for submit in (NOON - 20 * DAY, NOON - 9000, NOON - 8000):
        house.slurm.add(job(7, submit=submit, run=100))
    house.tick()
    assert len(house.all()[0]) == 3
    assert sum(house.days().values()) == 300


def test_a_job_is_followed_from_waiting_to_its_end_and_counts_once(house: Warehouse) -> None:
    house.slurm.queue = {7}
    house.slurm.add(job(7, submit=NOON - 100, run=None, State="PENDING", Start="Unknown"))
    house.tick()
    assert (house.rows()[7].state, house.days()) == ("PENDING", {})
    house.slurm.rows[0] = [job(7, submit=NOON - 100, wait=100, run=None)]
    house.tick(NOON + 300)
    house.tick(NOON + 600)
    assert (house.rows()[7].state, house.days()) == ("RUNNING", {date(2026, 11, 10): 600})
    house.slurm.rows[0] = [job(7, submit=NOON - 100, wait=100, run=700, State="FAILED", ExitCode="3:0")]
    house.slurm.queue = set()
    house.tick(NOON + 900)
    row = house.rows()[7]
    assert (row.state, row.exit_code, house.days()) == ("FAILED", 3, {date(2026, 11, 10): 700})
    with house.ctx.db.read() as session:
        assert set(session.scalars(select(AccountingDayRow.outcome).where(AccountingDayRow.core_s > 0))) == {
            "FAILED"
        }


def test_the_time_a_running_job_was_suspended_is_not_counted(house: Warehouse) -> None:
    house.slurm.queue = {7}
    house.slurm.add(job(7, submit=NOON - 900, wait=0, run=None, ElapsedRaw=-300))
    house.tick()
    assert house.days() == {date(2026, 11, 10): 600}
    house.tick(NOON + 300)
    assert house.days() == {date(2026, 11, 10): 900}


def test_the_queue_forgetting_a_job_ends_nothing(house: Warehouse) -> None:
    house.slurm.queue = {7}
    house.slurm.add(job(7, submit=NOON - 4000, run=None))
    house.tick()
    house.slurm.queue = set()
    house.tick(NOON + 300)
    assert (house.rows()[7].state, house.rows()[7].end_at) == ("RUNNING", None)


def test_runaways_are_flagged_and_inflate_nothing(house: Warehouse) -> None:
    house.slurm.add(job(7, submit=NOON - 20 * DAY, run=None))
    house.tick()
    assert (house.rows()[7].runaway, house.days()) == (True, {})
    house.slurm.rows[0] = [job(7, submit=NOON - 20 * DAY, run=500)]
    house.tick(NOON + 300)
    assert not house.rows()[7].runaway
    assert sum(house.days().values()) == 500


def test_a_runaways_own_hours_are_those_that_the_days_count(house: Warehouse) -> None:
    house.slurm.add(job(7, submit=NOON - 20 * DAY, run=None))
    house.tick()
    shown = job_facts(house.rows()[7])
    assert (shown.runaway, shown.elapsed_s, shown.core_hours, shown.gpu_hours) == (True, 0, 0, 0)


def test_many_runaways_keep_no_job_from_being_asked_for(
    house: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "ASKED_BY_ID", 1)
    for number in (7, 8, 9):
        house.slurm.add(job(number, submit=NOON - number * DAY, run=None))
    for _ in range(3):
        house.tick(house.now + 300)
    assert [row.runaway for row in house.rows().values()] == [True, True, True]
    gauge = metrics.ACCOUNTING_RUNAWAYS.labels("main")
    assert gauge._value.get() == 3
    house.slurm.rows = [
        [job(n, submit=NOON - n * DAY, run=n * DAY)] for n in (7, 8, 9)
    ]  # ends a window shows
    house.tick(house.now + 300)
    assert (gauge._value.get(), {row.runaway for row in house.rows().values()}) == (0, {False})


def test_slurmdbds_absence_is_survived_and_what_it_learns_late_is_found(house: Warehouse) -> None:
    house.tick()
    house.slurm.down = True
    with pytest.raises(Unreachable):
        house.tick(NOON + 300)
    assert "slurmdbd" in (house.cursor().trouble or "")
    house.slurm.down = False
    house.tick(NOON + 9000)
    house.slurm.add(job(7, submit=NOON, run=100))  # told by slurmctld long after it ended
    house.tick(NOON + 9300)
    assert house.rows() == {}
    assert house.cursor().trouble is None
    house.tick(NOON + 9000 + 3600)
    assert house.rows()[7].state == "COMPLETED"


def test_a_crash_between_windows_goes_on_where_it_was(house: Warehouse) -> None:
    fill(house)
    house.tick(goes_on=iter([True] * 8 + [False]).__next__)
    some, asked = len(house.rows()), len(house.slurm.asked)
    assert 0 < some < 60
    house.tick()
    assert len(house.all()[0]) == 61
    assert house.slurm.asked[asked].since == house.slurm.asked[asked - 1].until
    parts = house.all()
    assert rebuild(house.ctx.db, "main", "test").jobs == 61
    assert house.all() == parts


def test_a_worker_that_lost_its_lease_stores_nothing(house: Warehouse) -> None:
    fill(house)
    house.lease.lost.set()
    with pytest.raises(LeaseLost):
        house.tick()
    assert house.rows() == {}


def test_windows_are_bounded_and_narrowed_to_what_slurmdbd_allows(house: Warehouse) -> None:
    fill(house)
    house.slurm.most_s = 2 * DAY
    house.tick()
    assert len(house.all()[0]) == 61
    widths = [command.until - command.since for command in house.slurm.asked]
    assert widths[0] <= 3600, "nobody knows yet how much an hour holds"
    assert all(wider <= 2 * width for width, wider in pairwise(widths))
    assert {width > 2 * DAY for width in widths} == {True, False}, "it was refused, and asked for less"


def test_reports_ask_the_database_and_never_slurm(house: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(house)
    house.tick()
    api, asked = Api(house.ctx), len(house.slurm.asked)
    api.add("root", Role.ADMIN)

    def host(*_: Any, **__: Any) -> Any:
        raise AssertionError("a report went to the cluster")

    monkeypatch.setattr(house.ctx, "host", host)
    for report in ("usage", "waits", "outcomes", "efficiency"):
        for _ in range(3):
            found = api.call("GET", f"/reports/{report}?since=2026-10-01&until=2026-11-30", "root")
            assert found.status_code == 200, found.text
    assert len(house.slurm.asked) == asked


def test_what_slurm_purges_stays(house: Warehouse) -> None:
    row = job(7, submit=NOON - 4000)
    house.slurm.add(row, step(row, TotalCPU="01:00:00", MaxRSS="1048576"))
    house.slurm.add(job(8, submit=NOON - 4000))
    house.tick()
    before = house.all()
    house.slurm.rows = [[row]]  # steps purged, the other job too
    with house.ctx.db.write() as session:
        session.execute(delete(AccountingCursorRow))
    house.tick()
    assert (house.rows()[7].total_cpu_s, house.rows()[7].max_rss_mib) == (3600, 1)
    assert set(house.rows()) == {7, 8}
    assert house.all()[1] == before[1]


def test_bad_rows_are_counted_and_cost_themselves(house: Warehouse) -> None:
    house.slurm.add(job(7, submit=NOON - 4000))
    house.slurm.add(job(8, submit=NOON - 4000, Submit="garbage"))
    house.tick()
    assert set(house.rows()) == {7}
    assert house.cursor().bad_rows > 0


def test_a_pending_request_for_several_partitions_counts_once(house: Warehouse) -> None:
    house.slurm.queue = {7}
    house.slurm.add(job(7, submit=NOON - 100, run=None, State="PENDING", Start="Unknown", Partition="a,b"))
    house.tick()
    house.slurm.rows[0] = [job(7, submit=NOON - 100, run=50, Partition="b")]
    house.tick(NOON + 200)
    with house.ctx.db.read() as session:
        found = session.execute(
            select(AccountingDayRow.partition, AccountingDayRow.submitted).where(
                AccountingDayRow.submitted > 0
            )
        ).all()
    assert [tuple(row) for row in found] == [("b", 1)]


def test_what_came_to_nothing_leaves_no_row_and_no_line(house: Warehouse) -> None:
    """A job that waited, began and ended elsewhere had a row under each of these keys."""
    house.slurm.queue = {7}
    house.slurm.add(job(7, submit=NOON - 100, run=None, State="PENDING", Start="Unknown", Partition="a,b"))
    house.tick()
    house.slurm.rows[0] = [job(7, submit=NOON - 100, run=None, Partition="b")]
    house.tick(NOON + 60)
    house.slurm.rows[0] = [job(7, submit=NOON - 100, run=70, Partition="b", State="FAILED")]
    house.tick(NOON + 200)
    with house.ctx.db.read() as session:
        days = session.execute(select(AccountingDayRow.partition, AccountingDayRow.outcome)).all()
        assert [tuple(row) for row in days] == [("b", "FAILED")]
        assert session.scalars(select(AccountingWaitRow.jobs)).all() == [1, 1], "its wait, its slowdown"
        period = date(2026, 11, 1), date(2026, 12, 1)
        for report in (one for one in REPORTS.values() if one.source == "days"):
            for name in dimensions(report):
                view = view_report(session, Wanted(report, *period, (name,)), Scope(), None)
                assert len(view.lines) == 1, (report.name, name, [line.key for line in view.lines])


def test_gpu_types_come_from_the_nodes_where_the_job_names_none(house: Warehouse) -> None:
    house.slurm.inventory = [
        SimpleNamespace(name=f"{kind}-{n}", total=Tres(gpus=count, gpu_types={kind: count}))
        for kind, count in (("a100", 4), ("v100", 2))
        for n in (1, 2)
    ]
    for number, gpus, nodes in (
        (7, "gres/gpu=2", "a100-[1-2]"),
        (8, "gres/gpu=2", "elsewhere"),
        (9, "gres/gpu=6", "a100-[1-2],v100-1"),
        (10, "gres/gpu=5", "a100-1,v100-1"),
        (11, "gres/gpu=5,gres/gpu:a100=4", "a100-1,v100-1"),
    ):
        tres = f"cpu=4,{gpus}"
        house.slurm.add(job(number, submit=NOON - 9000, AllocTRES=tres, NodeList=nodes))
    house.tick()
    found = {number: (row.gpu_type, row.gpu_types) for number, row in house.rows().items()}
    assert found == {
        7: ("a100", ""),
        8: ("", ""),
        9: ("a100", "a100=4,v100=2"),  # two on each, as `--gres=gpu:2` gives
        10: ("mixed", ""),
        11: ("a100", "a100=4,v100=1"),
    }
    with house.ctx.db.read() as session:
        sums = session.execute(
            select(
                AccountingDayRow.gpu_type, func.sum(AccountingDayRow.gpu_s), func.sum(AccountingDayRow.ended)
            )
            .group_by(AccountingDayRow.gpu_type)
            .order_by(AccountingDayRow.gpu_type)
        ).all()
    assert [tuple(row) for row in sums] == [
        ("", 2 * 3600, 1),
        ("a100", (2 + 4 + 4) * 3600, 3),
        ("mixed", 5 * 3600, 1),
        ("v100", (2 + 1) * 3600, 0),
    ]


def own_job(house: Warehouse, slurm_id: int) -> tuple[str, str]:
    """A run of ann's whose first job has this id with Slurm: (run, the job's name)."""
    api = Api(house.ctx)
    api.add("ann")
    api.store("ann")
    run: str = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    with house.ctx.db.write() as session:
        mine = session.scalars(select(JobRow).where(JobRow.run_id == run)).first()
        assert mine is not None
        mine.slurm_job_id = slurm_id
        return run, mine.name


def test_gpu_use_is_told_by_whom_we_believe_most_and_stays_when_slurm_forgets(house: Warehouse) -> None:
    run, name = own_job(house, 7)
    start, end = NOON - 840, NOON - 540
    with house.ctx.db.write() as session:
        mine = session.scalars(select(JobRow).where(JobRow.slurm_job_id == 7)).one()
        looked = JobUsageRow(job_id=mine.id, run_id=run, cluster="main", slurm_job_id=7, restart=0)
        looked.cpus, looked.memory_mib, looked.gpus, looked.use = 4, 8192, 2, {}
        looked.first_at, looked.taken_at = (datetime.fromtimestamp(at, UTC) for at in (start + 10, end))
        looked.gpu_util_sum, looked.gpu_util_looks = 180.0, 3
        session.add(looked)
    row = job(7, submit=NOON - 900, run=300, User="broker", JobName=name)
    slurmd = step(row, TRESUsageInTot="mem=1048576,gres/gpuutil=40")
    jobstats = '{"nodes": {"a100-1": {"gpu_utilization": {"0": 90, "1": 50}}}}'
    comment = "JS1:" + base64.b64encode(gzip.compress(jobstats.encode())).decode()
    for rows, wanted in (
        ([row], (60.0, "measured")),
        ([row, slurmd], (60.0, "measured")),  # slurmd's 20 % is no better
        ([row | {"AdminComment": comment}, slurmd], (70.0, "jobstats")),
        ([row], (70.0, "jobstats")),
    ):
        house.slurm.rows = [rows]
        house.tick(house.now + 300)
        shown = job_facts(house.rows()[7])
        assert ((shown.gpu_efficiency or 0) * 100, shown.gpu_measured_by) == wanted
    others = job(8, submit=NOON - 900, run=300)
    house.slurm.rows = [[others, step(others, TRESUsageInTot="mem=1048576,gres/gpuutil=40")]]
    house.tick(house.now + 300)
    assert (house.rows()[8].gpu_util, house.rows()[8].gpu_util_by) == (20.0, "slurm")


def test_everybodys_jobs_are_kept_and_the_brokers_own_lead_to_their_runs(house: Warehouse) -> None:
    run, name = own_job(house, 7)
    with house.ctx.db.write() as session:
        session.execute(UserRow.__table__.update().values(unix_account=None))
    house.slurm.add(job(7, submit=NOON - 9000, User="broker", Account="default", JobName=name))
    house.slurm.add(job(8, submit=NOON - 9000, User="kim", Account="team-z", JobName=name))
    house.tick()
    ours, other = house.rows()[7], house.rows()[8]
    assert (ours.run_id, ours.user, ours.unix_user) == (run, "ann", "broker")
    assert (other.run_id, other.user, other.tenant) == (None, "main:kim", "team-z")


def test_a_name_leads_to_no_run_whose_job_has_no_id_yet_and_to_its_own_once_it_has(house: Warehouse) -> None:
    run, name = own_job(house, 7)
    ours = update(JobRow).where(JobRow.name == name)
    with house.ctx.db.write() as session:
        session.execute(ours.values(slurm_job_id=None))
    for number, who in ((7, "broker"), (8, "mallory")):
        house.slurm.add(job(number, submit=NOON - 900, run=60, User=who, Account="team-z", JobName=name))
    house.tick()
    assert [row.run_id for row in house.rows().values()] == [None, None]
    before = sum(house.days().values())
    with house.ctx.db.write() as session:
        session.execute(ours.values(slurm_job_id=7))
    house.tick(NOON + 300)
    found = {number: (row.run_id, row.user) for number, row in house.rows().items()}
    assert found == {7: (run, "ann"), 8: (None, "main:mallory")}
    assert sum(house.days().values()) == before
