"""Telling people: webhooks, what one was told, what one wants to be told."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from broker.cli.client import Api
from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import emit, fields, message, table, when
from broker.errors import InvalidRequest, Unreachable

webhooks = group("webhook", "Webhooks: programs that are told. For admins, and tenants' own admins.")
notifications = group("notification", "What you were told, and what you want to be told.")

_TEST_S = 150.0
_LOOK_S = 0.3
Hook = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="Id of a webhook, as `broker webhook list` shows it.")
]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--kind", metavar="KIND", help="Tell it of this kind; may be repeated. Else of everything."),
]
Description = Annotated[str | None, typer.Option("--description", help="A line for people.")]


@webhooks.command(
    epilog=examples(
        "broker webhook create https://portal.example.org/hook",
        "broker webhook create https://portal.example.org/hook --kind run_failed --kind run_decided",
    )
)
def create(
    ctx: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are sent; https://…")],
    kind: Kinds = None,
    description: Description = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Whose notices; an admin's webhook gets all without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a receiver. Its secret is shown this one time."""
    body = {"url": url, "kinds": kind or [], "description": description or "", "tenant": tenant}
    with api(ctx) as client:
        made = client.post("/webhooks", body)
    emit(made, lambda: _detail(made), as_json=as_json)


@webhooks.command("list", epilog=examples("broker webhook list", "broker webhook list --json"))
def list_(ctx: typer.Context, limit: Limit = 100, as_json: Json = False) -> None:
    """List the webhooks."""
    with api(ctx) as client:
        items = list(client.pages("/webhooks", limit))
    emit(
        items,
        lambda: table(
            ("ID", "TENANT", "URL!", "KINDS", "ACTIVE", "PENDING>", "DEAD>", "DESCRIPTION"),
            (
                (
                    one["id"],
                    one["tenant"] or "all",
                    one["url"],
                    ", ".join(one["kinds"]) or "all",
                    "yes" if one["active"] else "no",
                    one["pending"],
                    one["dead"],
                    one["description"],
                )
                for one in items
            ),
            empty="No webhooks yet: broker webhook create URL",
        ),
        as_json=as_json,
    )


@webhooks.command(epilog=examples("broker webhook show wh-7h2k"))
def show(ctx: typer.Context, webhook: Hook, as_json: Json = False) -> None:
    """Show a webhook."""
    with api(ctx) as client:
        found = client.get(f"/webhooks/{webhook}")
    emit(found, lambda: _detail(found), as_json=as_json)


@webhooks.command(
    epilog=examples(
        "broker webhook change wh-7h2k --off", "broker webhook change wh-7h2k --url https://new.example.org/"
    )
)
def change(
    ctx: typer.Context,
    webhook: Hook,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="New address.")] = None,
    kind: Kinds = None,
    description: Description = None,
    active: Annotated[bool | None, typer.Option("--on/--off", help="Send messages, or none.")] = None,
    as_json: Json = False,
) -> None:
    """Change a webhook; what is not named stays."""
    wanted = {"url": url, "kinds": kind, "description": description, "active": active}
    body = {name: value for name, value in wanted.items() if value is not None}
    if not body:
        raise InvalidRequest("Nothing to change was named; see: broker webhook change --help")
    with api(ctx) as client:
        changed = client.patch(f"/webhooks/{webhook}", body)
    emit(changed, lambda: _detail(changed), as_json=as_json)


@webhooks.command(
    epilog=examples("broker webhook rotate wh-7h2k", "broker webhook rotate wh-7h2k --overlap-hours 0")
)
def rotate(
    ctx: typer.Context,
    webhook: Hook,
    overlap_hours: Annotated[
        float,
        typer.Option("--overlap-hours", min=0, max=720, help="How long the old secret stays valid too."),
    ] = 24,
    as_json: Json = False,
) -> None:
    """Give a webhook a new secret, shown this one time; for a while both are valid."""
    with api(ctx) as client:
        made = client.post(f"/webhooks/{webhook}/rotate", {"overlap_hours": overlap_hours})
    emit(made, lambda: _detail(made), as_json=as_json)


@webhooks.command(epilog=examples("broker webhook test wh-7h2k"))
def test(ctx: typer.Context, webhook: Hook, as_json: Json = False) -> None:
    """Send a test message and wait for how it went; fails when the receiver did not take it."""
    with api(ctx) as client:
        sent = _awaited(client, client.post(f"/webhooks/{webhook}/test")["id"])
    if sent["state"] != "delivered":
        raise Unreachable(f"The test message was not taken: {sent['error']}")
    emit(sent, lambda: f"Taken: it answered {sent['status']} ({sent['message_id']})", as_json=as_json)


@webhooks.command(
    epilog=examples("broker webhook deliveries wh-7h2k", "broker webhook deliveries wh-7h2k --state dead")
)
def deliveries(
    ctx: typer.Context,
    webhook: Hook,
    state: Annotated[
        str | None, typer.Option("--state", help="Only pending, delivered, dead or skipped ones.")
    ] = None,
    limit: Limit = 30,
    as_json: Json = False,
) -> None:
    """Show what was sent to a webhook and how it went, newest first."""
    with api(ctx) as client:
        items = list(client.pages(f"/webhooks/{webhook}/deliveries", limit, state=state))
    emit(items, lambda: _log(items), as_json=as_json)


