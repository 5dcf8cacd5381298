"""Who may have what: associations (accounts and the people in them), QOS, and changes to them: sacctmgr(1).

Limits on resources are text, `gres/gpu=3,mem=131071` (memory in MiB, sorted by name): a limit of 0 is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from broker.errors import SlurmRefused
from broker.hosts import Completed
from broker.hosts.base import as_one_line
from broker.slurm.command import Command, ResultKind, complaint, decoded, error_of, judged
from broker.slurm.text import duration_s, number, table
from broker.slurm.tres import parse_quantity


@dataclass(frozen=True, slots=True)
class Membership:
    """One association: an account (`user` "") or a person in one. A limit that is not set is None or empty.

    `qos` are those it may use, inherited ones included; `shares` is a number, or `parent`.
    """

    account: str
    user: str
    partition: str
    parent: str
    shares: str
    qos: frozenset[str]
    default_qos: str
    group_tres: str
    group_running: str
    group_submit: int | None
    max_submit: int | None


_MEMBERSHIP = (
    *("Account", "User", "Partition", "ParentName", "Share", "QOS", "DefaultQOS"),
    *("GrpTRES", "GrpTRESRunMins", "GrpSubmit", "MaxSubmit"),
)


@dataclass(frozen=True)
class Memberships(Command[tuple[tuple[Membership, ...], tuple[str, ...]]]):
    """`sacctmgr show assoc`: (associations of a cluster, lines not understood). `cluster`: ClusterName."""

    cluster: str

    program = "sacctmgr"

    @override
    def args(self) -> list[str]:
        return ["-n", "-P", "show", "assoc", f"cluster={self.cluster}", f"format={','.join(_MEMBERSHIP)}"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[Membership, ...], tuple[str, ...]]:
        good, bad = table(self.text(done), "|", len(_MEMBERSHIP), _membership)
        return tuple(good), tuple(bad)


def _membership(fields: Sequence[str]) -> Membership:
    row = dict(zip(_MEMBERSHIP, fields, strict=True))
    return Membership(
        account=row["Account"],
        user=row["User"],
        partition=row["Partition"],
        parent=row["ParentName"],
        shares=row["Share"],
        qos=frozenset(filter(None, row["QOS"].split(","))),
        default_qos=row["DefaultQOS"],
        group_tres=limits_text(row["GrpTRES"]),
        group_running=limits_text(row["GrpTRESRunMins"]),
        group_submit=number(row["GrpSubmit"]) if row["GrpSubmit"] else None,
        max_submit=number(row["MaxSubmit"]) if row["MaxSubmit"] else None,
    )


@dataclass(frozen=True, slots=True)
class QosLimits:
    """What a QOS lets its jobs do. Times in seconds; None is no limit."""

    name: str
    priority: int
    grace_s: int
    preempts: frozenset[str]
    preempt_mode: str
    max_wall_s: int | None
    max_per_job: str


_QOS_LIMITS = ("Name", "Priority", "GraceTime", "Preempt", "PreemptMode", "MaxWall", "MaxTRES")


@dataclass(frozen=True)
class QosLimitsList(Command[tuple[tuple[QosLimits, ...], tuple[str, ...]]]):
    """`sacctmgr show qos`: (QOS and their limits, lines not understood)."""

    program = "sacctmgr"

    @override
    def args(self) -> list[str]:
        return ["-n", "-P", "show", "qos", f"format={','.join(_QOS_LIMITS)}"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[QosLimits, ...], tuple[str, ...]]:
        good, bad = table(self.text(done), "|", len(_QOS_LIMITS), _qos_limits)
        return tuple(good), tuple(bad)


def _qos_limits(fields: Sequence[str]) -> QosLimits:
    name, priority, grace, preempts, mode, wall, per_job = fields
    return QosLimits(
        name=name,
        priority=number(priority, 0),
        grace_s=duration_s(grace) or 0,
        preempts=frozenset(filter(None, preempts.split(","))),
        preempt_mode=mode,
        max_wall_s=duration_s(wall) if wall else None,
        max_per_job=limits_text(per_job),
    )


def limits_text(text: str) -> str:
    """Limits written one way only, whatever unit Slurm chose; raises ValueError.

    >>> limits_text("mem=128G,gres/gpu=3")
    'gres/gpu=3,mem=131072'
    """
    found = []
    for part in filter(None, text.split(",")):
        name, _, amount = part.rpartition("=")
        value = parse_quantity(amount, "M") >> 20 if name == "mem" else parse_quantity(amount)
        found.append(f"{name}={value}")
    return ",".join(sorted(found))


_NOTHING_NEW = ("Already existing", "Nothing new added", "Request didn't affect anything", "Nothing modified")
"""What sacctmgr says, with exit status 1, of something that is so already."""


@dataclass(frozen=True)
class Manage(Command[str]):
    """`sacctmgr -i`: one change to accounts, people or QOS; gives its words, which prove nothing: read back.

    An Operator may change accounts and people, but QOS are an Administrator's (slurmdbd, all releases seen).
    Each word is one argument: `name=team-a`. `parse` raises `Denied`, `SlurmRefused`, `Unreachable` (slurmdbd
    was not there) or `OutcomeUnknown`.
    """

    words: tuple[str, ...]

    program = "sacctmgr"
    readonly = False

    @override
    def args(self) -> list[str]:
        return ["-i", *self.words]

    @override
    def parse(self, done: Completed) -> str:
        said = as_one_line(decoded(done.stdout) + decoded(done.stderr))
        if done.rc == 127:
            raise complaint(self.program, done)
        if done.rc == 0 or any(words in said for words in _NOTHING_NEW):
            return said
        result = judged(said)
        if result.kind is ResultKind.INVALID_REQUEST:
            raise SlurmRefused(said)
        raise error_of(result)
