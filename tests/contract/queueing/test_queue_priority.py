"""Wishes for priority on their way to Slurm: levels, numbers, places; late, lost and unclear ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import event, select

from broker.db import utcnow
from broker.errors import ConfigurationError
from broker.identity import Role
from broker.queueing import snapshot
from broker.queueing.tables import PriorityRow
from broker.queueing.wishes import Wish
from broker.runs.states import JobState, Phase
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.slurm.changes import Adjusted, Change
from broker.slurm.states import SlurmState
from tests.queueing import World, on_both, order


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


@on_both
def test_a_wish_that_cannot_be_judged_hides_no_other_that_was_overtaken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, broken, second = world.run(priority=3000), world.run(priority=900), world.run(priority=1000)
    world.look()
    for run_id in (broken, second):
        world.wish(run_id, before=first)
    world.work()
    real = snapshot.wish_of

    def wish_of(row: PriorityRow, run: RunRow, step: int) -> Wish:
        if run.id == broken:
            raise RuntimeError("a defect")
        return real(row, run, step)

    monkeypatch.setattr(snapshot, "wish_of", wish_of)
    for number, job in world.slurm.jobs.items():
        if job.priority == 3000:
            world.slurm.set(number, priority=3005)
    world.look()
    assert world.work() == [second]


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
