"""What slurmdbd remembers of nodes: when and why they were down or drained, reservations, what there was.

`sacctmgr` separates columns by `|`, whatever one asks for, and a reason is an operator's text: it stands
last, may hold `|` and newlines, and a line that does not begin like a row belongs to the reason before it.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import ClassVar, TypeVar

from typing_extensions import override

from broker.hosts import Completed
from broker.slurm.command import Command
from broker.slurm.tres import Tres, parse_tres

T = TypeVar("T")
_EVENT = ("NodeName", "TimeStart", "TimeEnd", "StateRaw", "State", "TRES", "User", "Reason")
_RESERVATION = ("ID", "TimeStart", "TimeEnd", "NodeNames", "Flags", "TRES", "UnusedWall", "Name")
_EVENT_ROW = re.compile(r"[^|\s]*\|\d+\|(?:\d+|Unknown)\|\d+\|")
_RESERVATION_ROW = re.compile(r"\d+\|\d+\|(?:\d+|Unknown)\|")
_BASE, _DOWN, _DRAIN, _MAINT = 0x0F, 1, 0x0200, 0x8000
"""slurm.h `node_states` (the same from 22.05 to 26.05): the low bits say what a node is, others are flags."""


class Lack(StrEnum):
    """Why a node could not be given to jobs, or what else a row is about."""

    DOWN = "down"
    """DOWN, not responding, failed: also where it is drained besides, which `State` then shows alone."""
    DRAINED = "drained"
    """Somebody (or a health check) took it away; jobs that ran there went on."""
    PLANNED = "planned"
    """Under a maintenance reservation."""
    RESERVED = "reserved"
    """A reservation that is not for maintenance."""
    CAPACITY = "capacity"
    """No lack: what the whole cluster had, registered by slurmctld."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One row of events. Times in seconds since the epoch; `end_at` None: it goes on.

    `node` "": the cluster's (`CAPACITY` has what all nodes have; with a state, slurmctld was away). `state`:
    Slurm's word. `user`: who did it, where somebody did.
    """

    node: str
    start_at: int
    end_at: int | None
    lack: Lack
    state: str
    tres: Tres
    user: str
    reason: str


@dataclass(frozen=True)
class _Remembered(Command[tuple[tuple[T, ...], tuple[str, ...]]]):
    """`sacctmgr show ENTITY`: (what had not ended by `since`, epoch seconds; lines not understood)."""

    cluster: str
    since: int
    program = "sacctmgr"
    entity: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    beginning: ClassVar[re.Pattern[str]]

    @override
    def args(self) -> list[str]:
        where = [f"cluster={self.cluster}", f"start={_clock(self.since)}"]
        return ["-n", "-P", "show", self.entity, *where, f"format={','.join(self.columns)}"]

    @override
    def parse(self, done: Completed) -> tuple[tuple[T, ...], tuple[str, ...]]:
        rows, bad = _rows(self.text(done), self.beginning, len(self.columns))
        return tuple(self.made(dict(zip(self.columns, row, strict=True))) for row in rows), tuple(bad)

    @abstractmethod
    def made(self, row: dict[str, str]) -> T:
        """What a row says."""


@dataclass(frozen=True)
class NodeEvents(_Remembered[NodeEvent]):
    """`sacctmgr show event`. Without `start` it shows the open ones and today's."""

    entity = "event"
    columns = _EVENT
    beginning = _EVENT_ROW

    @override
    def made(self, row: dict[str, str]) -> NodeEvent:
        return NodeEvent(
            node=row["NodeName"],
            start_at=int(row["TimeStart"]),
            end_at=_end(row["TimeEnd"]),
            lack=_lack(row["NodeName"], row["State"], int(row["StateRaw"])),
            state=row["State"],
            tres=parse_tres(row["TRES"]),
            user=re.sub(r"\(\d+\)$", "", row["User"]),
            reason=row["Reason"],
        )


def _lack(node: str, state: str, raw: int) -> Lack:
    if not node and not state:
        return Lack.CAPACITY
    if raw & _MAINT:
        return Lack.PLANNED
    return Lack.DRAINED if raw & _DRAIN and raw & _BASE != _DOWN else Lack.DOWN


@dataclass(frozen=True, slots=True)
class ReservationRecord:
    """A reservation, or the part of it from one change to the next. Times in seconds since the epoch.

    `unused_s`: Slurm's UnusedWall: for how long of it the nodes had no job, brought up to date hourly.
    """

    number: int
    name: str
    start_at: int
    end_at: int | None
    nodes: str
    flags: frozenset[str]
    tres: Tres
    unused_s: float

    @property
    def lack(self) -> Lack:
        """Maintenance is planned down time (sreport(1) counts it so), all else is reserved."""
        return Lack.PLANNED if "MAINT" in self.flags else Lack.RESERVED


@dataclass(frozen=True)
class Reservations(_Remembered[ReservationRecord]):
    """`sacctmgr show reservation`."""

    entity = "reservation"
    columns = _RESERVATION
    beginning = _RESERVATION_ROW

    @override
    def made(self, row: dict[str, str]) -> ReservationRecord:
        return ReservationRecord(
            number=int(row["ID"]),
            name=row["Name"],
            start_at=int(row["TimeStart"]),
            end_at=_end(row["TimeEnd"]),
            nodes=row["NodeNames"],
            flags=frozenset(filter(None, row["Flags"].split(","))),
            tres=parse_tres(row["TRES"]),
            unused_s=float(row["UnusedWall"] or 0),
        )


def _rows(text: str, begins: re.Pattern[str], columns: int) -> tuple[list[list[str]], list[str]]:
    """Rows, the last column of which may hold anything; lines before the first row are not understood."""
    found: list[list[str]] = []
    bad: list[str] = []
    for line in text.removesuffix("\n").split("\n"):
        fields = line.split("|", columns - 1)
        if begins.match(line) and len(fields) == columns:
            found.append(fields)
        elif found:
            found[-1][-1] += f"\n{line}"
        elif line:
            bad.append(line)
    return found, bad


def _end(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) else None


def _clock(seconds: int) -> str:
    """A time as sacctmgr takes it; `TZ=UTC` is set for every command."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
