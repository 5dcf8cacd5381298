"""Names and places: Slurm job names, and where everything of a run lies.

    <base_path>/<run_id>/                    0700
        .broker-run                          the mark without which nothing is ever deleted
        control/                             never bound into a container
            .lock  journal.<attempt>  submit.<attempt>.sh  plan.<attempt>.json  fenced.<attempt>
            <component>/code-<digest>.tar    with its .sha256
            <component>/<attempt>/           job.sh  slurm.log  output_dir  done  status.json  spent
                                             gpu.<restart>.<node>.csv and .mig
        <component>/checkpoints/             kept over restarts and attempts
        <component>/<attempt>.<restart>/     outputs/  logs/  inputs/  code/  scratch/  params.json

`restart` counts Slurm's requeues of one job (`SLURM_RESTART_COUNT`), `attempt` the broker's retries.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from broker.compiler.profile import ClusterProfile, RunIdentity

MARKER = ".broker-run"
CONTROL = "control"
MAX_JOB_NAME_CHARS = 128


def job_key(identity: RunIdentity, component: str) -> str:
    """Give the 16 hex digits that are this component's of this attempt of this run, and nobody else's."""
    text = f"{identity.run_id}/{identity.attempt}/{component}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def job_name(profile: ClusterProfile, identity: RunIdentity, component: str) -> str:
    """Give the job's name (CD-12), by which it is found: `{env}-{tenant}-{component}-{number}.{key}`."""
    tail = f"-{component}-{identity.number:04d}.{job_key(identity, component)}"
    room = MAX_JOB_NAME_CHARS - len(tail) - len(profile.env) - 1
    tenant = re.sub(r"[^a-z0-9]+", "-", identity.tenant.lower()).strip("-") or "tenant"
    return f"{profile.env}-{tenant[: max(1, room)]}{tail}"


def run_dir(profile: ClusterProfile, run_id: str) -> str:
    """Give the run's directory, absolute."""
    return f"{profile.base_path.rstrip('/')}/{run_id}"


def control_dir(profile: ClusterProfile, run_id: str, component: str, attempt: int) -> str:
    """Give the directory of what the broker and the batch script write about one job."""
    return f"{run_dir(profile, run_id)}/{CONTROL}/{component}/{attempt}"


def status_path(profile: ClusterProfile, run_id: str, component: str, attempt: int) -> str:
    """Give the path of `status.json`, written by rename when the script ends."""
    return f"{control_dir(profile, run_id, component, attempt)}/status.json"


def spent_path(profile: ClusterProfile, run_id: str, component: str, attempt: int) -> str:
    """Give the path of the seconds that all starts but the present one took of the time asked for; only where
    that is more than one start may take, and from the second start on.
    """
    return f"{control_dir(profile, run_id, component, attempt)}/spent"


GPU_SAMPLE_FIELDS = (
    "timestamp,index,uuid,utilization.gpu,utilization.memory,memory.used,memory.total,"
    "temperature.gpu,power.draw,mig.mode.current"
)
"""What the job's sampler asks `nvidia-smi --query-gpu` for: the columns of `gpu.….csv`, in this order."""
GPU_SAMPLES_BYTES = 512 * 1024
"""A file of samples above this begins anew; the one before is kept beside it (`.old`)."""


def gpu_samples(
    profile: ClusterProfile, run_id: str, component: str, attempt: int, restart: int, node: int
) -> str:
    """Give the file in which one start's sampler writes down the GPUs of its node (0, 1, …), without ending.

    `.csv`: lines of `GPU_SAMPLE_FIELDS`, oldest first; `.mig`: the slices as last seen, where there are any.
    """
    return f"{control_dir(profile, run_id, component, attempt)}/gpu.{restart}.{node}"


def home_dir(profile: ClusterProfile, run_id: str, component: str, attempt: int, restart: int) -> str:
    """Give the directory of one start of one component."""
    return f"{run_dir(profile, run_id)}/{component}/{attempt}.{restart}"


def output_dir(profile: ClusterProfile, run_id: str, component: str, attempt: int, restart: int) -> str:
    """Give the directory whose files are collected."""
    return f"{home_dir(profile, run_id, component, attempt, restart)}/outputs"


def log_dir(profile: ClusterProfile, run_id: str, component: str, attempt: int, restart: int) -> str:
    """Give the directory of the program's logs."""
    return f"{home_dir(profile, run_id, component, attempt, restart)}/logs"


@dataclass(frozen=True, slots=True)
class LogPaths:
    """Where one start of one component logs, absolute paths.

    `slurm` is what Slurm writes: all restarts of the attempt, one after the other, with the script's own
    lines, the program's output and Slurm's messages. `training` is the program's stdout and stderr, `error`
    its stderr alone.
    """

    slurm: str
    training: str
    error: str
    start_time: str
    progress: str


def log_paths(
    profile: ClusterProfile, run_id: str, component: str, attempt: int, restart: int = 0
) -> LogPaths:
    """Give the log files of one start of one component (DD-10)."""
    logs = log_dir(profile, run_id, component, attempt, restart)
    return LogPaths(
        slurm=f"{control_dir(profile, run_id, component, attempt)}/slurm.log",
        training=f"{logs}/training.log",
        error=f"{logs}/error.log",
        start_time=f"{logs}/start_time.log",
        progress=f"{logs}/progress.json",
    )
