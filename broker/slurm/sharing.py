"""Who comes first and how much anyone may have: priorities, fair shares, classes of service (QOS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import override

from broker.hosts import Completed
from broker.slurm.command import Command, T_co
from broker.slurm.text import duration_s, fresh_delimiter, number, table
from broker.slurm.tres import Tres, parse_tres


@dataclass(frozen=True, slots=True)
class JobPriority:
    """The parts of one pending job's priority, weighted; `total` is what Slurm sorts by."""

    job_id: int
    user: str
    total: int
    age: int
    fair_share: int
    job_size: int
    partition: int
    qos: int
    nice: int


@dataclass(frozen=True)
class Priorities(Command[tuple[tuple[JobPriority, ...], tuple[str, ...]]]):
    """`sprio`: (pending jobs by priority, lines not understood). Held jobs are absent."""

    delimiter: str = field(default_factory=fresh_delimiter)
    program = "sprio"

    @override
    def args(self) -> list[str]:
        return ["-h", "-o", self.delimiter.join(("%i", "%u", "%Y", "%A", "%F", "%J", "%P", "%Q", "%N"))]

    @override
    def parse(self, done: Completed) -> tuple[tuple[JobPriority, ...], tuple[str, ...]]:
        return _rows(self.text(done) if done.rc or done.stdout else "", self.delimiter, 9, _priority)


def _priority(fields: Sequence[str]) -> JobPriority:
    job_id, user, *parts = (part.strip() for part in fields)
    return JobPriority(number(job_id.partition("_")[0]), user, *(round(float(part or 0)) for part in parts))


@dataclass(frozen=True, slots=True)
class Share:
    """One association in the tree of fair shares; `user` "" for an account's own row.

    Usage is in TRES-weighted seconds, decayed; None where Slurm prints nothing.
    """

    cluster: str
    account: str
    user: str
    partition: str
    raw_shares: str
    norm_shares: float | None
    raw_usage: int
    effective_usage: float | None
    fair_share: float | None
    level_fs: float | None
    limits: Tres
    running: Tres


_SHARE = (
    *("Cluster", "Account", "User", "Partition", "RawShares", "NormShares", "RawUsage", "EffectvUsage"),
    *("FairShare", "LevelFS", "GrpTRESMins", "TRESRunMins"),
)


@dataclass(frozen=True)
class Shares(Command[tuple[tuple[Share, ...], tuple[str, ...]]]):
    """`sshare -a`: (associations in the tree's order, lines not understood)."""

    program = "sshare"

    @override
    def args(self) -> list[str]:
        return ["-a", "-h", "-P", "-o", ",".join(_SHARE)]

    @override
    def parse(self, done: Completed) -> tuple[tuple[Share, ...], tuple[str, ...]]:
        return _rows(self.text(done), "|", len(_SHARE), _share)


def _share(fields: Sequence[str]) -> Share:
    row = dict(zip(_SHARE, (part.strip() for part in fields), strict=True))
    return Share(
        cluster=row["Cluster"],
        account=row["Account"],
        user=row["User"],
        partition=row["Partition"],
        raw_shares=row["RawShares"],
        norm_shares=_real(row["NormShares"]),
        raw_usage=number(row["RawUsage"], 0),
        effective_usage=_real(row["EffectvUsage"]),
        fair_share=_real(row["FairShare"]),
        level_fs=_real(row["LevelFS"]),
        limits=parse_tres(row["GrpTRESMins"]),
        running=parse_tres(row["TRESRunMins"]),
    )


def _real(text: str) -> float | None:
    return float(text) if text else None


@dataclass(frozen=True, slots=True)
class Qos:
    """A class of service. Limits that are not set are None, {} or an empty `Tres`."""

    name: str
    priority: int
    grace_time_s: int | None
    preempts: tuple[str, ...]
    preempt_mode: str
    flags: frozenset[str]
    usage_factor: float | None
    group_tres: Tres
    group_tres_minutes: Tres
    group_jobs: int | None
    group_submit: int | None
    max_tres_per_job: Tres
    max_wall_s: int | None
    max_tres_per_user: Tres
    max_jobs_per_user: int | None
    max_submit_per_user: int | None


_QOS = (
    *("Name", "Priority", "GraceTime", "Preempt", "PreemptMode", "Flags", "UsageFactor", "GrpTRES"),
    *("GrpTRESMins", "GrpJobs", "GrpSubmit", "MaxTRES", "MaxWall", "MaxTRESPU", "MaxJobsPU", "MaxSubmitPU"),
)


@dataclass(frozen=True)
class QosList(Command[tuple[tuple[Qos, ...], tuple[str, ...]]]):
    """`sacctmgr show qos`: (classes of service, lines not understood)."""

    program = "sacctmgr"

    @override
    def args(self) -> list[str]:
        return ["-n", "-P", "show", "qos", f"format={','.join(_QOS)}"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[Qos, ...], tuple[str, ...]]:
        return _rows(self.text(done), "|", len(_QOS), _qos)


def _qos(fields: Sequence[str]) -> Qos:
    row: Mapping[str, str] = dict(zip(_QOS, fields, strict=True))

    def count(key: str) -> int | None:
        return number(row[key]) if row[key] else None

    return Qos(
        name=row["Name"],
        priority=number(row["Priority"], 0),
        grace_time_s=duration_s(row["GraceTime"]),
        preempts=tuple(filter(None, row["Preempt"].split(","))),
        preempt_mode=row["PreemptMode"],
        flags=frozenset(filter(None, row["Flags"].split(","))),
        usage_factor=_real(row["UsageFactor"]),
        group_tres=parse_tres(row["GrpTRES"]),
        group_tres_minutes=parse_tres(row["GrpTRESMins"]),
        group_jobs=count("GrpJobs"),
        group_submit=count("GrpSubmit"),
        max_tres_per_job=parse_tres(row["MaxTRES"]),
        max_wall_s=duration_s(row["MaxWall"]),
        max_tres_per_user=parse_tres(row["MaxTRESPU"]),
        max_jobs_per_user=count("MaxJobsPU"),
        max_submit_per_user=count("MaxSubmitPU"),
    )


def _rows(
    text: str, delimiter: str, columns: int, row: Callable[[Sequence[str]], T_co]
) -> tuple[tuple[T_co, ...], tuple[str, ...]]:
    good, bad = table(text, delimiter, columns, row)
    return tuple(good), tuple(bad)
