"""Node down time and utilisation against what was done to real nodes, and against sreport's own figures.

No test waits for hours: nodes are really set down, drained and maintained, each for a second or two; then the
times of those events (of the reservation, and of a job) are moved in slurmdbd's own database to a day of long
ago and drawn out to hours, and slurmdbd rolls that day up itself (`sacctmgr roll`), as it does every hour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from broker.accounting.ingest import Ingester
from broker.accounting.looks import Looker
from broker.context import Context
from broker.reports import sources
from broker.reports.definitions import REPORTS
from broker.reports.wanted import Scope, Wanted
from tests.api_support import context, worker_lease
from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.processes import until

pytestmark = pytest.mark.cluster

HOUR, DAY_S = 3600, 86_400
REASON = "psu | fan\nsecond line"


@dataclass(frozen=True)
class Done:
    """What was done, when (epoch seconds; from, to), and the job that ran."""

    times: dict[str, tuple[int, int]]
    job_id: int


def _now(cluster: DevCluster) -> int:
    return int(cluster.ok("date", "+%s"))


def _sql(cluster: DevCluster, statement: str) -> str:
    return cluster.ok("mysql", "-N", "slurm_acct_db", "-e", statement)


@pytest.fixture(scope="module")
def done(cluster: DevCluster) -> Done:
    times = {}
    argv = ["sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=50M", "-w", "a100-2"]
    job_id = int(cluster.ok(*argv, "--gres=gpu:a100:2", "--cpus-per-task=8", "--wrap=sleep 1", user="kim"))

    def node(what: str, name: str, first: str, *more: str) -> None:
        for _ in range(5):  # a node that registers just now comes back by itself (ReturnToService=2)
            begun = _now(cluster)
            cluster.ok("scontrol", "update", f"NodeName={name}", f"State={first}", *more)
            time.sleep(1.5)  # a time that can be told from none
            resumed, _, _ = cluster.exec(["scontrol", "update", f"NodeName={name}", "State=RESUME"])
            times[what] = begun, _now(cluster)
            if resumed == 0:
                return
        pytest.fail(f"{name} does not stay {what}")

    node("down", "a100-3", "DOWN", f"Reason={REASON}")
    node("drained", "a100-4", "DRAIN", "Reason=firmware")
    begun = _now(cluster)
    words = ["ReservationName=broker-mnt", "StartTime=now", "Duration=10", "Nodes=v100-1", "Users=root"]
    cluster.ok("scontrol", "create", "reservation", *words, "Flags=MAINT")
    time.sleep(1.5)
    cluster.ok("scontrol", "delete", "ReservationName=broker-mnt")
    times["planned"] = begun, _now(cluster)
    rows = f"select count(*) from dev_job_table where id_job = {job_id} and time_end > 0"
    until(lambda: _sql(cluster, rows) == "1", 60, "the job has ended", step_s=0.5)
    return Done(times, job_id)


class House:
    """The warehouse in this process, filled by the real parts of the worker."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._lease = worker_lease(ctx)

    def look(self) -> None:
        Ingester(self.ctx, "main", self._lease).tick()
        Looker(self.ctx, "main", self._lease).tick()

    def report(self, name: str, since: date, *by: str) -> dict[tuple[str, ...], dict[str, Any]]:
        wanted = Wanted(REPORTS[name], since, since + timedelta(days=1), by)

        def read(session: Session) -> dict[tuple[str, ...], dict[str, Any]]:
            found = sources.groups(session, wanted, Scope())
            return {
                tuple(group.key.values()): {
                    one.name: one.compute(group.sums, group.sums) for one in wanted.report.measures
                }
                for group in found
            }

        with self.ctx.db.read() as session:
            return read(session)


