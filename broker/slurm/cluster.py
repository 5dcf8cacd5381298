"""The cluster itself: what it can do, its nodes, partitions, priorities, shares and classes of service."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from typing_extensions import override

from broker.errors import ConfigurationError, SlurmRefused
from broker.hosts import Completed
from broker.slurm.command import Command
from broker.slurm.nodelist import expand
from broker.slurm.text import duration_s, key_values, moment, number
from broker.slurm.tres import Tres, parse_tres
from broker.slurm.versions import Version, parse_version

T = TypeVar("T")


@dataclass(frozen=True)
class ClusterVersion(Command[Version]):
    """The release of Slurm."""

    program = "sinfo"

    @override
    def args(self) -> list[str]:
        return ["--version"]

    @override
    def parse(self, done: Completed) -> Version:
        text = self.text(done)
        version = parse_version(text)
        if version is None:
            raise SlurmRefused(f"sinfo --version answered {text.strip()!r}, which names no release")
        return version


@dataclass(frozen=True, slots=True)
class Config:
    """What the broker needs of slurm.conf(5). Times in seconds; counts as set."""

    cluster_name: str
    min_job_age_s: int
    message_timeout_s: int
    slurmctld_timeout_s: int
    max_job_count: int
    max_array_size: int
    enforce: frozenset[str]
    tracked_tres: tuple[str, ...]
    accounting_storage: str
    job_requeue: bool
    preempt_mode: tuple[str, ...]
    preempt_type: str
    preempt_parameters: tuple[str, ...]
    priority_type: str
    priority_max_nice: int = 2**31 - 3
    raw: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def has_accounting(self) -> bool:
        """Is there a slurmdbd to ask?"""
        return "slurmdbd" in self.accounting_storage


@dataclass(frozen=True)
class ReadConfig(Command[Config]):
    """`scontrol show config`."""

    program = "scontrol"

    @override
    def args(self) -> list[str]:
        return ["show", "config"]

    @override
    def parse(self, done: Completed) -> Config:
        rows = (line.partition("=") for line in self.text(done).splitlines() if "=" in line)
        raw = {key.strip(): ("" if value.strip() == "(null)" else value.strip()) for key, _, value in rows}
        if "ClusterName" not in raw:
            raise SlurmRefused("scontrol show config gave no ClusterName")
        return Config(
            cluster_name=raw["ClusterName"],
            min_job_age_s=_seconds(raw, "MinJobAge", 300),
            message_timeout_s=_seconds(raw, "MessageTimeout", 10),
            slurmctld_timeout_s=_seconds(raw, "SlurmctldTimeout", 120),
            max_job_count=_seconds(raw, "MaxJobCount", 10_000),
            max_array_size=_seconds(raw, "MaxArraySize", 1001),
            enforce=frozenset(_words(raw.get("AccountingStorageEnforce", "")) - {"none"}),
            tracked_tres=tuple(filter(None, raw.get("AccountingStorageTRES", "").split(","))),
            accounting_storage=raw.get("AccountingStorageType", ""),
            job_requeue=raw.get("JobRequeue", "1") == "1",
            preempt_mode=tuple(filter(None, raw.get("PreemptMode", "OFF").split(","))),
            preempt_type=raw.get("PreemptType", ""),
            preempt_parameters=tuple(filter(None, raw.get("PreemptParameters", "").split(","))),
            priority_type=raw.get("PriorityType", ""),
            raw=raw,
        )


def _seconds(raw: Mapping[str, str], key: str, default: int) -> int:
    found = re.match(r"\d+", raw.get(key, ""))
    return int(found[0]) if found else default


def _words(text: str) -> set[str]:
    return {word for word in text.lower().split(",") if word}


@dataclass(frozen=True)
class AccountingFields(Command[tuple[str, ...]]):
    """`sacct -e`: the fields that this release knows."""

    program = "sacct"

    @override
    def args(self) -> list[str]:
        return ["-e"]

    @override
    def parse(self, done: Completed) -> tuple[str, ...]:
        return tuple(self.text(done).split())


@dataclass(frozen=True)
class WhoAmI(Command[str]):
    """The account's name on the cluster: whose jobs are ours."""

    program = "id"

    @override
    def args(self) -> list[str]:
        return ["-un"]

    @override
    def argv(self, path: str = "") -> list[str]:
        return ["id", "-un"]

    @override
    def parse(self, done: Completed) -> str:
        name = self.text(done).strip()
        if not re.fullmatch(r"[^\s\x00-\x1f]+", name):
            raise ConfigurationError(
                f"the account's login shell prints more than the command's answer: {name[:200]!r}. Make "
                "~/.bashrc (or its like) silent where no terminal is: `[[ $- == *i* ]] || return`"
            )
        return name


