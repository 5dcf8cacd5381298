"""What the queue shows: Slurm's order, each one's own, and why it waits."""

from __future__ import annotations

from tests.queueing import World, on_both, order


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
