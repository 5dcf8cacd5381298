"""What to ask for next time, from what jobs of the same work have used. Pure.

Every rule is in `docs/advice.md` with its numbers. Two principles hold for all of them: what nobody measured
gives no advice, and advice never goes below what a job that succeeded has needed. A rule depends on what was
used and not on the advice before it, so advice that was followed gives no further advice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from broker.compiler.profile import DEFAULT_TIME_S
from broker.spec.limits import MAX_MEMORY_MIB, MAX_TIME_S

Resource = Literal["memory", "time", "gpu_count", "cpus"]
"""A field of a spec's `resources`."""
Confidence = Literal["low", "medium", "high"]

WORTH: Final = 0.8
"""Asking for less is advised when it is at most this share of what is asked for now."""
CLOSE: Final = 0.95
"""A job that succeeded with this share of its limit was lucky: more is advised."""
MEMORY_MARGIN: Final = 1.2
TIME_MARGIN: Final = 1.25
CPU_MARGIN: Final = 1.5
KILLED_MARGIN: Final = 1.5
"""Times the limit at which a job was ended for want of memory or time."""
GPU_IDLE: Final = 0.5
"""Fewer GPUs are advised when no job kept them busier than this, on average …"""
GPU_TARGET: Final = 0.8
"""… and so many that they would be busy to this share at most."""
UNUSED: Final = 0.01
"""GPUs that were busy to less than this share, all of a job added up, were never used."""
CPU_IDLE: Final = 0.5
"""Fewer cores are advised when no job kept them busier than this, on average."""
MEMORY_FLOOR_MIB: Final = 256
TIME_FLOOR_S: Final = 600
MEMORY_STEPS: Final = ((1 << 10, 64), (8 << 10, 256), (math.inf, 1 << 10))
"""(below so many MiB, round up to a multiple of so many), per node."""
TIME_STEPS: Final = ((2 * 3600, 300), (12 * 3600, 900), (math.inf, 3600))
"""(below so many seconds, round up to a multiple of so many)."""
SAMPLES: Final = 2
"""Use is looked at now and then: a job has to have lived through so many looks for its peak to say that less
would do."""


class Rule(StrEnum):
    """Why something is advised, or why nothing is."""

    MEMORY_LOWER = "memory_lower"
    MEMORY_KILLED = "memory_killed"
    MEMORY_CLOSE = "memory_close"
    TIME_LOWER = "time_lower"
    TIME_OUT = "time_out"
    TIME_CLOSE = "time_close"
    GPUS_LOWER = "gpus_lower"
    GPUS_UNUSED = "gpus_unused"
    CPUS_LOWER = "cpus_lower"
    FITS = "fits"
    NO_JOBS = "no_jobs"
    NO_SUCCESS = "no_success"
    NOT_MEASURED = "not_measured"
    PARTLY_MEASURED = "partly_measured"
    TOO_SHORT = "too_short"
    NOT_ASKED = "not_asked"
    TIME_WAITS = "time_waits"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, over all nodes together. `time_s`, `cpus` None: left to broker and cluster."""

    memory_mib: int
    time_s: int | None = None
    gpu_count: int = 0
    gpu_type: str | None = None
    cpus: int | None = None
    nodes: int = 1

    @property
    def limit_s(self) -> int:
        """The time limit it gets."""
        return self.time_s or DEFAULT_TIME_S


@dataclass(frozen=True, slots=True)
class Attempt:
    """A job that ended, all its starts together (a requeue starts it again); None is "nobody measured it".

    `peak_mib`: over all nodes, an upper bound. `cpu_s`: CPU time. `gpu_util`: share (0 to 1) of the time,
    mean over its GPUs. `state`: Slurm's word for the end. `overridden`: resources that the run, not its
    pipeline, had set.
    """

    run_id: str
    state: str
    asked: Asked
    elapsed_s: int
    starts: int = 1
    peak_mib: int | None = None
    cpu_s: int | None = None
    gpu_util: float | None = None
    overridden: frozenset[str] = frozenset()

    @property
    def succeeded(self) -> bool:
        """Whether it did its work."""
        return self.state == "COMPLETED"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says of one resource. `suggested` None: nothing is advised, `rule` says why.

    Amounts are MiB, seconds, GPUs, CPUs, over all nodes. `jobs`: that were looked at, `measured` of them have
    the data. `because`: the numbers that lead to it (`…_mib`, `…_s`, `…_share` name their unit). `saves`: GiB
    hours, GPU hours or core hours that these jobs would have left to others.
    """

    resource: Resource
    rule: Rule
    asked: int | None
    suggested: int | None = None
    jobs: int = 0
    measured: int = 0
    confidence: Confidence | None = None
    because: Mapping[str, float] = field(default_factory=dict)
    saves: float | None = None

    @property
    def lowers(self) -> bool:
        """Whether less is advised."""
        return self.suggested is not None and self.asked is not None and self.suggested < self.asked


