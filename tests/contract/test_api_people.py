"""Tenants and who looks after their people, over HTTP."""

import pytest
from sqlalchemy import delete, insert, select

from broker import schema
from broker.db import Database, utcnow
from broker.identity import Role
from broker.identity.tables import TenantRow, UserRow
from tests.api_support import PASSWORD, Api, codes, context


@pytest.fixture
def api(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("tara", Role.TENANT_ADMIN, "red")
        api.add("rudi", tenant="red")
        api.add("ida", Role.INTERNAL, "red")
        api.add("bob", tenant="blue")
        with api.http:
            yield api


def login(api, username, password=PASSWORD):
    return api.call("POST", "/auth/login", json={"username": username, "password": password})


def patch(api, who, user, **fields):
    return api.call("PATCH", f"/users/{user}", who, json=fields)


def problems(answer):
    return [(item["pointer"], item["code"]) for item in answer.json()["errors"]]


def test_default_tenant_is_there_from_the_start(api):
    assert api.call("GET", "/tenants/default", "root").json()["fairshare"] == 1


def test_upgrade_makes_the_tenants_that_accounts_of_an_older_version_name(tmp_path):
    db = Database(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    schema.upgrade(db)
    now = utcnow()
    with db.write() as session:
        session.execute(delete(TenantRow))
        row = {
            "username": "ann",
            "display_name": "",
            "password_hash": "!",
            "role": "viewer",
            "tenant": "old-1",
        }
        more = {"active": True, "must_change_password": False, "token_version": 1, "row_version": 1}
        session.execute(insert(UserRow).values(id="us-1", **row, **more, created_at=now, updated_at=now))
    schema.upgrade(db)
    schema.upgrade(db)
    with db.read() as session:
        assert sorted(session.scalars(select(TenantRow.name))) == ["default", "old-1"]
    db.close()


def test_tenant_is_made_once_and_changed_by_who_read_it_last(api):
    body = {"name": "team_a-1", "display_name": "Team A", "fairshare": 30}
    made = api.call("POST", "/tenants", "root", json=body)
    assert made.status_code == 201 and made.json()["active"] is True
    assert api.call("POST", "/tenants", "root", json=body).status_code == 409
    tag = api.call("GET", "/tenants/team_a-1", "root").headers["ETag"]
    change = {"fairshare": 40}
    changed = api.call("PATCH", "/tenants/team_a-1", "root", {"If-Match": tag}, json=change)
    assert changed.json()["fairshare"] == 40 and changed.headers["ETag"] != tag
    assert api.call("PATCH", "/tenants/team_a-1", "root", {"If-Match": tag}, json=change).status_code == 412
    rows = api.call("GET", "/audit", "root", params={"object_type": "tenant", "object_id": "team_a-1"})
    assert [row["action"] for row in rows.json()["items"]] == ["tenant.change", "tenant.create"]
    assert rows.json()["items"][0]["before"]["fairshare"] == 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Team"),
        ("name", "1team"),
        ("name", "root"),
        ("name", "a;b"),
        ("name", "x" * 33),
        ("fairshare", 0),
        ("display_name", "a\nb"),
    ],
)
def test_bad_field_of_a_tenant_is_named(api, field, value):
    answer = api.call("POST", "/tenants", "root", json={"name": "team"} | {field: value})
    assert answer.status_code == 422 and [pointer for pointer, _ in problems(answer)] == [f"/{field}"]


def test_default_tenant_stays_open(api):
    assert api.call("PATCH", "/tenants/default", "root", json={"active": False}).status_code == 409


def test_pages_of_tenants_go_on_where_they_ended(api):
    for name in ("t_1", "t-2", "t3"):
        api.call("POST", "/tenants", "root", json={"name": name})
    seen, cursor = [], None
    while True:
        page = api.call(
            "GET", "/tenants", "root", params={"limit": 1} | ({"cursor": cursor} if cursor else {})
        )
        seen += [row["name"] for row in page.json()["items"]]
        if (cursor := page.json()["next_cursor"]) is None:
            break
    assert seen == sorted(seen, reverse=True) and set(seen) == {"blue", "default", "red", "t-2", "t3", "t_1"}


def test_closed_tenant_shuts_its_people_out_until_it_is_open_again(api):
    key = api.call("POST", "/keys", "rudi", json={"name": "ci"}).json()["key"]
    api.tokens["rudi-key"] = key
    held = login(api, "rudi").json()["refresh_token"]
    assert api.call("GET", "/runs", "rudi-key").status_code == 200
    assert api.call("PATCH", "/tenants/red", "root", json={"active": False}).status_code == 200
    assert {api.call("GET", "/runs", who).status_code for who in ("rudi", "rudi-key", "tara")} == {401}
    assert login(api, "rudi").status_code == 401
    assert api.call("POST", "/auth/refresh", json={"refresh_token": held}).status_code == 401
    refused = api.call("POST", "/users", "root", json={"username": "new", "tenant": "red"})
    assert problems(refused) == [("/tenant", "closed_tenant")]
    assert api.call("GET", "/runs", "bob").status_code == 200
    api.call("PATCH", "/tenants/red", "root", json={"active": True})
    assert {api.call("GET", "/runs", who).status_code for who in ("rudi", "rudi-key", "tara")} == {200}


def test_admin_is_not_locked_out_with_the_tenant(api):
    api.add("ruth", Role.ADMIN, "red")
    api.call("PATCH", "/tenants/red", "ruth", json={"active": False})
    assert login(api, "ruth").status_code == 200
    assert api.call("PATCH", "/tenants/red", "ruth", json={"active": True}).status_code == 200


