"""What must not be possible on the way of a sign-on: against a real OpenID provider."""

import json
import re
import time
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import jwt as pyjwt
import pytest
from sqlalchemy import select, update

from broker.db import utcnow
from broker.identity import Role, oidc
from broker.identity.oidc_routes import CALLBACK
from broker.identity.oidc_tables import IdentityRow, SignOnRow
from tests.oidc_provider import Browser
from tests.single_sign_on import CHALLENGE, world


def returning(here, login):
    """The browser, and the address at which the provider sends it back to the broker, not yet visited."""
    browser = Browser()
    answer = browser.visit(here.start_url(), login, here.url + CALLBACK)
    return browser, answer.headers["Location"]


def test_a_state_is_good_once(here):
    browser, back = returning(here, here.person())
    assert "code=" in browser.http.get(back).headers["Location"]
    again = browser.http.get(back)
    assert again.status_code == 401 and "begin again" in again.json()["detail"]


def test_another_browser_can_not_end_what_one_began(here):
    browser, back = returning(here, here.person())
    assert Browser().http.get(back).status_code == 401
    other = Browser()
    other.http.get(here.start_url())
    assert other.http.get(back).status_code == 401
    assert "code=" in browser.http.get(back).headers["Location"]


def foreign_states(here):
    """What looks like a state: nonsense, an access token of ours, states signed by others or by nobody."""
    claims = {
        "aud": "sign-on",
        "jti": "son-1",
        "exp": time.time() + 60,
        "browser": "",
        "challenge": CHALLENGE,
    }
    yield from ("", "x", here.api.tokens["root"])
    yield pyjwt.encode(claims, "another-key-of-at-least-32-bytes", algorithm="HS256")
    yield pyjwt.encode(claims, here.api.app.state.authenticator.signer.key, algorithm="HS256")
    yield pyjwt.encode(claims, None, algorithm="none")


def test_a_state_that_is_not_ours_is_refused(here):
    for state in foreign_states(here):
        answer = here.api.call("GET", "/auth/oidc/callback", params={"state": state, "code": "x"})
        assert answer.status_code == 401 and "begin again" in answer.json()["detail"]


def test_a_state_is_no_token_of_the_api(here):
    _, back = returning(here, here.person())
    here.api.tokens["state"] = parse_qs(urlsplit(back).query)["state"][0]
    assert here.api.call("GET", "/auth/me", "state").status_code == 401


def test_a_sign_on_that_took_too_long_is_over(here, monkeypatch):
    monkeypatch.setattr(oidc, "AT_THE_PROVIDER", timedelta(seconds=-1))
    browser, back = returning(here, here.person())
    assert browser.http.get(back).status_code == 401


def proofs_of_another(here, monkeypatch, which):
    """From now on the broker takes one secret of a sign-on for another one's."""
    sign_on = here.api.app.state.sign_on
    true = sign_on._proof
    monkeypatch.setattr(sign_on, "_proof", lambda what, number: true(what, number + "x" * (what == which)))


def test_an_id_token_of_another_sign_on_is_refused(here, monkeypatch):
    browser, back = returning(here, here.person())
    proofs_of_another(here, monkeypatch, "nonce")
    location = browser.http.get(back).headers["Location"]
    assert "code=" not in location and "nonce" in location


def test_the_code_of_the_provider_is_worth_nothing_without_the_verifier(here, monkeypatch):
    browser, back = returning(here, here.person())
    proofs_of_another(here, monkeypatch, "verifier")
    location = browser.http.get(back).headers["Location"]
    assert "code=" not in location and "refused" in location


def test_the_answer_of_another_provider_is_refused(here):
    browser, back = returning(here, here.person())
    forged = re.sub(r"iss=[^&]+", "iss=https%3A%2F%2Fevil.example.org", back)
    location = browser.http.get(forged).headers["Location"]
    assert forged != back and "code=" not in location


def test_a_one_time_code_needs_its_verifier_and_is_good_once(here):
    code = here.come_back(here.person())["code"]
    assert here.redeem(code, "y" * 64).status_code == 401
    assert here.redeem(code).status_code == 401
    code = here.come_back(here.person())["code"]
    assert here.redeem(code).status_code == 200
    assert here.redeem(code).status_code == 401


