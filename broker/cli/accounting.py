"""Looking after the accounting warehouse, on the broker's own machine."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.options import Json, examples, group
from broker.cli.output import emit, harmless, table, when
from broker.cli.server import open_database
from broker.errors import Conflict

if TYPE_CHECKING:
    from broker.accounting.rebuild import Progress
    from broker.db import Database

app = group("accounting", "The warehouse of all jobs that the reports are made of.")

Names = Annotated[
    bool,
    typer.Option(
        "--names",
        help="First give the jobs of accounts that nobody had the names of today; written down in the audit "
        "trail. History moves: what was told or invoiced before differs.",
    ),
]
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


@app.command(
    epilog=examples(
        "broker accounting rebuild",
        "broker accounting rebuild --cluster main",
        "broker accounting rebuild --names",
    )
)
def rebuild(cluster: Cluster = None, names: Names = False, as_json: Json = False) -> None:
    """Make the sums per day anew from the jobs in the warehouse; Slurm is not asked.

    Part by part, while the broker goes on working: each day is corrected at once, in a short transaction, so
    a report shows it as it was or as it should be. Where it is stopped, begin again: what is right stays.
    """
    from broker.accounting.rebuild import rebuild as make_anew
    from broker.db.leases import LeaseLost

    holder = f"{socket.gethostname()}:{os.getpid()}"
    with open_database() as (config, database):
        done: dict[str, tuple[int, int]] = {}
        for name in [config.cluster_name(cluster)] if cluster else list(config.clusters):
            renamed = _rename(database, name, config.clusters[name].account, holder) if names else 0

            def tell(progress: Progress, name: str = name) -> None:
                typer.echo(f"{name}: {_told(progress)}", err=True)

            def waits(other: str, name: str = name) -> None:
                typer.echo(f"{name}: {_waits(other)}", err=True)

            try:
                done[name] = make_anew(database, name, holder, tell, waits).jobs, renamed
            except LeaseLost:
                detail = f"Another rebuild of {name} took over while this one stood still: it does the rest"
                raise Conflict(detail) from None
    emit(
        {"items": [{"cluster": name, "jobs": n, "renamed": m} for name, (n, m) in done.items()]},
        lambda: table(
            ("CLUSTER", "JOBS>", "RENAMED>"),
            [(name, *counts) for name, counts in done.items()],
            empty="No cluster is configured.",
        ),
        as_json=as_json,
    )


def _rename(database: Database, cluster: str, default_account: str | None, holder: str) -> int:
    """Rename, and tell what; how many jobs it was."""
    from broker.accounting.archive import People
    from broker.accounting.renaming import rename

    jobs = 0
    note = f"broker accounting rebuild --names ({holder})"
    for one in rename(database, People(cluster, default_account), note):
        jobs += one.jobs
        change = one.renaming
        typer.echo(
            f"{cluster}: {one.jobs:,} jobs of {harmless(change.account)}: {change.what} "
            f"{harmless(change.before)} is {harmless(change.after)} now",
            err=True,
        )
    return jobs


def _told(progress: Progress) -> str:
    """How far a rebuild is: `42% (154 of 366 days), 9,300 jobs/s, 2 days corrected`."""
    share, rate = progress.days / progress.of, progress.jobs / max(progress.seconds, 0.001)
    days = f"{progress.days} of {progress.of} days"
    return f"{share:.0%} ({days}), {rate:,.0f} jobs/s, {progress.changed} days corrected"


def _waits(other: str) -> str:
    """What a rebuild says that has to wait for `other` (`HOST:PID`)."""
    host, _, pid = other.rpartition(":")
    return f"another rebuild works (process {pid} on {host}); waiting for it, up to 30 s if it was killed"


def _table(items: list[dict[str, Any]]) -> Any:
    rows = [
        (
            one["cluster"],
            when(datetime.fromtimestamp(one["read_to"], UTC).isoformat()),
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
