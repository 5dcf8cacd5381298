"""The command tree, and the one place where errors become words and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from broker import __version__
from broker.cli import (
    accounting,
    admin,
    approvals,
    audit,
    auth,
    clusters,
    costs,
    exports,
    keys,
    models,
    notifications,
    pipelines,
    queue,
    quotas,
    resources,
    run_records,
    runs,
    server,
    tenants,
)
from broker.cli.advice import register as register_advice
from broker.cli.output import message, report
from broker.cli.report import register as register_report
from broker.errors import BrokerError

INTERRUPTED = 130

app = typer.Typer(
    name="broker",
    help="Run pipelines of containers on a Slurm cluster; their results are kept in S3.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"broker {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            envvar="BROKER_SERVER",
            help="The broker's address; else the last login's.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Run pipelines of containers on a Slurm cluster; their results are kept in S3."""
    ctx.obj = server


auth.register(app)
app.add_typer(pipelines.app)
run_records.register(runs.app)
app.add_typer(runs.app)
app.add_typer(approvals.app)
queue.register(app)
app.add_typer(models.app)
admin.register(app)
app.add_typer(tenants.app)
app.add_typer(keys.app)
clusters.register(app)
register_report(app)
app.add_typer(exports.app)
costs.register(app)
register_advice(app)
resources.register(app)
app.add_typer(audit.app)
notifications.register(app)
quotas.register(app)
accounting.register(app)
server.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="broker")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokerError as error:
        report(error, as_json="--json" in words)
        return error.exit_code
    except KeyboardInterrupt:
        message("Interrupted. What was asked for goes on; nothing was taken back.")
        return INTERRUPTED
    return 0
