"""The queue and the wishes for a place in it, on a real database; what may differ between the two, on both.

Slurm is not here: what squeue and sprio showed is handed over, and one `scontrol` is answered by a table of
jobs that follows the rules found on real clusters (tests/cluster/test_queue.py asks those).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from broker.audit.tables import AuditRow
from broker.context import Context
from broker.db import leases, utcnow
from broker.db.leases import Lease
from broker.errors import ConfigurationError
from broker.identity import Role
from broker.queueing.changing import PriorityChanger
from broker.queueing.snapshot import QueueKeeper
from broker.queueing.tables import PriorityRow
from broker.runs.states import Gate, JobState, Phase
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.slurm import DONE, JobPriority, QueueJob, QueueSnapshot, Result, ResultKind
from broker.slurm.changes import Adjusted, Change, Shown
from broker.slurm.states import SlurmState
from broker.slurm.tres import parse_tres
from tests.api_support import Api, context

SUBMITTED = datetime(2026, 11, 1, 8, tzinfo=UTC)


class Controller:
    """Jobs by id. Answers `adjust` and `priorities` as the controller would, and counts the commands."""

    def __init__(self) -> None:
        self.jobs: dict[int, QueueJob] = {}
        self.explicit: set[int] = set()
        self.commands: list[list[str]] = []
        self.unreachable = False

    def add(self, number: int, name: str, priority: int, **more: Any) -> None:
        self.jobs[number] = QueueJob(
            job_id=number,
            name=name,
            state=SlurmState.PENDING,
            reason="Priority",
            user="broker",
            account="default",
            qos="training",
            partition="gpu",
            submit=SUBMITTED + timedelta(seconds=number),
            start=None,
            end=None,
            time_limit_s=3600,
            nodes=(),
            node_count=1,
            cpus=1,
            tres=parse_tres(""),
            priority=priority,
            nice=0,
            dependency="",
            restart_count=0,
        )
        self.set(number, **more)

    def set(self, number: int, **more: Any) -> None:
        self.jobs[number] = replace(self.jobs[number], **more)

    def shown(self) -> dict[int, Shown]:
        return {n: Shown(job.state, job.reason, job.priority, job.nice) for n, job in self.jobs.items()}

    def adjust(self, wanted: Sequence[Change]) -> Adjusted:
        self.commands.append([change.line for change in wanted])
        if self.unreachable:
            return Adjusted(
                {c.job_id: Result(ResultKind.OUTCOME_UNKNOWN, "Socket timed out") for c in wanted}
            )
        before = self.shown()
        results = {change.job_id: self._change(change) for change in wanted}
        ids = set(results)
        return Adjusted(
            results, *({n: s for n, s in look.items() if n in ids} for look in (before, self.shown()))
        )

    def _change(self, change: Change) -> Result:
        job = self.jobs[change.job_id]
        if found := re.search(r" Nice=(-?\d+)", change.line):
            nice = int(found[1])
            lost = 0 if job.job_id in self.explicit or not job.priority else nice - job.nice
            self.set(job.job_id, nice=nice, priority=max(1, job.priority - lost) if job.priority else 0)
        elif found := re.search(r" Priority=(\d+)", change.line):
            if not job.priority:
                return Result(ResultKind.HELD, "Job is in held state")
            self.explicit.add(job.job_id)
            self.set(job.job_id, priority=int(found[1]))
        elif change.line.startswith("release"):
            self.explicit.discard(job.job_id)
            self.set(job.job_id, priority=1000 - job.nice)
        return DONE

    def priorities(self) -> list[JobPriority]:
        return [
            JobPriority(n, "broker", job.priority, 0, 0 if n in self.explicit else 1000, 0, 0, 0, 0)
            for n, job in self.jobs.items()
            if job.priority and job.state is SlurmState.PENDING
        ]


class World:
    """One API, one cluster's worker parts, and the Slurm that is not there."""

    def __init__(self, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ctx, self.api, self.slurm = ctx, Api(ctx), Controller()
        self.tenant = "t" + secrets.token_hex(4)  # the tests share one PostgreSQL
        self.admin, self.ann = f"root-{self.tenant}", f"ann-{self.tenant}"
        self.admin_id = self.api.add(self.admin, Role.ADMIN)
        self.api.add(self.ann, tenant=self.tenant)
        client = ctx.slurm("main")
        for name in ("adjust", "priorities"):
            monkeypatch.setattr(client, name, getattr(self.slurm, name))
        lease = leases.acquire(ctx.db, "worker:main", "test", 300)
        assert lease is not None
        self.lease: Lease = lease
        self.keeper = QueueKeeper(ctx, "main", lease)
        self.changer = PriorityChanger(ctx, "main", lease)
        with ctx.db.write() as session:  # what other tests left in the same database waits no more
            for run in session.scalars(select(RunRow)):
                run.state, run.phase = "cancelled", Phase.DONE

    def run(self, who: str | None = None, priority: int = 1000, *, number: int = 0, **body: Any) -> str:
        """A run of two components, released, in Slurm with ids from `number`."""
        who = who or self.ann
        if self.api.store(who).status_code not in {200, 201}:
            raise AssertionError
        run = self.api.call("POST", "/runs", who, json={"pipeline": "digits", **body})
        assert run.status_code == 201, run.text
        run_id: str = run.json()["id"]
        start = number or 100 + 10 * len(self.slurm.jobs)
        with self.ctx.db.write() as session:
            row = session.get_one(RunRow, run_id)
            row.phase = Phase.ACTIVE
            for hold in session.scalars(select(RunHoldRow).where(RunHoldRow.run_id == run_id)):
                session.delete(hold)
            for n, job in enumerate(attempt_jobs(session, run_id, row.attempt), start):
                job.slurm_job_id, job.state = n, JobState.PENDING
                job.submitted_at = job.observed_at = SUBMITTED
                self.slurm.add(n, job.name, priority)
        return run_id

    def jobs(self, run_id: str) -> dict[str, QueueJob]:
        with self.ctx.db.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.run_id == run_id))
            return {row.component: self.slurm.jobs[row.slurm_job_id or 0] for row in rows}

    def look(self) -> None:
        self.keeper._ask_after = 0.0
        self.keeper.keep(QueueSnapshot(utcnow(), tuple(self.slurm.jobs.values())))

    def work(self) -> list[str]:
        due = self.changer.due()
        for run_id in due:
            self.changer.apply(run_id)
        return due

    def queue(self, who: str | None = None, **query: Any) -> list[dict[str, Any]]:
        answer = self.api.call("GET", "/queue", who or self.admin, params=query)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def wish(self, run_id: str, **wanted: Any) -> Any:
        return self.api.call("PUT", f"/runs/{run_id}/priority", self.admin, json=wanted)

    def change(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call("GET", f"/runs/{run_id}/priority", self.admin).json()["change"]
        return found

    def audit(self, run_id: str) -> list[AuditRow]:
        query = select(AuditRow).where(AuditRow.object_id == run_id, AuditRow.action != "run.create")
        with self.ctx.db.read() as session:
            return list(session.scalars(query.order_by(AuditRow.id)))

    def level(self, run_id: str) -> str:
        with self.ctx.db.read() as session:
            return session.get_one(RunRow, run_id).priority


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    kind = getattr(request, "param", "sqlite")
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    with context(tmp_path, url) as ctx:
        yield World(ctx, monkeypatch)


on_both = pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)


