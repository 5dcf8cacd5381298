"""What tests of single sign-on share: a broker, a real provider, and a browser between them."""

import base64
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlencode, urlsplit

from broker.cli.serving import listen, url_of
from broker.identity import Role
from broker.identity.oidc_routes import CALLBACK
from tests.api_support import Api, context
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
