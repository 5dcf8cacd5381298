"""Holds, and what an owner may wish for."""

from __future__ import annotations

from broker.runs.states import Gate, JobState, Phase
from broker.runs.tables import RunRow
from broker.runs.views import attempt_jobs
from tests.queueing import World, on_both


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