def advise(asked: Asked, attempts: Sequence[Attempt], sample_s: int) -> tuple[Finding, ...]:
    """One finding for each resource. `attempts`: in the order of their runs, of each run in their own order;
    `sample_s`: time between two looks at what jobs use.
    """
    gpus = _gpus(asked, attempts, sample_s)
    cpus = _cpus(asked, attempts, sample_s)
    slower = gpus.lowers or cpus.lowers
    return (_memory(asked, attempts, sample_s), _time(asked, attempts, slower=slower), gpus, cpus)


def rounded(amount: float, steps: Iterable[tuple[float, int]]) -> int:
    """Up to a multiple of the step for amounts of this size.

    >>> rounded(120, MEMORY_STEPS), rounded(1025, MEMORY_STEPS), rounded(3601, TIME_STEPS)
    (128, 1280, 3900)
    """
    step = next(step for below, step in steps if amount < below)
    return math.ceil(amount / step) * step


def _memory(asked: Asked, attempts: Sequence[Attempt], sample_s: int) -> Finding:
    """The largest peak of any job, however it ended, and half more than what was too little.

    For more, only peaks of jobs that succeeded count: that of another may have been counted twice.
    """
    fair = [one for one in attempts if one.asked.gpu_count >= asked.gpu_count]
    known = [one for one in fair if one.peak_mib is not None]
    peak = max((one.peak_mib or 0 for one in known), default=0)
    worked = max((one.peak_mib or 0 for one in known if one.succeeded), default=0)
    killed = max((one.asked.memory_mib for one in fair if one.state == "OUT_OF_MEMORY"), default=0)
    found = _Found("memory", asked.memory_mib, fair, known)
    numbers = {"peak_mib": peak, "asked_mib": asked.memory_mib}
    more = _whole_memory(max(worked * MEMORY_MARGIN, killed * KILLED_MARGIN), asked.nodes)
    if killed and _whole_memory(killed * KILLED_MARGIN, asked.nodes) > asked.memory_mib:
        ended = sum(one.state == "OUT_OF_MEMORY" for one in fair)
        because = {"killed_mib": killed, "killed": ended, "asked_mib": asked.memory_mib}
        return found.more(Rule.MEMORY_KILLED, more, because, "high")
    close = any(  # a peak above what the job had is counted twice (shared pages), or nothing limits memory
        CLOSE * asked.memory_mib <= (one.peak_mib or 0) <= one.asked.memory_mib
        for one in known
        if one.succeeded
    )
    if close and more > asked.memory_mib:
        return found.more(Rule.MEMORY_CLOSE, more, numbers | {"peak_mib": worked})
    if rule := found.silence(sample_s):
        return found.nothing(rule)
    need = _whole_memory(max(peak * MEMORY_MARGIN, killed * KILLED_MARGIN), asked.nodes)
    if need > WORTH * asked.memory_mib:
        return found.nothing(Rule.FITS, numbers)
    if killed * KILLED_MARGIN > peak * MEMORY_MARGIN:
        numbers["killed_mib"] = killed
    saved = sum(one.elapsed_s for one in fair) / 3600 * (asked.memory_mib - need) / 1024
    return found.less(Rule.MEMORY_LOWER, need, numbers, saved)


