"""What opens a route at all: a token, a password of one's own. Roles: `test_access_matrix`."""

import re

import pytest

from broker.api.app import make_app
from broker.api.openapi import api_routes
from broker.api.security import PUBLIC, declared_permission
from broker.identity import Permission, Role
from tests import asgi
from tests.api_support import PASSWORD, Api, codes, context

ROUTES = sorted(
    (
        (method, route.path, declared_permission(route))
        for route in api_routes(make_app())
        for method in route.methods
    ),
    key=str,
)
NAMES = [f"{method} {path}" for method, path, _ in ROUTES]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with context(tmp_path_factory.mktemp("access")) as ctx:
        api = Api(ctx)
        api.add("fresh", Role.ADMIN, fresh=True)
        with api.http:
            yield api


def ask(api, method, path, who):
    """A request that no handler can act on: an id that does not exist, a body that is empty."""
    return asgi.ask(api.app, method, re.sub(r"{\w+}", "nothing", path), api.headers(who))


@pytest.mark.parametrize(("method", "path", "permission"), ROUTES, ids=NAMES)
def test_every_route_names_its_permission(method, path, permission):
    assert permission == PUBLIC or permission in set(Permission)


def test_only_these_routes_are_open_to_all():
    assert {path for _, path, permission in ROUTES if permission == PUBLIC} == {
        "/healthz",
        "/readyz",
        "/api/v1/auth/login",
        "/api/v1/auth/refresh",
        "/api/v1/auth/logout",
        "/api/v1/auth/oidc",
        "/api/v1/auth/oidc/callback",
        "/api/v1/auth/oidc/login",
        "/api/v1/auth/oidc/token",
    }


@pytest.mark.parametrize(("method", "path", "permission"), ROUTES, ids=NAMES)
def test_one_time_password_opens_only_the_own_account(api, method, path, permission):
    response = ask(api, method, path, "fresh")
    if permission in {PUBLIC, Permission.ACCOUNT}:
        assert response.status != 403
    else:
        assert response.status == 403 and codes(response) == {"password_change_required"}


def test_user_who_must_change_the_password_gets_on_after_changing_it(api):
    api.add("newcomer", Role.ADMIN, fresh=True)
    login = api.call("POST", "/auth/login", json={"username": "newcomer", "password": PASSWORD})
    assert login.json()["must_change_password"] is True
    api.tokens["newcomer-login"] = login.json()["access_token"]
    me = api.call("GET", "/auth/me", "newcomer-login").json()
    assert me["must_change_password"] and me["permissions"] == ["account"]
    body = {"old": PASSWORD, "new": "another-long-password"}
    changed = api.call("POST", "/auth/password", "newcomer-login", json=body)
    assert changed.status_code == 200 and changed.json()["must_change_password"] is False
    api.tokens["newcomer-new"] = changed.json()["access_token"]
    assert api.call("GET", "/users", "newcomer-new").status_code == 200
    assert api.call("GET", "/auth/me", "newcomer-login").status_code == 401  # withdrawn with the old password


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x.y.z", "Basic YTpi", "bearer \udcff", "Bearer " + "x" * 9000]
)
def test_odd_authorization_header_answers_401(api, header):
    raw = [("Authorization", header.encode("latin-1", "replace"))]
    assert api.http.get("/api/v1/auth/me", headers=raw).status_code == 401
