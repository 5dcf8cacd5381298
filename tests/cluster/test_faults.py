"""A short fault of each kind under running work: nothing is lost, nothing false is said, all mends by itself.

`make prove` makes the same faults at their full length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness import faults
from tests.harness.cluster import Cluster
from tests.harness.product import Broker

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker"), Cluster(cluster.name)) as started:
        yield started


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (faults.slurmctld_paused_during_sbatch, 4),
        (faults.slurmdbd_paused, 6),
        (faults.sshd_restarted, 0),
        (faults.object_store_down, 3),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_loses_nothing_and_mends_by_itself(
    broker: Broker, fault: Callable[[Broker, float], str], seconds: float
) -> None:
    print(fault(broker, seconds))
