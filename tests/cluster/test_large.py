"""Graphs and outputs of the sizes people really have; the largest ones are part of `make prove`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness import specs
from tests.harness.cluster import Cluster
from tests.harness.graphs import assert_edges_in_slurm, join_of
from tests.harness.large import assert_large_output_arrives
from tests.harness.product import Broker

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker"), Cluster(cluster.name)) as started:
        yield started


@pytest.mark.parametrize("parents", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_join_has_every_edge_in_slurm_and_can_be_cancelled(broker: Broker, parents: int) -> None:
    run_id = broker.client.start(join_of(parents))
    assert assert_edges_in_slurm(broker, run_id) == 2 * parents
    broker.client.post(f"/runs/{run_id}/cancel")
    assert broker.client.finish(run_id, 300)["state"] == "cancelled"
    assert not [job for job in broker.cluster.jobs(broker.job_prefix) if job.live]


@pytest.mark.parametrize("mib", [192, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_large_output_arrives_whole_and_does_not_fill_memory(broker: Broker, mib: int) -> None:
    print(assert_large_output_arrives(broker, mib))


def test_a_spec_beyond_the_limit_is_refused_before_anything_is_made(broker: Broker) -> None:
    names = [f"part-{number:04d}" for number in range(5001)]
    answer = broker.client.send(
        "POST", "/pipelines", json=specs.pipeline([specs.component(n) for n in names])
    )
    assert answer.status_code in {413, 422}
    assert answer.json()["code"] in {"invalid_spec", "body_too_large"}