@webhooks.command(epilog=examples("broker webhook retry dl-7h2k"))
def retry(
    ctx: typer.Context,
    delivery: Annotated[
        str, typer.Argument(metavar="DELIVERY", help="Id as `broker webhook deliveries` shows it.")
    ],
    as_json: Json = False,
) -> None:
    """Send a delivery that ended again, under the same message id."""
    with api(ctx) as client:
        again = client.post(f"/notifications/deliveries/{delivery}/retry")
    emit(again, lambda: _log([again]), as_json=as_json)


@webhooks.command(epilog=examples("broker webhook delete wh-7h2k"))
def delete(ctx: typer.Context, webhook: Hook, as_json: Json = False) -> None:
    """Delete a webhook; the log of its deliveries stays."""
    with api(ctx) as client:
        client.delete(f"/webhooks/{webhook}")
    emit({"deleted": webhook}, lambda: f"Deleted {webhook}", as_json=as_json)


@notifications.command(
    "list", epilog=examples("broker notification list", "broker notification list -n 5 --json")
)
def list_notifications(
    ctx: typer.Context,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only this kind.")] = None,
    korean: Annotated[bool, typer.Option("--korean", help="In Korean.")] = False,
    limit: Limit = 30,
    as_json: Json = False,
) -> None:
    """Show what you were told, newest first."""
    with api(ctx) as client:
        items = list(client.pages("/notifications", limit, kind=kind))
    language = "ko" if korean else "en"
    emit(
        items,
        lambda: table(
            ("AT", "KIND", "TENANT", "WHAT"),
            ((when(one["at"]), one["kind"], one["tenant"], one["text"][language]["title"]) for one in items),
            empty="Nothing yet",
        ),
        as_json=as_json,
    )


@notifications.command(
    epilog=examples(
        "broker notification preferences",
        "broker notification preferences --email kim@example.org --language ko",
        "broker notification preferences --set run_started=stream,email --set quota_80=",
        "broker notification preferences --tenant team-a --email team-a@example.org",
    )
)
def preferences(
    ctx: typer.Context,
    email: Annotated[
        str | None, typer.Option("--email", metavar="ADDRESS", help="Where e-mail goes; `none`: nowhere.")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", help="en or ko.")] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KIND=WAYS", help="Ways of a kind: stream, email; may be repeated."),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="Of a tenant's shared address instead of one's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show, and change, what you are told and how."""
    path = "/notifications/preferences" + (f"/{tenant}" if tenant else "")
    with api(ctx) as client:
        found = client.get(path)
        wanted = {name: found[name] for name in ("email", "language", "channels")}
        if email is not None:
            wanted["email"] = None if email == "none" else email
        if language is not None:
            wanted["language"] = language
        wanted["channels"] = wanted["channels"] | dict(map(_choice, choose or []))
        if email is not None or language is not None or choose:
            found = client.put(path, wanted)
    emit(found, lambda: _wishes(found), as_json=as_json)


def _choice(text: str) -> tuple[str, list[str]]:
    kind, sign, ways = text.partition("=")
    if not sign:
        raise InvalidRequest(f"{text!r} names no ways; write for example run_started=stream,email")
    return kind, [way for way in ways.split(",") if way]


def _awaited(client: Api, delivery: str) -> dict[str, Any]:
    """A delivery once it has ended; raises `Unreachable` when no worker sends it."""
    deadline = time.monotonic() + _TEST_S
    while time.monotonic() < deadline:
        found: dict[str, Any] = client.get(f"/notifications/deliveries/{delivery}")
        if found["state"] != "pending":
            return found
        time.sleep(_LOOK_S)
    raise Unreachable("The test message is still waiting to be sent: is a worker running?")


def _detail(found: dict[str, Any]) -> Any:
    pairs = [
        ("webhook", found["id"]),
        ("tenant", found["tenant"] or "all"),
        ("url", found["url"]),
        ("description", found["description"]),
        ("kinds", ", ".join(found["kinds"]) or "all"),
        ("active", "yes" if found["active"] else "no"),
        ("switched off", found["disabled_reason"]),
        ("deliveries", f"{found['pending']} pending, {found['dead']} dead"),
        (
            "old secret until",
            _moment(found["previous_secret_until"]),
        ),
        ("secret, once", found.get("secret")),
    ]
    return fields(pairs)


def _moment(text: str | None) -> str | None:
    return when(text) if text else None


def _log(items: list[dict[str, Any]]) -> Any:
    return table(
        ("DELIVERY", "MESSAGE", "KIND", "SUBJECT", "STATE", "TRIES>", "STATUS>", "NEXT TRY", "ERROR"),
        (
            (
                one["id"],
                one["message_id"],
                one["kind"],
                one["subject"],
                one["state"],
                one["tries"],
                one["status"],
                _moment(one["next_try_at"]),
                one["error"],
            )
            for one in items
        ),
        empty="Nothing was sent yet",
    )


def _wishes(found: dict[str, Any]) -> Any:
    if found["email"] and not found["email_available"]:
        message("No mail server is configured (`notifications.email_url_file`): no e-mail is sent", "yellow")
    return Group(
        fields([("email", found["email"] or "none"), ("language", found["language"])]),
        Text(""),
        table(
            ("KIND", "COMES BY"),
            ((kind, ", ".join(ways) or "not at all") for kind, ways in found["effective"].items()),
            empty="",
        ),
    )


def register(app: typer.Typer) -> None:
    """Put the groups into the command tree."""
    app.add_typer(webhooks)
    app.add_typer(notifications)
