"""A tenant without room waits in Slurm under an administrator's hold; its ledger is what sacct says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.client import of
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import UNLIMITED, Broker
from tests.harness.specs import WAIT, component, pipeline

pytestmark = pytest.mark.cluster

ONE_GPU = {"gpu_type": "V100", "gpu_count": 1, "time": "10m"}
ROOM_FOR_ONE = UNLIMITED | {"gpu_hours_per_month": 0.25}


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    home = tmp_path_factory.mktemp("quotas")
    with Broker(home, Cluster(cluster.name), quotas=ROOM_FOR_ONE) as started:
        yield started


def test_a_run_waits_for_the_quota_and_goes_on_when_a_requeued_one_has_been_settled(broker: Broker) -> None:
    client = broker.client
    spec = pipeline([component("train", WAIT, resources=ONE_GPU)])
    first = client.start(spec)
    started = client.wait_for(first, of("job_started", "train"))
    second = client.request_run(spec["pipeline_id"])["id"]
    waits = client.wait_for(second, "run_waits_for_quota")
    assert "of its 0.25 GPU hours" in waits.data["reason"]
    client.wait_for(second, "hold_confirmed")
    view = client.run(second)
    assert (view["state"], view["holds"]) == ("queued", ["quota"])
    number, other = (client.jobs(run)["train"]["slurm_job_id"] for run in (first, second))
    assert broker.cluster.show_jobs()[other]["Reason"] == "JobHeldAdmin"

    broker.cluster.exec("scontrol", "requeue", str(number))
    requeued = client.wait_for(first, "job_requeued", 60, after=started.seq)
    client.wait_for(first, of("job_started", "train"), 90, after=requeued.seq)
    broker.open_gate(first, "train")
    client.succeed(first)
    client.wait_for(second, "run_released")
    broker.open_gate(second, "train")
    client.succeed(second)

    until(lambda: _usage(broker)["gpu_hours_reserved"] == 0, 60, "every account is closed", step_s=0.5)
    usage = _usage(broker)
    fields = ("-D", "-X", "-n", "-P", "-o", "ElapsedRaw,AllocTRES")
    rows = [
        line.split("|")
        for line in broker.cluster.exec("sacct", *fields, "-j", f"{number},{other}").splitlines()
    ]
    assert len(rows) == 3, rows
    assert all("gres/gpu=1" in tres for _, tres in rows)
    assert usage["gpu_seconds"] == sum(int(elapsed) for elapsed, _ in rows) > 0
    assert [one["attempts"] for one in usage["users"]] == [3]


def _usage(broker: Broker) -> dict[str, Any]:
    """What the tenant has used this month."""
    usage: dict[str, Any] = broker.client.get("/tenants/default/usage")
    return usage
