"""Every route × every role × the own tenant's things and another tenant's: who may what, and no leak.

Each route is declared in tests/access.py and is asked with real objects. A route that is not declared fails,
and so does a declaration without a route. Every answer to anybody but an admin is searched for what is
another tenant's; what may not be known is answered exactly as what does not exist; what is refused changes
nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import update

from broker.api.app import make_app
from broker.api.openapi import api_routes
from broker.api.security import PUBLIC, declared_permission
from broker.identity import Permission, Role
from broker.identity.permissions import ALLOWED
from broker.notifications.tables import DeliveryRow
from broker.objects import EmbeddedObjectStore, ObjectStore
from tests.access import FIXED, HOOK, PEOPLE, PROBES, ROLES, SOCKETS, STANDS_FOR, Probe
from tests.api_support import Api, context
from tests.asgi import Answer, ask
from tests.harness.product import UNLIMITED
from tests.tenants import OURS, THEIRS, Snapshot, Tenant

APP = make_app()
ROUTES = {
    f"{method} {route.path}": declared_permission(route)
    for route in api_routes(APP)
    for method in route.methods
}
CASES = [
    pytest.param(route, probe, id=route + probe.query + ("" if index == 0 else f" #{index + 1}"))
    for route, declared in PROBES.items()
    for index, probe in enumerate(declared if isinstance(declared, tuple) else (declared,))
]


class World:
    """The application with two tenants in it."""

    def __init__(self, api: Api) -> None:
        self.api, self.requests = api, 0
        api.add("root", Role.ADMIN)
        self.things = {name: Tenant(api, name).ids for name in (OURS, THEIRS)}
        for name, role in PEOPLE.items():
            api.add(name, role, OURS)
        for permission in Permission:
            # who looks after people gives them no more than the key may do itself
            more = ALLOWED[Role.ADMIN] if permission is Permission.USERS_MANAGE else frozenset()
            body = {"name": "one scope", "scopes": sorted({permission, *more} - {Permission.KEYS_MANAGE})}
            if permission is not Permission.KEYS_MANAGE:
                made = api.call("POST", "/keys", "root", json=body)
                api.tokens[f"key {permission}"] = made.json()["key"]
                api.call("GET", "/auth/me", f"key {permission}")  # its first use is noted now
        self.nothing = {kind: _like(value) for kind, value in self.things[THEIRS].items()}
        self.snapshot = Snapshot(api.ctx)
        self.secrets = {THEIRS} | set(self.things[THEIRS].values()) | self._ids_of(THEIRS)

    def _ids_of(self, tenant: str) -> set[str]:
        """The id of everything that is of a tenant, or of a run of it."""
        found: set[str] = set()
        runs = {row[0] for row in self._named("runs", "id", "tenant") if row[1] == tenant}
        for table, column, wanted in (
            *((table, "tenant", {tenant}) for table in ("users", "pipelines", "uploads", "models", "runs")),
            *((table, "run_id", runs) for table in ("jobs", "model_versions")),
        ):
            found |= {row[0] for row in self._named(table, "id", column) if row[1] in wanted}
        return found

    def _named(self, table: str, *columns: str) -> list[tuple[Any, ...]]:
        with self.api.ctx.db.engine.connect() as connection:
            chosen = f"select {', '.join(columns)} from {table}"
            return [tuple(row) for row in connection.exec_driver_sql(chosen)]

    def ask(self, route: str, probe: Probe, who: str | None, things: Mapping[str, str]) -> Answer:
        """The route as `probe` asks it, about these things."""
        method, path = route.split(" ", 1)
        stands_for = STANDS_FOR | dict(probe.of)
        values = {name: things[kind] for name, kind in stands_for.items()} | FIXED
        if path.startswith("/api/v1/clusters/"):
            values["name"] = "main"
        url = re.sub(r"{(\w+)}", lambda found: values[found[1]], path) + _filled(probe.query, things)
        headers = self.api.headers(who) | dict(probe.headers)
        self.requests += 1
        until = THEIRS if probe.lists and who == "root" else ""
        return ask(self.api.app, method, url, headers, _filled(probe.body, things), until=until)


def _filled(value: Any, things: Mapping[str, str]) -> Any:
    """`value` with a tenant's things for `$name`."""
    if isinstance(value, str):
        return re.sub(r"\$(\w+)", lambda found: things.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {key: _filled(item, things) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, things) for item in value]
    return value


