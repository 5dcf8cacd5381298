"""What one look at a cluster's nodes means: amounts per GPU type, CPUs, memory. Pure.

    total = allocated + idle + reserved + draining + drained + down

holds for every amount. What is free on a node that takes no new jobs is not idle (`MIXED+DRAIN`).
`used` is measured and may be unknown (None); it is never 0 because nobody measured.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from broker.slurm import Node

_SLICE = re.compile(r"(^|[_.-])\d+g\.\d+gb", re.IGNORECASE)
UNTYPED = "gpu"
"""The name of GPUs whose type gres.conf(5) does not tell."""


class NodeState(StrEnum):
    """A node for people (RS-04); Slurm's own words stand beside it."""

    ACTIVE = "Active"
    DRAIN = "Drain"
    DOWN = "Down"


class Free(StrEnum):
    """What the unallocated part of a node is."""

    IDLE = "idle"
    RESERVED = "reserved"
    DRAINING = "draining"
    DRAINED = "drained"
    DOWN = "down"


@dataclass(slots=True)
class Amount:
    """How much there is of something: GPUs, CPUs, or memory in MiB.

    `shared`: of `allocated`, GPUs that jobs hold shards of. `used`: measured, on what `measured` of `total`
    lies on; None: nobody measured. `source`: who measured (`dcgm+sampler`: some these, some those).
    """

    total: int = 0
    allocated: int = 0
    idle: int = 0
    reserved: int = 0
    draining: int = 0
    drained: int = 0
    down: int = 0
    shared: int = 0
    used: float | None = None
    measured: int = 0
    source: str | None = None

    @property
    def unavailable(self) -> int:
        """What no job can get now although nobody has it."""
        return self.reserved + self.draining + self.drained + self.down

    def add(self, total: int, allocated: int, free: Free, shared: int = 0) -> None:
        """Count one node's part. On a node that is down nothing runs, whatever is still booked there."""
        taken = 0 if free is Free.DOWN else min(total, allocated + shared)
        self.total += total
        self.allocated += taken
        self.shared += 0 if free is Free.DOWN else min(shared, total)
        setattr(self, free, getattr(self, free) + total - taken)

    def measure(self, used: float | None, total: int, source: str) -> None:
        """Count what was measured on a part of `total`; None adds nothing."""
        if used is not None:
            self.used = (self.used or 0.0) + used
            self.measured += total
            sources = {*(self.source or source).split("+"), *source.split("+")}
            self.source = "+".join(sorted(sources))


@dataclass(slots=True)
class Amounts:
    """The three kinds of resources of a cluster, a partition or a node; GPUs by type."""

    gpus: dict[str, Amount] = field(default_factory=dict)
    shards: dict[str, Amount] = field(default_factory=dict)
    cpus: Amount = field(default_factory=Amount)
    memory_mib: Amount = field(default_factory=Amount)

    def all_gpus(self) -> Amount:
        """All types together. Slices of a GPU (MIG) count one each, as in Slurm's `gres/gpu`."""
        whole = Amount()
        for amount in self.gpus.values():
            for name in ("total", "allocated", "idle", "reserved", "draining", "drained", "down", "shared"):
                setattr(whole, name, getattr(whole, name) + getattr(amount, name))
            whole.measure(amount.used, amount.measured, amount.source or "")
        return whole


@dataclass(frozen=True, slots=True)
class Look:
    """A cluster at one moment."""

    cluster: Amounts
    partitions: Mapping[str, Amounts]
    nodes: Sequence[Mapping[str, Any]]


def free_part(node: Node) -> Free:
    """What the free part of a node is (scontrol(1), sinfo(1) NODE STATE CODES).

    A node that saves power is idle: Slurm starts it for the job that needs it. PLANNED is idle too: a job
    that waits will get it, nothing has it yet.
    """
    if node.state not in {"IDLE", "MIXED", "ALLOCATED"} or node.flags & {"NOT_RESPONDING", "INVALID_REG"}:
        return Free.DOWN
    if node.flags & {"DRAIN", "FAIL"}:
        busy = node.used.cpus or node.used.gpus or node.state != "IDLE" or "COMPLETING" in node.flags
        return Free.DRAINING if busy else Free.DRAINED
    return Free.RESERVED if node.flags & {"RESERVED", "MAINT"} else Free.IDLE


def state_of(node: Node) -> NodeState:
    """The one word for a node; DOWN+DRAIN is down."""
    return {Free.DOWN: NodeState.DOWN, Free.DRAINING: NodeState.DRAIN, Free.DRAINED: NodeState.DRAIN}.get(
        free_part(node), NodeState.ACTIVE
    )


