"""Resources in the words of sbatch(1).

A spec counts over all nodes of a component; `--gres`, `--mem` and `--cpus-per-task` (one task per node) are
per node. Everything here is a typed field with an allow-list of characters; no text of a person's gets in.
"""

from __future__ import annotations

from broker.compiler.profile import DEFAULT_TIME_S, ClusterProfile
from broker.spec.models import Component, Resources
from broker.spec.quantities import format_time

WARNED_EARLY_S = 60
"""How much earlier than asked for Slurm may send the warning signal (sbatch(1), --signal)."""
_SIGNAL_SLACK_S = WARNED_EARLY_S + 120
"""A job must have had time to do something before the warning comes."""


def cpus_per_node(resources: Resources, profile: ClusterProfile) -> int:
    """Give the CPUs on each node, rounded up where the profile's default does not divide."""
    by_gpu = resources.gpu_count * profile.cpus_per_gpu
    cpus = resources.cpus or by_gpu or profile.default_cpus
    return -(-cpus // resources.nodes)


def time_limit(resources: Resources) -> int:
    """Give the time limit in seconds, over all starts; one hour if the spec has none."""
    return resources.time or DEFAULT_TIME_S


def start_limit(resources: Resources, profile: ClusterProfile) -> int:
    """Give the time limit of one start in seconds: at most what the priority class allows (CD-06)."""
    return min(time_limit(resources), profile.max_wall_s or time_limit(resources))


def job_args(component: Component, profile: ClusterProfile) -> tuple[str, ...]:
    """Give what of the sbatch arguments depends on the spec and the cluster, but not on the run."""
    resources = component.resources
    args = [
        "--export=NONE",
        "--open-mode=append",
        "--requeue",
        f"--nodes={resources.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus_per_node(resources, profile)}",
        f"--mem={resources.memory.mib // resources.nodes}M",
        f"--time={format_time(start_limit(resources, profile))}",
    ]
    if resources.gpu_count:
        kind = f"{profile.gres_type(resources.gpu_type)}:" if resources.gpu_type else ""
        args.append(f"--gres=gpu:{kind}{resources.gpu_count // resources.nodes}")
    long_enough = start_limit(resources, profile) >= profile.signal_before_s + _SIGNAL_SLACK_S
    warned_s = profile.signal_before_s if long_enough else 0
    if component.signal or warned_s:  # @0: no warning of the time limit, but that signal at a preemption
        args.append(f"--signal={component.signal or 'TERM'}@{warned_s}")
    for option in ("partition", "account", "qos"):
        if value := getattr(profile, option):
            args.append(f"--{option}={value}")
    return tuple(args)
