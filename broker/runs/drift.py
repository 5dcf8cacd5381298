"""Whether Slurm still holds what was approved: jobs and scripts compared with the plan. Pure.

Owners may change their waiting jobs, also under an administrator's hold, and in `run_as: user` the person
owns both the jobs and the folder they were submitted from. So nothing is taken for granted: whose jobs they
are, every field that was asked for, every field that was not, and the scripts that slurmctld keeps.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from broker.compiler import CompiledJob, Plan
from broker.compiler.profile import DEFAULT_TIME_S
from broker.slurm.held import HeldJob
from broker.slurm.states import SlurmState
from broker.slurm.tres import Tres
from broker.spec import parse_time

SHOWN = 200
"""Characters of a value that a sentence shows."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing about a component's job that is not as it was approved."""

    component: str
    field: str
    approved: str
    found: str

    def __str__(self) -> str:
        if self.field == "script":
            return f"{self.component}: another batch script"
        return f"{self.component}: {self.field} is {self.found or 'unset'}, not {self.approved or 'unset'}"


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose the jobs must be, the cluster's default partition ("": not compared), and the QOS that approval
    moves them to: a release that was cut short may have done so.
    """

    user: str
    partition: str = ""
    approved_qos: str | None = None


def differences(
    plan: Plan,
    ids: Mapping[str, int],
    held: Mapping[int, HeldJob],
    scripts: Mapping[int, str],
    holder: Holder,
    ended: Set[str] = frozenset(),
    started: Set[str] = frozenset(),
) -> list[Difference]:
    """What is not as approved about the jobs that wait, in the plan's order.

    `ids`: Slurm's job id by component. A job that Slurm has no more holds up nothing: how it ended is seen
    elsewhere. `ended`: components that have ended, so that nobody waits for them any more. `started`: those
    that take several starts and have had one. The script lowers the time limit of the last one, to what is
    left of the time that was asked for, and Slurm keeps that when it requeues the job.
    """
    found: list[Difference] = []
    for job in plan.jobs:
        slurm_job = held.get(ids.get(job.component, 0))
        if slurm_job is None or slurm_job.state.finished:
            continue
        parents = {ids[up]: up in ended for up in job.depends_on if up in ids}
        for field, approved, actual in _fields(job, slurm_job, holder, parents, job.component in started):
            if approved != actual:
                found.append(Difference(job.component, field, _text(approved), _text(actual)))
        if scripts.get(slurm_job.job_id) != job.script:
            found.append(Difference(job.component, "script", "", ""))
    return found


def grown(
    component: str, resources: Mapping[str, Any], tres: Tres, time_limit_s: int | None
) -> list[Difference]:
    """What a job has, or asks for, beyond what was approved: after the release its owner may still change it.

    `resources` as the job keeps them (`JobRow.resources`): of one that takes several starts, the limit of one
    start was approved. Less than was approved is nobody's concern.
    """
    limit_s = _minutes(resources.get("start_s") or resources.get("time_s") or DEFAULT_TIME_S)
    pairs = (
        ("GPUs", resources.get("gpu_count") or 0, tres.gpus),
        ("GPU shards", 0, tres.other.get(_SHARD, 0)),
        ("memory (MB)", resources["memory_mib"], tres.memory_mib),
        ("time limit (s)", limit_s, sys.maxsize if time_limit_s is None else time_limit_s),
    )
    return [Difference(component, name, str(a), str(b)) for name, a, b in pairs if b > a]


def _fields(
    job: CompiledJob, found: HeldJob, holder: Holder, parents: Mapping[int, bool], started: bool
) -> Iterator[tuple[str, Any, Any]]:
    """(name, as approved, as found) of everything that could have been changed.

    `started`: an earlier start may have lowered the time limit, which was approved with its script.
    """
    args = _arguments(job)
    asked = _Asked.of(job)
    yield "state", SlurmState.PENDING.value, found.state.value
    yield "owner", holder.user, found.user
    yield "name", job.name, found.name
    yield "GPUs", asked.gpus, found.tres.gpus
    yield "GPU types", asked.gpu_types, dict(found.tres.gpu_types)
    yield "GPU shards", 0, found.tres.other.get(_SHARD, 0)
    yield "memory (MB)", asked.memory_mib, found.tres.memory_mib
    yield "nodes", asked.nodes, found.tres.nodes
    yield "most nodes", asked.nodes, found.max_nodes or asked.nodes
    yield "CPUs", asked.cpus, found.tres.cpus
    yield "most CPUs", asked.cpus, found.max_cpus or asked.cpus
    limit_s = found.time_limit_s
    lowered = started and limit_s is not None and limit_s < asked.time_s
    yield "time limit (s)", asked.time_s, asked.time_s if lowered else limit_s
    if "account" in args:
        yield "account", args["account"], found.account
    if "qos" in args and found.qos != holder.approved_qos:
        yield "QOS", args["qos"], found.qos
    if partition := args.get("partition") or holder.partition:
        yield "partition", partition, found.partition
    yield "dependencies", *_dependencies(found.dependency, parents)
    for name in _NEVER_ASKED:
        yield name.replace("_", " "), "", getattr(found, name)
    yield "folder", args["chdir"], found.work_dir
    yield "output", args["output"], found.output
    yield "error output", "", "" if found.error == found.output else found.error


_NEVER_ASKED = (
    *("array", "features", "required_nodes", "excluded_nodes", "reservation", "licenses", "container"),
)
"""What no plan asks for: set, it was somebody's wish afterwards."""


