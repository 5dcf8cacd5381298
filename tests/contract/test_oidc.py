"""Single sign-on against a real, independent provider: what must work, and what must not."""

import base64
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt as pyjwt
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from sqlalchemy import select, update

from broker.cli.serving import listen, url_of
from broker.db import utcnow
from broker.errors import ConfigurationError, Unauthenticated, Unreachable
from broker.identity import Role, oidc, oidc_provider
from broker.identity.oidc_provider import Provider
from broker.identity.oidc_routes import CALLBACK
from broker.identity.oidc_tables import IdentityRow, SignOnRow
from broker.settings import OidcSettings
from tests.api_support import PASSWORD, Api, context
from tests.http_server import serving
from tests.oidc_provider import Browser, identity_provider

HERE = "http://127.0.0.1:7777/here"
VERIFIER = secrets.token_urlsafe(48)
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
NUMBER = iter(range(1000))


class World:
    """A broker that listens, its provider, and people who sign on."""

    def __init__(self, api, url, provider):
        self.api, self.url, self.provider = api, url, provider

    def start_url(self, **params):
        given = {"code_challenge": CHALLENGE, "redirect_uri": HERE, "state": "mine"} | params
        given = {name: value for name, value in given.items() if value is not None}
        return f"{self.url}/api/v1/auth/oidc/login?{urlencode(given)}"

    def come_back(self, login, browser=None, **params):
        """What the broker sends the browser away with: the parameters of the last redirect."""
        browser = browser or Browser()
        answer = browser.visit(self.start_url(**params), login, HERE)
        assert answer.is_redirect, answer.text
        return {
            name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()
        }

    def redeem(self, code, verifier=VERIFIER):
        body = {"code": code, "code_verifier": verifier}
        return self.api.call("POST", "/auth/oidc/token", json=body)

    def sign_on(self, login):
        """The person's own account after signing on."""
        told = self.come_back(login)
        assert "code" in told, told
        answer = self.redeem(told["code"])
        assert answer.status_code == 200, answer.text
        self.api.tokens[login] = answer.json()["access_token"]
        return self.api.call("GET", "/auth/me", login).json()

    def refused(self, login):
        told = self.come_back(login)
        assert "code" not in told and told["state"] == "mine" and told["error"] == "access_denied"
        return told["error_description"]

    def person(self, **claims):
        """A new person at the provider; what is typed there as login (and is the `sub`)."""
        number = next(NUMBER)
        login = f"u-{number}"
        self.provider.knows(login, **{"preferred_username": f"kim{number}", "groups": ["ml"], **claims})
        return login

    def actions(self, **params):
        return {
            row["action"] for row in self.api.call("GET", "/audit", "root", params=params).json()["items"]
        }


@contextmanager
def world(folder, **settings) -> Iterator[World]:
    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    with identity_provider(folder, url + CALLBACK) as provider:
        secret = folder / "client-secret"
        secret.write_text(provider.secret)
        secret.chmod(0o600)
        oidc = {
            "issuer": provider.issuer,
            "public_url": url,
            "client_secret_file": secret,
            "roles": {"ml": "researcher", "bosses": "admin", "leads": "tenant_admin"},
            "tenants": {"team-a": "team-a", "nowhere": "no-such-tenant"},
        } | settings
        with context(folder / "data", oidc=oidc) as ctx:
            api = Api(ctx)
            api.add("root", Role.ADMIN)
            api.add("local")
            api.add("filler", tenant="team-a")
            with serving(api.app, listener), api.http:
                yield World(api, url, provider)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with world(tmp_path_factory.mktemp("oidc")) as made:
        yield made


# ---- what works --------------------------------------------------------------------------------------


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


# ---- who does not get in -----------------------------------------------------------------------------


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


# ---- what must not be possible -----------------------------------------------------------------------


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


# ---- ID tokens that anybody could have made ----------------------------------------------------------

KEY = RSAKey.generate_key(2048, parameters={"kid": "good", "use": "sig"})
STRANGER = RSAKey.generate_key(2048, parameters={"kid": "good", "use": "sig"})
ISSUER = "https://id.example.org"


class Forger(Provider):
    """The provider's client, whose network is a dictionary: what a hostile network or provider answers."""

    def __init__(self, id_token, userinfo=None, metadata=None, **settings):
        super().__init__(OidcSettings(issuer=ISSUER, **settings), "secret", "https://b.example.org/cb")
        described = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/auth",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/jwks",
            "userinfo_endpoint": f"{ISSUER}/me",
        }
        self.answers = {
            f"{ISSUER}/.well-known/openid-configuration": described | (metadata or {}),
            f"{ISSUER}/jwks": {"keys": [KEY.as_dict(private=False)]},
            f"{ISSUER}/token": {"access_token": "at", "token_type": "Bearer", "id_token": id_token},
            f"{ISSUER}/me": userinfo or {"sub": "s"},
        }

    def _json(self, method, url, **more):
        return self.answers[url]