def _like(value: str) -> str:
    """A name of the same form that stands for nothing."""
    return value.replace(THEIRS, "elsewhere") if THEIRS in value else value[:-12] + "0" * 12


def _about_an_object(route: str, probe: Probe) -> bool:
    named = "{" in route and not route.split(" ")[1].startswith("/api/v1/clusters/")
    body = probe.body if isinstance(probe.body, str | dict) else ""
    return named or "$" in probe.query or "$" in json.dumps(body)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    with EmbeddedObjectStore(folder / "s3") as endpoint:
        store = ObjectStore(endpoint.config("models"))
        store.ensure_bucket()
        with context(folder / "data", objects=store, quotas=UNLIMITED) as ctx:
            api = Api(ctx)
            with api.http:
                made = World(api)
                yield made
        print(
            f"{len(PROBES)} of {len(ROUTES)} routes declared; {made.requests} requests by {len(ROLES)} "
            f"people of {len(set(ROLES.values()))} roles, with API keys and without a token, searched for "
            f"{len(made.secrets)} names and ids of another tenant"
        )


@pytest.fixture(autouse=True)
def _as_it_was(world: World) -> Iterator[None]:
    yield
    world.snapshot.restore()
    world.api.app.state.authenticator.forget(None)


def good(probe: Probe) -> tuple[int, ...]:
    return probe.good if isinstance(probe.good, tuple) else (probe.good,)


def shown(answer: Answer, things: Mapping[str, str]) -> str:
    """What an answer tells beyond what it was asked about."""
    text = answer.text + json.dumps(answer.headers)
    for value in sorted(things.values(), key=len, reverse=True):
        text = text.replace(value, "…")
    return text


def check_no_leak(world: World, answer: Answer, asked_about: Mapping[str, str] | None = None) -> None:
    text = shown(answer, asked_about) if asked_about else answer.text + json.dumps(answer.headers)
    found = [secret for secret in world.secrets if secret in text]
    assert not found, f"{found} of another tenant in: {text[:2000]}"


def test_every_route_is_declared_and_every_declaration_is_a_route() -> None:
    assert sorted(PROBES) == sorted(ROUTES)
    assert {None} & set(ROUTES.values()) == set()


def test_nothing_else_answers_but_the_declared_sockets_and_the_documentation() -> None:
    others = {
        context.path
        for context in iter_route_contexts(APP.routes)
        if not isinstance(context.original_route, APIRoute)
    }
    assert others == SOCKETS | {"/api/v1/openapi.json", "/api/v1/docs"}


def test_the_worlds_secrets_are_found_where_they_are_shown(world: World) -> None:
    """The oracle itself: an admin's answers are full of what nobody else may see."""
    for route in ("GET /api/v1/runs", "GET /api/v1/users", "GET /api/v1/audit"):
        answer = world.ask(route, Probe(), "root", world.things[OURS])
        with pytest.raises(AssertionError, match="another tenant"):
            check_no_leak(world, answer)


@pytest.mark.parametrize(("route", "probe"), CASES)
def test_own_tenants_things_are_for_who_may(world: World, route: str, probe: Probe) -> None:
    permission = ROUTES[route]
    for who, role in ROLES.items():
        answer = world.ask(route, probe, who, world.things[OURS])
        allowed = permission == PUBLIC or permission in ALLOWED[role]
        if not allowed:
            expected: tuple[int, ...] = (403,)
        elif not _about_an_object(route, probe):
            expected = good(probe)
        elif not probe.sees(who):
            expected = (probe.hidden,)
        else:
            expected = good(probe) if probe.acts(who) else (403,)
        assert answer.status in expected, (who, expected, answer.status, answer.text[:600])
        if answer.status >= 400 and answer.status in (403, 404):
            assert world.snapshot.changed() == [], f"{who} was refused, and yet something changed"
        if role is not Role.ADMIN:
            check_no_leak(world, answer)
        if not route.startswith("GET"):
            world.snapshot.restore()
            world.api.app.state.authenticator.forget(None)
    if probe.lists:
        answer = world.ask(route, probe, "root", world.things[OURS])
        assert OURS in answer.text and THEIRS in answer.text


