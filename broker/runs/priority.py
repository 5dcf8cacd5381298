"""How much a run hurries among the runs of its class: three levels, and where each comes from. Pure.

A level is a `nice` value in Slurm (sbatch(1), --nice): it works on a held job, survives the release, and age
and fair share go on counting beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final

from broker.errors import InvalidRequest, Problem
from broker.identity import Role

TRAINING: Final = "training"


class Level(StrEnum):
    """How much a run hurries (DD-18)."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


LEVEL_KO: Final = {Level.HIGH: "높음", Level.NORMAL: "보통", Level.LOW: "낮음"}

RETRY_LEVEL: Final = Level.LOW
"""What runs again gives way to what never ran (AM-12)."""


def first_level(role: Role, priority_class: str, wanted: str) -> Level:
    """The level of a new run (AM-12): training of internal users high, everybody else's as asked.

    Raises `InvalidRequest` where somebody asks to come before others: only an admin gives that.
    """
    level = Level(wanted)
    if role is Role.INTERNAL and priority_class == TRAINING and level is Level.NORMAL:
        return Level.HIGH
    if (
        level is Level.HIGH
        and role is not Role.ADMIN
        and not (role is Role.INTERNAL and priority_class == TRAINING)
    ):
        detail = "Only an administrator puts a run before others: ask for `normal`, then ask an administrator"
        raise InvalidRequest(detail, problems=[Problem("/priority", "priority_not_allowed", detail)])
    return level


def check_class(role: Role, priority_class: str, roles: Collection[str]) -> None:
    """Raise `InvalidRequest` where a class is not for this role: what preempts is not everybody's.

    `roles`: those that may ask for it (`ClassSettings.roles`); none: everybody.
    """
    if roles and role not in roles:
        detail = f"{priority_class} is for {', '.join(roles)}: ask for another class, or ask an administrator"
        raise InvalidRequest(detail, problems=[Problem("/priority_class", "class_not_allowed", detail)])


def nice_of(level: str, step: int) -> int:
    """The nice value of a level; `step` is what one level is worth (setting `level_nice`)."""
    return {Level.HIGH: -step, Level.NORMAL: 0, Level.LOW: step}[Level(level)]


def submission_nice(level: str, step: int) -> int:
    """The nice value to submit with: only privileged accounts go below 0, so `high` is given afterwards."""
    return max(0, nice_of(level, step))
