"""What one job adds to the sums of the days (UTC) it touched. Pure, and whole numbers: what was added can be
taken away again exactly, so that a job that changed replaces itself in the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from broker.accounting.histograms import bucket
from broker.accounting.wait_classes import wait_class
from broker.slurm.gpu_types import parts
from broker.slurm.states import SlurmState

DAY_S = 86_400
_EPOCH = date(1970, 1, 1).toordinal()
SUMS = (
    *("submitted", "started", "ended", "elapsed_s", "core_s", "gpu_s", "mem_mib_s", "billing_s"),
    *("hold_s", "wait_s", "slowdown_jobs", "slowdowns", "submit_slowdowns"),
    *("cpu_jobs", "cpu_used_s", "cpu_alloc_s", "mem_jobs", "mem_used_mib_s", "mem_alloc_mib_s"),
    *("limit_jobs", "limit_used_s", "limit_s", "gpu_jobs", "gpu_used_s", "gpu_alloc_s"),
)
"""The columns of `accounting_days` that add up."""
SHORTEST_S = 10
"""What runs shorter counts as this long in a slowdown: seconds of work would have slowdowns of thousands."""
THOUSANDTHS = 1000
"""Slowdowns are added up as whole thousandths."""
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
    wait: int


DayKey = tuple[date, Who, str]
WaitKey = tuple[date, Who, str, int]


@dataclass(slots=True)
class Sums:
    """Sums by key: `days` by (day, who, outcome), `waits` (jobs) by (day, who, kind, bucket)."""

    days: dict[DayKey, dict[str, int]] = field(default_factory=dict)
    waits: dict[WaitKey, int] = field(default_factory=dict)

    def add(self, job: Mapping[str, Any], sign: int = 1) -> None:
        """Add a job (columns of `AccountingJobRow` by name), or take it away (`sign` -1)."""
        waited = waits(job["submit_at"], job["eligible_at"], job["start_at"])
        who, outcome = _who(job, waited), job["state"]
        for (day, gpu_type), values in _days(job, waited).items():
            of_type = who if gpu_type == who.gpu_type else who._replace(gpu_type=gpu_type)
            total = self.days.get(key := (day, of_type, outcome), _NOTHING)
            if total is _NOTHING:
                total = self.days[key] = _NOTHING.copy()
            for name, value in values.items():
                total[name] += sign * value
        if waited is not None:
            self._count(job, who, "wait", bucket(waited.wait_s), sign)
            if job["end_at"] is not None:
                slow = slowdown(waited.wait_s, job["elapsed_s"])
                self._count(job, who, "slowdown", bucket(slow) if slow > 1 else 0, sign)

    def _count(self, job: Mapping[str, Any], who: Who, kind: str, number: int, sign: int) -> None:
        place = (_day(job["start_at"]), who, kind, number)
        self.waits[place] = self.waits.get(place, 0) + sign

    def settle(self) -> None:
        """Forget what came out as nothing: a job that was taken away and added the same."""
        self.days = {key: sums for key, sums in self.days.items() if any(sums.values())}
        self.waits = {key: counts for key, counts in self.waits.items() if counts}


def _who(job: Mapping[str, Any], waited: Waits | None) -> Who:
    return Who(
        job["tenant"],
        job["user"],
        job["partition"],
        job["qos"],
        job["gpu_type"],
        job["gpu_count"],
        size_class(job["cpus"]),
        wait_class(waited and waited.wait_s),
    )


def size_class(cpus: int) -> int:
    """The size of a job as a power of two: 1 CPU is 0, 8 to 15 are 3."""
    return max(cpus, 1).bit_length() - 1


def _day(at: int) -> date:
    return _date(at // DAY_S)


@lru_cache(4096)  # ten years
def _date(number: int) -> date:
    return date.fromordinal(_EPOCH + number)


class Waits(NamedTuple):
    """How long a job waited, in seconds: before it could be started at all, and from then on (contention)."""

    hold_s: int
    wait_s: int


def waits(submit_at: int, eligible_at: int | None, start_at: int | None) -> Waits | None:
    """How long a job waited that has begun; where nobody knows when it was eligible, it always was."""
    if start_at is None:
        return None
    ready = submit_at if eligible_at is None else min(eligible_at, start_at)
    return Waits(max(ready - submit_at, 0), max(start_at - ready, 0))


def slowdown(wait_s: int, run_s: int) -> float:
    """Bounded slowdown (Feitelson and Rudolph 1998): how many times as long as it ran a job took, 1 at least.

    >>> slowdown(90, 30), slowdown(90, 1), slowdown(0, 3600), slowdown(3, 1)
    (4.0, 9.1, 1.0, 1.0)
    """
    return max(1.0, (wait_s + run_s) / max(run_s, SHORTEST_S))


def _days(job: Mapping[str, Any], waited: Waits | None) -> dict[tuple[date, str], dict[str, int]]:
    """What a job adds to which day, under which GPU type."""
    start, end, kind = job["start_at"], job["end_at"], job["gpu_type"]
    found = {(_day(job["submit_at"]), kind): {"submitted": job["tasks"]}}
    if waited is not None:
        began = found.setdefault((_day(start), kind), {})
        began |= {"started": 1, "hold_s": waited.hold_s, "wait_s": waited.wait_s}
        if end is not None:
            began |= _slowdowns(job, waited)
        for day, of_type, values in allocated(job):
            found.setdefault((day, of_type), {}).update(values)
    if end is not None and job["state"] != SlurmState.REVOKED:  # a federation's copy that another one ran
        ended = found.setdefault((_day(end), kind), {})
        ended["ended"] = 1
        if job["elapsed_s"]:
            ended |= _efficiency(job)
    return found


def allocated(job: Mapping[str, Any]) -> Iterator[tuple[date, str, dict[str, int]]]:
    """What a job had on each day (UTC) it ran in, under which GPU type: seconds, and these times what was
    allocated to it. Everything but GPUs of other types stands under the type of most of them.

    `elapsed_s` of a job that runs is as old as the last look: no longer than it is counted.
    """
    start = job["start_at"]
    if start is None:
        return
    (kind, gpus), *others = parts(job["gpu_type"], job["gpu_types"], job["gpu_count"])
    for day, seconds in spread(start, job["counted_to"] or start, job["elapsed_s"]):
        yield (
            day,
            kind,
            {
                "elapsed_s": seconds,
                "core_s": seconds * job["cpus"],
                "gpu_s": seconds * gpus,
                "mem_mib_s": seconds * job["mem_mib"],
                "billing_s": seconds * job["billing"],
            },
        )
        for other, count in others:
            yield day, other, {"gpu_s": seconds * count}


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
    """What was used of what was allocated: only of jobs where both are known. How busy the GPUs were is known
    as the mean over all of a job's, of whatever types.
    """
    elapsed = job["elapsed_s"]
    found: dict[str, int] = {}
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


def _slowdowns(job: Mapping[str, Any], waited: Waits) -> dict[str, int]:
    since_eligible = slowdown(waited.wait_s, job["elapsed_s"])
    since_submit = slowdown(waited.wait_s + waited.hold_s, job["elapsed_s"])
    return {
        "slowdown_jobs": 1,
        "slowdowns": round(since_eligible * THOUSANDTHS),
        "submit_slowdowns": round(since_submit * THOUSANDTHS),
    }
