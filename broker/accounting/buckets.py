"""What one job adds to the sums of the days (UTC) it touched. Pure, and whole numbers: what was added can be
taken away again exactly, so that a job that changed replaces itself in the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

from broker.accounting.histograms import bucket
from broker.slurm.states import SlurmState

DAY_S = 86_400
_EPOCH = date(1970, 1, 1).toordinal()
SUMS = (
    *("submitted", "started", "ended", "elapsed_s", "core_s", "gpu_s", "mem_mib_s", "billing_s"),
    *("cpu_jobs", "cpu_used_s", "cpu_alloc_s", "mem_jobs", "mem_used_mib_s", "mem_alloc_mib_s"),
    *("limit_jobs", "limit_used_s", "limit_s", "gpu_jobs", "gpu_used_s", "gpu_alloc_s"),
)
"""The columns of `accounting_days` that add up."""


_NOTHING = dict.fromkeys(SUMS, 0)


class Who(NamedTuple):
    """The dimensions that both sums share, in the order of their columns."""

    tenant: str
    user: str
    partition: str
    qos: str
    gpu_type: str
    gpu_count: int
    size: int


DayKey = tuple[date, Who, str]
WaitKey = tuple[date, Who, str, int]


@dataclass(slots=True)
class Sums:
    """Sums by key: `days` by (day, who, outcome), `waits` (jobs, seconds) by (day, who, kind, bucket)."""

    days: dict[DayKey, dict[str, int]] = field(default_factory=dict)
    waits: dict[WaitKey, list[int]] = field(default_factory=dict)

    def add(self, job: Mapping[str, Any], sign: int = 1) -> None:
        """Add a job (columns of `AccountingJobRow` by name), or take it away (`sign` -1)."""
        who, outcome = _who(job), job["state"]
        for day, values in _days(job):
            total = self.days.get(key := (day, who, outcome))
            if total is None:
                total = self.days[key] = _NOTHING.copy()
            for name, value in values.items():
                total[name] += sign * value
        for kind, seconds in _waits(job):
            counts = self.waits.setdefault((_day(job["start_at"]), who, kind, bucket(seconds)), [0, 0])
            counts[0] += sign
            counts[1] += sign * seconds

    def settle(self) -> None:
        """Forget what came out as nothing: a job that was taken away and added the same."""
        self.days = {key: sums for key, sums in self.days.items() if any(sums.values())}
        self.waits = {key: counts for key, counts in self.waits.items() if any(counts)}


def _who(job: Mapping[str, Any]) -> Who:
    return Who(
        job["tenant"],
        job["user"],
        job["partition"],
        job["qos"],
        job["gpu_type"],
        job["gpu_count"],
        size_class(job["cpus"]),
    )


def size_class(cpus: int) -> int:
    """The size of a job as a power of two: 1 CPU is 0, 8 to 15 are 3."""
    return max(cpus, 1).bit_length() - 1


def _day(at: int) -> date:
    return date.fromordinal(_EPOCH + at // DAY_S)


def _days(job: Mapping[str, Any]) -> Iterator[tuple[date, dict[str, int]]]:
    yield _day(job["submit_at"]), {"submitted": job["tasks"]}
    start, end = job["start_at"], job["end_at"]
    if start is not None:
        yield _day(start), {"started": 1}
        yield from allocated(job)
    if end is not None and job["state"] != SlurmState.REVOKED:  # a federation's copy that another one ran
        yield _day(end), {"ended": 1, **_efficiency(job)}


def allocated(job: Mapping[str, Any]) -> Iterator[tuple[date, dict[str, int]]]:
    """What a job had on each day (UTC) it ran in: seconds, and these times what was allocated to it.

    `elapsed_s` of a job that runs is as old as the last look: no longer than it is counted.
    """
    start = job["start_at"]
    if start is None:
        return
    for day, seconds in spread(start, job["counted_to"] or start, job["elapsed_s"]):
        yield (
            day,
            {
                "elapsed_s": seconds,
                "core_s": seconds * job["cpus"],
                "gpu_s": seconds * job["gpu_count"],
                "mem_mib_s": seconds * job["mem_mib"],
                "billing_s": seconds * job["billing"],
            },
        )


def spread(start: int, end: int, elapsed_s: int) -> Iterator[tuple[date, int]]:
    """A job's running time by day (UTC), clipped at midnight; exactly `elapsed_s` in all.

    Where that is less than from start to end, the job was suspended for a while: the parts shrink alike.
    """
    whole = end - start
    if whole <= 0:
        return
    total = min(elapsed_s, whole)
    at, given = start, 0
    while at < end:
        until = min(end, (at // DAY_S + 1) * DAY_S)
        so_far = total * (until - start) // whole
        yield _day(at), so_far - given
        at, given = until, so_far


def _efficiency(job: Mapping[str, Any]) -> dict[str, int]:
    """What was used of what was allocated: only of jobs where both are known."""
    elapsed = job["elapsed_s"]
    found: dict[str, int] = {}
    if not elapsed:
        return {}
    if job["total_cpu_s"] is not None and not job["cpu_partial"] and job["cpus"]:
        found |= {"cpu_jobs": 1, "cpu_used_s": job["total_cpu_s"], "cpu_alloc_s": elapsed * job["cpus"]}
    if job["mem_in_tot_mib"] is not None and job["mem_mib"]:
        found |= {
            "mem_jobs": 1,
            "mem_used_mib_s": elapsed * job["mem_in_tot_mib"],
            "mem_alloc_mib_s": elapsed * job["mem_mib"],
        }
    if job["timelimit_s"]:
        found |= {"limit_jobs": 1, "limit_used_s": elapsed, "limit_s": job["timelimit_s"]}
    if job["gpu_util"] is not None and job["gpu_count"]:
        alloc = elapsed * job["gpu_count"]
        found |= {"gpu_jobs": 1, "gpu_used_s": round(alloc * job["gpu_util"] / 100), "gpu_alloc_s": alloc}
    return found


def _waits(job: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    start, eligible = job["start_at"], job["eligible_at"]
    if start is None:
        return
    ready = job["submit_at"] if eligible is None else min(eligible, start)
    yield "eligible", max(ready - job["submit_at"], 0)
    yield "start", max(start - ready, 0)
