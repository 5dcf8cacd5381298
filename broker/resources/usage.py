"""What a running job really uses, and who says so. Pure.

A figure that nobody measured is absent, never 0. Each has its source and its moment. GPUs are asked about in
this order: DCGM (by the job's label), the job's own sampler (`nvidia-smi`), Slurm (`gres/gpuutil`, where it
gathers that); of ended jobs jobstats comes first (`broker.accounting`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from broker.slurm import StepUsage

WINDOW = timedelta(minutes=5)
"""Over how long CPU use is averaged: Slurm looks every 30 s (`JobAcctGatherFrequency`), in whole seconds."""


class Source(StrEnum):
    """Who measured, in the order in which they are believed."""

    JOBSTATS = "jobstats"
    DCGM = "dcgm"
    SAMPLER = "sampler"
    SLURM = "slurm"


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value: when, by whom, and over how many seconds (0: a moment)."""

    value: float
    source: Source
    at: datetime
    over_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU, or slice of one (MIG), of a job. None: unknown.

    `node`: its number among the job's nodes, or its name. `index`: as nvidia-smi counts, of a slice
    `GPU:instance/compute instance`. `memory_of`: what its memory belongs to: compute instances of one GPU
    instance share theirs, which is counted once. Memory in MiB, `util` in per cent of the time.
    """

    node: str
    index: str
    uuid: str
    slice: bool
    util: float | None
    memory_used: float | None
    memory_total: float | None
    temperature_c: float | None
    power_w: float | None
    source: Source
    at: datetime
    memory_of: str = ""


@dataclass(frozen=True, slots=True)
class JobUse:
    """One look at a running job. `gpus` by the source that knew most; `None` figures are unknown."""

    cpu_cores: Figure | None = None
    memory_mib: Figure | None = None
    gpu_util: Figure | None = None
    gpu_memory_mib: Figure | None = None
    gpus: tuple[GpuUse, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing at all is known."""
        return self == JobUse()


def choose(found: Iterable[GpuUse], gpus: int) -> JobUse:
    """Utilisation (mean over the GPUs) and memory (sum), each from the first source that knows it of all.

    Where none knows all `gpus`, that of most; the order of `Source` decides between equals. What Slurm tells
    is one figure for all of them.
    """
    by: dict[Source, list[GpuUse]] = {}
    for one in found:
        by.setdefault(one.source, []).append(one)
    utils = {source: [g for g in some if g.util is not None] for source, some in by.items()}
    memories = {source: [g for g in some if g.memory_used is not None] for source, some in by.items()}
    util, memory = _best(utils, gpus), _best(memories, gpus)
    shown = _best(by, gpus)
    return JobUse(
        gpu_util=_figure(util, sum(g.util or 0.0 for g in util) / len(util)) if util else None,
        gpu_memory_mib=_figure(memory, _memory(memory)) if memory else None,
        gpus=tuple(shown or ()),
    )


def _best(by: Mapping[Source, list[GpuUse]], gpus: int) -> list[GpuUse] | None:
    order = list(Source)

    def worth(item: tuple[Source, list[GpuUse]]) -> tuple[int, int]:
        source, some = item
        return gpus if source is Source.SLURM else min(len(some), gpus), -order.index(source)

    return max((item for item in by.items() if item[1]), key=worth, default=(None, None))[1]


def _memory(some: Sequence[GpuUse]) -> float:
    return sum({(g.node, g.memory_of or g.uuid or g.index): g.memory_used or 0.0 for g in some}.values())


def _figure(some: Sequence[GpuUse], value: float) -> Figure:
    return Figure(value, some[0].source, min(g.at for g in some))


@dataclass(slots=True)
class CpuMeter:
    """CPU time of a job's running steps over the last minutes: what it used per second are its cores.

    One per job; a new start of the job (`restart`) begins anew. Of a step that ended between two looks the
    last seconds are not counted.
    """

    restart: int
    started_at: datetime
    _seen: deque[tuple[datetime, dict[str, int]]] = field(default_factory=deque)

    def look(self, at: datetime, steps: Sequence[StepUsage]) -> Figure | None:
        """Cores in use; of the first look the mean since the job began. None where Slurm has no CPU time."""
        now = {step.step: step.cpu_s for step in steps if step.cpu_s is not None}
        if not now:
            return None
        while len(self._seen) > 1 and self._seen[0][0] < at - WINDOW:
            self._seen.popleft()
        since, before = self._seen[0] if self._seen else (self.started_at, {})
        self._seen.append((at, now))
        over = (at - since).total_seconds()
        if over < 1:
            return None
        used = sum(max(0, cpu - before.get(step, 0)) for step, cpu in now.items())
        return Figure(used / over, Source.SLURM, at, over)


def slurm_use(at: datetime, steps: Sequence[StepUsage], gpus: int) -> tuple[Figure | None, list[GpuUse]]:
    """Memory of a job's steps, and the GPUs where Slurm gathers them: one entry for all, they are not told
    apart. Utilisation is added up over them, so it is shared out; of several steps the busiest counts.
    """
    memory = [step.memory_mib for step in steps if step.memory_mib is not None]
    utils = [step.gpu_util for step in steps if step.gpu_util is not None]
    gpu_memory = [step.gpu_memory_mib for step in steps if step.gpu_memory_mib is not None]
    used = Figure(sum(memory), Source.SLURM, at) if memory else None
    if not gpus or not (utils or gpu_memory):
        return used, []
    whole = GpuUse(
        node="",
        index="all",
        uuid="",
        slice=False,
        util=min(100.0, max(utils) / gpus) if utils else None,
        memory_used=sum(gpu_memory) if gpu_memory else None,
        memory_total=None,
        temperature_c=None,
        power_w=None,
        source=Source.SLURM,
        at=at,
    )
    return used, [whole]


def with_slurm(use: JobUse, cpu: Figure | None, memory: Figure | None) -> JobUse:
    """The same look, with what sstat said of CPU and memory."""
    return replace(use, cpu_cores=cpu, memory_mib=memory)