@dataclass(frozen=True, slots=True)
class Controller:
    """One slurmctld as `scontrol ping` sees it."""

    role: str
    host: str
    up: bool


@dataclass(frozen=True)
class Ping(Command[tuple[Controller, ...]]):
    """`scontrol ping`; its exit status says nothing that its words don't."""

    program = "scontrol"

    @override
    def args(self) -> list[str]:
        return ["ping"]

    @override
    def parse(self, done: Completed) -> tuple[Controller, ...]:
        found = re.findall(r"Slurmctld\((\w+)\) at (\S+) is (\w+)", done.stdout.decode(errors="replace"))
        if not found:
            self.text(done)
            raise SlurmRefused(f"scontrol ping answered {done.stdout!r}")
        return tuple(Controller(role, host, word == "UP") for role, host, word in found)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this cluster's Slurm is and can: read once, cached."""

    version: Version
    config: Config
    accounting_fields: tuple[str, ...]
    user: str

    @property
    def cluster_name(self) -> str:
        """`ClusterName` of slurm.conf(5)."""
        return self.config.cluster_name


@dataclass(frozen=True, slots=True)
class Node:
    """A compute node. Memory in MiB; `load` None where slurmd has not said.

    `shared_gpus`: GPUs by type that jobs hold shards of; Slurm gives none of them away whole, and does not
    count them among `used.gpus` (gres.conf(5), shard).
    """

    name: str
    state: str
    flags: frozenset[str]
    partitions: tuple[str, ...]
    features: tuple[str, ...]
    total: Tres
    used: Tres
    memory_free_mib: int | None
    load: float | None
    reason: str
    boot: datetime | None
    shared_gpus: Mapping[str, int] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """May new jobs start here?"""
        barred = {"DRAIN", "MAINT", "RESERVED", "NOT_RESPONDING", "INVALID_REG", "POWERED_DOWN", "FAIL"}
        return self.state in {"IDLE", "MIXED", "ALLOCATED"} and not self.flags & barred


_NODE_KEYS = (
    *("NodeName", "Arch", "CoresPerSocket", "CPUAlloc", "CPUEfctv", "CPUErr", "CPUTot", "CPULoad"),
    *("AvailableFeatures", "ActiveFeatures", "Gres", "GresDrain", "GresUsed", "NodeAddr", "NodeHostName"),
    *("Port", "Version", "OS", "RealMemory", "AllocMem", "FreeMem", "Sockets", "Boards", "CoreSpecCount"),
    *("MemSpecLimit", "CpuSpecList", "State", "ThreadsPerCore", "TmpDisk", "Weight", "Owner", "MCS_label"),
    *("Partitions", "NextState", "BootTime", "SlurmdStartTime", "LastBusyTime", "ResumeAfterTime", "CfgTRES"),
    *("AllocTRES", "CapWatts", "CurrentWatts", "AveWatts", "ExtSensorsJoules", "ExtSensorsWatts", "Reason"),
    *("ExtSensorsTemp", "Comment", "Extra", "InstanceId", "InstanceType", "ReservationName", "Topology"),
    *("CurrentWatts", "AveWatts", "CapWatts", "Parameters", "GpuSpec", "ResCoresPerGPU", "CertFlags"),
)


