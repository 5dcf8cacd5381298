"""Who gets in by single sign-on, as what, and who does not: against a real OpenID provider."""

import re
from urllib.parse import parse_qs, urlsplit

from tests.api_support import PASSWORD, Api, context
from tests.oidc_provider import Browser
from tests.single_sign_on import CHALLENGE, HERE


def test_first_sign_on_makes_an_account_with_role_and_tenant_of_the_groups(here):
    login = here.person(groups=["ml", "team-a"], name="Kim 김")
    me = here.sign_on(login)
    assert (me["role"], me["tenant"], me["display_name"]) == ("researcher", "team-a", "Kim 김")
    assert me["must_change_password"] is False
    assert here.actions(object_id=me["id"]) == {"user.create", "user.link", "auth.login"}


def test_an_account_of_single_sign_on_has_no_password(here):
    me = here.sign_on(here.person())
    for password in ("", "!", PASSWORD):
        body = {"username": me["username"], "password": password}
        assert here.api.call("POST", "/auth/login", json=body).status_code == 401


def test_the_account_follows_sub_and_not_the_name(here):
    login = here.person()
    first = here.sign_on(login)
    here.provider.knows(login, preferred_username="renamed", groups=["ml"], name="New Name")
    second = here.sign_on(login)
    assert (second["id"], second["username"]) == (first["id"], first["username"])
    assert second["display_name"] == "New Name"


def test_role_and_tenant_follow_the_groups_at_each_sign_on(here):
    login = here.person(groups=["ml", "team-a"])
    assert here.sign_on(login)["role"] == "researcher"
    here.provider.knows(login, preferred_username="x", groups=["bosses"])
    me = here.sign_on(login)
    assert (me["role"], me["tenant"]) == ("admin", "default")
    assert "user.change" in here.actions(object_id=me["id"])


def test_refresh_tokens_come_with_a_sign_on_too(here):
    told = here.come_back(here.person())
    refresh = here.redeem(told["code"]).json()["refresh_token"]
    assert here.api.call("POST", "/auth/refresh", json={"refresh_token": refresh}).status_code == 200


def test_a_path_of_the_console_is_a_place_to_go(here):
    answer = Browser().visit(here.start_url(redirect_uri="/runs?x=1"), here.person(), f"{here.url}/runs")
    query = parse_qs(urlsplit(answer.headers["Location"]).query)
    assert (
        query["x"] == ["1"]
        and query["state"] == ["mine"]
        and here.redeem(query["code"][0]).status_code == 200
    )


def test_without_a_place_to_go_the_code_is_shown(here):
    page = Browser().visit(here.start_url(redirect_uri=None), here.person())
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    code = re.search(r"<code>([^<]+)</code>", page.text)[1]
    assert here.redeem(code).status_code == 200


def test_keys_that_the_provider_changed_are_fetched_anew(here):
    assert here.sign_on(here.person())
    here.provider.stop()
    here.provider.start()
    assert here.sign_on(here.person())


def test_settings_tell_the_console_whether_there_is_single_sign_on(here):
    assert here.api.call("GET", "/auth/oidc").json() == {"enabled": True, "name": "single sign-on"}


def test_without_a_provider_there_is_none(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        with api.http:
            assert api.call("GET", "/auth/oidc").json() == {"enabled": False, "name": None}
            answer = api.call("GET", "/auth/oidc/login", params={"code_challenge": CHALLENGE})
            assert answer.status_code == 404 and "password" in answer.json()["detail"]


def test_without_a_group_there_is_no_access_and_no_account(here):
    login = here.person(groups=["others"], preferred_username="stranger")
    assert "groups" in here.refused(login)
    assert here.api.call("GET", "/users/stranger", "root").status_code == 404


def test_whoever_lost_the_groups_loses_every_login(here):
    login = here.person()
    me = here.sign_on(login)
    here.provider.knows(login, preferred_username="x", groups=[])
    assert "groups" in here.refused(login)
    here.api.app.state.authenticator.forget(me["id"])
    assert here.api.call("GET", "/auth/me", login).status_code == 401
    assert "auth.login_failed" in here.actions(object_id=me["id"])


def test_a_deactivated_account_stays_out(here):
    login = here.person()
    me = here.sign_on(login)
    here.api.call("PATCH", f"/users/{me['id']}", "root", json={"active": False})
    assert "not active" in here.refused(login)


def test_an_account_deactivated_meanwhile_gets_no_tokens(here):
    login = here.person()
    me = here.sign_on(login)
    told = here.come_back(login)
    here.api.call("PATCH", f"/users/{me['id']}", "root", json={"active": False})
    assert here.redeem(told["code"]).status_code == 401


def test_an_account_of_the_same_name_is_not_taken_over(here):
    assert "'local'" in here.refused(here.person(preferred_username="local"))
    assert "'root'" in here.refused(here.person(preferred_username="ROOT"))


def test_a_tenant_that_nobody_made_is_named(here):
    assert "'no-such-tenant'" in here.refused(here.person(groups=["ml", "nowhere"]))


def test_a_name_that_is_none_here_is_refused(here):
    assert "oidc.username_claim" in here.refused(here.person(preferred_username="김 Kim"))


def test_whoever_gives_up_at_the_provider_is_told_so(here):
    answer = Browser().visit(here.start_url(), here.person(), HERE, give_up=True)
    query = parse_qs(urlsplit(answer.headers["Location"]).query)
    assert query["error"] == ["access_denied"] and "did not let you in" in query["error_description"][0]