@pytest.mark.parametrize("who", ["root", "tara"])
def test_account_of_an_unknown_tenant_is_refused(api, who):
    answer = api.call("POST", "/users", who, json={"username": "new", "tenant": "nowhere"})
    assert answer.status_code == 422 and problems(answer) == [("/tenant", "unknown_tenant")]
    moved = patch(api, who, "rudi", tenant="nowhere")
    assert moved.status_code == 422 and problems(moved) == [("/tenant", "unknown_tenant")]


def test_a_tenants_admin_makes_people_of_the_own_tenant_without_naming_it(api):
    made = api.call("POST", "/users", "tara", json={"username": "new"})
    assert made.status_code == 201 and made.json()["tenant"] == "red"
    password = made.json()["one_time_password"]
    assert login(api, "new", password).status_code == 200


def test_another_tenant_is_to_a_tenants_admin_as_if_it_were_not_there(api):
    there = api.call("POST", "/users", "tara", json={"username": "new", "tenant": "blue"})
    nowhere = api.call("POST", "/users", "tara", json={"username": "new", "tenant": "green"})
    assert there.status_code == nowhere.status_code == 422
    assert there.json()["detail"].replace("blue", "green") == nowhere.json()["detail"]
    assert patch(api, "tara", "rudi", tenant="blue").status_code == 422
    for user in ("bob", "nobody", api.call("GET", "/users/bob", "root").json()["id"]):
        assert api.call("GET", f"/users/{user}", "tara").status_code == 404
        assert patch(api, "tara", user, active=False).status_code == 404
        assert api.call("GET", "/keys", "tara", params={"user": user}).status_code == 404
    listed = {row["username"] for row in api.call("GET", "/users", "tara").json()["items"]}
    assert listed == {"tara", "rudi", "ida"}


@pytest.mark.parametrize("role", ["admin", "internal"])
def test_a_tenants_admin_gives_no_role_above_the_tenant(api, role):
    made = api.call("POST", "/users", "tara", json={"username": "new", "role": role})
    raised = patch(api, "tara", "rudi", role=role)
    own = patch(api, "tara", "tara", role=role)
    for answer in (made, raised, own):
        assert answer.status_code == 403 and problems(answer) == [("/role", "role_not_yours")]


@pytest.mark.parametrize(
    "fields", [{"active": False}, {"password": "a-new-one-time-password"}, {"role": "viewer"}]
)
@pytest.mark.parametrize("user", ["ruth", "ida"])
def test_a_tenants_admin_does_not_touch_admins_and_internal_accounts(api, user, fields):
    api.add("ruth", Role.ADMIN, "red")
    assert api.call("GET", f"/users/{user}", "tara").status_code == 200
    assert patch(api, "tara", user, **fields).status_code == 403
    assert api.call("GET", "/auth/me", user).status_code == 200


@pytest.mark.parametrize(("field", "value"), [("unix_account", "kim"), ("max_training_hours", 72)])
def test_only_an_admin_decides_as_whom_and_how_long_jobs_run(api, field, value):
    made = api.call("POST", "/users", "tara", json={"username": "new", field: value})
    changed = patch(api, "tara", "rudi", **{field: value})
    emptied = patch(api, "tara", "rudi", **{field: None})
    for answer in (made, changed, emptied):
        assert answer.status_code == 403 and problems(answer) == [(f"/{field}", "admin_only")]
    made = api.call("POST", "/users", "root", json={"username": "new", "tenant": "red", field: value})
    assert made.status_code == 201 and made.json()[field] == value
    assert patch(api, "root", "new", **{field: None}).json()[field] is None


def test_a_unix_account_acts_for_one_person_only(api):
    assert patch(api, "root", "rudi", unix_account="kim").status_code == 200
    assert patch(api, "root", "rudi", unix_account="kim").status_code == 200
    taken = patch(api, "root", "bob", unix_account="kim")
    assert taken.status_code == 422 and problems(taken) == [("/unix_account", "unix_account_taken")]
    made = api.call("POST", "/users", "root", json={"username": "new", "unix_account": "kim"})
    assert made.status_code == 422 and codes(made) == {"unix_account_taken"}
    patch(api, "root", "rudi", unix_account=None)
    assert patch(api, "root", "bob", unix_account="kim").status_code == 200


@pytest.mark.parametrize("hours", [0, 73, 1.5])
def test_training_hours_are_whole_and_at_most_72(api, hours):
    answer = patch(api, "root", "rudi", max_training_hours=hours)
    assert answer.status_code == 422 and problems(answer)[0][0] == "/max_training_hours"


def test_a_tenants_admin_is_made_and_unmade_by_the_broker_alone_where_it_counts(api):
    assert patch(api, "tara", "rudi", role="tenant_admin").status_code == 200
    assert api.call("GET", "/users", "rudi").status_code == 200
    assert patch(api, "rudi", "tara", role="viewer").status_code == 200
    assert api.call("GET", "/users", "tara").status_code == 403
    assert api.call("POST", "/tenants", "rudi", json={"name": "mine"}).status_code == 403


def test_a_given_password_is_not_the_user_name_whichever_way_the_account_is_named(api):
    account = api.call("GET", "/users/rudi", "root").json()["id"]
    for named in ("rudi", account):
        answer = patch(api, "root", named, password="rudirudirudi")
        assert (answer.status_code, problems(answer)) == (422, [("/password", "weak_password")])
