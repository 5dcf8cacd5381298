"""The queue and its changes against a real Slurm: what is shown is what starts, what is asked for is so."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from broker.audit.tables import AuditRow
from broker.context import Context
from broker.db import utcnow
from broker.identity import Role
from broker.queueing.changing import PriorityChanger
from broker.queueing.snapshot import QueueKeeper
from broker.runs.states import Phase
from broker.runs.submission import Submitter
from broker.runs.tables import RunRow
from broker.runs.tracking import Tracker
from broker.slurm import QueueJob, SlurmState
from tests.api_support import Api, context, worker_lease
from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.specs import WAIT, component, pipeline

pytestmark = pytest.mark.cluster

WHOLE_NODE = {"gpu_type": "V100", "gpu_count": 4, "memory": "1GB"}


class Desk:
    """The API and the worker's parts for one cluster in this process, with every remote command noted."""

    def __init__(self, ctx: Context, cluster: DevCluster) -> None:
        self.ctx, self.cluster, self.api = ctx, cluster, Api(ctx)
        self.api.add("root", Role.ADMIN)
        self.api.add("ann")
        self.commands: list[list[str]] = []
        host = ctx.host("main")
        ask = host.run

        def noted(argv: Any, **more: Any) -> Any:
            self.commands.append([word for word in argv if not word.startswith("-u")])
            return ask(argv, **more)

        host.run = noted  # type: ignore[method-assign]
        lease = worker_lease(ctx)
        self.submitter = Submitter(ctx, "main", lease)
        self.keeper = QueueKeeper(ctx, "main", lease)
        self.tracker = Tracker(ctx, "main", lease, self.keeper.keep)
        self.changer = PriorityChanger(ctx, "main", lease)

    def run(self, spec: dict[str, Any], who: str = "ann", **body: Any) -> str:
        """A run of a spec, submitted and, unless something holds it, released."""
        stored = self.api.store(who, spec)
        assert stored.status_code == 201, stored.text
        asked = self.api.call("POST", "/runs", who, json={"pipeline": spec["pipeline_id"], **body})
        assert asked.status_code == 201, asked.text
        run_id: str = asked.json()["id"]
        self.work(run_id)
        assert self.api.call("GET", f"/runs/{run_id}", "root").json()["error"] is None
        return run_id

    def work(self, run_id: str) -> None:
        """What the worker does about a run until nothing is due."""
        self.submitter.advance(run_id)
        for due in self.changer.due():
            self.changer.apply(due)

    def look(self) -> None:
        """One poll, with priorities."""
        self.keeper._ask_after = 0.0
        self.tracker.tick()

    def wish(self, run_id: str, **wanted: Any) -> dict[str, Any]:
        """Wish, let the worker do it, and give what came of it."""
        asked = self.api.call("PUT", f"/runs/{run_id}/priority", "root", json=wanted)
        assert asked.status_code == 202, asked.text
        self.work(run_id)
        return self.change(run_id)

    def change(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call("GET", f"/runs/{run_id}/priority", "root").json()["change"]
        return found

    def order(self, action: str, run_id: str, reason: str) -> None:
        """`hold` or `release`, and what the worker does about it."""
        asked = self.api.call("POST", f"/runs/{run_id}/{action}", "root", json={"reason": reason})
        assert asked.status_code == 202, asked.text
        self.work(run_id)

    def queue(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.api.call("GET", "/queue", "root").json()["items"]
        return items

    def polled(self) -> list[dict[str, Any]]:
        """The queue after another look."""
        self.look()
        return self.queue()

    def slurm(self, run_id: str) -> list[QueueJob]:
        """The jobs of a run as squeue shows them, asked aside."""
        number = self.api.call("GET", f"/runs/{run_id}", "root").json()["number"]
        jobs = self.ctx.slurm("main").jobs("broker").jobs
        return [job for job in jobs if f"-{number:04d}." in job.name and job.name.startswith(self.prefix)]

    @property
    def prefix(self) -> str:
        return f"{self.ctx.settings.environment}-"

    def audit(self, run_id: str, action: str) -> list[AuditRow]:
        query = select(AuditRow).where(AuditRow.object_id == run_id, AuditRow.action == action)
        with self.ctx.db.read() as session:
            return list(session.scalars(query.order_by(AuditRow.id)))

    def close_partition(self) -> None:
        """Nothing of it starts, nothing of it is held."""
        self.cluster.ok("scontrol", "update", "PartitionName=capped", "State=DOWN")

    def open_partition(self) -> None:
        self.cluster.ok("scontrol", "update", "PartitionName=capped", "State=UP")


@pytest.fixture
def desk(cluster: DevCluster, tmp_path: Path) -> Iterator[Desk]:
    settings = Cluster(cluster.name).settings(partition="capped")
    environment = f"q{time.time_ns() % 10**9:x}"
    more = {"approval": {"gpu_count": 100, "memory_gib": 10_000}, "environment": environment}
    with context(tmp_path, clusters={"main": settings}, **more) as ctx:
        found = Desk(ctx, cluster)
        found.close_partition()
        try:
            yield found
        finally:
            mine = [job.job_id for job in ctx.slurm("main").jobs("broker").jobs if job.state.active]
            ctx.slurm("main").cancel(mine)
            found.open_partition()


def test_twenty_waiting_jobs_are_changed_and_read_back_by_one_remote_command(desk: Desk) -> None:
    names = [f"part-{n:02d}" for n in range(20)]
    run_id = desk.run(pipeline([component(name, order=n) for n, name in enumerate(names)]))
    desk.look()
    took = {}
    for wanted, check in (
        ({"level": "high"}, lambda job: job.nice == -20_000),
        ({"number": 4321}, lambda job: job.priority == 4321),
        ({"scheduler": True}, lambda job: job.priority not in (0, 4321)),
    ):
        desk.commands.clear()
        began = time.perf_counter()
        change = desk.wish(run_id, **wanted)
        took[next(iter(wanted))] = time.perf_counter() - began
        assert len(desk.commands) == 1, desk.commands
        assert (change["state"], change["message"]) == ("applied", "20 applied")
        jobs = desk.slurm(run_id)
        assert len(jobs) == 20 and all(map(check, jobs))
        shown = {job["component"]: job["after"] for job in change["jobs"]}
        by_component = {job.name.split("-", 2)[2].rsplit("-", 1)[0]: job for job in jobs}
        assert {name: (by_component[name].nice) for name in names} == {
            name: shown[name]["nice"] for name in names
        }
    rows = desk.audit(run_id, "run.priority")
    assert len(rows) == 3
    assert rows[1].before is not None and len(rows[1].before["jobs"]) == 20
    assert rows[1].after is not None
    assert {job["priority"] for job in rows[1].after["jobs"].values()} == {4321}
    times = ", ".join(f"{wish} {seconds:.2f} s" for wish, seconds in took.items())
    print(f"20 waiting jobs moved: {times}; all read back, 1 remote command and 1 audit row each")


def test_an_explicit_priority_is_shown_as_frozen_until_the_scheduler_has_it_back(desk: Desk) -> None:
    run_id = desk.run(pipeline([component("one", resources=WHOLE_NODE)]))
    until(
        lambda: desk.polled()[0]["parts"] is not None and desk.queue()[0]["why"]["code"] == "partition",
        60,
        "its priority and the reason why it waits are known",
        0.2,
    )  # slurmctld works priorities out once a second, and says why when its scheduler has come by
    (item,) = desk.queue()
    assert (item["run_id"], item["frozen"], item["resources"]) == (run_id, False, "V100 x 4, 1GB")
    assert item["parts"]["fair_share"] > 0 and item["parts"]["qos"] > 0
    desk.wish(run_id, number=777)
    desk.look()
    (item,) = desk.queue()
    assert (item["priority"], item["frozen"], item["parts"]) == (777, True, None)
    desk.wish(run_id, level="low")
    until(lambda: desk.polled()[0]["parts"] is not None, 30, "its priority is known", 0.2)
    (item,) = desk.queue()
    assert (item["frozen"], item["parts"]["nice"], item["level"]) == (False, 20_000, "low")


def test_slurm_starts_runs_in_the_order_that_the_queue_shows(desk: Desk) -> None:
    spec = pipeline([component("one", resources=WHOLE_NODE)])
    first, second, third, fourth = (desk.run({**spec, "pipeline_id": f"p-{n}"}) for n in range(4))
    desk.look()
    assert [item["run_id"] for item in desk.queue()] == [first, second, third, fourth]
    desk.wish(fourth, before=first)
    desk.wish(second, level="low")
    desk.look()
    shown = [item["run_id"] for item in desk.queue()]
    assert shown == [fourth, first, third, second]
    ids = {run_id: desk.slurm(run_id)[0].job_id for run_id in shown}
    desk.open_partition()
    starts: dict[int, Any] = {}

    def all_ended() -> bool:
        jobs = desk.ctx.slurm("main").accounting(list(ids.values()))
        starts.update({job.job_id: job.start for job in jobs})
        return len(jobs) == 4 and all(job.state.finished for job in jobs)

    until(all_ended, 90, "all have ended", 0.2)
    assert sorted(shown, key=lambda run_id: starts[ids[run_id]]) == shown


def test_a_held_run_takes_a_level_and_gets_its_number_back_after_the_release(desk: Desk) -> None:
    spec = pipeline([component("a"), component("b", order=1)], [("a", "b")])
    run_id = desk.run(spec)
    desk.wish(run_id, number=555)
    desk.order("hold", run_id, "maintenance")
    assert {(job.reason, job.priority) for job in desk.slurm(run_id)} == {("JobHeldAdmin", 0)}
    desk.look()
    (item,) = desk.queue()
    assert item["why"]["en"] == "An administrator holds it: maintenance."
    assert desk.wish(run_id, level="low")["state"] == "applied"
    assert {job.nice for job in desk.slurm(run_id)} == {20_000}
    assert desk.wish(run_id, number=666)["state"] == "pending"  # it waits for the release
    desk.order("release", run_id, "done")
    desk.work(run_id)
    assert desk.change(run_id)["state"] == "applied"
    assert {job.priority for job in desk.slurm(run_id)} == {666}
    assert [row.after["reason"] for row in desk.audit(run_id, "run.hold") if row.after] == ["maintenance"]
    desk.cluster.ok("scontrol", "release", ",".join(str(job.job_id) for job in desk.slurm(run_id)))
    desk.look()  # somebody took the number away
    desk.work(run_id)
    assert {job.priority for job in desk.slurm(run_id)} == {666}
    assert len(desk.audit(run_id, "run.priority_restored")) == 1


def test_what_runs_is_left_alone_and_what_waits_behind_it_moves(desk: Desk) -> None:
    run_id = desk.run(pipeline([component("a", WAIT), component("b", order=1)], [("a", "b")]))
    desk.open_partition()
    both = {SlurmState.RUNNING, SlurmState.PENDING}
    until(lambda: {job.state for job in desk.slurm(run_id)} == both, 60, "one runs, one waits", 0.2)
    desk.look()
    (before,) = (job for job in desk.slurm(run_id) if job.state is SlurmState.RUNNING)
    change = desk.wish(run_id, number=555)
    assert [(job["component"], job["outcome"]) for job in change["jobs"]] == [("b", "applied")]
    desk.order("hold", run_id, "look at a first")
    running, waiting = sorted(desk.slurm(run_id), key=lambda job: job.job_id)
    assert (running.state, running.priority, running.nice) == (before.state, before.priority, before.nice)
    assert (waiting.state, waiting.reason) == (SlurmState.PENDING, "JobHeldAdmin")


def test_a_run_that_is_next_says_so_and_when_slurm_expects_to_start_it(desk: Desk) -> None:
    spec = pipeline([component("one", WAIT, resources=WHOLE_NODE)])
    desk.open_partition()
    running, waiting = (desk.run({**spec, "pipeline_id": f"p-{n}"}) for n in range(2))

    def expected() -> bool:
        items = desk.polled()
        return [item["run_id"] for item in items] == [waiting] and items[0]["expected_start"] is not None

    until(expected, 60, "the order is as expected", 0.2)
    (item,) = desk.queue()
    assert item["why"]["code"] in {"resources", "priority"}
    assert datetime.fromisoformat(item["expected_start"]) > utcnow()
    assert {job.state for job in desk.slurm(running)} == {SlurmState.RUNNING}


def test_training_of_an_internal_user_is_high_before_it_may_start(desk: Desk) -> None:
    desk.api.add("eve", Role.INTERNAL)
    spec = pipeline([component("a"), component("b", order=1)], [("a", "b")])
    assert desk.api.store("eve", spec).status_code == 201
    asked = desk.api.call("POST", "/runs", "eve", json={"pipeline": spec["pipeline_id"]})
    run_id = asked.json()["id"]
    assert asked.json()["priority"] == "high"
    desk.submitter.advance(run_id)
    assert {(job.nice, job.priority > 0) for job in desk.slurm(run_id)} == {(-20_000, True)}
    desk.work(run_id)
    assert desk.change(run_id)["message"] == "2 applied"
    assert [row.actor_name for row in desk.audit(run_id, "run.priority")] == ["system"]


def test_a_retry_waits_at_low_priority_from_its_submission_on(desk: Desk) -> None:
    run_id = desk.run(pipeline([component("one")]))
    assert {job.nice for job in desk.slurm(run_id)} == {0}
    desk.ctx.slurm("main").cancel([job.job_id for job in desk.slurm(run_id)])

    def failed() -> bool:
        desk.look()
        with desk.ctx.db.read() as session:
            return session.get_one(RunRow, run_id).phase == Phase.DONE

    until(failed, 60, "the run has failed", 0.2)
    assert desk.api.call("POST", f"/runs/{run_id}/retry", "ann").status_code == 202
    desk.work(run_id)
    assert [job.nice for job in desk.slurm(run_id) if job.state.pending] == [20_000]
