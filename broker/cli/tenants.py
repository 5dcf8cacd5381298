"""Tenants: who shares work, a quota and a part of the cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import emit, fields, table, when
from broker.errors import InvalidRequest

app = group("tenant", "Tenants: who shares work, a quota and a part of the cluster.")

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Name of a tenant.")]
_Share = typer.Option("--fairshare", min=1, help="Shares of the cluster, relative to the other tenants'.")


@app.command("list", epilog=examples("broker tenant list"))
def list_(ctx: typer.Context, limit: Limit = 100, as_json: Json = False) -> None:
    """List the tenants you may see: your own, for admins all."""
    with api(ctx) as client:
        items = list(client.pages("/tenants", limit))
    emit(
        items,
        lambda: table(
            ("TENANT", "NAME", "FAIRSHARE>", "STATE", "CREATED"),
            (
                (one["name"], one["display_name"], one["fairshare"], _state(one), when(one["created_at"]))
                for one in items
            ),
            empty="No tenants",
        ),
        as_json=as_json,
    )


@app.command(epilog=examples("broker tenant show team-a"))
def show(ctx: typer.Context, tenant: Tenant, as_json: Json = False) -> None:
    """Show one tenant."""
    with api(ctx) as client:
        _emit(client.get(f"/tenants/{tenant}"), as_json)


@app.command(epilog=examples('broker tenant create team-a --display-name "Team A" --fairshare 30'))
def create(
    ctx: typer.Context,
    tenant: Annotated[
        str, typer.Argument(metavar="TENANT", help="Its name, and that of its Slurm account; it stays.")
    ],
    display_name: Annotated[str, typer.Option("--display-name", help="Name for people.")] = "",
    fairshare: Annotated[int, _Share] = 1,
    as_json: Json = False,
) -> None:
    """Make a tenant. `broker cluster sync` makes its Slurm account."""
    with api(ctx) as client:
        body = {"name": tenant, "display_name": display_name, "fairshare": fairshare}
        _emit(client.post("/tenants", body), as_json)


@app.command(epilog=examples("broker tenant change team-a --fairshare 50"))
def change(
    ctx: typer.Context,
    tenant: Tenant,
    display_name: Annotated[str | None, typer.Option("--display-name", help="New name for people.")] = None,
    fairshare: Annotated[int | None, _Share] = None,
    as_json: Json = False,
) -> None:
    """Change fields of a tenant; what is not named stays."""
    wanted = {"display_name": display_name, "fairshare": fairshare}
    body = {name: value for name, value in wanted.items() if value is not None}
    if not body:
        raise InvalidRequest("Nothing to change was named; see: broker tenant change --help")
    _patch(ctx, tenant, body, as_json)


@app.command(epilog=examples("broker tenant close team-a"))
def close(ctx: typer.Context, tenant: Tenant, as_json: Json = False) -> None:
    """Shut a tenant's people out at once; what it has stays."""
    _patch(ctx, tenant, {"active": False}, as_json)


@app.command("open", epilog=examples("broker tenant open team-a"))
def open_(ctx: typer.Context, tenant: Tenant, as_json: Json = False) -> None:
    """Let a closed tenant's people in again."""
    _patch(ctx, tenant, {"active": True}, as_json)


def _patch(ctx: typer.Context, tenant: str, body: dict[str, Any], as_json: bool) -> None:
    with api(ctx) as client:
        _emit(client.patch(f"/tenants/{tenant}", body), as_json)


def _emit(found: dict[str, Any], as_json: bool) -> None:
    shown = ("name", "display_name", "fairshare")
    facts = [(key.replace("_", " "), found[key]) for key in shown]
    emit(found, lambda: fields([*facts, ("state", _state(found))]), as_json=as_json)


def _state(tenant: dict[str, Any]) -> str:
    return "open" if tenant["active"] else "closed"
