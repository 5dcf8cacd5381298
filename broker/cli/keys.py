"""API keys: for programs, instead of a password."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import emit, fields, message, table, when

app = group("key", "API keys: for programs, instead of a password.")


@app.command(
    epilog=examples(
        "broker key create nightly --scope runs:read --scope runs:write --days 30",
        "export BROKER_TOKEN=$(broker key create ci --json | jq -r .key)",
    )
)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="PERMISSION", help="What it may do; repeatable. Else all you may."),
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", min=1, help="Its life; else the server's default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an API key and show it, once. Programs send it as a token (`BROKER_TOKEN`)."""
    with api(ctx) as client:
        made = client.post("/keys", {"name": name, "scopes": scope or None, "expires_in_days": days})
    emit(
        made,
        lambda: fields([("id", made["id"]), ("until", when(made["expires_at"])), ("key, once", made["key"])]),
        as_json=as_json,
    )
    if not as_json:
        message("Keep it where only the program reads it; nobody can show it again.")


@app.command("list", epilog=examples("broker key list", "broker key list --user kim"))
def list_(
    ctx: typer.Context,
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="Of a person that you look after.")
    ] = None,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List your API keys; never their secrets."""
    with api(ctx) as client:
        items = list(client.pages("/keys", limit, user=user))
    emit(
        items,
        lambda: table(
            ("ID", "NAME", "SCOPES", "UNTIL", "LAST USED", "CREATED"),
            (
                (
                    one["id"],
                    one["name"],
                    "all" if one["scopes"] is None else " ".join(one["scopes"]),
                    when(one["expires_at"]),
                    when(one["last_used_at"]),
                    when(one["created_at"]),
                )
                for one in items
            ),
            empty="No API keys",
        ),
        as_json=as_json,
    )


@app.command(epilog=examples("broker key delete key-1hgw2x9k4a7c3mq0"))
def delete(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `broker key list` shows it.")],
    as_json: Json = False,
) -> None:
    """Revoke an API key at once."""
    with api(ctx) as client:
        client.delete(f"/keys/{key}")
    emit({"id": key, "deleted": True}, lambda: f"Revoked {key}.", as_json=as_json)
