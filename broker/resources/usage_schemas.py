"""What the API says about what a run's jobs use."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from broker.resources.usage import Source
from broker.runs.states import JobState


class FigureView(BaseModel):
    """A measured figure; it is null where nobody measured, never 0."""

    used: float
    allocated: float | None = Field(description="What Slurm gave; null: not a share of anything (per cent)")
    source: Source = Field(
        description="`slurm` (sstat), `sampler` (nvidia-smi in the job), `dcgm`, `jobstats`: who measured"
    )
    sampled_at: datetime
    age_s: float
    over_s: float = Field(description="Mean over so many seconds up to then; 0: at that moment")


class GpuUseView(BaseModel):
    """One GPU of the job, or a slice of one (MIG), as the source that knows most of them tells."""

    node: str
    index: str = Field(description="As nvidia-smi counts; a slice: GPU:instance/compute instance")
    uuid: str
    slice: bool
    util: float | None = Field(description="Per cent of the time; null: unknown (always, of a slice)")
    memory_used: float | None = Field(description="MiB")
    memory_total: float | None = Field(description="MiB")
    temperature_c: float | None
    power_w: float | None
    source: Source
    sampled_at: datetime


class UsagePoint(BaseModel):
    """Means of a span. What nobody measured in it is null."""

    at: datetime
    cpu_cores: float | None
    memory_mib: float | None
    gpu_util: float | None = Field(description="Per cent, mean over the job's GPUs")
    gpu_memory_mib: float | None


class JobUsageView(BaseModel):
    """What one job uses, or used when it was last looked at."""

    component: str
    attempt: int
    job_id: int | None
    state: JobState
    live: bool = Field(description="It runs, and was looked at a moment ago")
    taken_at: datetime | None = Field(description="null: it was never looked at")
    cpu_cores: FigureView | None
    memory_mib: FigureView | None
    memory_peak_mib: float | None = Field(description="The most that a look saw in this start of the job")
    gpu_util: FigureView | None = Field(description="Per cent, mean over the job's GPUs")
    gpu_util_mean: float | None = Field(description="… and over all looks in this start of the job")
    gpu_memory_mib: FigureView | None
    gpus_allocated: int | None
    gpus_measured: int | None = Field(
        description="GPUs that the GPU figures are of; fewer than it has: they are of a part (a silent node)"
    )
    gpus: list[GpuUseView]
    history: list[UsagePoint]


class RunUsageView(BaseModel):
    """What a run's jobs use."""

    run_id: str
    span_s: int = Field(description="What a point of a history stands for")
    jobs: list[JobUsageView]