def test_a_one_time_code_grows_old(here):
    code = here.come_back(here.person())["code"]
    with here.api.ctx.db.write() as session:
        session.execute(update(SignOnRow).values(redeem_by=utcnow() - timedelta(seconds=1)))
    assert here.redeem(code).status_code == 401


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example.org/",
        "http://evil.example.org:80/",
        "//evil.example.org/",
        "/\\evil.example.org",
        "/a\nb",
        "http://127.0.0.1/no-port",
        "http://127.0.0.1:80@evil.example.org:80/",
        "http://localhost:7777/",
        "http://127.0.0.1:7777/#x",
        "javascript:alert(1)",
        "http://127.0.0.1:99999/",
    ],
)
def test_codes_go_nowhere_but_to_whoever_asked(here, uri):
    answer = here.api.call(
        "GET", "/auth/oidc/login", params={"code_challenge": CHALLENGE, "redirect_uri": uri}
    )
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "?redirect_uri"


@pytest.mark.parametrize("challenge", ["", "x", "a" * 44, "a" * 42 + "="])
def test_a_sign_on_without_a_challenge_does_not_begin(here, challenge):
    answer = here.api.call("GET", "/auth/oidc/login", params={"code_challenge": challenge})
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "?code_challenge"


def test_nothing_secret_is_stored_or_audited(here):
    browser, back = returning(here, here.person())
    state = parse_qs(urlsplit(back).query)["state"][0]
    code = parse_qs(urlsplit(browser.http.get(back).headers["Location"]).query)["code"][0]
    with here.api.ctx.db.read() as session:
        stored = json.dumps([str(vars(row)) for row in session.scalars(select(SignOnRow))])
    trail = here.api.call("GET", "/audit", "root").text
    for secret in (state, code, here.provider.secret, browser.http.cookies["broker_sign_on"]):
        assert secret not in stored and secret not in trail


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(here):
    answer = Browser().http.get(here.start_url())
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/api/v1/auth/oidc" in cookie


def test_old_sign_ons_are_forgotten(here):
    with here.api.ctx.db.write() as session:
        session.execute(update(SignOnRow).values(expires_at=utcnow() - timedelta(seconds=1)))
    here.come_back(here.person())
    with here.api.ctx.db.read() as session:
        assert len(session.scalars(select(SignOnRow.id)).all()) == 1


def test_whoever_begins_and_does_not_come_back_leaves_nothing_behind(here):
    def count():
        with here.api.ctx.db.read() as session:
            return len(session.scalars(select(SignOnRow.id)).all())

    before = count()
    for _ in range(5):
        assert Browser().http.get(here.start_url()).status_code == 303
    assert count() == before


def test_an_account_of_the_same_name_is_linked_once_where_the_settings_say_so(tmp_path):
    with world(tmp_path, link_by_username=True) as there:
        login = there.person(preferred_username="local", groups=["leads"])
        me = there.sign_on(login)
        assert (me["username"], me["role"]) == ("local", "tenant_admin")
        assert "'local'" in there.refused(there.person(preferred_username="local"))
        with there.api.ctx.db.read() as session:
            assert session.scalars(select(IdentityRow.subject)).all() == [login]


def test_an_admin_takes_a_link_away_and_the_next_sign_on_by_name_is_linked(tmp_path):
    with world(tmp_path, link_by_username=True) as there:
        old, new = (there.person(preferred_username="kim") for _ in range(2))
        me = there.sign_on(old)
        (link,) = there.api.call("GET", "/users/kim/identities", "root").json()["items"]
        assert (link["issuer"], link["subject"]) == (there.provider.issuer, old)
        assert "'kim'" in there.refused(new)
        assert there.api.call("DELETE", "/users/kim/identities", "root").status_code == 204
        assert there.api.call("GET", "/auth/me", old).status_code == 401
        assert there.sign_on(new)["id"] == me["id"]
        assert "user.unlink" in there.actions(object_id=me["id"])
        assert "'kim'" in there.refused(old)


def test_an_account_that_nobody_is_linked_to_has_no_link_to_take_away(here):
    assert here.api.call("GET", "/users/local/identities", "root").json() == {"items": []}
    assert here.api.call("DELETE", "/users/local/identities", "root").status_code == 404


def test_only_whoever_looks_after_an_account_sees_or_takes_its_links(here):
    here.api.add("boss", Role.TENANT_ADMIN, "team-a")
    here.sign_on(here.person(groups=["ml", "team-a"], preferred_username="theirs"))
    here.sign_on(here.person(groups=["ml"], preferred_username="others"))
    here.sign_on(here.person(groups=["bosses", "team-a"], preferred_username="chief"))
    for path, expected in (("others", 404), ("chief", 403), ("theirs", 204)):
        assert here.api.call("DELETE", f"/users/{path}/identities", "boss").status_code == expected
    assert here.api.call("GET", "/users/others/identities", "boss").status_code == 404