def order(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return [item["run_id"] for item in items]


@on_both
def test_the_queue_is_in_slurms_order_and_says_what_each_run_asks_for(world: World) -> None:
    low, high = world.run(priority=10), world.run(priority=2000)
    same = world.run(priority=10)
    held = world.run(priority=0)
    for job in world.jobs(held).values():
        world.slurm.set(job.job_id, reason="JobHeldAdmin")
    world.look()
    items = world.queue()
    assert order(items) == [high, low, same, held]
    assert [item["position"] for item in items] == [1, 2, 3, 4]
    first = items[0]
    assert (first["resources"], first["owner"], first["tenant"]) == (
        "A100 x 2, 64GB",
        world.ann,
        world.tenant,
    )
    assert {job["component"]: job["resources"] for job in first["jobs"]} == {
        "loader": "CPU x 2, 4GB",
        "trainer": "A100 x 2, 64GB",
    }
    assert first["priority"] == 2000
    assert first["parts"]["fair_share"] == 1000
    assert (first["level"], first["level_ko"], first["frozen"]) == ("normal", "보통", False)
    assert [item["why"]["code"] for item in items] == ["priority", "priority", "priority", "held"]
    assert "2 job(s)" in items[1]["why"]["en"]


def test_reading_the_queue_asks_slurm_nothing_and_tells_its_age(world: World) -> None:
    world.run()
    world.look()
    before = list(world.slurm.commands)
    answer = world.api.call("GET", "/queue", world.admin).json()
    (source,) = answer["sources"]
    assert source["age_s"] >= 0 and source["observed_at"]
    assert world.slurm.commands == before


def test_people_see_their_own_runs_at_their_true_places(world: World) -> None:
    bob = f"bob-{world.tenant}"
    world.api.add(bob, tenant=f"o{world.tenant}")
    world.run(priority=2000)
    mine = world.run(bob, priority=10)
    world.look()
    items = world.queue(bob)
    assert [(item["run_id"], item["position"]) for item in items] == [(mine, 2)]
    assert world.api.call("GET", f"/runs/{mine}/priority", world.ann).status_code == 404
    assert world.api.call("PUT", f"/runs/{mine}/priority", bob, json={"level": "high"}).status_code == 403
    assert world.api.call("POST", f"/runs/{mine}/hold", bob, json={"reason": "x"}).status_code == 403


def test_why_a_component_waits_names_the_one_before_it(world: World) -> None:
    run_id = world.run(number=500)
    world.slurm.set(501, reason="Dependency", dependency="afterok:500(unfulfilled)")
    world.look()
    (item,) = world.queue()
    loader, trainer = item["jobs"]
    assert trainer["why"] == {
        "code": "dependency",
        "en": "It waits for loader to complete.",
        "ko": "먼저 끝나야 할 작업이 있습니다: loader.",
    }
    assert (item["run_id"], loader["position"], trainer["position"]) == (run_id, 1, 2)


@on_both
def test_what_a_component_waits_for_in_another_run_is_not_named(world: World) -> None:
    mine, other = world.run(number=100), world.run(world.admin, number=200)
    assert len(world.jobs(other)) == 2
    world.slurm.set(101, reason="Dependency", dependency="afterok:100(unfulfilled),afterok:200(unfulfilled)")
    world.look()
    (entry,) = world.queue(world.ann)
    assert entry["run_id"] == mine
    assert entry["jobs"][1]["why"]["en"] == "It waits for loader to complete."


def test_a_level_is_a_nice_value_of_all_waiting_jobs_in_one_command_with_one_audit_row(world: World) -> None:
    run_id = world.run()
    assert world.wish(run_id, level="high").status_code == 202
    assert world.change(run_id)["state"] == "pending"
    assert world.work() == [run_id]
    assert {job.nice for job in world.jobs(run_id).values()} == {-20_000}
    assert len(world.slurm.commands) == 1
    change = world.change(run_id)
    assert (change["state"], change["message"]) == ("applied", "2 applied")
    assert [job["after"]["nice"] for job in change["jobs"]] == [-20_000, -20_000]
    (row,) = world.audit(run_id)
    assert (row.action, row.actor_id) == ("run.priority", world.admin_id)
    assert row.before == {
        "level": "normal",
        "jobs": {name: {"priority": 1000, "nice": 0} for name in ("loader", "trainer")},
    }
    assert row.after is not None and row.after["level"] == "high"
    assert row.note == "2 applied"
    assert world.level(run_id) == "high"
    assert world.work() == []


def test_what_runs_is_never_touched(world: World) -> None:
    run_id = world.run(number=600)
    world.wish(run_id, number=77)
    with world.ctx.db.write() as session:
        loader = session.scalars(select(JobRow).where(JobRow.slurm_job_id == 600)).one()
        loader.state = JobState.RUNNING
    world.work()
    assert world.slurm.commands == [["update JobId=601 Priority=77"]]
    with world.ctx.db.write() as session:
        session.scalars(select(JobRow).where(JobRow.slurm_job_id == 601)).one().state = JobState.RUNNING
    assert world.wish(run_id, level="low").status_code == 409


def test_a_job_that_started_meanwhile_is_told_so(world: World) -> None:
    run_id = world.run(number=610)
    world.slurm.set(610, state=SlurmState.RUNNING)
    world.wish(run_id, number=77)
    world.work()
    change = world.change(run_id)
    assert [job["outcome"] for job in change["jobs"]] == ["started", "applied"]
    assert change["state"] == "applied"


def test_a_number_is_frozen_and_can_be_given_back_to_the_scheduler(world: World) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    world.work()
    world.look()
    (item,) = world.queue()
    assert (item["priority"], item["frozen"], item["parts"]) == (77, True, None)
    world.wish(run_id, scheduler=True)
    world.work()
    world.look()
    (item,) = world.queue()
    assert (item["priority"], item["frozen"]) == (1000, False)
    assert [line.split()[0] for line in world.slurm.commands[-1]] == ["release", "update"] * 2


def test_a_level_after_a_number_thaws_it(world: World) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    world.work()
    world.wish(run_id, level="low")
    world.work()
    assert {(job.priority, job.nice) for job in world.jobs(run_id).values()} == {(1, 20_000)}


@on_both
def test_a_run_is_moved_just_before_or_after_another(world: World) -> None:
    first, second, third = (world.run(priority=priority) for priority in (3000, 2000, 1000))
    world.look()
    world.wish(third, before=first)
    world.work()
    assert order(world.queue()) == [third, first, second]  # at once, without another look
    assert {job.priority for job in world.jobs(third).values()} == {3001}
    world.wish(third, after=second)
    world.work()
    world.look()
    assert order(world.queue()) == [first, second, third]
    assert world.change(third)["number"] == 1999


def test_a_look_at_the_queue_reads_no_more_often_when_more_is_wished_for(world: World) -> None:
    def statements() -> int:
        counted: list[str] = []
        engine = world.ctx.db.engine

        def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            counted.append(statement)

        event.listen(engine, "before_cursor_execute", count)
        try:
            world.look()
        finally:
            event.remove(engine, "before_cursor_execute", count)
        return len([one for one in counted if one.startswith("SELECT")])

    first = world.run()
    world.wish(first, level="high")
    world.work()
    few = statements()
    for n in range(3):
        world.wish(world.run(number=1000 + 10 * n), before=first)
    world.work()
    assert statements() == few


@on_both
def test_a_run_that_was_overtaken_by_ageing_is_moved_again(world: World) -> None:
    first, second = world.run(priority=3000), world.run(priority=1000)
    world.look()
    world.wish(second, before=first)
    world.work()
    for number, job in world.slurm.jobs.items():
        if job.priority == 3000:
            world.slurm.set(number, priority=3005)
    world.look()
    assert world.work() == [second]
    assert {job.priority for job in world.jobs(second).values()} == {3105}
    assert [row.action for row in world.audit(second)] == ["run.priority", "run.priority_restored"]
    assert world.audit(second)[-1].actor_name == "system"


@pytest.mark.parametrize("wanted", [{}, {"level": "high", "number": 3}, {"number": 0}, {"scheduler": False}])
def test_a_wish_that_is_none_or_two_is_refused(world: World, wanted: dict[str, Any]) -> None:
    assert world.wish(world.run(), **wanted).status_code == 422


def test_a_place_beside_nothing_is_refused_with_its_field(world: World) -> None:
    run_id = world.run()
    for wanted in ({"before": "run-none"}, {"after": run_id}):
        answer = world.wish(run_id, **wanted)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(wanted))}"


