"""What the API says about resources."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from broker.resources.snapshot import NodeState


class AmountView(BaseModel):
    """How much of one thing there is: total = allocated + idle + unavailable."""

    total: int
    allocated: int = Field(description="Given to jobs by Slurm, used or not")
    idle: int = Field(description="Free on nodes that take jobs now")
    unavailable: int = Field(description="reserved + draining + drained + down")
    reserved: int
    draining: int
    drained: int
    down: int
    shared: int = Field(description="Of `allocated`: GPUs that jobs hold shards of")
    used: float | None = Field(description="Measured, on `measured` of `total`; null: unknown, not 0")
    measured: int
    source: str | None = Field(
        description="Who measured: `node` (load average, memory without free, as slurmd told), `dcgm` "
        "(GPUs × utilisation), `sampler` (the broker's jobs, of their own GPUs), `dcgm+sampler`; null: nobody"
    )


class GpuView(AmountView):
    """GPUs of one type; of a MIG profile its slices, which Slurm counts as GPUs."""

    type: str = Field(description="As in gres.conf(5); `gpu` where it has none")
    slice: bool = Field(description="A part of a GPU (MIG)")


class ShardView(AmountView):
    """Shards of GPUs of one type (gres/shard): another view of the same GPUs, never added to them.

    Shards of a GPU that a job has whole count as allocated.
    """

    type: str


class AmountsView(BaseModel):
    """GPUs by type, CPUs, and memory in MiB."""

    gpus: list[GpuView]
    shards: list[ShardView]
    cpus: AmountView
    memory_mib: AmountView


class PartitionView(AmountsView):
    """A partition; a node in two partitions counts in both."""

    name: str


class ClusterResources(AmountsView):
    """A cluster when it was last looked at."""

    cluster: str
    taken_at: datetime
    age_s: float = Field(description="Seconds since the look")
    partitions: list[PartitionView]


class ResourcesView(BaseModel):
    """What the clusters have."""

    items: list[ClusterResources]
    unseen: list[str] = Field(description="Clusters that no worker has looked at yet")


class NodeJob(BaseModel):
    """A job on a node that the reader may know of."""

    job_id: int
    run_id: str | None = Field(description="null: not the broker's (shown to admins only)")
    component: str | None
    tenant: str | None
    user: str = Field(description="Unix account")
    partition: str
    state: str
    since: datetime | None


class NodeView(BaseModel):
    """A node and what it has."""

    name: str
    state: NodeState
    slurm_state: str = Field(description="Slurm's own words: state and flags")
    reason: str = Field(description="Why an administrator, or slurmctld, took it out")
    partitions: list[str]
    resources: AmountsView
    jobs: list[NodeJob]
    other_jobs: int | None = Field(
        description="Jobs of others there; null: the broker's account sees its own jobs only"
    )


class NodesView(BaseModel):
    """The nodes of a cluster, by name."""

    cluster: str
    taken_at: datetime
    age_s: float
    total: int = Field(description="Nodes that fit the filters")
    items: list[NodeView]


class PointView(BaseModel):
    """The mean of a span over all looks at the cluster in it."""

    at: datetime = Field(description="Beginning of the span (of a look: its moment)")
    total: float
    allocated: float
    idle: float
    unavailable: float
    used: float | None = Field(description="Measured, on `measured` of `total`; null: unknown, not 0")
    measured: float = Field(description="0 where `used` is unknown")


class SeriesView(BaseModel):
    """One name over time. A span in which no look had it is left out."""

    name: str
    points: list[PointView]


class HistoryView(BaseModel):
    """Use over time. A tenant has `allocated` only: its other amounts are 0."""

    cluster: str
    by: str
    resource: str
    unit: str
    step_s: int = Field(description="0: each look that was kept; 3600; 86400 (days of UTC)")
    since: datetime
    until: datetime
    series: list[SeriesView]
