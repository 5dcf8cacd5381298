"""The shape of every development cluster: nodes, partitions, people, accounts, folders. Pure facts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

GIB = 1024
"""MiB in a GiB: Slurm counts memory in MiB."""


@dataclasses.dataclass(frozen=True)
class NodeKind:
    """Identical nodes ``name-1`` … ``name-count``; memory in MiB."""

    name: str
    count: int
    cpus: int
    memory_mib: int
    gpus: int

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(f"{self.name}-{i}" for i in range(1, self.count + 1))


KINDS = (
    NodeKind("a100", count=4, cpus=64, memory_mib=512 * GIB, gpus=4),
    NodeKind("v100", count=2, cpus=32, memory_mib=256 * GIB, gpus=4),
)
NODES = tuple(node for kind in KINDS for node in kind.nodes)
GPU_DEVICES = "/dev/slurm-dev/gpu"
"""Prefix of the GPU device files; Slurm refuses GPUs without one (a bare count leaves the node INVAL)."""
GPUS_PER_NODE = max(kind.gpus for kind in KINDS)

CLUSTER = "dev"
"""The name that Slurm and its accounting know every cluster by (recordings stay comparable)."""
LOGIN_HOST = "slurm-dev"
SERVICE_USER = "broker"
USERS: Mapping[str, int] = {"broker": 2000, "kim": 2001, "park": 2002, "lee": 2003}
ACCOUNTS: Mapping[str, tuple[str, ...]] = {
    "default": ("broker", "kim", "park", "lee"),
    "team-a": ("broker", "kim", "lee"),
    "team-b": ("broker", "park", "lee"),
}
"""Account → its people. ``default`` comes first: it becomes everyone's default account."""

QOS: Mapping[str, tuple[str, ...]] = {
    "training": ("Priority=100", "GraceTime=120", "PreemptMode=requeue", "MaxWall=24:00:00"),
    "fine-tuning": ("Priority=400", "GraceTime=120", "PreemptMode=requeue", "MaxWall=24:00:00"),
    "inference": ("Priority=700",),
    "urgent-inference": (
        "Priority=1000",
        "Preempt=fine-tuning,fine-tuning-approved,training,training-approved",
    ),
}
"""Priority class → what sacctmgr(1) sets on it; each has a twin NAME-approved that is granted to nobody."""

PEOPLE_GROUP = "people"
"""The Unix group of those for whom the service account may act (made by ``provision``)."""
CAPPED = ("capped", "v100-2")
"""A small partition and its node: 4 GPUs to queue for, while the rest of the cluster goes its way."""

DATA = "/var/lib/slurm-dev"
"""Inside the cluster: the one folder that outlives a restart (on the host: ``STATE/NAME/data``)."""
RUN = "/run/slurm-dev"
SHARED = "/shared"
JOBS_DIR = "/shared/ml-jobs"
IMAGE_DIR = "/shared/images"
LOGS = "/var/log/slurm-dev"
REGISTRY_STORE = "/var/lib/docker-registry"

SUITES: Mapping[str, bool] = {"bookworm": False, "trixie": True, "sid": False}
"""Debian suite → whether it runs containers (Apptainer and the registry). The others only schedule."""

PORT_NAMES = ("ssh", "registry", "slurmctld", "slurmdbd", *NODES)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one cluster is told from outside, read by ``init`` from ``settings.json``.

    ``ports`` has a TCP port for each of ``PORT_NAMES``; ``listen`` is the address sshd and the registry bind
    (Slurm's daemons bind loopback always); ``owner`` is the uid and gid that get to read the private keys.
    """

    name: str
    suite: str
    ports: Mapping[str, int]
    listen: str = "127.0.0.1"
    owner: tuple[int, int] = (0, 0)

    @property
    def containers(self) -> bool:
        """Whether this cluster has Apptainer and a registry."""
        return SUITES[self.suite]

    def to_json(self) -> str:
        """Serialise for ``settings.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what :meth:`to_json` wrote. Raises ``ValueError`` when a port or the suite is missing."""
        raw: dict[str, Any] = json.loads(text)
        settings = cls(
            name=raw["name"],
            suite=raw["suite"],
            ports=raw["ports"],
            listen=raw["listen"],
            owner=(raw["owner"][0], raw["owner"][1]),
        )
        if settings.suite not in SUITES or set(PORT_NAMES) - set(settings.ports):
            raise ValueError("settings.json is incomplete; `cluster reset` writes a new one")
        return settings
