"""Notices and choices over HTTP: who is told what, in which words, and by which way."""

import pytest

from tests.api_support import Api, codes, context
from tests.telling import announce


def told(api, who):
    return [item["seq"] for item in api.call("GET", "/notifications", who).json()["items"]][::-1]


def test_everybody_sees_what_concerns_them_and_nothing_else(api):
    failed = announce(api)
    quota = announce(api, "quota_80", who=None)
    asked = announce(api, "run_approval_requested")
    outage = announce(api, "cluster_unreachable", tenant=None, who=None)
    assert told(api, "ann") == [failed]
    assert told(api, "bob") == [] and told(api, "other") == []
    assert told(api, "lead") == [quota]
    assert told(api, "root") == [quota, asked, outage]


def test_a_notice_comes_in_both_languages(api):
    announce(api)
    (notice,) = api.call("GET", "/notifications?kind=run_failed", "ann").json()["items"]
    assert notice["text"]["en"]["title"] == "digits #7 has failed"
    assert notice["text"]["ko"]["title"] == "실행 실패: digits #7"
    assert notice["type"] == "run.failed" and notice["seq"] == 1


def test_choices_are_ones_own_replaced_whole_and_audited(api):
    path = "/notifications/preferences"
    first = api.call("GET", path, "ann").json()
    assert first["email"] is None and first["effective"]["run_failed"] == ["stream", "email"]
    assert first["effective"]["run_started"] == ["stream"] and first["email_available"] is False
    wish = {"email": "ann@example.org", "language": "ko", "channels": {"run_failed": []}}
    assert api.call("PUT", path, "ann", json=wish).json()["effective"]["run_failed"] == []
    assert api.call("PUT", path, "ann", json={"language": "ko"}).json()["email"] is None
    assert api.call("GET", path, "bob").json()["language"] == "en"
    rows = api.call("GET", "/audit?action=notifications.choose", "root").json()["items"]
    assert [row["actor_name"] for row in rows] == ["ann", "ann"]


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"email": "ann"}, "/email"),
        ({"email": "a@example.org, b@example.org"}, "/email"),
        ({"email": "a@example.org\nBcc: b@example.org"}, "/email"),
        ({"language": "fr"}, "/language"),
        ({"channels": {"run_failed": ["pigeon"]}}, "/channels/run_failed/0"),
    ],
)
def test_a_bad_choice_is_refused_by_field(api, wish, pointer):
    refused = api.call("PUT", "/notifications/preferences", "ann", json=wish)
    assert refused.status_code == 422
    assert [item["pointer"] for item in refused.json()["errors"]] == [pointer]


def test_mail_goes_to_the_named_domains_only(tmp_path):
    with context(tmp_path, notifications={"email_domains": ["example.org"]}) as ctx:
        api = Api(ctx)
        api.add("ann")
        refused = api.call("PUT", "/notifications/preferences", "ann", json={"email": "a@evil.example"})
        assert refused.status_code == 422 and codes(refused) == {"bad_address"}
        good = api.call("PUT", "/notifications/preferences", "ann", json={"email": "a@Example.org"})
        assert good.status_code == 200


def test_a_tenants_choices_are_its_admins(api):
    path = "/notifications/preferences/vision"
    wish = {"email": "vision@example.org", "channels": {"run_failed": ["email"]}}
    shown = api.call("PUT", path, "lead", json=wish).json()
    assert shown["effective"]["run_failed"] == ["email"] and shown["effective"]["run_started"] == []
    assert api.call("GET", path, "root").json()["email"] == "vision@example.org"
    assert api.call("GET", path, "other").status_code == 404
    assert api.call("PUT", path, "other", json=wish).status_code == 404
    assert api.call("GET", path, "ann").status_code == 403
