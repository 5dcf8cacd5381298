"""In which order Slurm would start what waits, and what it asks for in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Rank(IntEnum):
    """What stands between a waiting job and its start; fewer obstacles come first."""

    READY = 0
    """Only other jobs stand before it."""
    DEPENDENT = 1
    """It waits for another job, or for a time."""
    SUBMITTING = 2
    """Slurm does not have it yet."""
    HELD = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A waiting job. `submit`: seconds since the epoch; `position`: its place among its run's components."""

    key: str
    rank: Rank
    priority: int
    submit: float
    slurm_job_id: int
    position: int


def in_order(candidates: Iterable[Candidate]) -> list[str]:
    """Their keys in the order in which Slurm would start them: priority, then submission; held ones last.

    Slurm sorts by priority, then by job id, and leaves out what is held or waits for something else
    (slurmctld, job_scheduler.c); of several partitions each has an order of its own.
    """

    def place(job: Candidate) -> tuple[int, int, float, int, int]:
        return job.rank, -job.priority, job.submit, job.slurm_job_id, job.position

    return [job.key for job in sorted(candidates, key=place)]


def rank_of(*, in_slurm: bool, held: bool, reason: str) -> Rank:
    """The rank of a waiting job; `held` by the broker or in Slurm."""
    if held:
        return Rank.HELD
    if not in_slurm:
        return Rank.SUBMITTING
    waits = reason in {"Dependency", "DependencyNeverSatisfied", "BeginTime"}
    return Rank.DEPENDENT if waits else Rank.READY


def unmet(dependency: str) -> list[int]:
    """The job ids that a dependency still waits for, or waits for in vain (squeue(1), Dependency).

    >>> unmet("afterok:7(unfulfilled),afterok:9(failed)")
    [7, 9]
    """
    return [int(number) for number in re.findall(r"(\d+)(?:_[^(,]*)?\((?:unfulfilled|failed)\)", dependency)]


def in_words(resources: Mapping[str, Any], default_cpus: int = 1) -> str:
    """What a component asks for (QU-06), over all its nodes; GB are GiB, as Slurm counts.

    >>> in_words({"gpu_type": "A100", "gpu_count": 4, "memory_mib": 131072})
    'A100 x 4, 128GB'
    >>> in_words({"gpu_count": 0, "cpus": 8, "memory_mib": 32768})
    'CPU x 8, 32GB'
    """
    gpus = resources.get("gpu_count") or 0
    what = (
        f"{resources.get('gpu_type') or 'GPU'} x {gpus}"
        if gpus
        else f"CPU x {resources.get('cpus') or default_cpus}"
    )
    return f"{what}, {_memory(resources.get('memory_mib') or 0)}"


def _memory(mib: int) -> str:
    return f"{mib}MB" if mib < 1024 else f"{round(mib / 1024, 1):g}GB"


def largest(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The most that any one component asks for of each resource: what a run needs at one time (WR-02)."""
    by_gpus = max(requests, key=lambda one: one.get("gpu_count") or 0)
    most = {
        name: max((one.get(name) or 0 for one in requests), default=0)
        for name in ("gpu_count", "memory_mib", "cpus", "time_s")
    }
    return {"gpu_type": by_gpus.get("gpu_type"), **most}
