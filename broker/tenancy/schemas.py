"""What the API says about tenants in Slurm."""

from __future__ import annotations

import shlex
from typing import Literal

from pydantic import BaseModel, Field

from broker.tenancy.plan import Action, Line
from broker.text import RequestModel

Outcome = Literal["done", "refused", "unknown"]


class SyncRequest(RequestModel):
    """Which objects that were changed by hand may be overwritten."""

    adopt: list[str] = Field(
        [], max_length=1000, description="Names (`team-a`, `account team-a`), or `all`; others are only shown"
    )


class FieldView(BaseModel):
    """One field that is otherwise than wanted; "" is not set."""

    field: str = Field(description="As sacctmgr(1) names it; times in seconds, memory in MiB")
    now: str
    wanted: str
    set_before: str | None = Field(description="What the broker set last; null: nothing")


class LineView(BaseModel):
    """One object, and what is to be done with it."""

    kind: Literal["qos", "account", "user"]
    name: str = Field(description="A person: `account/unix-account`")
    action: Action
    differences: list[FieldView]
    command: str = Field(description="The sacctmgr command line for it, quoted for a shell; empty: none")
    result: Outcome | None = Field(None, description="What became of it; null: nothing was done")
    answer: str = Field("", description="Slurm's words")


class SyncView(BaseModel):
    """The plan, and what was done of it."""

    cluster: str
    slurm_cluster: str = Field(description="slurm.conf's ClusterName")
    run_as: Literal["service", "user"]
    to_do: int = Field(description="Changes that `POST` makes, or that remain after it")
    by_hand: int = Field(description="Objects that somebody else set otherwise: named in `adopt`, or left")
    lines: list[LineView]


def command_line(line: Line) -> str:
    """The change as a person would type it."""
    return shlex.join(["sacctmgr", "-i", *line.words]) if line.words else ""


def line_view(line: Line, result: Outcome | None = None, answer: str = "") -> LineView:
    """A line of the plan as it is shown."""
    return LineView(
        kind=line.key.kind,
        name=line.key.name,
        action=line.action,
        differences=[
            FieldView(field=one.field, now=one.now, wanted=one.wanted, set_before=one.ours)
            for one in line.differences
        ],
        command=command_line(line),
        result=result,
        answer=answer,
    )