def test_a_number_waits_for_the_release_and_a_level_does_not(world: World) -> None:
    run_id = world.run()
    assert (
        world.api.call("POST", f"/runs/{run_id}/hold", world.admin, json={"reason": "later"}).status_code
        == 202
    )
    world.wish(run_id, number=77)
    assert world.work() == []
    world.wish(run_id, level="low")
    assert world.work() == [run_id]
    assert world.level(run_id) == "low"
    assert [row.note for row in world.audit(run_id)][1] == "Replaced before it was applied"


@on_both
def test_a_hold_and_its_release_say_why_and_leave_other_holds_alone(world: World) -> None:
    run_id = world.run()
    held = world.api.call("POST", f"/runs/{run_id}/hold", world.admin, json={"reason": "maintenance"})
    assert held.json()["holds"] == ["admin"]
    world.look()
    assert world.queue()[0]["why"]["en"] == "An administrator holds it: maintenance."
    again = world.api.call("POST", f"/runs/{run_id}/hold", world.admin, json={"reason": "again"})
    assert again.status_code == 409
    with world.ctx.db.write() as session:
        session.add(RunHoldRow(run_id=run_id, kind="approval", reason="GPUs", since=utcnow()))
    free = world.api.call("POST", f"/runs/{run_id}/release", world.admin, json={"reason": "done"})
    assert free.json()["holds"] == ["approval"]
    assert [(row.action, row.after) for row in world.audit(run_id)] == [
        ("run.hold", {"holds": ["admin"], "reason": "maintenance"}),
        ("run.release", {"holds": ["approval"], "reason": "done"}),
    ]
    assert (
        world.api.call("POST", f"/runs/{run_id}/release", world.admin, json={"reason": "x"}).status_code
        == 409
    )


