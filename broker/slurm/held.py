"""What Slurm holds of jobs that wait: everything that was asked for, and the batch scripts themselves.

An owner may change nearly all of it, also under an administrator's hold (scontrol(1), `update`), so it is
read anew before a job that somebody decided about is released. The script can't be changed: slurmctld keeps
it since the submission.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from broker.hosts import Completed
from broker.slurm.command import Command, complaint, decoded
from broker.slurm.states import SlurmState, parse_state
from broker.slurm.text import duration_s, fresh_delimiter, number, table
from broker.slurm.tres import Tres, parse_tres

ADMIN_HELD = "JobHeldAdmin"


def held_by_admin(state: SlurmState, priority: int, reason: str) -> bool:
    """Whether a job is under an administrator's hold: then its owner can't release it.

    slurmctld itself decides by this (`job_mgr.c`: priority 0, and a reason other than WAIT_HELD_USER).
    """
    return state is SlurmState.PENDING and priority == 0 and reason == ADMIN_HELD


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job with all that was asked for. `tres` are the resources of all nodes together: asked for while it
    waits, given once it runs. Texts are "" where nothing was asked for.
    """

    job_id: int
    user: str
    state: SlurmState
    reason: str
    priority: int
    account: str
    qos: str
    partition: str
    tres: Tres
    max_nodes: int
    max_cpus: int
    time_limit_s: int | None
    dependency: str
    array: str
    features: str
    required_nodes: str
    excluded_nodes: str
    reservation: str
    licenses: str
    container: str
    work_dir: str
    output: str
    error: str
    name: str

    @property
    def held_by_admin(self) -> bool:
        """Whether its owner can't release it."""
        return held_by_admin(self.state, self.priority, self.reason)


_COLUMNS = (
    *("JobID", "UserName", "State", "Reason", "PriorityLong", "Account", "QOS", "Partition", "tres-alloc"),
    *("MaxNodes", "MaxCPUs", "TimeLimit", "Dependency", "ArrayTaskID", "Feature", "ReqNodes", "ExcNodes"),
    *("Reservation", "Licenses", "Container", "WorkDir", "StdOut", "StdErr", "Name"),
)


@dataclass(frozen=True)
class Held(Command[tuple[tuple[HeldJob, ...], tuple[str, ...]]]):
    """`squeue` of single jobs, with everything that was asked for; (jobs, lines not understood)."""

    ids: tuple[int, ...]
    delimiter: str = field(default_factory=fresh_delimiter)
    program = "squeue"

    @override
    def args(self) -> list[str]:
        columns = ",".join(f"{name}:{self.delimiter}" for name in _COLUMNS[:-1])
        words = ["-h", "-a", "-t", "all", "-O", f"{columns},{_COLUMNS[-1]}:"]
        return [*words, f"--jobs={','.join(map(str, self.ids))}"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[HeldJob, ...], tuple[str, ...]]:
        if done.rc and b"Invalid job id" in done.stderr:
            return (), ()  # a single id that was purged; of several, squeue leaves such out without a word
        jobs, bad = table(self.text(done), self.delimiter, len(_COLUMNS), _held_job)
        return tuple(jobs), tuple(bad)


def _held_job(fields: Sequence[str]) -> HeldJob:
    row = dict(zip(_COLUMNS, fields, strict=True))
    return HeldJob(
        job_id=number(row["JobID"]),
        user=row["UserName"],
        state=parse_state(row["State"]),
        reason=row["Reason"],
        priority=number(row["PriorityLong"], 0),
        account=_asked(row["Account"]),
        qos=_asked(row["QOS"]),
        partition=row["Partition"],
        tres=parse_tres(row["tres-alloc"]),
        max_nodes=number(row["MaxNodes"], 0),
        max_cpus=number(row["MaxCPUs"], 0),
        time_limit_s=duration_s(row["TimeLimit"]),
        dependency=_asked(row["Dependency"]),
        array=_asked(row["ArrayTaskID"]),
        features=_asked(row["Feature"]),
        required_nodes=_asked(row["ReqNodes"]),
        excluded_nodes=_asked(row["ExcNodes"]),
        reservation=_asked(row["Reservation"]),
        licenses=_asked(row["Licenses"]),
        container=_asked(row["Container"]),
        work_dir=row["WorkDir"],
        output=_asked(row["StdOut"]),
        error=_asked(row["StdErr"]),
        name=row["Name"],
    )


def _asked(text: str) -> str:
    return "" if text in {"(null)", "N/A", "None"} else text


@dataclass(frozen=True)
class BatchScripts(Command[dict[int, str]]):
    """The batch scripts of jobs as slurmctld keeps them; one that it does not give is absent.

    One `scontrol` for all: between the scripts stands what `scontrol show hostnames` was asked to print, a
    word that no script can know. Where standard input is no terminal, `scontrol` also repeats each line it
    was given; that is no part of a script.
    """

    ids: tuple[int, ...]
    mark: str = field(default_factory=lambda: f"m{secrets.token_hex(6)}x")
    program = "scontrol"

    @override
    def args(self) -> list[str]:
        return []

    @property
    @override
    def stdin(self) -> bytes:
        asked = (
            f"show hostnames {self.mark}{job_id}\nwrite batch_script {job_id} -\n" for job_id in self.ids
        )
        return f"{''.join(asked)}show hostnames {self.mark}0\n".encode()

    @override
    def parse(self, done: Completed) -> dict[int, str]:
        text = decoded(done.stdout)
        if not re.search(rf"^{self.mark}0[ \t]*$", text, re.MULTILINE):
            raise complaint(self.program, done)
        parts = re.split(rf"^{self.mark}(\d+)[ \t]*\n", text, flags=re.MULTILINE)
        found: dict[int, str] = {}
        for number_, printed in zip(parts[1::2], parts[2::2], strict=True):
            begun = re.sub(rf"\A[^\n]*write batch_script {number_} -[ \t]*\n", "", printed)
            script = re.sub(rf"scontrol: show hostnames {self.mark}\d+[ \t]*\n\Z", "", begun)
            if script and number_ != "0":
                found[int(number_)] = script
        said = [line for line in decoded(done.stderr).splitlines() if "Invalid job id" not in line]
        if said and len(found) < len(set(self.ids)):  # an answer that is no "there is no such job" is none
            raise complaint(self.program, done)
        return found
