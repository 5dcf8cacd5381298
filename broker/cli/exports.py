"""Exports of reports to the object store: what became of them, and asking for those of earlier periods."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from broker.cli.client import Api
from broker.cli.options import Json, api, examples, group
from broker.cli.output import emit, harmless, message, stderr, table, when
from broker.cli.periods import Last, Since, Until, chosen_period

app = group("exports", "Reports that are written to the object store by themselves, and earlier periods.")

NOT_WRITTEN: Final = 1
"""Exit code of a command that waited for periods of which one could not be written."""
LOOK_S: Final = 1.0


@app.command(
    "list",
    epilog=examples(
        "broker exports list", "broker exports list monthly-usage --since 2026-01-01 --until 2026-10-01"
    ),
)
def list_exports(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this export.")] = None,
    last: Last = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """List what became of the exports (`[reports]` in the settings), the latest periods first; for admins.

    Of some days those whose periods lie whole within them.
    """
    with api(ctx) as client:
        found = client.get("/report-exports", name=name, limit=limit, **chosen_period(last, since, until))
    emit(found, lambda: _shown(found["items"]), as_json=as_json)


@app.command(
    epilog=examples(
        "broker exports ask monthly-usage --period 2026-09 --wait",
        "broker exports ask monthly-usage --since 2026-01-01 --until 2026-10-01",
    )
)
def ask(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The export.")],
    period: Annotated[
        str | None,
        typer.Option(
            "--period",
            metavar="PERIOD",
            help="A finished day, week or month, as the export has them: `2026-09`.",
        ),
    ] = None,
    last: Last = None,
    since: Since = None,
    until: Until = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is written.")] = False,
    as_json: Json = False,
) -> None:
    """Ask the worker to write earlier periods of an export: one by its name, or all whole ones of some days.

    For admins. With --wait the exit code is 1 if one could not be written yet; most are tried again.
    """
    days = chosen_period(last, since, until)
    with api(ctx) as client:
        found = client.post("/report-exports", {"name": name, "period": period, **days})
        periods = {one["period"] for one in found["items"]}
        if wait:
            _wait(client, name, found["items"])
            found = {**found, "items": _newest(_exports_of(client, name, found["items"]))}
    emit(found, lambda: _shown(found["items"]), as_json=as_json)
    if not wait:
        told = f"The worker writes {_counted(len(periods))} within minutes: broker exports list {name}"
        message(told, style="bright_black")
    elif left := sum(one["state"] != "stored" or one["asked_at"] is not None for one in found["items"]):
        message(f"{_counted(left)} could not be written yet: TROUBLE says why", style="red")
        raise typer.Exit(NOT_WRITTEN)


def _exports_of(
    client: Api, name: str, wanted: Sequence[dict[str, Any]], *, asked: bool = False
) -> list[dict[str, Any]]:
    """The versions of the periods that `wanted` tells of; `asked`: where somebody still waits for one."""
    days = {"since": min(one["since"] for one in wanted), "until": max(one["until"] for one in wanted)}
    found = client.get("/report-exports", name=name, asked=asked, limit=1000, **days)
    periods = {one["period"] for one in wanted}
    return [one for one in found["items"] if one["period"] in periods]


def _wait(client: Api, name: str, wanted: Sequence[dict[str, Any]]) -> None:
    """Watch until nothing more of what is wanted is under way: it is done, or has a trouble."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
        task = progress.add_task(harmless(name), total=len(wanted))
        while True:
            asked = _exports_of(client, name, wanted, asked=True)
            progress.update(task, completed=len(wanted) - len(asked))
            if all(one["trouble"] for one in asked):
                return
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


def _shown(items: Sequence[dict[str, Any]]) -> RenderableType:
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
    return table(heads, rows, empty="No export yet: see `reports.exports` in docs/settings.md")
