"""What running jobs use now: `sstat`, one row per step.

Verified on 22.05, 24.11 and 26.05:

- It answers for the caller's own jobs; an Operator is refused others', SlurmUser and root are not.
- The exit status is 0 whatever happened. A job that has ended, one that is somebody else's and one that a
  frozen slurmctld says nothing about each give a complaint, and cost the others nothing: absence is unknown.
- Without `-a` a job's batch step is left out, where the program runs that was not started by srun.
- A step on a node that does not answer costs 20 s (2 × `MessageTimeout`), each: the whole call has a limit,
  and what came before it counts, but for the job that was told of last: it may have steps that were not.
- Of a step whose nodes do not all answer there is no row, and a complaint that names it (`StepId=4.0`); the
  job's other steps have theirs. Such a job counts as not told of: a part of its steps would be a small job.
- `TRESUsageInTot` is the sum over a step's tasks: of `cpu` since its start, of `mem` at the last sample
  (`JobAcctGatherFrequency`). A step that was not sampled yet shows 0 for everything: that is no measurement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from broker.errors import Unreachable
from broker.hosts import Completed
from broker.slurm.command import ENVIRONMENT, Command, complaint, decoded
from broker.slurm.text import duration_s, table
from broker.slurm.tres import parse_quantity

LIMIT_S = 25
"""How long one sstat may take; what it has said by then is read."""
_FIELDS = ("JobID", "NTasks", "AveCPU", "AveRSS", "TRESUsageInTot")
_UNSAMPLED = (None, None, None, None)
_SILENT = re.compile(r"\bStepId=(\d{1,10})")
_STEP = re.compile(r"(\d+)(?:[_+]\d+)?\.(\w+(?:\+\d+)?)")


@dataclass(frozen=True, slots=True)
class StepUsage:
    """A running step. None is "no data".

    `cpu_s`: CPU time of its tasks since its start. `memory_mib`: resident now. `gpu_util`: per cent, added up
    over the GPUs that its processes use, `gpu_memory_mib`: of all (both where Slurm was built with NVML and
    gathers them).
    """

    job_id: int
    step: str
    cpu_s: int | None
    memory_mib: float | None
    gpu_util: float | None
    gpu_memory_mib: float | None


@dataclass(frozen=True)
class RunningUsage(Command[tuple[tuple[StepUsage, ...], tuple[str, ...]]]):
    """`sstat` of several jobs: (their running steps, lines not understood)."""

    ids: tuple[int, ...]
    limit_s: int = LIMIT_S
    program = "sstat"

    @override
    def args(self) -> list[str]:
        ids = ",".join(map(str, self.ids))
        return ["-a", "--noconvert", "-n", "-P", "-j", ids, "-o", ",".join(_FIELDS)]

    @override
    def argv(self, path: str = "") -> list[str]:
        """Line by line, so that what was said before the limit has been said."""
        found = (f"PATH={path}",) if path else ()
        bounded = ("timeout", str(self.limit_s), "stdbuf", "-oL", self.program)
        return [*ENVIRONMENT, *found, *bounded, *self.args()]

    @override
    def parse(self, done: Completed) -> tuple[tuple[StepUsage, ...], tuple[str, ...]]:
        if done.rc not in {0, 1, 124}:  # 124: the limit; 1: some releases, when no job could be read
            raise complaint(self.program, done)
        if done.rc == 124 and not done.stdout:
            raise Unreachable(f"sstat said nothing within {self.limit_s} s")
        found, bad = table(decoded(done.stdout), "|", len(_FIELDS), _step)
        if done.rc == 124 and found:  # a part of a job's steps would be a small job
            found = [step for step in found if step.job_id != found[-1].job_id]
        partly = {int(job_id) for job_id in _SILENT.findall(decoded(done.stderr))}
        return tuple(step for step in found if step.job_id not in partly), tuple(bad)


def _step(fields: Sequence[str]) -> StepUsage:
    name, tasks, cpu, rss, total = fields
    match = _STEP.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no step")
    n = int(tasks) if tasks.isdigit() else None
    sums = _amounts(total)
    cpu_s = duration_s(sums["cpu"]) if "cpu" in sums else _times(duration_s(cpu), n)
    memory = _quantity(sums.get("mem"))
    if memory is None:
        memory = _times(_quantity(rss), n)
    if not memory:
        return StepUsage(int(match[1]), match[2], *_UNSAMPLED)
    gpu_memory = _quantity(sums.get("gres/gpumem"))
    return StepUsage(
        job_id=int(match[1]),
        step=match[2],
        cpu_s=cpu_s,
        memory_mib=memory / 2**20,
        gpu_util=_quantity(sums.get("gres/gpuutil")),
        gpu_memory_mib=None if gpu_memory is None else gpu_memory / 2**20,
    )


def _amounts(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in text.split(",")) if value}


def _quantity(text: str | None) -> int | None:
    try:
        return parse_quantity(text) if text else None
    except ValueError:
        return None


def _times(value: int | None, n: int | None) -> int | None:
    return None if value is None or n is None else value * n