def test_an_explicit_priority_that_a_release_took_away_is_given_again(world: World) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    world.work()
    for job in world.jobs(run_id).values():
        world.slurm.explicit.discard(job.job_id)
        world.slurm.set(job.job_id, priority=1000)
    world.look()
    assert world.work() == [run_id]
    assert {job.priority for job in world.jobs(run_id).values()} == {77}


@on_both
def test_an_unclear_answer_is_asked_again_and_audited_once(world: World) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    world.slurm.unreachable = True
    world.work()
    assert (world.change(run_id)["state"], world.audit(run_id)) == ("pending", [])
    assert "Socket timed out" in world.change(run_id)["message"]
    world.slurm.unreachable = False
    assert world.work() == []  # not at once
    with world.ctx.db.write() as session:
        session.get_one(PriorityRow, run_id).next_try_at = utcnow()
    world.work()
    assert world.change(run_id)["state"] == "applied"
    (row,) = world.audit(run_id)
    assert row.before is not None  # as it was before the try that may have had its effect
    assert {job["priority"] for job in row.before["jobs"].values()} == {1000}


def test_a_wish_that_came_too_late_says_so(world: World) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    with world.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        run.state, run.phase = "succeeded", Phase.DONE
    assert world.work() == []
    assert (world.change(run_id)["state"], world.slurm.commands) == ("failed", [])