@pytest.mark.parametrize(("route", "probe"), [case for case in CASES if _about_an_object(*case.values)])
def test_another_tenants_things_are_as_if_they_were_not_there(world: World, route: str, probe: Probe) -> None:
    permission = ROUTES[route]
    theirs = world.things[THEIRS]
    for who, role in ROLES.items():
        if role is Role.ADMIN:
            continue
        answer = world.ask(route, probe, who, theirs)
        expected = probe.hidden if permission in ALLOWED[role] else 403
        assert answer.status == expected, (who, answer.status, answer.text[:600])
        check_no_leak(world, answer, theirs)
        assert world.snapshot.changed() == [], f"{who} changed what is another tenant's"
        nothing = world.ask(route, probe, who, world.nothing)
        assert (nothing.status, _told(nothing, world.nothing)) == (answer.status, _told(answer, theirs)), who
    answer = world.ask(route, probe, "root", theirs)
    assert answer.status in good(probe), answer.text[:600]


def _told(answer: Answer, things: Mapping[str, str]) -> str:
    """An answer without what it was asked about, and without what is new each time."""
    text = re.sub(r'"request_id": ?"[^"]*"', "", answer.text)
    for value in sorted(things.values(), key=len, reverse=True):
        text = text.replace(value, "…")
    return text


@pytest.mark.parametrize(("route", "probe"), CASES)
def test_nobody_gets_in_without_a_token(world: World, route: str, probe: Probe) -> None:
    answer = world.ask(route, probe, None, world.things[THEIRS])
    if ROUTES[route] == PUBLIC:
        assert answer.status in good(probe)
    else:
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
    check_no_leak(world, answer, world.things[THEIRS])
    assert world.snapshot.changed() in ([], ["login_tries"])


@pytest.mark.parametrize(("route", "probe"), CASES)
def test_a_key_opens_what_its_scope_names_and_nothing_else(world: World, route: str, probe: Probe) -> None:
    permission = ROUTES[route]
    if permission == PUBLIC:
        return
    for scope in (permission, next(one for one in ("runs:read", "models:read") if one != permission)):
        if scope == Permission.KEYS_MANAGE:
            continue  # there is no such key
        answer = world.ask(route, probe, f"key {scope}", world.things[OURS])
        fits = scope == permission or permission == Permission.ACCOUNT
        assert answer.status in good(probe) if fits else answer.status == 403, (scope, answer.text[:600])
        world.snapshot.restore()
        world.api.app.state.authenticator.forget(None)


def test_the_socket_tells_no_other_tenants_news(world: World) -> None:
    for who in ROLES:
        told = world.api.call("GET", "/notifications", who).json()["items"]
        with world.api.http.websocket_connect(
            "/api/v1/notifications/ws?after=0", headers=world.api.headers(who)
        ) as socket:
            heard = [socket.receive_json() for _ in told]
        assert {item["id"] for item in heard} == {item["id"] for item in told}
        text = json.dumps(heard)
        assert (THEIRS in text) is (who == "root")
    assert any(item["subject"].startswith(THEIRS) for item in heard) or who != "root"


def test_a_dead_delivery_is_needed_to_send_one_again(world: World) -> None:
    """What the matrix sends again was given up: else its 202 would prove nothing."""
    with world.api.ctx.db.write() as session:
        session.execute(update(DeliveryRow).values(state="pending"))
    route = "POST /api/v1/notifications/deliveries/{delivery_id}/retry"
    assert world.ask(route, HOOK, "root", world.things[OURS]).status == 409