_SHARD = "gres/shard"
"""Parts of GPUs: to Slurm another resource than GPUs (gres.conf(5)), which no plan asks for."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A job's resources over all its nodes, read from its sbatch arguments (`compiler.sbatch_args`)."""

    nodes: int
    cpus: int
    memory_mib: int
    gpus: int
    gpu_types: dict[str, int]
    time_s: int

    @classmethod
    def of(cls, job: CompiledJob) -> _Asked:
        args = _arguments(job)
        nodes = int(args["nodes"])
        _, *kind, count = args.get("gres", "gpu:0").split(":")
        gpus = int(count) * nodes
        return cls(
            nodes=nodes,
            cpus=int(args["cpus-per-task"]) * nodes,
            memory_mib=int(args["mem"].removesuffix("M")) * nodes,
            gpus=gpus,
            gpu_types={kind[0]: gpus} if kind else {},
            time_s=_minutes(start_limit_s(job)),
        )


def start_limit_s(job: CompiledJob) -> int:
    """The time limit that a job was submitted with: of one start, seconds."""
    return parse_time(_arguments(job)["time"])


def _minutes(seconds: int) -> int:
    """Slurm counts time limits in whole minutes, rounded up (sbatch(1), `--time`)."""
    return -(-seconds // 60) * 60


def _arguments(job: CompiledJob) -> dict[str, str]:
    return dict(arg.removeprefix("--").split("=", 1) for arg in job.sbatch_args if "=" in arg)


def _dependencies(text: str, parents: Mapping[int, bool]) -> tuple[str, str]:
    """What the job must wait for, and what it waits for: parents that have ended may be gone from Slurm."""
    found = set(filter(None, re.split(r"[,?]", re.sub(r"\([^()]*\)", "", text))))
    flat = {
        f"{kind}:{number}" for each in found for kind, *ids in [each.split(":")] for number in ids or [""]
    }
    wanted = {f"afterok:{number}" for number, ended in parents.items() if not ended}
    optional = {f"afterok:{number}" for number, ended in parents.items() if ended}
    return ",".join(sorted(wanted)), ",".join(sorted(flat - optional))


def _text(value: Any) -> str:
    text = " ".join(f"{kind} x {n}" for kind, n in value.items()) if isinstance(value, dict) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
