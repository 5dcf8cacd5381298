"""Logging in, accounts and the audit trail over HTTP."""

import pytest

from broker.identity import Role
from tests.api_support import PASSWORD, Api, codes, context


@pytest.fixture
def api(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        with api.http:
            yield api


def login(api, username, password=PASSWORD):
    return api.call("POST", "/auth/login", json={"username": username, "password": password})


def test_login_gives_a_token_that_works(api):
    answer = login(api, "ann").json()
    assert answer["token_type"] == "bearer" and answer["expires_in"] == 900
    api.tokens["here"] = answer["access_token"]
    me = api.call("GET", "/auth/me", "here").json()
    assert (me["username"], me["role"]) == ("ann", "researcher")
    assert "password_hash" not in me


@pytest.mark.parametrize("name", ["ann", "nobody"])
def test_wrong_password_and_unknown_user_are_told_alike(api, name):
    answer = login(api, name, "not-the-password")
    assert answer.status_code == 401
    assert answer.json()["detail"].startswith("User name and password do not fit together")


def test_guessing_is_slowed_with_retry_after(api):
    for _ in range(5):
        assert login(api, "ann", "guess").status_code == 401
    answer = login(api, "ann")  # even the right one
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
    assert login(api, "root").status_code == 200


def test_deactivated_account_is_out_at_once(api):
    assert api.call("GET", "/auth/me", "ann").status_code == 200
    assert api.call("PATCH", "/users/ann", "root", json={"active": False}).status_code == 200
    assert api.call("GET", "/auth/me", "ann").status_code == 401
    assert login(api, "ann").status_code == 401


def test_new_role_takes_effect_at_once(api):
    assert api.call("GET", "/users", "ann").status_code == 403
    api.call("PATCH", "/users/ann", "root", json={"role": "admin"})
    assert api.call("GET", "/users", "ann").status_code == 200


def test_account_is_created_with_a_password_shown_once(api):
    created = api.call("POST", "/users", "root", json={"username": "bob", "role": "viewer"})
    assert created.status_code == 201
    password = created.json()["one_time_password"]
    assert "one_time_password" not in api.call("GET", "/users/bob", "root").json()
    assert login(api, "bob", password).json()["must_change_password"] is True
    assert password not in api.call("GET", "/audit", "root").text


def test_user_name_is_taken_once(api):
    answer = api.call("POST", "/users", "root", json={"username": "ann"})
    assert answer.status_code == 409 and "'ann'" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", "Ann Smith"),
        ("username", "a" * 65),
        ("username", "ann\n"),
        ("role", "superuser"),
        ("tenant", "Default"),
        ("display_name", "Ann\u202e Smith"),
        ("display_name", "Ann\nSmith"),
        ("display_name", "x" * 501),
        ("password", "short"),
        ("unix_account", "root"),
        ("surprise", 1),
    ],
)
def test_bad_field_is_named(api, field, value):
    body = {"username": "carl"} | {field: value}
    answer = api.call("POST", "/users", "root", json=body)
    assert answer.status_code == 422
    assert [item["pointer"] for item in answer.json()["errors"]] == [f"/{field}"]


@pytest.mark.parametrize("value", ["root", "Root", "a b", "-x", "x" * 33])
def test_unix_account_is_never_root_nor_odd(api, value):
    answer = api.call("PATCH", "/users/ann", "root", json={"unix_account": value})
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/unix_account"


def test_unix_account_is_set_and_emptied_but_other_fields_are_not_emptied(api):
    assert (
        api.call("PATCH", "/users/ann", "root", json={"unix_account": "ann"}).json()["unix_account"] == "ann"
    )
    assert api.call("PATCH", "/users/ann", "root", json={"unix_account": None}).json()["unix_account"] is None
    answer = api.call("PATCH", "/users/ann", "root", json={"role": None})
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/role"


def test_change_based_on_an_old_reading_is_refused(api):
    tag = api.call("GET", "/users/ann", "root").headers["ETag"]
    change = api.call("PATCH", "/users/ann", "root", {"If-Match": tag}, json={"display_name": "Ann"})
    assert change.status_code == 200 and change.headers["ETag"] != tag
    again = api.call("PATCH", "/users/ann", "root", {"If-Match": tag}, json={"display_name": "Anna"})
    assert again.status_code == 412 and again.json()["code"] == "precondition_failed"
    assert api.call("GET", "/users/ann", "root").json()["display_name"] == "Ann"