def _whole_memory(amount: float, nodes: int) -> int:
    """So much on each node, rounded, and as much on every one."""
    each = rounded(max(amount / nodes, MEMORY_FLOOR_MIB), MEMORY_STEPS)
    return min(each * nodes, MAX_MEMORY_MIB // nodes * nodes)


def _time(asked: Asked, attempts: Sequence[Attempt], *, slower: bool) -> Finding:
    """The longest that a run's work took. All starts and attempts of a run are added up: a later one may have
    gone on from a checkpoint of the one before.
    """
    fair = [one for one in attempts if _as_fast(one.asked, asked)]
    runs: dict[str, list[Attempt]] = {}
    for one in fair:
        runs.setdefault(one.run_id, []).append(one)
    done = [parts for parts in map(_until_success, runs.values()) if parts]
    longest = max((_total(parts) for parts in done), default=0)
    ended = max((one.asked.limit_s for one in fair if one.state == "TIMEOUT"), default=0)
    plain = [parts for parts in done if (len(parts) == 1 and parts[0].starts == 1) or _timed_out(parts)]
    took = max((_total(parts) for parts in plain), default=0)
    found = _Found("time", asked.limit_s, fair, [one for parts in done for one in parts])
    numbers = {"longest_s": longest, "asked_s": asked.limit_s}
    more = _whole_time(max(took * TIME_MARGIN, ended * KILLED_MARGIN))
    if ended and _whole_time(ended * KILLED_MARGIN) > asked.limit_s:
        count = sum(one.state == "TIMEOUT" for one in fair)
        because = {"ended_s": ended, "ended": count, "asked_s": asked.limit_s}
        return found.more(Rule.TIME_OUT, more, because, "high")
    if took >= CLOSE * asked.limit_s and more > asked.limit_s:
        return found.more(Rule.TIME_CLOSE, more, numbers | {"longest_s": took})
    if rule := found.silence(0):
        return found.nothing(rule)
    need = _whole_time(max(longest * TIME_MARGIN, ended * KILLED_MARGIN))
    if need > WORTH * asked.limit_s:
        return found.nothing(Rule.FITS, numbers)
    if ended * KILLED_MARGIN > longest * TIME_MARGIN:
        numbers["ended_s"] = ended
    return found.nothing(Rule.TIME_WAITS, numbers) if slower else found.less(Rule.TIME_LOWER, need, numbers)


def _as_fast(one: Asked, other: Asked) -> bool:
    """Whether two jobs of the same work should take the same time."""
    return (one.gpu_count, one.gpu_type, one.cpus) == (other.gpu_count, other.gpu_type, other.cpus)


def _until_success(parts: Sequence[Attempt]) -> Sequence[Attempt]:
    """What it took to succeed: nothing where it never did. Later ones are the run once more."""
    last = max((at for at, one in enumerate(parts, 1) if one.succeeded), default=0)
    return parts[:last]


def _total(parts: Sequence[Attempt]) -> int:
    return sum(one.elapsed_s for one in parts)


def _timed_out(parts: Sequence[Attempt]) -> bool:
    return any(one.state == "TIMEOUT" for one in parts)


def _whole_time(seconds: float) -> int:
    return min(rounded(max(seconds, TIME_FLOOR_S), TIME_STEPS), MAX_TIME_S)


def _gpus(asked: Asked, attempts: Sequence[Attempt], sample_s: int) -> Finding:
    """As many as would have been busy; none at all only where every job's were measured and never used."""
    count = asked.gpu_count
    fair = [one for one in attempts if (one.asked.gpu_count, one.asked.gpu_type) == (count, asked.gpu_type)]
    known = [one for one in fair if one.gpu_util is not None]
    found = _Found("gpu_count", count, fair, known)
    if not count:
        return found.nothing(Rule.NOT_ASKED)
    if rule := found.silence(sample_s):
        return found.nothing(rule)
    util = max(one.gpu_util or 0.0 for one in known)
    numbers = {"util_share": util, "busy_gpus": util * count, "asked_gpus": count}
    hours = sum(one.elapsed_s for one in fair) / 3600
    if util * count < UNUSED and len(known) < len(fair):
        return found.nothing(Rule.PARTLY_MEASURED, numbers)
    if util * count < UNUSED:
        return found.less(Rule.GPUS_UNUSED, 0, numbers, hours * count)
    enough = (n for n in range(1, count + 1) if not count % n and not n % asked.nodes)
    need = next((n for n in enough if n >= util * count / GPU_TARGET), count)
    if util >= GPU_IDLE or need >= count:
        return found.nothing(Rule.FITS, numbers)
    return found.less(Rule.GPUS_LOWER, need, numbers, hours * (count - need))


def _cpus(asked: Asked, attempts: Sequence[Attempt], sample_s: int) -> Finding:
    """Half more than the cores that were busy on average; where none are named the cluster chooses."""
    if asked.cpus is None:
        return Finding("cpus", Rule.NOT_ASKED, None)
    fair = [
        one
        for one in attempts
        if (one.asked.cpus or 0) >= asked.cpus and one.asked.gpu_count == asked.gpu_count
    ]
    known = [one for one in fair if one.cpu_s is not None]
    found = _Found("cpus", asked.cpus, fair, known)
    if rule := found.silence(sample_s):
        return found.nothing(rule)
    busy = max((one.cpu_s or 0) / max(one.elapsed_s, 1) for one in known)
    each = max(1, math.ceil(round(busy * CPU_MARGIN / asked.nodes, 6)))
    need, numbers = each * asked.nodes, {"busy_cores": busy, "asked_cores": asked.cpus}
    if busy >= CPU_IDLE * asked.cpus or need > WORTH * asked.cpus:
        return found.nothing(Rule.FITS, numbers)
    saved = sum(one.elapsed_s for one in fair) / 3600 * (asked.cpus - need)
    return found.less(Rule.CPUS_LOWER, need, numbers, saved)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is there to judge one resource by: `fair` jobs can be compared, `known` of them were measured."""

    resource: Resource
    asked: int
    fair: Sequence[Attempt]
    known: Sequence[Attempt]

    def silence(self, sample_s: int) -> Rule | None:
        """Why nothing can be said; None when something can."""
        done = [one for one in self.known if one.succeeded]
        if not self.fair:
            return Rule.NO_JOBS
        if not any(one.succeeded for one in self.fair):
            return Rule.NO_SUCCESS
        if not done:
            return Rule.NOT_MEASURED
        return Rule.TOO_SHORT if all(one.elapsed_s < SAMPLES * sample_s for one in done) else None

    def nothing(self, rule: Rule, because: Mapping[str, float] | None = None) -> Finding:
        return self._finding(rule, None, because or {}, None, None)

    def more(
        self, rule: Rule, need: int, because: Mapping[str, float], sure: Confidence | None = None
    ) -> Finding:
        """What a job was ended for the want of is certain (`sure`)."""
        return self._finding(rule, need, because, None, sure or self._sure())

    def less(
        self, rule: Rule, need: int, because: Mapping[str, float], saves: float | None = None
    ) -> Finding:
        return self._finding(rule, need, because, saves, self._sure())

    def _sure(self) -> Confidence:
        jobs, known = len(self.fair), len(self.known)
        if known < 3 or known < 0.5 * jobs:
            return "low"
        return "high" if known >= 10 and known >= 0.8 * jobs else "medium"

    def _finding(
        self,
        rule: Rule,
        need: int | None,
        because: Mapping[str, float],
        saves: float | None,
        sure: Confidence | None,
    ) -> Finding:
        return Finding(
            self.resource,
            rule,
            self.asked,
            need,
            len(self.fair),
            len(self.known),
            sure,
            dict(because),
            None if saves is None else round(saves, 3),
        )
