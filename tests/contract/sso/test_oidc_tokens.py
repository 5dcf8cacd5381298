"""ID tokens that anybody could have made, and providers that are slow, silent or another one."""

import base64
import hmac
import json
import threading
import time

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from broker.errors import ConfigurationError, Unauthenticated, Unreachable
from broker.identity import oidc_provider
from broker.identity.oidc_provider import Provider
from broker.settings import OidcSettings

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
    claims = {"iss": ISSUER, "aud": "broker", "sub": "s", "nonce": "n", "iat": now} | changes
    claims.setdefault("exp", now + 86_400)  # some are made long before their test: none is refused as old
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