@dataclass(frozen=True)
class Nodes(Command[tuple[tuple[Node, ...], tuple[str, ...]]]):
    """`scontrol -o -d show node`: (nodes, lines not understood)."""

    program = "scontrol"

    @override
    def args(self) -> list[str]:
        return ["-o", "-d", "show", "node"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        return _records(self.text(done), _node)


_MARKS = {"*": "NOT_RESPONDING", "~": "POWERED_DOWN", "#": "POWERING_UP", "%": "POWERING_DOWN", "@": "REBOOT"}
"""What a character after a node's state stands for (sinfo(1), NODE STATE CODES)."""


def _node(line: str) -> Node:
    row = key_values(line, _NODE_KEYS)
    state, *flags = (re.sub(r"[^A-Z_]", "", word) for word in row["State"].split("+"))
    flags += [flag for mark, flag in _MARKS.items() if mark in row["State"]]
    total, used = parse_tres(row.get("CfgTRES", "")), parse_tres(row.get("AllocTRES", ""))
    if not total.gpu_types and "gpu" in row.get("Gres", ""):  # GPUs, or types, that accounting does not track
        here, taken = parse_tres(row["Gres"]), parse_tres(row.get("GresUsed", ""))
        total = replace(total, gpus=here.gpus, gpu_types=here.gpu_types)
        used = replace(used, gpus=taken.gpus, gpu_types=taken.gpu_types)
    load = row.get("CPULoad", "")
    return Node(
        name=row["NodeName"],
        state=state,
        flags=frozenset(flags),
        partitions=tuple(filter(None, row.get("Partitions", "").split(","))),
        features=tuple(filter(None, row.get("ActiveFeatures", "").split(","))),
        total=total,
        used=used,
        memory_free_mib=int(row["FreeMem"]) if row.get("FreeMem", "").isdigit() else None,
        load=float(load) if re.fullmatch(r"\d+(\.\d+)?", load) else None,
        reason=_readable(row.get("Reason", "")),
        boot=moment(row.get("BootTime", "")),
        shared_gpus=_shared_gpus(row.get("GresUsed", "")),
    )


def _readable(reason: str) -> str:
    """A reason with the time of its setting as people write it: Slurm prints `[root@1795296585]` where
    `SLURM_TIME_FORMAT` is `%s`.

    >>> _readable("fan broken [root@1795296585]")
    'fan broken [root@2026-11-21T21:29:45Z]'
    """
    return _SET_AT.sub(
        lambda found: f"{found[1]}{datetime.fromtimestamp(int(found[2]), UTC):%FT%TZ}]", reason
    )


_SET_AT = re.compile(r"(\[[^\s@\[\]]+@)(\d{9,11})\]$")
_SHARDS = re.compile(r"shard(?::([^:,()\s]+))?:\d+\(([^()]*)\)")


def _shared_gpus(gres_used: str) -> dict[str, int]:
    """GPUs with a shard in use, by type ("" where the shards have none): `shard:a100:3(2/8,1/8,0/8)` names
    used and all shards of each GPU; `-/8`: it is given away whole (Slurm's gres.c, newer releases).
    """
    found: dict[str, int] = {}
    for kind, devices in _SHARDS.findall(gres_used):
        count = sum(1 for used in re.findall(r"(\d+)/\d+", devices) if int(used))
        found[kind] = found.get(kind, 0) + count
    return {kind: count for kind, count in found.items() if count}


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition. `max_time_s` None: no limit."""

    name: str
    state: str
    default: bool
    nodes: tuple[str, ...]
    total_cpus: int
    total_nodes: int
    max_time_s: int | None
    default_time_s: int | None
    priority_tier: int
    tres: Tres
    allow_accounts: tuple[str, ...]
    allow_qos: tuple[str, ...]


@dataclass(frozen=True)
class Partitions(Command[tuple[tuple[Partition, ...], tuple[str, ...]]]):
    """`scontrol -o show partition`: (partitions, lines not understood)."""

    program = "scontrol"

    @override
    def args(self) -> list[str]:
        return ["-o", "show", "partition"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[Partition, ...], tuple[str, ...]]:
        return _records(self.text(done), _partition)


def _partition(line: str) -> Partition:
    row = key_values(line)

    def names(key: str) -> tuple[str, ...]:
        return () if row.get(key, "ALL") in {"ALL", ""} else tuple(row[key].split(","))

    return Partition(
        name=row["PartitionName"],
        state=row.get("State", ""),
        default=row.get("Default") == "YES",
        nodes=expand(row.get("Nodes", "")),
        total_cpus=number(row.get("TotalCPUs", ""), 0),
        total_nodes=number(row.get("TotalNodes", ""), 0),
        max_time_s=duration_s(row.get("MaxTime", "")),
        default_time_s=duration_s(row.get("DefaultTime", "")),
        priority_tier=number(row.get("PriorityTier", ""), 1),
        tres=parse_tres(row.get("TRES", "")),
        allow_accounts=names("AllowAccounts"),
        allow_qos=names("AllowQos"),
    )


def _records(text: str, read: Callable[[str], T]) -> tuple[tuple[T, ...], tuple[str, ...]]:
    good: list[T] = []
    bad: list[str] = []
    for line in filter(str.strip, text.splitlines()):
        try:
            good.append(read(line))
        except (KeyError, ValueError, OverflowError, OSError):
            bad.append(line)
    return tuple(good), tuple(bad)
