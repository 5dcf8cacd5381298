"""The warehouse against a real accounting database: a mixed load, then sreport's and sacct's own figures.

No test waits for a midnight: when the load has ended, its times are moved in slurmdbd's own database (jobs,
steps and suspensions alike) to a day that has no other jobs, so that the midnight (UTC) falls into the middle
of a job; slurmdbd then rolls those days up itself (`sacctmgr roll`), as it does every hour.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from broker.accounting.ingest import Ingester
from broker.accounting.tables import AccountingCursorRow, AccountingDayRow, AccountingJobRow
from broker.cli import main
from broker.context import Context
from broker.errors import Unreachable
from tests.api_support import context, worker_lease
from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.processes import until

pytestmark = pytest.mark.cluster

DAY_S = 86_400
NAME = "na|me\nsecond | line"
ONCE = '[ -n "$SLURM_RESTART_COUNT" ] || sleep 600; sleep 2'
"""Runs until something ends it; started again, it ends by itself."""
GATED = "until [ -e /tmp/go-$SLURM_JOB_ID ]; do sleep 0.5; done; rm /tmp/go-$SLURM_JOB_ID"
"""Runs until its gate is opened: however slow the machine is, it is there to be suspended."""
# label -> (person, arguments of sbatch, what it runs)
LOAD: dict[str, tuple[str, list[str], str]] = {
    "gpus": ("kim", ["--gres=gpu:a100:2", "--cpus-per-task=4"], "sleep 10"),
    "array": ("kim", ["--array=0-5", "--cpus-per-task=2"], "sleep 2"),
    "memory": ("kim", ["--mem=1G"], "python3 -c \"import time; x = b'a' * (300 << 20); time.sleep(8)\""),
    "failed": ("kim", [f"--job-name={NAME}"], "sleep 1; exit 3"),
    "cancelled": ("kim", [], "sleep 600"),
    "cancelled_held": ("lee", ["--account=team-a", "--hold"], "true"),
    "requeued": ("lee", ["--account=team-a", "--nodelist=a100-2"], ONCE),
    "steps": ("lee", ["--account=team-a", "--ntasks=2", "--gres=gpu:v100:1"], "srun sleep 3; srun -n1 true"),
    "timeout": ("lee", ["--account=team-a"], "sleep 600"),
    "node_fail": ("park", ["--account=team-b", "--no-requeue", "--nodelist=v100-2"], "sleep 600"),
    "node_lost": ("park", ["--account=team-b", "--nodelist=v100-2", "--gres=gpu:v100:2"], ONCE),
    "preferred": ("park", ["--partition=a100,v100", "--account=team-b"], "sleep 1"),
    "two_types": ("park", ["--account=team-b", "-N2", "--nodelist=a100-1,v100-1", "--gres=gpu:1"], "sleep 3"),
    "suspended": ("broker", ["--dependency=afterany:{gpus}"], GATED),
}  # fmt: skip
STATES = "BF,CA,CD,DL,F,NF,OOM,PR,R,RQ,RS,RV,S,TO"
Use = dict[tuple[date, str, str], tuple[int, int]]
"""(day, user, tenant) -> (core-seconds, GPU-seconds), those who used nothing left out."""


@dataclass(frozen=True)
class Load:
    """What was submitted (ids by label), the midnight (epoch seconds) that fell into it, and for how many
    seconds at most a job was suspended.
    """

    ids: dict[str, int]
    midnight: int
    suspended_s: float

    @property
    def days(self) -> tuple[date, date]:
        second = datetime.fromtimestamp(self.midnight, UTC).date()
        return second - timedelta(days=1), second


@pytest.fixture(scope="module")
def load(cluster: DevCluster) -> Load:
    cluster.recover_node("v100-2")
    since = int(cluster.ok("date", "+%s"))
    ids: dict[str, int] = {}
    for label in LOAD:
        ids[label] = _submit(cluster, label, ids)
    running = ("requeued", "node_fail", "node_lost", "timeout", "cancelled")
    until(lambda: {_state(cluster, ids[one]) for one in running} == {"RUNNING"}, 60, "they run", step_s=0.2)
    cluster.fail_node("v100-2")
    time.sleep(1)  # something to lose; then an administrator is quicker than SlurmdTimeout
    cluster.ok("scontrol", "update", "NodeName=v100-2", "State=DOWN", "Reason=power cut")
    cluster.ok("scontrol", "requeue", str(ids["requeued"]))
    cluster.ok("scancel", str(ids["cancelled"]), str(ids["cancelled_held"]))
    cluster.ok("scontrol", "update", f"JobId={ids['timeout']}", "EndTime=now+4")
    until(lambda: _state(cluster, ids["suspended"]) == "RUNNING", 60, "the job to suspend runs", step_s=0.2)
    suspending = time.monotonic()
    cluster.ok("scontrol", "suspend", str(ids["suspended"]))
    time.sleep(3)  # a time that is not to be counted
    cluster.ok("scontrol", "resume", str(ids["suspended"]))
    suspended_s = time.monotonic() - suspending
    cluster.ok("touch", f"/tmp/go-{ids['suspended']}", user="broker")
    until(lambda: _state(cluster, ids["node_fail"]) == "NODE_FAIL", 60, "Slurm misses the node", step_s=0.5)
    cluster.recover_node("v100-2")
    mine = ",".join(map(str, ids.values()))
    until(lambda: cluster.ok("squeue", "-h", "-j", mine) == "", 90, "all have ended", step_s=0.5)
    until(lambda: _open_rows(cluster, since) == "0", 30, "slurmdbd knows it", step_s=0.5)
    return Load(ids, _over_midnight(cluster, since, ids["gpus"]), suspended_s)


def _submit(cluster: DevCluster, label: str, ids: dict[str, int]) -> int:
    user, words, script = LOAD[label]
    argv = ["sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=50M", "--time=20"]
    argv += [] if "--nodelist=v100-2" in words else ["--exclude=v100-2"]  # the node that will fail
    argv += [f"--job-name=acct-{label}", *(word.format(**ids) for word in words), f"--wrap={script}"]
    return int(cluster.ok(*argv, user=user))


def _state(cluster: DevCluster, job_id: int) -> str:
    return cluster.ok("squeue", "-h", "-t", "all", "-o", "%T", "-j", str(job_id)).split("\n")[0]


def _sql(cluster: DevCluster, statement: str) -> str:
    return cluster.ok("mysql", "-N", "slurm_acct_db", "-e", statement)


def _open_rows(cluster: DevCluster, since: int) -> str:
    return _sql(cluster, f"select count(*) from dev_job_table where time_submit >= {since} and time_end = 0")


def _over_midnight(cluster: DevCluster, since: int, job_id: int) -> int:
    """Move what was submitted since `since` so that a midnight falls into the middle of a job; which one.

    sreport shows nothing of days in which no cluster was registered, so it is registered on those as well.
    """
    start, end = map(
        int,
        _sql(cluster, f"select time_start, time_end from dev_job_table where id_job = {job_id}").split()[-2:],
    )
    first = int(_sql(cluster, "select min(time_submit) from dev_job_table"))
    midnight = (first // DAY_S - 3) * DAY_S
    by = (start + end) // 2 - midnight
    moved = {
        "dev_job_table": ("time_submit", "time_eligible", "time_start", "time_end"),
        "dev_step_table": ("time_start", "time_end"),
        "dev_suspend_table": ("time_start", "time_end"),
    }
    for table, columns in reversed(moved.items()):  # the others are found by their jobs
        changes = ", ".join(f"{name} = if({name} > {by}, {name} - {by}, {name})" for name in columns)
        which = f"job_db_inx in (select job_db_inx from dev_job_table where time_submit >= {since})"
        where = f"time_submit >= {since}" if table == "dev_job_table" else which
        _sql(cluster, f"update {table} set {changes} where {where}")
    _sql(
        cluster,
        "insert into dev_event_table (time_start, time_end, node_name, cluster_nodes, reason, state, tres) "
        f"select {midnight - DAY_S}, {midnight + DAY_S}, node_name, cluster_nodes, reason, state, tres "
        "from dev_event_table where node_name = '' and time_end = 0 limit 1",
    )
    cluster.ok("sacctmgr", "-i", "roll", _clock(midnight - DAY_S), _clock(midnight + DAY_S))
    return midnight


def _clock(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


# ---- the warehouse, and what Slurm itself says ------------------------------------------------------


class Warehouse:
    """The warehouse of the cluster in this process, filled by the real parts of the worker."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.lease = worker_lease(ctx)

    def tick(self, **more: Any) -> None:
        Ingester(self.ctx, "main", self.lease, **more).tick()

    def rows(self, job_id: int) -> list[AccountingJobRow]:
        query = select(AccountingJobRow).where(AccountingJobRow.job_id == job_id)
        with self.ctx.db.read() as session:
            return list(session.scalars(query.order_by(AccountingJobRow.submit_at)))

    def cursor(self) -> AccountingCursorRow:
        with self.ctx.db.read() as session:
            return session.get_one(AccountingCursorRow, "main")

    def sums(self, load: Load) -> Use:
        found: Use = {}
        with self.ctx.db.read() as session:
            query = select(AccountingDayRow).where(AccountingDayRow.day.in_(load.days))
            for row in session.scalars(query):
                _add(found, row.day, row.user.removeprefix("main:"), row.tenant, row.core_s, row.gpu_s)
        return {key: used for key, used in found.items() if any(used)}