@pytest.mark.parametrize("change", [{"active": False}, {"role": "viewer"}])
def test_last_admin_stays_admin(api, change):
    answer = api.call("PATCH", "/users/root", "root", json=change)
    assert answer.status_code == 409
    assert api.call("GET", "/users", "root").status_code == 200
    api.add("second", Role.ADMIN)
    assert api.call("PATCH", "/users/root", "root", json=change).status_code == 200


def test_password_set_by_an_admin_ends_sessions_and_must_be_changed(api):
    answer = api.call("PATCH", "/users/ann", "root", json={"password": "a-new-one-time-password"})
    assert answer.json()["must_change_password"] is True
    assert api.call("GET", "/auth/me", "ann").status_code == 401
    assert login(api, "ann", "a-new-one-time-password").json()["must_change_password"] is True


@pytest.mark.parametrize(
    ("old", "new", "pointer", "code"),
    [
        ("not-the-old-one", "another-long-password", "/old", "wrong_password"),
        (PASSWORD, "short", "/new", "weak_password"),
        (PASSWORD, PASSWORD, "/new", "weak_password"),
    ],
)
def test_password_change_says_what_is_wrong(api, old, new, pointer, code):
    answer = api.call("POST", "/auth/password", "ann", json={"old": old, "new": new})
    assert answer.status_code == 422
    assert [(item["pointer"], item["code"]) for item in answer.json()["errors"]] == [(pointer, code)]
    assert api.call("GET", "/auth/me", "ann").status_code == 200


def test_audit_tells_who_what_from_where_before_and_after(api):
    api.call("PATCH", "/users/ann", "root", json={"role": "viewer"})
    (row,) = api.call("GET", "/audit", "root", params={"action": "user.change"}).json()["items"]
    assert (row["actor_name"], row["object_type"], row["source_ip"]) == ("root", "user", "testclient")
    assert (row["before"]["role"], row["after"]["role"]) == ("researcher", "viewer")


def test_refused_change_leaves_no_audit_row(api):
    api.call("PATCH", "/users/root", "root", json={"active": False})
    assert api.call("GET", "/audit", "root", params={"action": "user.change"}).json()["items"] == []


def test_logins_and_failed_logins_are_audited_but_unknown_names_are_not(api):
    login(api, "ann")
    login(api, "ann", "wrong-password")
    login(api, "nobody", "wrong-password")
    rows = api.call("GET", "/audit", "root", params={"object_type": "user"}).json()["items"]
    actions = [row["action"] for row in rows if row["action"].startswith("auth.")]
    assert actions == ["auth.login_failed", "auth.login"]


def test_audit_filters_narrow(api):
    login(api, "ann")
    rows = api.call("GET", "/audit", "root", params={"actor": "ann"}).json()["items"]
    assert {row["actor_name"] for row in rows} == {"ann"}
    nothing = api.call("GET", "/audit", "root", params={"until": "2001-01-01T00:00:00Z"}).json()
    assert nothing == {"items": [], "next_cursor": None}
    naive = api.call("GET", "/audit", "root", params={"since": "2001-01-01T00:00:00"})
    assert naive.status_code == 422 and naive.json()["errors"][0]["pointer"] == "?since"


def test_pages_cover_everything_once_while_rows_are_added(api):
    for number in range(7):
        api.add(f"user{number}")
    expected = {row["username"] for row in api.call("GET", "/users", "root").json()["items"]}
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.call("GET", "/users", "root", params=params).json()
        seen += [row["username"] for row in page["items"]]
        cursor = page["next_cursor"]
        api.add(f"late{len(seen)}")
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) and set(seen) == expected


@pytest.mark.parametrize(
    "params", [{"cursor": "!"}, {"cursor": "AAAA"}, {"limit": 0}, {"limit": 201}, {"limit": "x"}]
)
def test_odd_page_is_refused(api, params):
    answer = api.call("GET", "/users", "root", params=params)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "?" + next(iter(params))


def test_secrets_are_not_repeated_in_errors(api):
    answer = api.call("POST", "/auth/login", json={"username": "ann", "password": ["hunter2-hunter2"]})
    assert answer.status_code == 422 and "hunter2" not in answer.text
    assert codes(answer) == {"string_type"}
