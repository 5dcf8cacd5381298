"""The provider's side of OpenID Connect: discovery, where to send the browser, and what a code is worth.

Authorization code flow with PKCE (RFC 7636), state and nonce, by the parts of Authlib that know no HTTP
library; requests go through httpx. Nothing here touches the database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc6749.parameters import prepare_token_request
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from broker.db.engine import in_transaction
from broker.errors import ConfigurationError, Unauthenticated, Unreachable
from broker.identity.oidc_mapping import lookup
from broker.settings import OidcSettings

_ALGORITHMS: Final = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
"""Asymmetric ones only: with HS256 whoever knows the client's secret could sign, with `none` anybody."""
_FRESH_S: Final = 3600.0
_PAUSE_S: Final = 5.0
"""A provider that did not answer is not asked for its description again so soon."""
_WAIT_S: Final = 2.0
"""How long a request waits for another one's answer: anybody may begin a sign-on, and each holds a thread."""
_LEEWAY_S: Final = 60
_ENDPOINTS: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")


@dataclass(frozen=True, slots=True)
class _Known:
    """The provider's discovery document and keys, and when they were fetched (monotonic seconds)."""

    metadata: Mapping[str, Any]
    keys: KeySet
    fetched_at: float


class Provider:
    """One provider; safe to share between threads. Its description is fetched when first needed."""

    def __init__(self, settings: OidcSettings, secret: str | None, callback: str) -> None:
        assert settings.issuer is not None
        self.issuer, self._settings = settings.issuer, settings
        self._http = httpx.Client(timeout=settings.timeout_s, headers={"Accept": "application/json"})
        self._client = OAuth2Client(
            session=None,
            client_id=settings.client_id,
            client_secret=secret,
            scope=" ".join(settings.scopes),
            redirect_uri=callback,
            code_challenge_method="S256",
        )
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._ask_after = float("-inf")

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def authorization_url(self, *, state: str, nonce: str, verifier: str) -> str:
        """Where the browser goes to sign on."""
        endpoint = self._fetched().metadata["authorization_endpoint"]
        url, _ = self._client.create_authorization_url(endpoint, state, verifier, nonce=nonce)
        return str(url)

    def claims(self, *, code: str, verifier: str, nonce: str) -> dict[str, Any]:
        """What the provider says about the person behind a code; raises `Unauthenticated`.

        The ID token's claims, verified; where they lack the user name or the groups, those of the userinfo
        endpoint too (many providers put profile claims only there).
        """
        known = self._fetched()
        token = self._exchange(known.metadata, code, verifier)
        claims = self._verified(known, token, nonce)
        wanted = (self._settings.username_claim, self._settings.groups_claim)
        endpoint = known.metadata.get("userinfo_endpoint")
        if endpoint and any(lookup(claims, name) is None for name in wanted):
            more = self._json(
                "GET", str(endpoint), headers={"Authorization": f"Bearer {token['access_token']}"}
            )
            if more.get("sub") != claims["sub"]:  # OpenID Connect Core, 5.3.2
                raise Unauthenticated("The provider's userinfo speaks of somebody else: begin again")
            claims = {**more, **claims}
        return claims

    def _exchange(self, metadata: Mapping[str, Any], code: str, verifier: str) -> dict[str, Any]:
        body = prepare_token_request(
            "authorization_code", redirect_uri=self._client.redirect_uri, code=code, code_verifier=verifier
        )
        headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
        auth = self._client.client_auth(self._client.token_endpoint_auth_method)
        url, headers, body = auth.prepare("POST", metadata["token_endpoint"], headers, body)
        token = self._json("POST", url, headers=headers, content=body)
        if not isinstance(token.get("id_token"), str) or not isinstance(token.get("access_token"), str):
            raise Unauthenticated("The provider gave no ID token: is `openid` among `oidc.scopes`?")
        return token

    def _verified(self, known: _Known, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        registry = JWSRegistry(algorithms=list(_ALGORITHMS), strict_check_header=False)
        try:
            try:
                decoded = jwt.decode(token["id_token"], known.keys, registry=registry)
            except InvalidKeyIdError:  # the provider changed its keys
                decoded = jwt.decode(token["id_token"], self._fetched(again=True).keys, registry=registry)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": self.issuer},
                    "aud": {"essential": True, "value": self._settings.client_id},
                    "nonce": {"essential": True, "value": nonce},
                },
                {
                    "nonce": nonce,
                    "client_id": self._settings.client_id,
                    "access_token": token["access_token"],
                },
            )
            claims.validate(leeway=_LEEWAY_S)
        except (JoseError, ValueError, TypeError) as error:
            raise Unauthenticated(f"The provider's ID token is not valid ({error}): begin again") from None
        return dict(claims)

    def _fetched(self, *, again: bool = False) -> _Known:
        """The provider's description, an hour old at most, or a little more while it is fetched anew."""
        known = self._known
        if known is not None and not again and time.monotonic() - known.fetched_at <= _FRESH_S:
            return known
        if not self._lock.acquire(timeout=_WAIT_S if known is None or again else 0):
            if known is None or again:
                raise self._silent("has not answered yet")
            return known
        try:
            if self._known is not None and self._known is not known:
                return self._known  # another request was first
            if time.monotonic() < self._ask_after:
                raise self._silent("did not answer a moment ago")
            try:
                self._known = self._fetch()
            except Unreachable:
                self._ask_after = time.monotonic() + _PAUSE_S
                raise
            return self._known
        finally:
            self._lock.release()

    def _silent(self, how: str) -> Unreachable:
        return Unreachable(f"The sign-on provider at {self.issuer} {how}", retry_after_s=_PAUSE_S)

    def _fetch(self) -> _Known:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = self._json("GET", url)
        if metadata.get("issuer") != self.issuer:  # OpenID Connect Discovery, 4.3
            raise ConfigurationError(
                f"{url} is of {metadata.get('issuer')!r}: write exactly that into `oidc.issuer`"
            )
        if missing := [name for name in _ENDPOINTS if not isinstance(metadata.get(name), str)]:
            raise ConfigurationError(f"The provider at {url} names no {missing[0]}: it can't be used")
        try:
            keys = KeySet.import_key_set(self._json("GET", metadata["jwks_uri"]))  # type: ignore[arg-type]
        except (JoseError, KeyError, TypeError, ValueError):
            raise ConfigurationError(f"The provider's keys at {metadata['jwks_uri']} can't be read") from None
        return _Known(metadata, keys, time.monotonic())

    def _json(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        """The answer's object; a refusal is `Unauthenticated` in its words, no answer `Unreachable`."""
        assert not in_transaction(), "no network call inside a database transaction"
        try:
            response = self._http.request(method, url, **more)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unreachable(
                f"The sign-on provider at {self.issuer} does not answer ({type(error).__name__})",
                retry_after_s=5,
            ) from None
        if response.status_code >= 500 or not isinstance(answer, dict):
            raise Unreachable(f"The sign-on provider at {self.issuer} failed ({response.status_code})")
        if not response.is_success:
            reason = answer.get("error_description") or answer.get("error") or response.status_code
            raise Unauthenticated(f"The sign-on provider refused: {reason}")
        return answer