def is_slice(gpu_type: str) -> bool:
    """Whether a GRES type is a part of a GPU (MIG: `a100_1g.5gb`, `1g.10gb`)."""
    return _SLICE.search(gpu_type) is not None


def summarize(
    nodes: Iterable[Node],
    gpu_use: Mapping[str, tuple[float, int]],
    jobs: Mapping[str, Sequence[Mapping[str, Any]]],
    sampled: Mapping[str, tuple[float, int]] = MappingProxyType({}),
) -> Look:
    """Amounts of a cluster and of each partition, and its nodes.

    `gpu_use`: what DCGM measured, by node name: (GPUs' worth of use, GPUs). `sampled`: for nodes without,
    what jobs measured of their own GPUs. `jobs`: what runs, by node name. A node in
    two partitions counts in each, and once in the cluster. Nodes that slurm.conf(5) only announces (FUTURE)
    are not there.
    """
    cluster, partitions, rows = Amounts(), defaultdict[str, Amounts](Amounts), []
    for node in nodes:
        if node.state == "FUTURE":
            continue
        mine = Amounts()
        for amounts in (mine, cluster, *(partitions[name] for name in node.partitions)):
            _count(amounts, node, gpu_use.get(node.name), sampled.get(node.name))
        rows.append(
            {
                "name": node.name,
                "state": state_of(node),
                "slurm_state": "+".join([node.state, *sorted(node.flags)]),
                "reason": node.reason,
                "partitions": list(node.partitions),
                "resources": asdict(mine),
                "jobs": list(jobs.get(node.name, ())),
            }
        )
    return Look(cluster, dict(sorted(partitions.items())), rows)


def _count(
    amounts: Amounts, node: Node, gpu_use: tuple[float, int] | None, sampled: tuple[float, int] | None
) -> None:
    free = free_part(node)
    amounts.cpus.add(node.total.cpus, node.used.cpus, free)
    amounts.memory_mib.add(node.total.memory_mib, node.used.memory_mib, free)
    types = gpus_of(node)
    for name, (total, allocated, shared) in types.items():
        gpu = amounts.gpus.setdefault(name, Amount())
        gpu.add(total, allocated, free, shared)
        worth, known = gpu_use or sampled or (None, 0)
        if len(types) == 1 and worth is not None:  # of two types nobody says which one is busy
            source = "dcgm" if gpu_use else "sampler"
            gpu.measure(min(worth, float(total)), min(known, total), source)
    for name, total in node.total.other.items():
        if name.startswith("gres/shard"):
            kind = name.removeprefix("gres/shard").lstrip(":") or _only(types)
            gpus, whole, _ = types.get(kind, (0, 0, 0))
            gone = (
                total * whole // gpus if gpus else 0
            )  # nobody gets a shard of a GPU that is given away whole
            taken = node.used.other.get(name, 0) + gone
            amounts.shards.setdefault(kind, Amount()).add(total, taken, free)
    if free is not Free.DOWN:  # of a node that is down, slurmctld repeats what it said last
        load, memory_free = node.load, node.memory_free_mib
        cores, memory = node.total.cpus, node.total.memory_mib
        amounts.cpus.measure(None if load is None else min(load, float(cores)), cores, "node")
        used = None if memory_free is None else float(max(0, memory - memory_free))
        amounts.memory_mib.measure(used, memory, "node")


def gpus_of(node: Node) -> dict[str, tuple[int, int, int]]:
    """GPUs of a node by type: (all, allocated whole, held by shards). What has no type is `gpu`."""
    totals = dict(node.total.gpu_types)
    if rest := node.total.gpus - sum(totals.values()):
        totals[UNTYPED] = totals.get(UNTYPED, 0) + rest
    found: dict[str, tuple[int, int, int]] = {}
    untyped = node.used.gpus - sum(node.used.gpu_types.values())
    for name, total in totals.items():
        allocated = node.used.gpu_types.get(name, 0)
        if name == _only(totals):  # a job that named no type got this one
            allocated += max(0, untyped)
        shared = node.shared_gpus.get(name, 0)
        shared += node.shared_gpus.get("", 0) if name == _only(totals) else 0
        found[name] = (total, allocated, shared)
    return found


def _only(types: Mapping[str, Any]) -> str:
    """The single type of a node; `gpu` where there are several."""
    return next(iter(types)) if len(types) == 1 else UNTYPED
