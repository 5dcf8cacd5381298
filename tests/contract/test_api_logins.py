"""Short access tokens, refresh tokens that are used once, API keys, and how all of them end at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import jwt
import pytest
from sqlalchemy import func, select, update

from broker.db import Database, utcnow
from broker.errors import Unauthenticated
from broker.identity import Permission, Role, keys
from broker.identity.logins import KEPT
from broker.identity.permissions import ALLOWED
from broker.identity.schemas import KeyCreate
from broker.identity.service import reset_admin
from broker.identity.sessions import Authenticator
from broker.identity.tables import ApiKeyRow, SessionRow
from tests.api_support import PASSWORD, Api, context
from tests.postgres import fresh_database


@pytest.fixture
def api(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        with api.http:
            yield api


def login(api, username="ann", password=PASSWORD):
    return api.call("POST", "/auth/login", json={"username": username, "password": password}).json()


def refresh(api, token):
    return api.call("POST", "/auth/refresh", json={"refresh_token": token})


def make_key(api, who="ann", **more):
    answer = api.call("POST", "/keys", who, json={"name": "ci"} | more)
    assert answer.status_code == 201, answer.text
    api.tokens["key"] = answer.json()["key"]
    return answer.json()


def works(api, token):
    api.tokens["asked"] = token
    return api.call("GET", "/auth/me", "asked").status_code == 200


# ---- refresh tokens --------------------------------------------------------------------------------------


def test_refresh_goes_on_with_new_tokens(api):
    first = login(api)
    assert first["refresh_expires_in"] == pytest.approx(30 * 86_400, abs=5)
    second = refresh(api, first["refresh_token"]).json()
    assert works(api, second["access_token"]) and second["refresh_token"] != first["refresh_token"]
    assert refresh(api, second["refresh_token"]).status_code == 200


def test_login_ends_at_its_end_however_often_it_was_refreshed(api):
    first = login(api)
    second = refresh(api, first["refresh_token"]).json()
    ends = [
        jwt.decode(one["refresh_token"], options={"verify_signature": False})["exp"]
        for one in (first, second)
    ]
    assert ends[0] == ends[1]
    with api.ctx.db.write() as session:
        session.execute(update(SessionRow).values(ends_at=utcnow()))
    assert refresh(api, second["refresh_token"]).status_code == 401


def test_refresh_token_used_twice_ends_the_login_for_both(api):
    other = login(api)
    stolen = login(api)["refresh_token"]
    owners = refresh(api, stolen).json()["refresh_token"]
    assert refresh(api, stolen).status_code == 401
    assert refresh(api, owners).status_code == 401
    assert refresh(api, other["refresh_token"]).status_code == 200  # another login goes on
    rows = api.call("GET", "/audit", "root", params={"action": "auth.refresh_reused"}).json()["items"]
    assert [row["actor_name"] for row in rows] == ["ann"]


def test_access_and_refresh_tokens_do_not_pass_for_each_other(api):
    tokens = login(api)
    assert not works(api, tokens["refresh_token"])
    assert refresh(api, tokens["access_token"]).status_code == 401


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "brk_1_2", "\u20ac" * 2000])
def test_odd_refresh_token_answers_401(api, token):
    assert refresh(api, token).status_code == 401


def test_logout_ends_one_login(api):
    here, there = login(api), login(api)
    assert api.call("POST", "/auth/logout", json={"refresh_token": here["refresh_token"]}).status_code == 204
    assert api.call("POST", "/auth/logout", json={"refresh_token": here["refresh_token"]}).status_code == 204
    assert refresh(api, here["refresh_token"]).status_code == 401
    assert refresh(api, there["refresh_token"]).status_code == 200


def test_logins_of_an_account_are_bounded(api):
    first = login(api)["refresh_token"]
    row = {"user_id": api.call("GET", "/auth/me", "ann").json()["id"], "token_version": 1, "generation": 1}
    times = {"started_at": utcnow(), "refreshed_at": utcnow(), "ends_at": utcnow() + timedelta(days=1)}
    with api.ctx.db.write() as session:
        session.add_all(SessionRow(id=f"ses-z{n:02}", **row, **times) for n in range(KEPT))
    login(api)
    with api.ctx.db.read() as session:
        assert session.scalar(select(func.count()).select_from(SessionRow)) == KEPT
    assert refresh(api, first).status_code == 401


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_of_many_who_use_one_refresh_token_at_once_one_goes_on(tmp_path, request, database):
    url = None
    if database == "postgres":
        url = fresh_database(request.getfixturevalue("postgres_url"), "refresh")
    with context(tmp_path, url) as ctx:
        api = Api(ctx)
        api.add("ann")
        barrier = threading.Barrier(6)

        def use(token):
            barrier.wait(10)
            return refresh(api, token)

        with api.http:
            token = login(api)["refresh_token"]
            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(use, [token] * 6))
            good = [answer for answer in answers if answer.status_code == 200]
            assert len(good) == 1 and {answer.status_code for answer in answers} == {200, 401}
            assert refresh(api, good[0].json()["refresh_token"]).status_code == 401  # somebody reused one


# ---- API keys --------------------------------------------------------------------------------------------


def test_key_is_shown_once_and_stored_hashed(api):
    made = make_key(api, expires_in_days=7)
    assert made["key"].startswith("brk_") and len(made["key"]) == len("brk_") + 16 + 1 + 64
    assert api.call("GET", "/auth/me", "key").json()["username"] == "ann"
    secret = made["key"].rpartition("_")[2]
    listed = api.call("GET", "/keys", "ann")
    assert [row["id"] for row in listed.json()["items"]] == [made["id"]] and secret not in listed.text
    assert secret not in api.call("GET", "/audit", "root").text
    with api.ctx.db.read() as session:
        row = session.scalars(select(ApiKeyRow)).one()
        assert secret not in str(vars(row)) and row.expires_at - row.created_at == timedelta(days=7)


def test_key_does_what_its_scopes_say_and_no_more(api):
    make_key(api, scopes=["runs:read"])
    me = api.call("GET", "/auth/me", "key").json()
    assert me["permissions"] == ["account", "runs:read"]
    assert api.call("GET", "/runs", "key").status_code == 200
    refused = api.call("GET", "/models", "key")
    assert refused.status_code == 403 and "models:read" in refused.json()["detail"]


@pytest.mark.parametrize("who", ["ann", "root"])
def test_key_without_scopes_does_all_that_its_owner_does_but_manage_keys(api, who):
    make_key(api, who)
    role = Role(api.call("GET", "/auth/me", who).json()["role"])
    mine = set(api.call("GET", "/auth/me", "key").json()["permissions"])
    assert mine == ALLOWED[role] - {Permission.KEYS_MANAGE}
    assert api.call("GET", "/keys", "key").status_code == 403
    assert api.call("POST", "/keys", "key", json={"name": "more"}).status_code == 403


def test_key_loses_what_its_owner_loses(api):
    make_key(api, "root", scopes=["users:manage"])
    api.add("second", Role.ADMIN)
    assert api.call("GET", "/users", "key").status_code == 200
    api.call("PATCH", "/users/root", "second", json={"role": "researcher"})
    assert api.call("GET", "/users", "key").status_code == 403


@pytest.mark.parametrize("scope", ["users:manage", "keys:manage", "everything"])
def test_scope_that_is_not_ones_own_is_refused(api, scope):
    answer = api.call("POST", "/keys", "ann", json={"name": "ci", "scopes": ["runs:read", scope]})
    assert answer.status_code == 422
    assert [item["pointer"] for item in answer.json()["errors"]] == ["/scopes/1"]


@pytest.mark.parametrize("days", [0, 367, 10**30])
def test_key_has_a_bounded_life(api, days):
    answer = api.call("POST", "/keys", "ann", json={"name": "ci", "expires_in_days": days})
    assert answer.status_code == 422
    assert [item["pointer"] for item in answer.json()["errors"]] == ["/expires_in_days"]


def test_expired_key_is_refused(api):
    made = make_key(api)
    with api.ctx.db.write() as session:
        session.execute(update(ApiKeyRow).values(expires_at=utcnow()))
    assert not works(api, made["key"])


def test_key_that_is_nearly_right_is_refused(api):
    text = make_key(api)["key"]
    head, _, secret = text.rpartition("_")
    other = make_key(api)["key"]
    for wrong in (
        head,
        f"{head}_",
        f"{head}_{secret[:-1]}",
        f"{head}_{secret}0",
        f"brk_{secret}",
        "brk_",
        "brk__",
    ):
        assert not works(api, wrong)
    for wrong in ("brk_\ud800_\ud800", "brk_\0_\0", f"{text}\n", text.upper()):  # as a socket may say it
        with pytest.raises(Unauthenticated):
            keys.verify_key(api.ctx.db, wrong)
    assert not works(api, f"{head}_{other.rpartition('_')[2]}")
    assert works(api, text)


def test_revoked_key_is_refused_at_once(api):
    made = make_key(api)
    assert works(api, made["key"])
    assert api.call("DELETE", f"/keys/{made['id']}", "ann").status_code == 204
    assert not works(api, made["key"])
    assert api.call("DELETE", f"/keys/{made['id']}", "ann").status_code == 404


def test_keys_are_their_owners_and_of_who_looks_after_the_owner(api):
    api.add("eve")
    api.add("tom", Role.TENANT_ADMIN)
    api.add("tim", Role.TENANT_ADMIN, "other")
    made = make_key(api)
    for who in ("eve", "tim"):
        assert api.call("GET", "/keys", who, params={"user": "ann"}).status_code == 404
        assert api.call("DELETE", f"/keys/{made['id']}", who).status_code == 404
    assert api.call("GET", "/keys", "eve").json()["items"] == []
    assert len(api.call("GET", "/keys", "tom", params={"user": "ann"}).json()["items"]) == 1
    assert api.call("DELETE", f"/keys/{made['id']}", "tom").status_code == 204
    assert not works(api, made["key"])


def test_a_tenants_admin_revokes_no_key_of_an_account_above(api):
    api.add("tom", Role.TENANT_ADMIN)
    made = make_key(api, "root")
    assert api.call("DELETE", f"/keys/{made['id']}", "tom").status_code == 403
    assert works(api, made["key"])


def test_keys_of_an_account_are_bounded(api):
    for _ in range(keys.KEPT):
        make_key(api)
    assert api.call("POST", "/keys", "ann", json={"name": "one more"}).status_code == 409


def test_use_of_a_key_is_noted_but_not_at_each_request(api):
    made = make_key(api)

    def noted():
        return api.call("GET", "/keys", "ann").json()["items"][0]["last_used_at"]

    assert noted() is None
    works(api, made["key"])
    first = noted()
    assert first is not None
    api.app.state.authenticator.forget(None)
    works(api, made["key"])
    assert noted() == first


def test_remembered_key_costs_no_query_and_ages(api):
    made, now = make_key(api), [100.0]
    authenticator = Authenticator(api.ctx.db, api.app.state.authenticator.signer, clock=lambda: now[0])
    assert authenticator.remembered_account(made["key"]) is None
    authenticator.verify(made["key"])
    assert authenticator.remembered_account(made["key"]).principal.username == "ann"
    now[0] += 1.5
    assert authenticator.remembered_account(made["key"]) is None


# ---- the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"active": False}, {"password": "a-new-one-time-password"}],
    ids=["deactivated", "new password"],
)
def test_shut_out_account_loses_tokens_keys_and_refresh_tokens_at_once(api, change):
    tokens, key = login(api), make_key(api)["key"]
    assert works(api, tokens["access_token"]) and works(api, key)
    assert api.call("PATCH", "/users/ann", "root", json=change).status_code == 200
    assert not works(api, tokens["access_token"]) and not works(api, key)
    assert refresh(api, tokens["refresh_token"]).status_code == 401
    api.call("PATCH", "/users/ann", "root", json={"active": True})
    assert not works(api, tokens["access_token"]) and not works(api, key)  # and they stay dead
    assert refresh(api, tokens["refresh_token"]).status_code == 401


def test_shut_out_account_loses_everything_in_other_processes_too(api):
    tokens, key = login(api), make_key(api)["key"]
    now = [100.0]
    elsewhere = Authenticator(
        Database(api.ctx.settings.sqlalchemy_url), api.app.state.authenticator.signer, clock=lambda: now[0]
    )
    for token in (tokens["access_token"], key):
        assert elsewhere.verify(token).principal.username == "ann"
    api.call("PATCH", "/users/ann", "root", json={"active": False})
    now[0] += 1.01
    for token in (tokens["access_token"], key):
        assert elsewhere.remembered_account(token) is None
        with pytest.raises(Unauthenticated):
            elsewhere.verify(token)


def test_no_key_is_made_for_an_account_that_was_just_shut_out(api):
    before = api.app.state.authenticator.verify(api.tokens["ann"]).principal  # remembered for a second
    api.call("PATCH", "/users/ann", "root", json={"active": False})
    with pytest.raises(Unauthenticated), api.ctx.db.write() as session:
        keys.create_key(session, before, KeyCreate(name="late"), api.ctx.settings.api)


def test_own_new_password_ends_other_logins_but_no_keys(api):
    other, key = login(api), make_key(api)["key"]
    body = {"old": PASSWORD, "new": "another-long-password"}
    mine = api.call("POST", "/auth/password", "ann", json=body).json()
    assert works(api, mine["access_token"]) and refresh(api, mine["refresh_token"]).status_code == 200
    assert not works(api, other["access_token"]) and refresh(api, other["refresh_token"]).status_code == 401
    assert works(api, key)


def test_reset_admin_ends_the_keys_of_whoever_was_admin_before(api):
    key, tokens = make_key(api, "root")["key"], login(api, "root")
    reset_admin(api.ctx.db, api.ctx.settings.data_dir, "root")
    api.app.state.authenticator.forget(None)
    assert not works(api, key) and not works(api, tokens["access_token"])
    assert refresh(api, tokens["refresh_token"]).status_code == 401


def test_what_an_admin_does_to_a_persons_key_stands_in_the_tenants_trail(api):
    api.add("otto", tenant="other")
    api.add("olga", Role.TENANT_ADMIN, "other")
    made = make_key(api, "otto")
    assert api.call("DELETE", f"/keys/{made['id']}", "root").status_code == 204
    rows = api.call("GET", "/audit", "olga", params={"action": "key.delete"}).json()["items"]
    assert [row["actor_name"] for row in rows] == ["root"]
