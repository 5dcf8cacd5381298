"""A gate, a thousand components behind it, and one that waits for them all: the largest join there is."""

from __future__ import annotations

from tests.harness import specs
from tests.harness.client import of
from tests.harness.cluster import afterok
from tests.harness.product import Broker

Json = dict[str, object]


def join_of(parents: int) -> Json:
    """gate → part-0000 … → join: 2 + `parents` components. The gate waits: all edges are there to be seen."""
    names = [f"part-{number:04d}" for number in range(parents)]
    parts = [specs.component(name, "true", order=1) for name in names]
    gate, join = specs.component("gate", specs.WAIT), specs.component("join", "true", order=2)
    edges = [("gate", name) for name in names] + [(name, "join") for name in names]
    return specs.pipeline([gate, *parts, join], edges)


def assert_edges_in_slurm(broker: Broker, run_id: str) -> int:
    """Every edge of the run, and no other, stands in `scontrol show job`; gives their number.

    The gate runs and nothing after it, so no dependency has been fulfilled and dropped.
    """
    broker.client.wait_for(run_id, of("job_started", "gate"), 120)
    ids = {name: job["slurm_job_id"] for name, job in broker.client.jobs(run_id).items()}
    shown = broker.cluster.show_jobs()
    parents = {name: afterok(shown[number]["Dependency"]) for name, number in ids.items()}
    parts = {name for name in ids if name.startswith("part-")}
    assert parents.pop("gate") == set()
    assert parents.pop("join") == {ids[name] for name in parts}
    assert all(parents[name] == {ids["gate"]} for name in parts)
    return 2 * len(parts)
