"""The server's side: `broker up`, its parts one by one, and looking after the database."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.configuration import load_settings
from broker.cli.options import Json, examples, group
from broker.cli.output import emit, fields, print_json, stdout, table
from broker.errors import ConfigurationError, Unreachable

if TYPE_CHECKING:
    from broker.db import Database
    from broker.settings import Settings

db = group("db", "The broker's database.")

ParentPid = Annotated[int | None, typer.Option("--parent-pid", hidden=True)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=examples("broker up", "broker up --ready-file /run/broker/ready"))(up)
    app.command(epilog=examples("broker serve", "broker serve --host 0.0.0.0 --port 80"))(serve)
    app.command(epilog=examples("broker worker"))(worker)
    app.add_typer(db)
    app.command(epilog=examples("broker settings", "BROKER_API__PORT=9000 broker settings --json"))(settings)
    app.command(epilog=examples("broker doctor", "broker doctor --cluster main --json"))(doctor)


def up(
    ready_file: Annotated[
        Path | None,
        typer.Option("--ready-file", metavar="PATH", help="Write the address here once it answers."),
    ] = None,
) -> None:
    """Run everything here: object store, database, API and worker, in one process group.

    Needs nothing but a folder (`data_dir`): SQLite and an S3 server are brought along, unless the settings
    name others. Prints `ready URL` on standard output once it answers; logs go to standard error. SIGTERM or
    Ctrl-C ends all of it in order.
    """
    from broker.cli.up import run_everything

    raise typer.Exit(run_everything(load_settings(), ready_file))


def serve(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; else `api.host`.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; else `api.port`.")
    ] = None,
    fd: Annotated[int | None, typer.Option("--fd", hidden=True)] = None,
    parent_pid: ParentPid = None,
) -> None:
    """Serve the API (and nothing else) until SIGTERM."""
    _attach(parent_pid)
    from broker.cli.serving import serve_api

    config = load_settings()
    serve_api(
        config,
        host=config.api.host if host is None else host,
        port=config.api.port if port is None else port,
        fd=fd,
        supervised=parent_pid is not None,
    )


def worker(parent_pid: ParentPid = None) -> None:
    """Submit, track and collect runs until SIGTERM. Several may run: one is active for each cluster."""
    _attach(parent_pid)
    from broker.cli.serving import work

    work(load_settings(), supervised=parent_pid is not None)


def settings(as_json: Json = False) -> None:
    """Show the settings in force. `docs/settings.md` describes each."""
    shown = _shown(load_settings())
    if as_json:
        print_json(shown)
    else:
        stdout().print(fields(_flat(shown)))


def doctor(
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="NAME", help="Check this cluster; else every one.")
    ] = None,
    no_jobs: Annotated[
        bool, typer.Option("--no-jobs", help="Submit no probe jobs (then less is known).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check clusters, object store and database before anyone trusts them, and say how to mend each.

    Tiny probe jobs are submitted (a held one, and one that looks at a compute node). Exit code 1 if a check
    fails; warnings do not count.
    """
    from broker.cli.checking import diagnose

    raise typer.Exit(diagnose(load_settings(), cluster, with_jobs=not no_jobs, as_json=as_json))


@db.command(epilog=examples("broker db upgrade"))
def upgrade(as_json: Json = False) -> None:
    """Bring the tables to what this version of the broker needs. Repeating it is harmless.

    The first time it also makes the first admin and says where the one-time password lies.
    """
    from broker import schema
    from broker.identity import service

    with open_database() as (config, database):
        before, after = schema.upgrade(database)
        first = service.ensure_first_admin(database, config.data_dir)
    told = (
        f"Already current ({after})."
        if before == after
        else f"Upgraded from {before or 'nothing'} to {after}."
    )
    if first:
        told += f" Log in as {first.username!r}; the one-time password lies in {first.path}."
    answer = {"before": before, "after": after, "password_file": str(first.path) if first else None}
    emit(answer, lambda: told, as_json=as_json)


@db.command(epilog=examples("broker db current"))
def current(as_json: Json = False) -> None:
    """Show which revision the tables have and which one is needed."""
    from broker import schema

    with open_database() as (_, database):
        has, needs = schema.revision(database), schema.head()
    emit(
        {"revision": has, "needed": needs, "current": has == needs},
        lambda: table(
            ("TABLES", "NEEDED", "CURRENT"), [(has, needs, "yes" if has == needs else "no")], empty=""
        ),
        as_json=as_json,
    )


@db.command("reset-admin", epilog=examples("broker db reset-admin", "broker db reset-admin --username kim"))
def reset_admin(
    username: Annotated[str, typer.Option("--username", help="The admin who is locked out.")] = "admin",
    as_json: Json = False,
) -> None:
    """Give an admin a new one-time password, and void every token of the account."""
    from broker.identity import service

    with open_database() as (config, database):
        made = service.reset_admin(database, config.data_dir, username)
    emit(
        {"username": made.username, "password_file": str(made.path)},
        lambda: f"The one-time password of {made.username} lies in {made.path}; it must be changed at login.",
        as_json=as_json,
    )


def _attach(parent_pid: int | None) -> None:
    if parent_pid is not None:
        from broker.supervisor import die_with

        die_with(parent_pid)


@contextmanager
def open_database() -> Iterator[tuple[Settings, Database]]:
    """The database of the settings; one that does not answer is `Unreachable`."""
    from sqlalchemy.exc import OperationalError

    from broker.db import Database

    config = load_settings()
    database = Database(config.sqlalchemy_url)
    try:
        yield config, database
    except OperationalError as error:
        raise database_trouble(error) from None
    finally:
        database.close()


def database_trouble(error: Any) -> Unreachable | ConfigurationError:
    """What an operational error of the database means to whoever runs the broker."""
    text = str(error.orig).strip().replace("\n", " ")
    if "no such table" in text or "does not exist" in text:
        return ConfigurationError(
            f"The database has not the tables it needs ({text}): run `broker db upgrade`"
        )
    return Unreachable(f"The database does not answer: {text}")


def _shown(config: Settings) -> dict[str, Any]:
    from sqlalchemy import make_url

    data: dict[str, Any] = config.model_dump(mode="json")
    url = config.database_url or config.sqlalchemy_url
    data["database_url"] = make_url(url).render_as_string(hide_password=True)
    return data


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in data.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "–" if value in (None, [], {}) else value))
    return rows


def this_program(*words: str) -> list[str]:
    """The argument list of another `broker` of this very environment, attached to this process."""
    return [sys.executable, "-m", "broker.cli", *words, "--parent-pid", str(os.getpid())]
