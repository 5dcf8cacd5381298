"""Settings of a Slurm cluster: how to reach it, how jobs are asked for there, its priority classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from broker.settings.base import PriorityClass, RoleName, Section


class ClassSettings(Section):
    """A priority class: what `broker cluster sync` sets on its QOS, and on that of its twin `…-approved`.

    The classes are `urgent-inference` (priority 1000, preempts the last two, for admins, tenants' admins and
    internal users), `inference` (700), `fine-tuning` (400) and `training` (100); what is not set here stays
    as it is for that class.
    """

    priority: int = Field(100, ge=0, description="Priority of the QOS; the highest weighs most (`sprio`)")
    max_wall_s: int = Field(
        24 * 3600,
        ge=0,
        description="Longest time of one start, seconds; 0: any. What asked for more is started again",
    )
    grace_s: int = Field(
        120, ge=0, description="Time between a preemption's signal and the end, to write a checkpoint in"
    )
    preempts: tuple[PriorityClass, ...] = Field((), description="Classes whose jobs give way to it")
    roles: tuple[RoleName, ...] = Field((), description="Roles that may ask for it; none named: everybody")


_CLASSES: Mapping[PriorityClass, Mapping[str, object]] = {
    "urgent-inference": {
        "priority": 1000,
        "max_wall_s": 0,
        "grace_s": 0,
        "preempts": ("fine-tuning", "training"),
        "roles": ("admin", "tenant_admin", "internal"),
    },
    "inference": {"priority": 700, "max_wall_s": 0, "grace_s": 0},
    "fine-tuning": {"priority": 400},
    "training": {"priority": 100},
}
"""What is particular to each class (CD-03, CD-05, CD-06)."""


def _with_defaults(given: object) -> object:
    """The four classes, each with what was set of it; names that are none are left for the complaint."""
    if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
        return given
    known = {name: {**own, **given.get(name, {})} for name, own in _CLASSES.items()}
    return known | {name: one for name, one in given.items() if name not in known}


class ClusterSettings(Section):
    """One Slurm cluster: how to reach it and how jobs are asked for there."""

    transport: Literal["ssh", "local"] = Field(
        "ssh", description="`ssh` to a login node, or `local` where the broker runs on one itself"
    )
    ssh_host: str = Field("127.0.0.1", description="Login node")
    ssh_port: int = Field(22, ge=1, le=65535, description="Port of sshd on the login node")
    ssh_user: str = Field("broker", description="The service account: how the broker logs in")
    ssh_key_file: Path | None = Field(None, description="Private key of that account (0600)")
    ssh_known_hosts: Path | None = Field(
        None, description="Host keys that are trusted, in known_hosts(5) format; an unknown key is refused"
    )
    ssh_timeout_s: float = Field(30, gt=0, description="Time to connect and to open a channel, seconds")
    ssh_channels: int = Field(
        8, ge=2, le=64, description="Sessions at once over one connection; sshd allows 10 (`MaxSessions`)"
    )
    run_as: Literal["service", "user"] = Field(
        "service",
        description="Whose the jobs and their files are: the service account's, or each person's own Unix "
        "account's (by a sudoers rule, see docs/operations.md)",
    )
    base_path: str = Field(
        "/cluster/ml-jobs", pattern=r"^/[A-Za-z0-9._/-]+$", description="Shared folder for run directories"
    )
    image_dir: str = Field(
        "/cluster/images", pattern=r"^/[A-Za-z0-9._/-]+$", description="Shared cache of pulled images (SIF)"
    )
    code_roots: tuple[str, ...] = Field(
        (), description="Folders below which `code.path` and `.sif` images may lie; empty allows none"
    )
    partition: str | None = Field(None, description="Partition asked for; the cluster's default if unset")
    account: str | None = Field("default", description="Slurm account of runs without a tenant")
    qos: str | None = Field(
        None,
        description="QOS of jobs where `priority_classes` is off; the association's default if unset",
    )
    priority_classes: bool = Field(
        True,
        description="Whether each priority class has its QOS there (`broker cluster sync` makes them); "
        "without, every class is the same",
    )
    qos_prefix: str = Field(
        "", pattern=r"^[a-z0-9_-]{0,16}$", description="Before the names of the classes' QOS"
    )
    classes: Annotated[dict[PriorityClass, ClassSettings], BeforeValidator(_with_defaults)] = Field(
        default_factory=dict, validate_default=True, description="The priority classes by name"
    )
    gpu_types: dict[str, str] = Field(
        {}, description='GPU type in specs → GRES type, e.g. `{"A100": "a100"}`; default: lower case'
    )
    registry_mirrors: dict[str, str] = Field(
        {},
        description='Registry in specs → registry pulled from: `{"registry.example.org": "127.0.0.1:5000"}`',
    )
    insecure_registries: tuple[str, ...] = Field(
        (), description="Registries that speak plain HTTP (`apptainer pull --no-https`)"
    )
    path: str = Field(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        description="`PATH` of batch scripts and of remote commands",
    )
    default_cpus: int = Field(1, ge=1, description="CPUs of a component that asks for none")
    level_nice: int = Field(
        20_000,
        ge=1,
        le=1_000_000_000,
        description="What one level (high, normal, low) is worth in Slurm's priority (`nice`). Above the sum "
        "of `PriorityWeightAge` and `PriorityWeightFairshare` a level outweighs both",
    )
    signal_before_s: int = Field(
        120, ge=0, le=65535, description="Warning signal this long before the time limit (`sbatch --signal`)"
    )
    poll_interval_s: float = Field(30, gt=0, description="Time between two looks at the queue")
    submit_timeout_s: float = Field(
        180, ge=30, description="How long a submission may take; sbatch itself may wait 120 s at MaxJobCount"
    )
    command_timeout_s: float = Field(30, gt=0, description="How long a query to Slurm may take")
    image_refresh_s: float = Field(
        60, ge=0, description="How long an image tag is taken to point at what it pointed at when last asked"
    )
    pull_timeout_s: float = Field(3600, gt=0, description="How long pulling one image may take")
    max_auto_retries: int = Field(
        2, ge=0, description="New attempts the broker makes by itself after failures that were the cluster's"
    )
    unknown_deadline_s: float = Field(
        3600, gt=0, description="A job that neither squeue, sacct nor its marker knows is given up after this"
    )
    watch_interval_s: float = Field(
        30, gt=0, description="Time between two looks at the progress and signs of life of running jobs"
    )
    heartbeat_timeout_s: float = Field(
        3600,
        ge=0,
        description="A running job whose progress, logs, outputs and checkpoints have not changed for so "
        "long is flagged as stalled; 0: never",
    )
    heartbeat_grace_s: float = Field(
        600, ge=0, description="How long after the flag what `on_lost_heartbeat` says happens"
    )
    on_lost_heartbeat: Literal["retry", "fail", "flag"] = Field(
        "retry",
        description="What becomes of a stalled job: ended and tried again (`max_auto_retries`), ended and "
        "failed, or only flagged",
    )
    log_limit_mib: int = Field(
        64, ge=1, description="Logs above this are stored as head and tail, the cut shown in the text"
    )
    keep_succeeded_days: float = Field(7, ge=0, description="Days a run directory stays after success")
    keep_failed_days: float = Field(30, ge=0, description="… and after failure, cancellation or rejection")
    prometheus_url: str | None = Field(
        None,
        pattern=r"^https?://[^?#\s]+$",
        description="Prometheus with the series of NVIDIA's dcgm-exporter: how busy GPUs are; unset: unknown",
    )
    usage_interval_s: float = Field(
        60, gt=0, description="Time between two looks at what running jobs use (one `sstat` per Unix account)"
    )
    gpu_sample_interval_s: int = Field(
        30,
        ge=0,
        le=3600,
        description="How often a job with GPUs writes down how busy they are (`nvidia-smi`, where its node "
        "has that); 0: never",
    )