@pytest.fixture
def house(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with context(
        tmp_path_factory.mktemp("nodes"),
        clusters={"main": Cluster(cluster.name).settings(account="default")},
        accounting={"history_days": 60},
    ) as ctx:
        yield House(ctx)


def test_down_time_is_what_was_done_to_the_nodes(cluster: DevCluster, done: Done, house: House) -> None:
    house.look()
    house.look()  # what is there already stays as it is
    today = datetime.fromtimestamp(done.times["down"][0], UTC).date()
    lines = house.report("node_downtime", today, "node", "state", "began")
    for node, state, gpus, cores in (
        ("a100-3", "down", 4, 64),
        ("a100-4", "drained", 4, 64),
        ("v100-1", "planned", 4, 32),
    ):
        first, last = done.times[state]
        [(key, values)] = [
            (key, values)
            for key, values in lines.items()
            if key[:2] == (node, state) and first - 1 <= _epoch(key[2]) <= last
        ]
        hours = values["node_hours"]
        assert isinstance(hours, float) and 1 <= hours * HOUR <= last - first + 2, key
        assert (values["gpu_hours"], values["core_hours"]) == (hours * gpus, hours * cores)
        assert values["ended"] is not None and _epoch(str(values["ended"])) <= last + 1
        if state == "down":
            assert (values["reason"], values["who"], values["slurm_state"]) == (REASON, "root", "DOWN")


def test_utilisation_of_a_day_is_sreports(cluster: DevCluster, done: Done, house: House) -> None:
    day = _long_ago(cluster, done)
    cluster.ok("sacctmgr", "-i", "roll", f"{day}T00:00:00", f"{day + timedelta(days=1)}T00:00:00")
    house.look()
    moved = f"id_job = {done.job_id} and time_start < {done.times['down'][0] - DAY_S}"
    _sql(cluster, f"delete from dev_job_table where {moved}")  # it is read and rolled up: not in others' way
    gpus = house.report("utilisation", day, "cluster")["main",]
    cores = house.report("core_utilisation", day, "cluster")["main",]
    for tres, ours in (("gres/gpu", gpus), ("cpu", cores)):
        allocated, down, planned, idle, waiting, reported = _sreport(cluster, day, tres)
        told = {name: round(float(str(value)) * HOUR) for name, value in ours.items() if "hours" in name}
        assert told["allocated_hours"] == allocated > 0
        assert told["down_hours"] + told["drained_hours"] == down > 0, "sreport calls both down"
        if tres == "gres/gpu":  # slurmdbd's reservations have cores only: their GPUs stay idle in sreport
            assert planned == 0 < told["planned_hours"]
            planned, idle = told["planned_hours"], idle - told["planned_hours"]
        assert told["planned_hours"] == planned > 0
        assert told["total_hours"] == reported
        assert told["idle_hours"] == idle + waiting, "sreport's Planned is idle, held for a job that waits"
        assert ours["utilisation"] == pytest.approx(allocated / (reported - down - planned))
        print(f"{tres}: {told}, as sreport")
    by_type = house.report("utilisation", day, "gpu_type")
    assert by_type["a100",]["down_hours"] == 4 * 3 and by_type["v100",]["planned_hours"] == 4 * 2
    for kind in ("a100", "v100"):  # jobs that others have moved to that day may be among them
        assert by_type[kind,]["allocated_hours"] * HOUR == _sreport(cluster, day, f"gres/gpu:{kind}")[0]
    assert by_type["a100",]["allocated_hours"] >= 2 * 2


def test_fair_shares_are_sshares(cluster: DevCluster, house: House) -> None:
    house.look()
    today = datetime.now(UTC).date()
    ours = house.report("fairshare", today, "account", "user")
    printed = cluster.ok("sshare", "-a", "-h", "-P", "-o", "Account,User,FairShare")
    rows = [[part.strip() for part in line.split("|")] for line in printed.splitlines()]
    theirs = {(account, f"main:{user}"): float(factor) for account, user, factor in rows if user}
    assert {key: values["fair_share"] for key, values in ours.items()} == {
        key: pytest.approx(factor, abs=0.05) for key, factor in theirs.items() if key[0] != "root"
    }


def _epoch(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


def _long_ago(cluster: DevCluster, done: Done) -> date:
    """Move what was done to a day without anything else, and draw it out to hours; which day."""
    midnight = (done.times["down"][0] // DAY_S - 40) * DAY_S

    def at(hours: int) -> int:
        return midnight + hours * HOUR

    _sql(
        cluster,
        f"delete from dev_event_table where time_start >= {midnight} and time_end <= {at(24)} and time_end; "
        "insert into dev_event_table (time_start, time_end, node_name, cluster_nodes, reason, state, tres) "
        f"select {midnight}, {at(24)}, node_name, cluster_nodes, reason, state, tres "
        "from dev_event_table where node_name = '' and time_end = 0 limit 1",
    )
    for what, node, hours in (("down", "a100-3", (1, 4)), ("drained", "a100-4", (2, 3))):
        first, last = done.times[what]
        _sql(
            cluster,
            f"update dev_event_table set time_start = {at(hours[0])}, time_end = {at(hours[1])} "
            f"where node_name = '{node}' and time_start between {first - 1} and {last}",
        )
    _sql(
        cluster,
        f"delete from dev_resv_table where time_start = {at(5)}; "
        f"update dev_resv_table set time_start = {at(5)}, time_end = {at(7)} where resv_name = 'broker-mnt' "
        f"and time_start between {done.times['planned'][0] - 1} and {done.times['planned'][1]}",
    )
    _sql(
        # A slurmctld that is started again tells the true end of jobs it remembers, whose beginning was moved
        # to long ago: they would last weeks, and slurmdbd cuts down time where more is used than there is.
        cluster,
        f"delete from dev_job_table where time_start > 0 and time_start < {at(24)} "
        f"and time_end > {midnight}; "
        f"update dev_job_table set time_submit = {at(6)}, time_eligible = {at(6)}, time_start = {at(6)}, "
        f"time_end = {at(8)} where id_job = {done.job_id} and time_submit > {done.times['down'][0] - 600}",
    )
    return datetime.fromtimestamp(midnight, UTC).date()


def _sreport(cluster: DevCluster, day: date, tres: str) -> list[int]:
    """Allocated, Down, Planned Down, Idle, Planned and Reported of a day, seconds times the amount."""
    words = ["cluster", "utilization", f"Start={day}", f"End={day + timedelta(days=1)}"]
    words += ["format=Allocated,Down,PlannedDown,Idle,Planned,Reported"]
    printed = cluster.ok("sreport", "-n", "-P", "-t", "Seconds", f"--tres={tres}", *words)
    return [int(word) for word in printed.splitlines()[-1].split("|")]
