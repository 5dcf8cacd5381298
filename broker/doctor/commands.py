"""What only the doctor asks of Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from broker.errors import SlurmRefused
from broker.hosts import Completed, Host
from broker.slurm.command import Command, complaint
from broker.slurm.text import key_values

T = TypeVar("T")


def ask(host: Host, command: Command[T], timeout_s: float) -> T:
    """Run one command on the login node."""
    done = host.run(command.argv(), stdin=command.stdin, timeout=timeout_s, readonly=command.readonly)
    return command.parse(done)


@dataclass(frozen=True, slots=True)
class Association:
    """Who may submit under which account, with which QOS."""

    account: str
    user: str
    qos: tuple[str, ...]


@dataclass(frozen=True)
class Associations(Command[tuple[Association, ...]]):
    """One user's associations (sacctmgr(1)). `cluster`: slurm.conf's ClusterName."""

    user: str
    cluster: str

    program = "sacctmgr"

    def args(self) -> list[str]:
        """See `Command.args`."""
        where = [f"user={self.user}", f"cluster={self.cluster}"]
        return ["-n", "-P", "show", "assoc", *where, "format=Account,User,QOS"]

    def parse(self, done: Completed) -> tuple[Association, ...]:
        """See `Command.parse`."""
        rows = (line.split("|") for line in self.text(done).splitlines() if line.count("|") == 2)
        return tuple(
            Association(account, user, tuple(filter(None, qos.split(",")))) for account, user, qos in rows
        )


@dataclass(frozen=True)
class AdminLevel(Command[str]):
    """A user's rights in Slurm: None, Operator or Administrator (sacctmgr(1))."""

    user: str

    program = "sacctmgr"

    def args(self) -> list[str]:
        """See `Command.args`."""
        return ["-n", "-P", "show", "user", self.user, "format=AdminLevel"]

    def parse(self, done: Completed) -> str:
        """See `Command.parse`."""
        return self.text(done).strip() or "None"


@dataclass(frozen=True, slots=True)
class PartitionSharing:
    """`OverSubscribe` of a partition: NO, EXCLUSIVE, YES:4, FORCE:4, …"""

    name: str
    value: str

    @property
    def oversubscribes(self) -> bool:
        """May two jobs be given the same CPUs? `FORCE:1` and `YES:1` do not (slurm.conf(5))."""
        kind, _, count = self.value.partition(":")
        return kind in {"YES", "FORCE"} and count != "1"


@dataclass(frozen=True)
class Sharing(Command[tuple[PartitionSharing, ...]]):
    """How each partition shares its nodes."""

    program = "scontrol"

    def args(self) -> list[str]:
        """See `Command.args`."""
        return ["-o", "show", "partition"]

    def parse(self, done: Completed) -> tuple[PartitionSharing, ...]:
        """See `Command.parse`."""
        rows = (key_values(line) for line in self.text(done).splitlines() if line.strip())
        return tuple(PartitionSharing(row["PartitionName"], row.get("OverSubscribe", "NO")) for row in rows)


@dataclass(frozen=True)
class DryRun(Command[str]):
    """`sbatch --test-only`: Slurm's words when it would take such a job, else `SlurmRefused` is raised."""

    arguments: Sequence[str]

    program = "sbatch"

    def args(self) -> list[str]:
        """See `Command.args`."""
        return ["--test-only", *self.arguments]

    @property
    def stdin(self) -> bytes:
        """See `Command.stdin`."""
        return b"#!/bin/sh\ntrue\n"

    def parse(self, done: Completed) -> str:
        """See `Command.parse`."""
        if done.rc:
            raise complaint(self.program, done)
        return done.stderr.decode(errors="replace").strip()


@dataclass(frozen=True)
class Submit(Command[int]):
    """`sbatch` of one probe job whose script goes in on stdin; gives its id."""

    arguments: Sequence[str]
    script: str

    program = "sbatch"
    readonly = False

    def args(self) -> list[str]:
        """See `Command.args`."""
        return ["--parsable", *self.arguments]

    @property
    def stdin(self) -> bytes:
        """See `Command.stdin`."""
        return self.script.encode()

    def parse(self, done: Completed) -> int:
        """See `Command.parse`."""
        if done.rc:
            raise complaint(self.program, done)
        number = done.stdout.decode(errors="replace").strip().partition(";")[0]
        if not number.isdecimal():
            raise SlurmRefused(f"sbatch answered {number!r}, which is no job id")
        return int(number)
