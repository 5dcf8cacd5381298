"""Webhooks over HTTP: their secrets, whose they are, what may change, and what became of their deliveries."""

import pytest

from broker.notifications.signing import KEY_FILE
from broker.notifications.tables import WebhookRow
from tests.api_support import codes
from tests.telling import announce

HOOK = {"url": "https://hooks.example.org/broker"}


def test_the_secret_is_in_the_answer_that_makes_it_and_nowhere_else(api):
    made = api.call("POST", "/webhooks", "lead", json=HOOK | {"kinds": ["run_failed", "run_failed"]})
    secret = made.json()["secret"]
    assert made.status_code == 201 and secret.startswith("whsec_")
    assert made.json()["tenant"] == "vision" and made.json()["kinds"] == ["run_failed"]
    hook = made.json()["id"]
    assert made.headers["Location"].endswith(hook)
    answers = [api.call("GET", path, "lead").text for path in ("/webhooks", f"/webhooks/{hook}")]
    answers.append(api.call("GET", "/audit", "root").text)
    assert not any("whsec" in text or secret[6:20] in text for text in answers)
    raw = b"".join(path.read_bytes() for path in api.ctx.settings.data_dir.glob("broker.sqlite3*"))
    assert hook.encode() in raw and secret[6:20].encode() not in raw
    assert (api.ctx.settings.data_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_webhook_is_its_tenants_alone(api):
    hook = api.call("POST", "/webhooks", "lead", json=HOOK).json()["id"]
    everything = api.call("POST", "/webhooks", "root", json=HOOK).json()
    assert everything["tenant"] is None
    for who, sees in (("lead", {hook}), ("other", set()), ("root", {hook, everything["id"]})):
        found = {item["id"] for item in api.call("GET", "/webhooks", who).json()["items"]}
        assert found == sees, who
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/rotate"),
        ("POST", "/test"),
        ("GET", "/deliveries"),
    ):
        body = {"json": {}} if method in {"PATCH", "POST"} else {}
        assert api.call(method, f"/webhooks/{hook}{path}", "other", **body).status_code == 404
        assert api.call(method, f"/webhooks/{hook}{path}", "ann", **body).status_code == 403


def test_nobody_makes_a_webhook_for_a_tenant_of_others(api):
    refused = api.call("POST", "/webhooks", "lead", json=HOOK | {"tenant": "speech"})
    assert refused.status_code == 422 and codes(refused) == {"unknown_tenant"}
    assert api.call("POST", "/webhooks", "root", json=HOOK | {"tenant": "speech"}).status_code == 201


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": "http://hooks.example.org/"}, "/url"),
        ({"url": "https://169.254.169.254/latest"}, "/url"),
        ({"kinds": ["run_exploded"]}, "/kinds/0"),
        ({"description": "two\nlines"}, "/description"),
        ({"secret": "mine"}, "/secret"),
    ],
)
def test_a_bad_webhook_is_refused_by_field(api, body, pointer):
    refused = api.call("POST", "/webhooks", "lead", json=HOOK | body)
    assert refused.status_code == 422, refused.text
    assert [item["pointer"] for item in refused.json()["errors"]] == [pointer]


def test_a_change_is_conditional_checked_and_audited(api):
    hook = api.call("POST", "/webhooks", "lead", json=HOOK).json()["id"]
    tag = api.call("GET", f"/webhooks/{hook}", "lead").headers["ETag"]
    bad = api.call("PATCH", f"/webhooks/{hook}", "lead", json={"url": "https://10.0.0.1/"})
    assert bad.status_code == 422 and codes(bad) == {"bad_url"}
    assert api.call("PATCH", f"/webhooks/{hook}", "lead", json={"kinds": None}).status_code == 422
    change = {"url": "https://hooks.example.org/new?token=very-secret", "active": False}
    good = api.call("PATCH", f"/webhooks/{hook}", "lead", {"If-Match": tag}, json=change)
    assert good.status_code == 200 and not good.json()["active"]
    assert api.call("PATCH", f"/webhooks/{hook}", "lead", {"If-Match": tag}, json={}).status_code == 412
    (row,) = api.call("GET", "/audit?action=webhook.change", "root").json()["items"]
    assert row["before"]["active"] is True and row["after"]["active"] is False
    assert row["after"]["url"] == "https://hooks.example.org/new?…"  # a query may be a secret


def test_a_tenants_admin_reads_what_an_admin_did_to_its_webhooks(api):
    made = api.call("POST", "/webhooks", "root", json=HOOK | {"tenant": "vision"}).json()["id"]
    api.call("POST", f"/webhooks/{made}/rotate", "root")
    api.call("PUT", "/notifications/preferences/vision", "root", json={"email": "v@example.org"})
    for who, sees in (("lead", 3), ("other", 0)):
        actions = ("webhook.create", "webhook.rotate", "notifications.choose")
        found = [api.call("GET", f"/audit?action={action}", who).json()["items"] for action in actions]
        assert sum(map(len, found)) == sees, who


def test_a_tenant_has_only_so_many_webhooks(api, monkeypatch):
    monkeypatch.setattr("broker.notifications.webhooks.MOST_PER_TENANT", 2)
    answers = [api.call("POST", "/webhooks", "lead", json=HOOK).status_code for _ in range(3)]
    assert answers == [201, 201, 409]
    assert api.call("POST", "/webhooks", "other", json=HOOK).status_code == 201


def test_a_rotation_leaves_two_secrets_valid_and_is_shown(api):
    made = api.call("POST", "/webhooks", "lead", json=HOOK).json()
    first = api.call("POST", f"/webhooks/{made['id']}/rotate", "lead").json()
    assert first["secret"] != made["secret"] and first["previous_secret_until"]
    at_once = api.call("POST", f"/webhooks/{made['id']}/rotate", "lead", json={"overlap_hours": 0}).json()
    assert at_once["previous_secret_until"] is None
    with api.ctx.db.read() as session:
        assert session.get(WebhookRow, made["id"]).secret_version == 3


def test_the_log_shows_a_tenant_only_what_is_its_own(api):
    for who in ("lead", "other", "root"):
        api.call("POST", "/webhooks", who, json=HOOK)
    announce(api)
    seen = {}
    for who in ("root", "lead", "other"):
        items = api.call("GET", "/notifications/deliveries", who).json()["items"]
        seen[who] = {item["id"] for item in items}
    assert len(seen["root"]) == 2 and len(seen["lead"]) == 1 and seen["other"] == set()
    assert seen["lead"] < seen["root"]
    (mine,), (global_,) = seen["lead"], seen["root"] - seen["lead"]
    for who, delivery in (("other", mine), ("lead", global_)):
        assert api.call("GET", f"/notifications/deliveries/{delivery}", who).status_code == 404
        assert api.call("POST", f"/notifications/deliveries/{delivery}/retry", who).status_code == 404
    assert api.call("POST", f"/notifications/deliveries/{mine}/retry", "lead").status_code == 409


def test_a_rotation_tells_what_is_still_under_way(api):
    made = api.call("POST", "/webhooks", "lead", json=HOOK).json()
    announce(api)
    for answer in (
        api.call("POST", f"/webhooks/{made['id']}/rotate", "lead"),
        api.call("GET", f"/webhooks/{made['id']}", "lead"),
    ):
        assert answer.json()["pending"] == 1
