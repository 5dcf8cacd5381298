"""Exports of reports to the object store: what became of them, and asking for those of earlier periods."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from broker.cli.client import Api
from broker.cli.options import api
from broker.cli.output import emit, harmless, message, stderr, table, when
from broker.errors import InvalidRequest

EXPORTS: Final = "exports"
"""What stands for a report's name where what became of exports is asked for."""
EXPORT: Final = "export"
"""What stands for a report's name where periods of an export are asked for."""
NOT_WRITTEN: Final = 1
"""Exit code of a command that waited for periods of which one could not be written."""
LOOK_S: Final = 1.0
Period = Annotated[
    str | None,
    typer.Option(
        "--period",
        metavar="PERIOD",
        help="Of `export`: a finished day, week or month, as it has them: `2026-09`.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Of `export`: wait until it is written.")]


def refuse_of_reports(options: Mapping[str, object]) -> None:
    """Refuse options, by name, that say what a report is like: what an export is like, its setting says."""
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        raise InvalidRequest(
            f"{given} belongs to a report: leave it out; `[reports]` in the settings says what an export is"
        )


def show_exports(
    ctx: typer.Context, name: str | None, days: Mapping[str, str | None], limit: int, *, as_json: bool
) -> None:
    """Show what became of the exports that the worker makes of finished periods, those within these days."""
    with api(ctx) as client:
        found = client.get("/report-exports", name=name, limit=min(limit, 1000), **days)
    empty = "No export yet: see `reports.exports` in docs/settings.md"
    emit(found, lambda: _shown(found["items"], empty), as_json=as_json)


def ask_for_export(
    ctx: typer.Context, name: str | None, days: Mapping[str, str | None], *, wait: bool, as_json: bool
) -> None:
    """Ask for periods of an export; with `wait` until each is written, or what stands in its way is known."""
    if name is None:
        raise InvalidRequest(f"broker report {EXPORT} NAME: which? `broker report {EXPORTS}` lists them")
    with api(ctx) as client:
        found = client.post("/report-exports", {"name": name, **days})
        periods = {one["period"] for one in found["items"]}
        if wait:
            left = _wait(client, name, found["items"])
            found = {**found, "items": _newest(_exports_of(client, name, found["items"]))}
    emit(found, lambda: _shown(found["items"], ""), as_json=as_json)
    if not wait:
        told = f"The worker writes {_counted(len(periods))} within minutes: broker report exports {name}"
        message(told, style="bright_black")
    elif left:
        message(f"{_counted(left)} could not be written yet; the worker goes on trying", style="red")
        raise typer.Exit(NOT_WRITTEN)


def _exports_of(
    client: Api, name: str, wanted: Sequence[dict[str, Any]], *, asked: bool = False
) -> list[dict[str, Any]]:
    """The versions of the periods that `wanted` tells of; `asked`: where somebody still waits for one."""
    days = {"since": min(one["since"] for one in wanted), "until": max(one["until"] for one in wanted)}
    found = client.get("/report-exports", name=name, asked=asked, limit=1000, **days)
    periods = {one["period"] for one in wanted}
    return [one for one in found["items"] if one["period"] in periods]


def _wait(client: Api, name: str, wanted: Sequence[dict[str, Any]]) -> int:
    """Watch until nothing more of what is wanted is under way; gives how many periods have a trouble."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        task = progress.add_task(harmless(name), total=len(wanted))
        while True:
            asked = _exports_of(client, name, wanted, asked=True)
            progress.update(task, completed=len(wanted) - len(asked))
            if all(one["trouble"] for one in asked):
                return len(asked)
            time.sleep(LOOK_S)


def _newest(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest version of each period; `items` have it first."""
    found: dict[str, dict[str, Any]] = {}
    for one in items:
        found.setdefault(one["period"], one)
    return list(found.values())


def _counted(periods: int) -> str:
    """How many periods, in words.

    >>> _counted(1), _counted(3)
    ('1 period', '3 periods')
    """
    return f"{periods} period{'' if periods == 1 else 's'}"


def _shown(items: Sequence[dict[str, Any]], empty: str) -> Any:
    heads = ("EXPORT", "PERIOD", "VERSION>", "REPORT", "STATE", "STORED", "BYTES>", "TROUBLE!")
    rows = [
        (
            one["name"],
            one["period"],
            one["version"],
            one["report"],
            one["state"],
            when(one["stored_at"]),
            sum(file["size"] for file in one["files"]),
            harmless(one["trouble"] or ""),
        )
        for one in items
    ]
    return table(heads, rows, empty=empty)
