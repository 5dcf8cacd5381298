"""SIGKILL at ten random moments: no job is lost, none is submitted twice, every run ends right.

`KILL_SEED` repeats a choice of moments; fifty kills are part of `make prove`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.kills import Campaign
from tests.harness.product import Broker

pytestmark = pytest.mark.cluster
SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.mark.parametrize(
    ("together", "kills"), [(False, 7), (True, 3)], ids=["worker-and-api", "group-leader"]
)
def test_no_job_is_lost_or_doubled_when_the_broker_is_killed(
    cluster: DevCluster, tmp_path: Path, together: bool, kills: int
) -> None:
    with Broker(tmp_path, Cluster(cluster.name), together=together) as broker:
        campaign = Campaign(broker, SEED)
        for _ in range(kills):
            campaign.strike()
        print(campaign.settle())
