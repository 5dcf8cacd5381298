"""No route ignores a query parameter that it does not know: walked over all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from starlette.websockets import WebSocketDisconnect

from broker.api.app import make_app
from broker.api.openapi import api_routes
from broker.api.parameters import parameters_of
from broker.audit.tables import AuditRow
from broker.identity import Role
from tests.api_support import Api, context

DOCS = Path(__file__).resolve().parents[2] / "docs"
CALLBACK = "/api/v1/auth/oidc/callback"
PROBED = ("/healthz", "/readyz", "/metrics")
OPEN = (CALLBACK, *PROBED)
APP = make_app()
ROUTES: list[tuple[str, str, Any]] = [
    (method, str(route.path), route.original_route)
    for route in api_routes(APP)
    for method in sorted(route.methods or ())
]
SOCKETS = [
    str(route.path)
    for route in iter_route_contexts(APP.routes)
    if isinstance(route.original_route, APIWebSocketRoute)
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with context(tmp_path_factory.mktemp("parameters")) as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        with made.http:
            yield made


def ask(api: Api, method: str, path: str, query: str, who: str | None = "root") -> Any:
    """Whatever stands for the address's parts does not exist; that is found out later."""
    headers = {"Authorization": f"Bearer {api.tokens[who]}"} if who else {}
    client = TestClient(api.app, follow_redirects=False)
    return client.request(method, f"{filled(path)}?{query}", headers=headers)


def filled(path: str) -> str:
    return re.sub(r"\{\w+(:\w+)?\}", "x", path)


def changes(api: Api) -> int:
    with api.ctx.db.read() as session:
        return session.scalar(select(func.count()).select_from(AuditRow)) or 0


@pytest.mark.parametrize(("method", "path", "route"), ROUTES, ids=lambda value: str(value)[:80])
def test_every_route_refuses_what_it_does_not_know_and_says_what_it_knows(
    api: Api, method: str, path: str, route: Any
) -> None:
    known = parameters_of(route.dependant)
    if path in OPEN:
        assert known is None
        return
    assert known is not None and "stat" not in known
    before = changes(api)
    answer = ask(api, method, path, "stat=failed&stat=again&%EA%B0%80%0A=1")
    assert answer.status_code == 422, answer.text
    if method != "HEAD":
        problem = answer.json()
        assert [(one["pointer"], one["code"]) for one in problem["errors"]] == [
            ("?stat", "unknown_parameter"),
            ("?가\\n", "unknown_parameter"),
        ]
        assert "`stat`" in problem["detail"] and all(name in problem["detail"] for name in known)
    assert changes(api) == before


def test_what_is_known_is_what_the_description_tells() -> None:
    """The names come from the routes themselves; one that is declared in another way would be refused."""
    described = APP.openapi()["paths"]
    for method, path, route in ROUTES:
        operation = described[path][method.lower()]
        told = frozenset(one["name"] for one in operation.get("parameters", ()) if one["in"] == "query")
        assert path in OPEN or parameters_of(route.dependant) == told, (method, path)


EXAMPLES = [
    pytest.param(address, query, id=f"{page.stem}: {address}?{query}"[:90])
    for page in sorted(DOCS.glob("*.md"))
    for address, query in re.findall(r"(?:\$API|GET )(/[^?\s`\"]+)\?([^\s`\"]+)", page.read_text("utf-8"))
]


@pytest.mark.parametrize(("address", "query"), EXAMPLES)
def test_what_the_documentation_asks_for_is_taken(address: str, query: str) -> None:
    """Its examples name parameters that exist."""
    asked = "/api/v1" + address.removeprefix("/api/v1")
    fitting = [
        route.dependant
        for method, path, route in ROUTES
        if method == "GET" and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), asked)
    ]
    known = {name for one in fitting for name in parameters_of(one) or ()}
    assert {part.partition("=")[0] for part in query.split("&")} <= known


def test_who_may_not_ask_is_told_that_first(api: Api) -> None:
    assert ask(api, "GET", "/api/v1/runs", "stat=failed", who=None).status_code == 401


def test_a_known_parameter_is_still_taken_and_a_list_may_be_given_twice(api: Api) -> None:
    assert ask(api, "GET", "/api/v1/runs", "state=failed&limit=3").status_code == 200
    refused = ask(api, "GET", "/api/v1/runs", "state=failed&limit=3&Limit=4").json()
    assert [one["pointer"] for one in refused["errors"]] == ["?Limit"]


def test_what_a_provider_adds_to_its_answer_is_ignored(api: Api) -> None:
    """RFC 6749, 4.1.2: a client must ignore what it does not know there. Here is no sign-on at all."""
    answer = ask(api, "GET", CALLBACK, "state=s&code=c&session_state=1&scope=openid&authuser=0", who=None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", PROBED)
def test_what_a_probe_or_a_scrape_adds_is_ignored(api: Api, path: str) -> None:
    """Load balancers and monitors add what keeps caches away; Prometheus' `params` may name metrics."""
    assert ask(api, "GET", path, "_=1700000000&name[]=up", who="root").status_code == 200


def test_a_browsers_way_to_the_provider_is_no_exception(api: Api) -> None:
    answer = ask(api, "GET", "/api/v1/auth/oidc/login", "code_challenge=c&redirect_url=/x", who=None)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "?redirect_url")


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("greeting", [True, False])
def test_a_socket_closes_when_it_is_asked_for_what_it_does_not_know(
    api: Api, path: str, greeting: bool
) -> None:
    token = api.tokens["root"]
    headers = {} if greeting else {"Authorization": f"Bearer {token}"}
    query = "" if greeting else "?qq=error"
    with api.http.websocket_connect(filled(path) + query, headers=headers) as socket:
        if greeting:
            socket.send_json({"token": token, "qq": "error"})
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.code == 4422 and "`qq`" in closed.value.reason
