"""Looking after the accounting warehouse, on the broker's own machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from broker.cli.options import Json, examples, group
from broker.cli.output import emit, table
from broker.cli.server import open_database

app = group("accounting", "The warehouse of all jobs that the reports are made of.")

Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="This cluster; else every one.")
]


@app.command(epilog=examples("broker accounting status", "broker accounting status --json"))
def status(as_json: Json = False) -> None:
    """Show how far each cluster's accounting has been read, what is in the warehouse, and what is wrong."""
    from broker.accounting.archive import statuses

    with open_database() as (_, database), database.read() as session:
        found = statuses(session)
    items = [one | {"lag_s": max(0, round(datetime.now(UTC).timestamp() - one["read_to"]))} for one in found]
    emit({"items": items}, lambda: _table(items), as_json=as_json)


@app.command(epilog=examples("broker accounting rebuild", "broker accounting rebuild --cluster main"))
def rebuild(cluster: Cluster = None, as_json: Json = False) -> None:
    """Make the sums per day anew from the jobs in the warehouse; Slurm is not asked.

    It is one transaction: readers see the old sums until it ends. On SQLite nothing else can be written
    meanwhile (1,000,000 jobs take minutes): stop `broker up` before.
    """
    from broker.accounting.archive import rebuild as make_anew

    with open_database() as (config, database):
        done: dict[str, int] = {}
        for name in [config.cluster_name(cluster)] if cluster else list(config.clusters):
            with database.write() as session:
                done[name] = make_anew(session, name)
    emit(
        {"items": [{"cluster": name, "jobs": jobs} for name, jobs in done.items()]},
        lambda: table(("CLUSTER", "JOBS"), list(done.items()), empty="No cluster is configured."),
        as_json=as_json,
    )


def _table(items: list[dict[str, Any]]) -> Any:
    rows = [
        (
            one["cluster"],
            datetime.fromtimestamp(one["read_to"], UTC),
            one["lag_s"],
            one["jobs"],
            one["open"],
            one["runaways"],
            one["bad_rows"],
            one["trouble"] or "",
        )
        for one in items
    ]
    heads = ("CLUSTER", "READ UP TO", "LAG S", "JOBS", "OPEN", "RUNAWAY", "BAD ROWS", "TROUBLE")
    return table(heads, rows, empty="Nothing has been read yet: is a worker running?")


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)