@on_both
def test_a_wish_that_is_replaced_while_slurm_is_asked_is_not_taken_for_the_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    ask = world.slurm.adjust

    def slow(wanted: Sequence[Change]) -> Adjusted:
        world.wish(run_id, level="low")
        return ask(wanted)

    monkeypatch.setattr(world.ctx.slurm("main"), "adjust", slow)
    world.work()
    assert (world.change(run_id)["state"], world.change(run_id)["wish"]) == ("pending", "level")
    monkeypatch.setattr(world.ctx.slurm("main"), "adjust", ask)
    world.work()
    assert world.slurm.commands[-1][0].startswith("release")  # the number had got there
    assert world.level(run_id) == "low"


@on_both
def test_training_of_internal_users_is_high_and_slurm_is_told(world: World) -> None:
    eve = f"eve-{world.tenant}"
    world.api.add(eve, Role.INTERNAL, world.tenant)
    run_id = world.run(eve)
    assert world.level(run_id) == "high"
    assert world.work() == [run_id]
    assert {job.nice for job in world.jobs(run_id).values()} == {-20_000}
    assert world.audit(run_id)[-1].actor_name == "system"
    assert world.level(world.run(eve, priority_class="inference")) == "normal"
    assert world.work() == []


def test_a_level_that_comes_too_late_for_a_run_that_started_is_no_event(world: World) -> None:
    eve = f"eve-{world.tenant}"
    world.api.add(eve, Role.INTERNAL, world.tenant)
    run_id = world.run(eve)
    with world.ctx.db.write() as session:
        for job in attempt_jobs(session, run_id, 1):
            job.state = JobState.RUNNING
    assert world.work() == [run_id]
    assert world.work() == world.audit(run_id) == world.slurm.commands == []


