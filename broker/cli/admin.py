"""Accounts (for admins) and clusters."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import emit, fields, table, when
from broker.errors import InvalidRequest
from broker.settings import RoleName as Role

users = group("user", "Accounts: an admin's are everybody's, a tenant admin's the tenant's.")

Username = Annotated[str, typer.Argument(metavar="USER", help="User name or id.")]
_COLUMNS = (
    "username",
    "role",
    "tenant",
    "active",
    "must_change_password",
    "display_name",
    "unix_account",
    "max_training_hours",
)
_EMPTIABLE = ("unix_account", "max_training_hours")


@users.command(
    epilog=examples(
        "broker user create kim --role researcher --tenant team-a",
        "broker user create lee --unix-account lee --password-stdin < first-password.txt",
    )
)
def create(
    ctx: typer.Context,
    username: Annotated[str, typer.Argument(metavar="USER", help="Name to log in with.")],
    role: Annotated[Role, typer.Option("--role", help="What the account may do.")] = "researcher",
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose work it sees; else your own tenant.")
    ] = None,
    display_name: Annotated[str, typer.Option("--display-name", help="Name for people.")] = "",
    unix_account: Annotated[
        str | None, typer.Option("--unix-account", help="Account on the clusters (admins).")
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read a first password; else the broker makes one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Create an account. Its password must be changed at the first login."""
    body: dict[str, Any] = {
        "username": username,
        "role": role,
        "tenant": tenant,
        "display_name": display_name,
        "unix_account": unix_account,
    }
    if password_stdin:
        body["password"] = sys.stdin.readline().rstrip("\r\n")
    with api(ctx) as client:
        made = client.post("/users", body)
    emit(
        made,
        lambda: fields([*_facts(made), ("password, once", made.get("one_time_password"))]),
        as_json=as_json,
    )


@users.command("list", epilog=examples("broker user list"))
def list_(ctx: typer.Context, limit: Limit = 100, as_json: Json = False) -> None:
    """List the accounts."""
    with api(ctx) as client:
        items = list(client.pages("/users", limit))
    emit(
        items,
        lambda: table(
            ("USER", "ROLE", "TENANT", "ACTIVE", "NAME", "CREATED"),
            (
                (
                    one["username"],
                    one["role"],
                    one["tenant"],
                    "yes" if one["active"] else "no",
                    one["display_name"],
                    when(one["created_at"]),
                )
                for one in items
            ),
            empty="No accounts",
        ),
        as_json=as_json,
    )


@users.command(epilog=examples("broker user show kim"))
def show(ctx: typer.Context, user: Username, as_json: Json = False) -> None:
    """Show one account."""
    with api(ctx) as client:
        found = client.get(f"/users/{user}")
    emit(found, lambda: fields(_facts(found)), as_json=as_json)


@users.command(
    epilog=examples("broker user change kim --role viewer", "broker user change kim --unix-account kim")
)
def change(
    ctx: typer.Context,
    user: Username,
    role: Annotated[Role | None, typer.Option("--role", help="New role.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="New tenant.")] = None,
    display_name: Annotated[str | None, typer.Option("--display-name", help="New name for people.")] = None,
    unix_account: Annotated[
        str | None, typer.Option("--unix-account", help="Account on the clusters, or `none` (admins).")
    ] = None,
    max_training_hours: Annotated[
        str | None,
        typer.Option("--max-training-hours", help="Longest time limit, up to 72, or `none` (admins)."),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read a new one-time password.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Change fields of an account; what is not named stays."""
    body: dict[str, Any] = {
        "role": role,
        "tenant": tenant,
        "display_name": display_name,
        "unix_account": unix_account,
        "max_training_hours": max_training_hours,
        "password": sys.stdin.readline().rstrip("\r\n") if password_stdin else None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    body |= {name: None for name in _EMPTIABLE if body.get(name) == "none"}
    if not body:
        raise InvalidRequest("Nothing to change was named; see: broker user change --help")
    _patch(ctx, user, body, as_json)


@users.command(epilog=examples("broker user deactivate kim"))
def deactivate(ctx: typer.Context, user: Username, as_json: Json = False) -> None:
    """Shut an account out at once: its logins, tokens and API keys end with it."""
    _patch(ctx, user, {"active": False}, as_json)


@users.command(epilog=examples("broker user activate kim"))
def activate(ctx: typer.Context, user: Username, as_json: Json = False) -> None:
    """Let an account in again."""
    _patch(ctx, user, {"active": True}, as_json)


@users.command(epilog=examples("broker user identities kim"))
def identities(ctx: typer.Context, user: Username, as_json: Json = False) -> None:
    """List who at a provider signs on as an account."""
    with api(ctx) as client:
        items = client.get(f"/users/{user}/identities")["items"]
    emit(
        items,
        lambda: table(
            ("ISSUER", "SUBJECT", "LINKED", "LAST SIGN-ON"),
            (
                (one["issuer"], one["subject"], when(one["linked_at"]), when(one["signed_on_at"]))
                for one in items
            ),
            empty="Nobody signs on as this account elsewhere; it has a password of its own.",
        ),
        as_json=as_json,
    )


@users.command(epilog=examples("broker user unlink kim"))
def unlink(ctx: typer.Context, user: Username, as_json: Json = False) -> None:
    """Let nobody sign on as an account any more, as when the provider made its person anew.

    Ends its logins and API keys. With `oidc.link_by_username` the next sign-on by that name is linked.
    """
    with api(ctx) as client:
        client.delete(f"/users/{user}/identities")
    emit({"user": user, "unlinked": True}, lambda: f"Nobody signs on as {user} any more.", as_json=as_json)


def clusters(ctx: typer.Context, as_json: Json = False) -> None:
    """List the clusters, and how fresh the knowledge of each is."""
    with api(ctx) as client:
        items = client.get("/clusters")["items"]
    emit(
        items,
        lambda: table(
            ("CLUSTER", "DEFAULT", "SLURM", "REACHABLE", "SEEN", "IN THE WAY"),
            (
                (
                    one["name"],
                    "yes" if one["default"] else "",
                    one["slurm_version"],
                    {True: "yes", False: "no", None: "not looked yet"}[one["reachable"]],
                    f"{one['age_s']:.0f} s ago" if one["age_s"] is not None else "",
                    one["trouble"],
                )
                for one in items
            ),
            empty="No cluster is configured: docs/operations.md says how.",
        ),
        as_json=as_json,
    )


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(users)
    app.command(epilog=examples("broker clusters", "broker clusters --json"))(clusters)


def _patch(ctx: typer.Context, user: str, body: dict[str, Any], as_json: bool) -> None:
    with api(ctx) as client:
        found = client.patch(f"/users/{user}", body)
    emit(found, lambda: fields(_facts(found)), as_json=as_json)


def _facts(user: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name.replace("_", " "), user.get(name)) for name in _COLUMNS]
