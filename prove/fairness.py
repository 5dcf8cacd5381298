"""Fair share: two tenants with equal shares queue for four GPUs; the one that asks for more gets no more.

Slurm ranks tenants anew once per `PriorityCalcPeriod` (one minute, the least there is) and until then gives
whatever becomes free to the one that had less. So the ratio swings by a minute's worth of GPUs to either
side, and jobs are as long as it takes for that minute to be less than a tenth of what each has had.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.harness import specs
from tests.harness.client import Client
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import PASSWORD, Broker

PARTITION, GPUS = "capped", 4
GREEDY, MODEST = 120, 80
JOB_S = 36
TOLERANCE = 0.10
_PATIENCE_S = 45 * 60


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a job: its tenant, and from when to when, seconds since 1970; one GPU each."""

    tenant: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Shared:
    """Who had how much while both were queueing: GPU seconds by tenant, and for how long that was."""

    gpu_s: Mapping[str, float]
    seconds: float

    def ratio(self, greedy: str, modest: str) -> float:
        """What the greedy tenant had, in relation to the other."""
        return self.gpu_s[greedy] / self.gpu_s[modest]


def shared(starts: Sequence[Start]) -> Shared:
    """GPU time from the first start to the moment when one tenant's last job started: its queue was empty."""
    tenants = {start.tenant for start in starts}
    first = min(start.began for start in starts)
    last = min(max(start.began for start in starts if start.tenant == tenant) for tenant in tenants)
    used = {
        tenant: sum(max(0.0, min(one.ended, last) - one.began) for one in starts if one.tenant == tenant)
        for tenant in tenants
    }
    return Shared(used, last - first)


def queue_for_gpus(broker: Broker) -> Shared:
    """Two new tenants, brought into Slurm by `broker cluster sync`; 200 jobs; what each has had."""
    suffix = secrets.token_hex(3)
    greedy, modest = f"greedy-{suffix}", f"modest-{suffix}"
    admin = broker.client
    for tenant in (greedy, modest):
        admin.post("/tenants", {"name": tenant, "fairshare": 10})
    done = admin.post(f"/clusters/{broker.cluster.name}/sync", {"adopt": ["default"]})
    refused = [line for line in done["lines"] if line["result"] not in (None, "done")]
    assert not refused, refused
    for tenant, jobs in ((greedy, GREEDY), (modest, MODEST)):
        client = _person_of(broker, tenant)
        client.start(_sleepers(jobs))
        client.close()
    until(
        lambda: _waiting(broker.cluster, modest) == 0 < _started(broker.cluster, modest), _PATIENCE_S, "", 5
    )
    assert _waiting(broker.cluster, greedy) > 0, "the greedy tenant ran out of jobs first: nothing was shared"
    return shared(_starts(broker.cluster, (greedy, modest)))


def describe(found: Shared) -> tuple[str, bool]:
    """The sentence of the proof, and whether the ratio is that of the shares."""
    (greedy, modest) = sorted(found.gpu_s)
    ratio = found.ratio(greedy, modest)
    text = (
        f"{GREEDY} + {MODEST} jobs of {JOB_S} s on {GPUS} GPUs; in the {found.seconds / 60:.0f} min in which "
        f"both queued {found.gpu_s[greedy]:.0f} to {found.gpu_s[modest]:.0f} GPU seconds: ratio {ratio:.3f}, "
        "shares 1.000"
    )
    return text, abs(ratio - 1) <= TOLERANCE


def _person_of(broker: Broker, tenant: str) -> Client:
    name = f"of-{tenant}"
    made = broker.client.post("/users", {"username": name, "role": "researcher", "tenant": tenant})
    client = Client(broker.url)
    client.login(name, made["one_time_password"])
    client.change_password(made["one_time_password"], PASSWORD)
    return client


def _sleepers(count: int) -> specs.Json:
    gpu = {"gpu_type": "V100", "gpu_count": 1}
    parts = [specs.component(f"job-{i:03d}", f"sleep {JOB_S}", order=i, resources=gpu) for i in range(count)]
    return specs.pipeline(parts)


def _states(cluster: Cluster, tenant: str) -> list[str]:
    return cluster.exec("squeue", "-h", "-a", "-r", "-t", "all", "-A", tenant, "-o", "%T").split()


def _waiting(cluster: Cluster, tenant: str) -> int:
    return _states(cluster, tenant).count("PENDING")


def _started(cluster: Cluster, tenant: str) -> int:
    return len(_states(cluster, tenant)) - _waiting(cluster, tenant)


def _starts(cluster: Cluster, tenants: Sequence[str]) -> list[Start]:
    """Every start of theirs by sacct; one that runs yet has no end."""
    fields = ("-n", "-P", "-X", "-D", "-a", "-S", "now-2hours", "-E", "now", "-A", ",".join(tenants))
    out = cluster.exec(
        "env", "SLURM_TIME_FORMAT=%s", "sacct", *fields, "-s", "R,CD,CA,F", "-o", "Account,Start,End"
    )
    rows = (line.split("|") for line in out.splitlines())
    return [
        Start(account, float(began), float(ended) if ended.isdigit() else float("inf"))
        for account, began, ended in rows
        if began.isdigit()
    ]