def test_a_level_that_could_not_be_given_is_not_taken_for_given(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    eve = f"eve-{world.tenant}"
    world.api.add(eve, Role.INTERNAL, world.tenant)
    run_id = world.run(eve)

    def missing(wanted: Sequence[Change]) -> Adjusted:
        raise ConfigurationError("scontrol: command not found")

    with monkeypatch.context() as patch:
        patch.setattr(world.ctx.slurm("main"), "adjust", missing)
        assert world.work() == [run_id]
    assert (world.change(run_id)["state"], world.audit(run_id)) == ("pending", [])
    with world.ctx.db.write() as session:
        session.get_one(PriorityRow, run_id).next_try_at = None
    assert world.work() == [run_id]
    assert {job.nice for job in world.jobs(run_id).values()} == {-20_000}


def test_only_an_admin_asks_for_high(world: World) -> None:
    world.api.store(world.ann)
    refused = world.api.call("POST", "/runs", world.ann, json={"pipeline": "digits", "priority": "high"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/priority"


@on_both
def test_an_owner_who_takes_low_off_gets_it_back(world: World) -> None:
    run_id = world.run()
    with world.ctx.db.write() as session:
        session.get_one(RunRow, run_id).priority = "low"
    for job in world.jobs(run_id).values():
        world.slurm.set(job.job_id, nice=20_000)
    world.look()
    assert world.work() == []
    world.slurm.set(next(iter(world.jobs(run_id).values())).job_id, nice=0)
    world.look()
    assert world.work() == [run_id]
    assert {job.nice for job in world.jobs(run_id).values()} == {20_000}
    assert [row.actor_name for row in world.audit(run_id)] == ["system"]


@on_both
def test_a_retry_goes_in_low_and_an_old_wish_is_not_its_own(world: World) -> None:
    run_id = world.run()
    world.wish(run_id, number=77)
    world.work()
    with world.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        run.state, run.phase, run.gate = "failed", Phase.DONE, Gate.OPEN
        for job in attempt_jobs(session, run_id, 1):
            job.state = JobState.FAILED
    assert world.api.call("POST", f"/runs/{run_id}/retry", world.ann).status_code == 202
    assert world.level(run_id) == "low"
    assert world.change(run_id) is None
    assert world.queue()[0]["change"] is None
    assert world.work() == []