def id_token(key=KEY, header=None, **changes):
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": "broker", "sub": "s", "nonce": "n", "iat": now, "exp": now + 60} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"alg": "RS256", "kid": "good"} | (header or {}), claims, key)


def base64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def handmade(algorithm):
    claims = {"iss": ISSUER, "aud": "broker", "sub": "s", "nonce": "n", "exp": 9_000_000_000, "iat": 1}
    header = {"alg": algorithm, "kid": "good"}
    return ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))


def unsigned():
    return handmade("none") + "."


def signed_with_the_public_key():
    """HS256 with what everybody knows: a library that goes by the header's algorithm would take it."""
    content = handmade("HS256")
    secret = KEY.as_pem(private=False)
    return f"{content}.{base64url(hmac.digest(secret, content.encode(), 'sha256'))}"


def claims_of(forger):
    return forger.claims(code="c", verifier="v", nonce="n")


def test_a_good_id_token_is_taken():
    assert claims_of(Forger(id_token(preferred_username="kim", groups=["a"])))["groups"] == ["a"]


@pytest.mark.parametrize(
    "token",
    [
        id_token(STRANGER),
        signed_with_the_public_key(),
        unsigned(),
        id_token(header={"kid": "other"}),
        id_token(iss="https://evil.example.org"),
        id_token(aud="other"),
        id_token(aud=["broker", "other"], azp="other"),
        id_token(nonce="other"),
        id_token(nonce=None),
        id_token(exp=int(time.time()) - 120),
        id_token(exp=None),
        id_token(sub=None),
        id_token(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
        "not.a.token",
        "",
        None,
    ],
)
def test_a_bad_id_token_is_refused(token):
    with pytest.raises(Unauthenticated):
        claims_of(Forger(token))


def test_userinfo_adds_what_the_id_token_lacks_but_never_replaces_it():
    more = {"sub": "s", "preferred_username": "kim", "groups": ["b"], "email": "k@x.org"}
    found = claims_of(Forger(id_token(groups=["a"]), more))
    assert (found["preferred_username"], found["groups"]) == ("kim", ["a"])


def test_userinfo_of_somebody_else_is_refused():
    with pytest.raises(Unauthenticated, match="somebody else"):
        claims_of(Forger(id_token(), {"sub": "other", "preferred_username": "boss"}))


@pytest.mark.parametrize("metadata", [{"issuer": "https://evil.example.org"}, {"token_endpoint": None}])
def test_a_provider_that_is_another_one_is_not_used(metadata):
    with pytest.raises(ConfigurationError):
        Forger(id_token(), metadata=metadata).authorization_url(state="s", nonce="n", verifier="v" * 43)


def test_a_provider_that_does_not_answer_is_unreachable():
    settings = OidcSettings(issuer="http://127.0.0.1:9", timeout_s=2)
    with pytest.raises(Unreachable):
        Provider(settings, None, "http://127.0.0.1:1/cb").authorization_url(
            state="s", nonce="n", verifier="v"
        )


class Silent(Forger):
    """A provider whose network answers only when it is let, and never more than it is asked."""

    def __init__(self):
        super().__init__(id_token())
        self.asked, self.down, self.hold, self.reached = 0, True, None, threading.Event()

    def _json(self, method, url, **more):
        self.asked += 1
        self.reached.set()
        if self.hold is not None:
            self.hold.wait(20)
        if self.down:
            raise Unreachable("no answer")
        return super()._json(method, url, **more)

    def begin(self):
        return self.authorization_url(state="s", nonce="n", verifier="v" * 43)


def test_a_provider_that_is_silent_is_asked_once_in_a_while_and_holds_up_nobody(monkeypatch):
    provider = Silent()
    for _ in range(5):
        with pytest.raises(Unreachable):
            provider.begin()
    assert provider.asked == 1
    provider.down = False
    monkeypatch.setattr(oidc_provider, "_PAUSE_S", 0.0)
    provider._ask_after = time.monotonic()  # the pause is over
    assert provider.begin().startswith(f"{ISSUER}/auth?")


def test_while_a_description_is_fetched_anew_the_old_one_serves_all_others(monkeypatch):
    provider = Silent()
    provider.down = False
    provider.begin()
    monkeypatch.setattr(oidc_provider, "_FRESH_S", -1.0)
    provider.hold = threading.Event()
    provider.reached.clear()
    slow = threading.Thread(target=provider.begin)
    slow.start()
    try:
        assert provider.reached.wait(20)
        asked = provider.asked
        assert provider.begin().startswith(f"{ISSUER}/auth?") and provider.asked == asked
    finally:
        provider.hold.set()
        slow.join(20)


def test_nobody_waits_long_for_another_ones_first_answer(monkeypatch):
    monkeypatch.setattr(oidc_provider, "_WAIT_S", 0.01)
    provider = Silent()
    provider.down, provider.hold = False, threading.Event()
    slow = threading.Thread(target=provider.begin)
    slow.start()
    try:
        assert provider.reached.wait(20)
        with pytest.raises(Unreachable, match="not answered yet"):
            provider.begin()
    finally:
        provider.hold.set()
        slow.join(20)
