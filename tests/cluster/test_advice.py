"""Advice from a real cluster's accounting, applied: the next run asks Slurm for that, and succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import Broker
from tests.harness.specs import component, pipeline

pytestmark = pytest.mark.cluster

LOOK_S = 5
"""`JobAcctGatherFrequency` of the cluster."""
USES_100_MIB = "{ head -c 104857600 /dev/zero; sleep %d; } | dd bs=200M iflag=fullblock of=/dev/null"
"""Shell: `dd` holds what it has read until there is more."""


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    home = tmp_path_factory.mktemp("advice")
    read = {"interval_s": 1.0, "history_days": 1, "sample_s": LOOK_S}
    with Broker(home, Cluster(cluster.name), accounting=read) as started:
        yield started


def test_advice_of_a_run_becomes_what_the_next_one_asks_slurm_for(broker: Broker) -> None:
    client = broker.client
    large = {"memory": "1GB", "cpus": 1, "time": "30m"}
    spec = pipeline([component("train", USES_100_MIB % (2 * LOOK_S + 1), resources=large)])
    first = client.start(spec)
    client.succeed(first)

    def advice() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/runs/{first}/advice")
        return found

    until(lambda: not advice()["unread"], 60, "accounting was read up to the run's end", step_s=0.5)
    [train] = advice()["components"]
    found = {one["resource"]: one for one in train["findings"]}
    assert 100 <= found["memory"]["because"]["peak_mib"] < 300, found["memory"]
    assert (found["memory"]["rule"], found["memory"]["asked"]) == ("memory_lower", "1GB")
    assert 2 * LOOK_S <= found["time"]["because"]["longest_s"] < 120
    assert (found["time"]["rule"], found["time"]["suggested"]) == ("time_lower", "10m")
    assert found["cpus"]["suggested"] is None

    name = spec["pipeline_id"]
    choose = [
        {"component": "train", "resource": one["resource"], "suggested": one["suggested"]}
        for one in train["over_last_runs"]
        if one["suggested"] is not None
    ]
    applied = client.post(f"/pipelines/{name}/advice", {"version": 1, "choose": choose})
    assert applied["version"]["number"] == 2
    assert {one["resource"] for one in applied["changes"]} == {"memory", "time"}

    second = client.request_run(name)["id"]
    client.succeed(second)
    number = client.jobs(second)["train"]["slurm_job_id"]
    asked = broker.cluster.exec(
        "sacct", "-X", "-n", "-P", "-j", str(number), "-o", "ReqTRES,TimelimitRaw,State"
    ).strip()
    memory = found["memory"]["suggested"].replace("MB", "M")
    assert f"mem={memory}," in asked and asked.endswith("|10|COMPLETED"), asked

    def over_both() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"/pipelines/{name}/advice")
        return found

    until(lambda: over_both()["runs"] == 2 and not over_both()["unread"], 60, "both are read", step_s=0.5)
    left = [one for part in over_both()["components"] for one in part["findings"] if one["suggested"]]
    assert not left, "advice that was followed gives no further advice"
