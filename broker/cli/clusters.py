"""Bringing a cluster into line with the tenants and priority classes (for admins)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from broker.cli.client import Api
from broker.cli.options import Json, api, examples, group
from broker.cli.output import emit, message, table
from broker.errors import InvalidRequest

app = group("cluster", "A cluster's accounts, people and priority classes. Only admins may use these.")

_NOT_DONE = 1
_SILENT = frozenset({"same", "extra"})


@app.callback()
def _commands() -> None:
    """Keep `sync` a subcommand although it is the only one."""


@app.command(
    epilog=examples(
        "broker cluster sync                           # what differs; changes nothing",
        "broker cluster sync --apply                   # … and mends it",
        "broker cluster sync --apply --adopt team-a    # … this one too, though it was changed by hand",
        "broker cluster sync --script | ssh root@login sh    # for what takes a Slurm Administrator",
    )
)
def sync(
    ctx: typer.Context,
    cluster: Annotated[str | None, typer.Argument(help="Cluster; the default one if unset.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Make the changes.")] = False,
    adopt: Annotated[
        list[str] | None,
        typer.Option("--adopt", metavar="NAME", help="Overwrite this, though it was set by hand; or `all`."),
    ] = None,
    script: Annotated[
        bool, typer.Option("--script", help="Print the changes as a shell script instead of making them.")
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show what is as it should be, too.")] = False,
    as_json: Json = False,
) -> None:
    """Compare tenants, their fair shares, people and priority classes with Slurm; with `--apply`, mend it.

    Ends with status 1 when a change was refused.
    """
    if script and apply:
        raise InvalidRequest("--script makes no changes: leave out --apply")
    with api(ctx) as client:
        name = cluster or _default(client)
        if apply:
            done = client.post(f"/clusters/{name}/sync", {"adopt": adopt or []})
        else:
            done = client.get(f"/clusters/{name}/sync")
    if script:
        emit(done, lambda: "\n".join(_script(done["lines"], set(adopt or []))), as_json=as_json)
        return
    lines = [line for line in done["lines"] if show_all or line["result"] or line["action"] not in _SILENT]
    emit(done, lambda: _table(lines), as_json=as_json)
    refused = [line for line in done["lines"] if line["result"] not in (None, "done")]
    _tell(done, refused)
    if refused:
        raise typer.Exit(_NOT_DONE)


def _default(client: Api) -> str:
    items = client.get("/clusters")["items"]
    found = [one["name"] for one in items if one["default"]]
    if not found:
        raise InvalidRequest("There is no default cluster: name one (`broker clusters` lists them)")
    return str(found[0])


def _script(lines: Iterable[Mapping[str, Any]], adopt: set[str]) -> list[str]:
    names = adopt & {"all"}
    wanted = [
        line["command"]
        for line in lines
        if line["action"] in {"create", "change"}
        or (line["command"] and (names or adopt & {line["name"], f"{line['kind']} {line['name']}"}))
    ]
    return ["# Read `sacctmgr(1)`; then look: broker cluster sync", *wanted]


def _table(lines: list[dict[str, Any]]) -> Any:
    return table(
        ("KIND", "NAME", "WHAT", "HOW IT IS, AND WHAT IT SHOULD BE", "RESULT"),
        (
            (
                line["kind"],
                line["name"],
                line["action"],
                "; ".join(_difference(one) for one in line["differences"]),
                f"{line['result']}: {line['answer']}"
                if line["result"] not in (None, "done")
                else line["result"],
            )
            for line in lines
        ),
        empty="Slurm has what it should have.",
    )


def _difference(one: Mapping[str, Any]) -> str:
    before = (
        "" if one["set_before"] in (None, one["now"]) else f", set before to {one['set_before'] or 'none'}"
    )
    return f"{one['field']} {one['now'] or 'none'} → {one['wanted'] or 'none'}{before}"


def _tell(done: Mapping[str, Any], refused: list[dict[str, Any]]) -> None:
    if refused:
        message(
            f"{len(refused)} changes were not made. QOS take a Slurm Administrator: "
            "`broker cluster sync --script` prints the commands for one."
        )
    if done["by_hand"]:
        message(f"{done['by_hand']} objects were set by hand and left: `--adopt NAME` takes one over.")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)
