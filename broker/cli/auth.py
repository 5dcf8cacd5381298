"""Logging in, and the own password."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import typer

from broker.cli import credentials
from broker.cli.client import Api
from broker.cli.options import Json, api, examples
from broker.cli.output import emit, fields, message
from broker.cli.renewal import credential_of
from broker.cli.sso import sign_on
from broker.errors import BrokerError, InvalidRequest, Unauthenticated

PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog=examples(
            "broker login --server https://broker.example.org --username kim",
            "broker login --username kim --password-stdin < password.txt",
            "broker login --sso --no-browser",
        )
    )(login)
    app.command(epilog=examples("broker logout"))(logout)
    app.command(epilog=examples("broker whoami", "broker whoami --json"))(whoami)
    app.command(epilog=examples("broker password"))(password)


def login(
    ctx: typer.Context,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="The broker's address.")
    ] = None,
    username: Annotated[str | None, typer.Option("--username", "-u", help="Asked for if left out.")] = None,
    password_stdin: PasswordStdin = False,
    sso: Annotated[
        bool, typer.Option("--sso", help="Sign on through the broker's provider, in a browser.")
    ] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="With `--sso`: in a browser elsewhere; a code is typed in.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Log in and keep the token in `~/.config/broker/credentials.json` (0600)."""
    url = credentials.server_url(server or ctx.find_root().obj)
    if credentials.is_exposed(url):
        message(f"{url} is not encrypted: your password can be read on the way. Use https.", style="yellow")
    if sso:
        answer = sign_on(url, here=not no_browser, ask=_code)
        with Api(url, token=answer["access_token"]) as client:
            name = client.get("/auth/me")["username"]
    else:
        name = username or _ask("Username")
        secret = _stdin_line() if password_stdin else _ask("Password", hidden=True)
        with Api(url, token=None) as client:
            answer = client.post("/auth/login", {"username": name, "password": secret})
    expires = _store(url, name, answer)
    must_change = bool(answer.get("must_change_password"))
    emit(
        {"server": url, "username": name, "expires_at": expires, "must_change_password": must_change},
        lambda: fields([("Logged in as", name), ("at", url), ("until", f"{expires:%Y-%m-%d %H:%M} UTC")]),
        as_json=as_json,
    )
    if must_change:
        message(
            "This password was given to you and works once: choose your own with `broker password`.", "yellow"
        )


def logout(ctx: typer.Context, as_json: Json = False) -> None:
    """End the login: the server takes no token of it any more, and this machine forgets it."""
    url = credentials.server_url(ctx.find_root().obj)
    with suppress(Unauthenticated), Api(url, token=None) as client:
        if held := credentials.find(url).refresh_token:
            try:
                client.post("/auth/logout", {"refresh_token": held})
            except Unauthenticated:
                pass  # the login has ended there already
            except BrokerError as error:  # whatever the server's trouble, this machine forgets the token
                message(f"The server was not told, the login there ends by itself. {error}", "yellow")
    found = credentials.forget(url)
    told = f"Logged out of {url}." if found else f"There was no token for {url}."
    emit({"server": url, "logged_out": found}, lambda: told, as_json=as_json)


def whoami(ctx: typer.Context, as_json: Json = False) -> None:
    """Show who you are to the server, and what you may do."""
    with api(ctx) as client:
        me: dict[str, Any] = client.get("/auth/me")
    me["server"] = client.server
    shown = ("username", "display_name", "role", "tenant", "server", "must_change_password")
    emit(me, lambda: fields([(key, me.get(key)) for key in shown]), as_json=as_json)


def password(ctx: typer.Context, password_stdin: PasswordStdin = False, as_json: Json = False) -> None:
    """Change your password. From standard input: the old one, then the new one, a line each."""
    if password_stdin:
        old, new = _stdin_line(), _stdin_line()
    else:
        old = _ask("Present password", hidden=True)
        new = _ask("New password", hidden=True)
        if _ask("New password again", hidden=True) != new:
            raise InvalidRequest("The two new passwords differ; nothing was changed")
    with api(ctx) as client:
        answer = client.post("/auth/password", {"old": old, "new": new})
        name = credentials.find(client.server).username
    expires = _store(client.server, name, answer)
    emit(
        {"changed": True, "expires_at": expires},
        lambda: "Changed. Every older token is void now; this machine has a new one.",
        as_json=as_json,
    )


def _store(url: str, username: str, answer: dict[str, Any]) -> datetime:
    credential = credential_of(username, answer)
    credentials.store(url, credential)
    assert credential.ends_at is not None  # an answer says how long its tokens live
    return credential.ends_at


def _ask(what: str, *, hidden: bool = False) -> str:
    if not sys.stdin.isatty():
        option = "--password-stdin" if hidden else f"--{what.lower()}"
        raise InvalidRequest(f"{what} is missing and there is no terminal to ask at; use {option}")
    return str(typer.prompt(what, hide_input=hidden, err=True))


def _code(what: str) -> str:
    return _ask(what) if sys.stdin.isatty() else _stdin_line()


def _stdin_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise InvalidRequest("A line was expected on standard input, but it is empty")
    return line.rstrip("\r\n")