def _add(found: Use, day: date, user: str, account: str, core_s: int, gpu_s: int) -> None:
    known = found.get((day, user, account), (0, 0))
    found[day, user, account] = (known[0] + core_s, known[1] + gpu_s)


@pytest.fixture(scope="module")
def house(cluster: DevCluster, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """Read from before the load, once; a crash between two windows on the way."""
    history = (int(time.time()) - load.midnight) // DAY_S + 2
    with context(
        tmp_path_factory.mktemp("warehouse"),
        clusters={"main": Cluster(cluster.name).settings(account="default")},
        accounting={"history_days": history},
    ) as ctx:
        found = Warehouse(ctx)
        windows = iter([True, True, True])
        with pytest.raises(StopIteration):  # as abrupt as a kill: nothing of the ingest runs any more
            found.tick(goes_on=windows.__next__)
        assert found.cursor().read_to < time.time() - DAY_S
        found.tick()
        yield found


def sreport(cluster: DevCluster, load: Load) -> Use:
    """Who used what on each of the two days by `sreport`, which reads slurmdbd's own sums."""
    found: Use = {}
    for day, account, user, tres, used in sreport_lines(cluster, load, "cpu,gres/gpu"):
        _add(found, day, user, account, *((used, 0) if tres == "cpu" else (0, used)))
    return {key: used for key, used in found.items() if any(used)}


def sreport_lines(cluster: DevCluster, load: Load, tres: str) -> Iterator[tuple[date, str, str, str, int]]:
    """(day, account, user, TRES, seconds times amount), of people."""
    for day in load.days:
        words = ["cluster", "AccountUtilizationByUser", f"Start={day}", f"End={day + timedelta(days=1)}"]
        printed = cluster.ok("sreport", "-n", "-P", "-t", "Seconds", f"--tres={tres}", *words)
        for line in printed.splitlines():
            _, account, user, _, name, used = line.split("|")
            if user:
                yield day, account, user, name, int(used)


def sacct(cluster: DevCluster, load: Load) -> list[dict[str, str]]:
    """Every attempt of the load's jobs, allocations alone, as a person would ask for them."""
    names = ("JobIDRaw", "User", "Account", "State", "ElapsedRaw", "NCPUS", "AllocTRES")
    first, last = load.midnight - DAY_S, load.midnight + DAY_S
    words = ["-D", "-X", "-a", "-n", "-P", "-o", ",".join(names), "-s", STATES]
    printed = cluster.ok("env", "TZ=UTC", "sacct", *words, "-S", _clock(first), "-E", _clock(last))
    return [dict(zip(names, line.split("|"), strict=True)) for line in printed.splitlines()]


# ---- what must hold ---------------------------------------------------------------------------------


def test_use_by_day_user_and_account_is_what_sreport_says(
    cluster: DevCluster, load: Load, house: Warehouse
) -> None:
    ours, slurms = house.sums(load), sreport(cluster, load)
    assert ours == slurms
    assert {user for _, user, _ in ours} == {"kim", "lee", "park", "broker"}
    assert {account for _, _, account in ours} == {"default", "team-a", "team-b"}
    per_day = {day: [used for (at, _, _), used in ours.items() if at == day] for day in load.days}
    assert all(sum(gpu_s for _, gpu_s in found) > 0 for found in per_day.values()), "both days have GPU time"
    print(f"{len(ours)} sums of two days, sreport's: {sorted(ours.items())}")


def test_gpu_time_by_type_is_what_sreport_says_though_a_job_had_two(
    cluster: DevCluster, load: Load, house: Warehouse
) -> None:
    slurms: dict[str, int] = defaultdict(int)
    for *_, tres, used in sreport_lines(cluster, load, "gres/gpu:a100,gres/gpu:v100"):
        slurms[tres.removeprefix("gres/gpu:")] += used
    with house.ctx.db.read() as session:
        days = AccountingDayRow
        query = select(days.gpu_type, func.sum(days.gpu_s)).where(days.day.in_(load.days), days.gpu_s > 0)
        ours = {kind: int(used) for kind, used in session.execute(query.group_by(days.gpu_type))}
    assert ours == slurms
    assert [row.gpu_types for row in house.rows(load.ids["two_types"])] == ["a100=1,v100=1"]


def test_use_and_numbers_of_jobs_are_what_sacct_says_though_the_first_ingest_crashed(
    cluster: DevCluster, load: Load, house: Warehouse
) -> None:
    rows = sacct(cluster, load)
    use: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        gpus = dict(entry.split("=") for entry in row["AllocTRES"].split(",") if entry).get("gres/gpu", "0")
        sums, elapsed = use[row["User"], row["Account"]], int(row["ElapsedRaw"])
        sums[0] += elapsed * int(row["NCPUS"] if row["AllocTRES"] else "0")
        sums[1] += elapsed * int(gpus)
        sums[2] += 1
    ours: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    with house.ctx.db.read() as session:
        for day in session.scalars(select(AccountingDayRow).where(AccountingDayRow.day.in_(load.days))):
            sums = ours[day.user.removeprefix("main:"), day.tenant]
            for at, value in enumerate((day.core_s, day.gpu_s, day.ended)):
                sums[at] += value
    assert ours == use
    assert len(rows) == len(LOAD) + 5 + 2, "five more elements of the array, two more attempts"


def test_each_way_to_end_is_told_and_attempts_are_rows_of_their_own(load: Load, house: Warehouse) -> None:
    states = {label: [row.state for row in house.rows(load.ids[label])] for label in LOAD if label != "array"}
    assert states == {
        "gpus": ["COMPLETED"],
        "memory": ["COMPLETED"],
        "failed": ["FAILED"],
        "cancelled": ["CANCELLED"],
        "cancelled_held": ["CANCELLED"],
        "requeued": ["REQUEUED", "COMPLETED"],
        "steps": ["COMPLETED"],
        "timeout": ["TIMEOUT"],
        "node_fail": ["NODE_FAIL"],
        "node_lost": ["NODE_FAIL", "COMPLETED"],
        "preferred": ["COMPLETED"],
        "two_types": ["COMPLETED"],
        "suspended": ["COMPLETED"],
    }
    (failed,) = house.rows(load.ids["failed"])
    assert (failed.name, failed.exit_code) == (NAME, 3)
    (held,) = house.rows(load.ids["cancelled_held"])
    assert (held.start_at, held.counted_to) == (None, None)
    (suspended,) = house.rows(load.ids["suspended"])
    assert suspended.start_at and suspended.end_at
    not_counted = (suspended.end_at - suspended.start_at) - suspended.elapsed_s
    assert 2 <= not_counted <= load.suspended_s + 2  # whole seconds
    assert not [row for label in LOAD for row in house.rows(load.ids[label]) if row.runaway]


def test_memory_is_what_the_job_took_and_unknown_where_nobody_looked(load: Load, house: Warehouse) -> None:
    (memory,) = house.rows(load.ids["memory"])
    assert memory.max_rss_mib is not None and 300 <= memory.max_rss_mib <= 330
    assert memory.mem_in_tot_mib == memory.max_rss_mib
    (failed,) = house.rows(load.ids["failed"])  # gone before slurmd's first sample: sacct says 0, or nothing
    assert failed.mem_in_tot_mib is None or failed.mem_in_tot_mib > 0
    assert memory.total_cpu_s is not None and failed.gpu_util is None


def test_slurmdbds_absence_is_said_and_afterwards_everything_is_there(
    cluster: DevCluster, house: Warehouse
) -> None:
    cluster.ok("pkill", "-KILL", "slurmdbd")
    try:
        with pytest.raises(Unreachable):
            house.tick()
        assert "slurm" in (house.cursor().trouble or "")
        argv = ["sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=50M", "--wrap=true"]
        missed = int(cluster.ok(*argv, user="kim"))
        until(lambda: _state(cluster, missed) == "COMPLETED", 30, "a job nobody accounts for", step_s=0.2)
    finally:
        cluster.restart("slurmdbd")
    query = f"select count(*) from dev_job_table where id_job = {missed} and time_end > 0"
    until(lambda: _sql(cluster, query) == "1", 60, "slurmctld has told slurmdbd", step_s=0.5)
    house.tick()
    assert house.cursor().trouble is None
    assert [row.state for row in house.rows(missed)] == ["COMPLETED"]


def test_the_commands_say_how_far_it_was_read_and_make_the_same_sums_anew(
    house: Warehouse, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = house.ctx.settings
    monkeypatch.setenv("BROKER_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("BROKER_CLUSTERS__MAIN__TRANSPORT", "local")
    before = house.sums(load)
    capsys.readouterr()
    assert main(["accounting", "status", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["items"]
    assert (one["cluster"], one["bad_rows"], one["runaways"], one["trouble"]) == ("main", 0, 0, None)
    assert one["lag_s"] < 120
    assert main(["accounting", "rebuild", "--json"]) == 0
    [done] = json.loads(capsys.readouterr().out)["items"]
    assert done == {"cluster": "main", "jobs": one["jobs"], "renamed": 0}
    assert house.sums(load) == before
