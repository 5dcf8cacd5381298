"""Single sign-on, from the browser's first step to a login of the broker.

  console or CLI ─ challenge ─► begin ─ state, nonce, PKCE ─► provider ─ code ─► complete ─ own code ─► redeem

Two proofs of possession, one inside the other: the broker proves to the provider that it is the one who began
(PKCE, state bound to the browser by a cookie, nonce bound to the ID token), and whoever began at the broker,
the console or the command line, proves the same to the broker (its own PKCE) when it turns the one-time code
into tokens. So neither a stolen redirect nor a foreign browser is worth anything.

Beginning writes nothing down, since anybody may do it as often as they like: all of it travels signed in
`state`; nonce and verifier follow from the state's id and a key. Only what comes back is written, once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode, urlsplit

import jwt
import structlog
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from broker import metrics
from broker.audit import record
from broker.db import Database, new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import (
    BrokerError,
    Conflict,
    Denied,
    InvalidRequest,
    Problem,
    Unauthenticated,
)
from broker.identity.oidc_mapping import Person, person_of
from broker.identity.oidc_provider import Provider
from broker.identity.oidc_tables import IdentityRow, SignOnRow
from broker.identity.passwords import NO_PASSWORD
from broker.identity.permissions import SYSTEM
from broker.identity.schemas import UserChange, UserCreate
from broker.identity.service import change_user, create_user, withdraw
from broker.identity.tables import TenantRow, UserRow
from broker.identity.tenants import may_enter
from broker.settings import OidcSettings

log = structlog.get_logger("broker.identity")

AT_THE_PROVIDER: Final = timedelta(minutes=10)
"""How long somebody may take to sign on."""
TO_REDEEM: Final = timedelta(minutes=5)
"""How long the one-time code is good; people may have to copy it."""
_ALGORITHM, _AUDIENCE = "HS256", "sign-on"
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_PATH: Final = re.compile(r"/(?![/\\])[A-Za-z0-9._~/?&=%-]{0,400}")
_OVER: Final = "This sign-on is over, or was begun in another browser: begin again"


@dataclass(frozen=True, slots=True)
class Wish:
    """What whoever begins asks for: the challenge of its own PKCE, where to go afterwards, its own state.

    `redirect_uri` is a port of the asker's own machine (RFC 8252, 7.3), a path of the console, or None: then
    the one-time code is shown, to be copied.
    """

    challenge: str
    redirect_uri: str | None
    state: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a sign-on ended at the provider: a one-time code, or what went wrong; and where to go with it."""

    redirect_uri: str | None
    state: str | None
    code: str | None
    error: BrokerError | None

    def location(self) -> str | None:
        """The redirect with its parameters (RFC 6749, 4.1.2); None when there is none."""
        if self.redirect_uri is None:
            return None
        told = {"code": self.code} if self.code else {"error": "access_denied"}
        if self.error:
            told["error_description"] = self.error.detail
        if self.state is not None:
            told["state"] = self.state
        return f"{self.redirect_uri}{'&' if '?' in self.redirect_uri else '?'}{urlencode(told)}"


class SignOn:
    """The use cases of one provider. `key` is the broker's signing key; what is signed here has its own."""

    def __init__(self, db: Database, settings: OidcSettings, provider: Provider, key: str) -> None:
        self._db, self._settings, self._provider = db, settings, provider
        self._key = hmac.digest(key.encode(), b"sign-on", "sha256")

    def begin(self, wish: Wish, browser: str) -> str:
        """Where to send the browser; `browser` is the secret of its cookie."""
        _check(wish)
        number = new_id("son")
        claims = {
            "aud": _AUDIENCE,
            "jti": number,
            "exp": utcnow() + AT_THE_PROVIDER,
            "browser": _hash(browser),
            "challenge": wish.challenge,
            "to": wish.redirect_uri,
            "state": wish.state,
        }
        return self._provider.authorization_url(
            state=jwt.encode(claims, self._key, algorithm=_ALGORITHM),
            nonce=self._proof("nonce", number),
            verifier=self._proof("verifier", number),
        )

    def complete(
        self, *, state: str, browser: str, code: str | None, error: str | None, issuer: str | None
    ) -> Outcome:
        """What the provider sent the browser back with; raises `Unauthenticated` for a state not ours.

        A state is good once, whatever comes of it.
        """
        number, wish = self._opened(state, browser)
        self._use(number, wish)
        try:
            if issuer not in (None, self._provider.issuer):  # RFC 9207: another provider's answer
                raise Unauthenticated(_OVER)
            if error is not None or code is None:
                raise Denied(f"The provider did not let you in: {(error or 'no code')[:200]}")
            claims = self._provider.claims(
                code=code, verifier=self._proof("verifier", number), nonce=self._proof("nonce", number)
            )
            user = self._account(person_of(claims, self._settings))
        except BrokerError as problem:
            metrics.SIGN_ONS.labels(problem.code).inc()
            log.info("sign_on_refused", code=problem.code, detail=problem.detail)
            return Outcome(wish.redirect_uri, wish.state, None, problem)
        one_time = secrets.token_urlsafe(32)
        with self._db.write() as session:
            row = session.get_one(SignOnRow, number)
            row.code_hash, row.user_id = _hash(one_time), user.id
            row.redeem_by = utcnow() + TO_REDEEM
        metrics.SIGN_ONS.labels("ok").inc()
        return Outcome(wish.redirect_uri, wish.state, one_time, None)

    def redeem(self, code: str, verifier: str) -> UserRow:
        """The account behind a one-time code; raises `Unauthenticated`. A code is used up, right or wrong."""
        with self._db.write() as session:
            row = session.scalar(
                select(SignOnRow).where(SignOnRow.code_hash == _hash(code)).with_for_update()
            )
            user = session.get(UserRow, row.user_id) if row and row.user_id else None
            let_in = user is not None and may_enter(session, user)
            if row is not None:
                session.delete(row)
        fits = row is not None and hmac.compare_digest(create_s256_code_challenge(verifier), row.challenge)
        in_time = row is not None and row.redeem_by is not None and utcnow() < row.redeem_by
        if user is None or not (fits and let_in and in_time):
            raise Unauthenticated("The one-time code is not good, or was used: begin again")
        return user

    def _proof(self, what: str, number: str) -> str:
        """A secret of one sign-on: 43 characters that nobody without the key can tell (RFC 7636, 4.1)."""
        secret = hmac.digest(self._key, f"{what} {number}".encode(), "sha256")
        return base64.urlsafe_b64encode(secret).decode().rstrip("=")

    def _opened(self, state: str, browser: str) -> tuple[str, Wish]:
        """A state of ours, in the browser that began: its number and the wish in it."""
        try:
            claims = jwt.decode(
                state,
                self._key,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                options={"require": ["exp", "jti"]},
            )
        except jwt.InvalidTokenError:
            raise Unauthenticated(_OVER) from None
        if not hmac.compare_digest(claims["browser"], _hash(browser)):
            raise Unauthenticated(_OVER)
        return claims["jti"], Wish(claims["challenge"], claims["to"], claims["state"])

    def _use(self, number: str, wish: Wish) -> None:
        """Write down that a state was used; its row outlives the state."""
        now = utcnow()
        with self._db.write() as session:
            exclusive(session, f"sign-on:{number}")
            if session.get(SignOnRow, number) is not None:
                raise Unauthenticated(_OVER)
            session.execute(delete(SignOnRow).where(SignOnRow.expires_at <= now))
            session.add(SignOnRow(id=number, challenge=wish.challenge, expires_at=now + AT_THE_PROVIDER))

    def _account(self, person: Person) -> UserRow:
        """The account of a person, as the provider's groups want it now; made or linked at the first time."""
        refusal: BrokerError | None = None
        with self._db.write() as session:
            exclusive(session, f"identity:{self._provider.issuer} {person.subject}")
            user = self._linked(session, person)
            if person.role is None:
                refusal = Denied(
                    f"None of your groups at {self._settings.name} has access: ask an admin for one"
                )
            elif user is None:
                user = self._made(session, person)
                _follow(session, user, person)
            elif not may_enter(session, user):
                refusal = Unauthenticated("This account, or its tenant, is not active: ask an admin")
            else:
                _follow(session, user, person)
            if user is not None:
                if person.role is None:
                    withdraw(session, user)
                action = "auth.login_failed" if refusal else "auth.login"
                note = f"{self._settings.name}: {refusal.detail if refusal else self._provider.issuer}"
                record(session, user.principal(), action, "user", user.id, None, None, note)
        if refusal or user is None:
            raise refusal or Unauthenticated(_OVER)
        return user

    def _linked(self, session: Session, person: Person) -> UserRow | None:
        link = session.get(IdentityRow, (self._provider.issuer, person.subject))
        if link is None:
            return None
        link.signed_on_at = utcnow()
        return session.get_one(UserRow, link.user_id)

    def _made(self, session: Session, person: Person) -> UserRow:
        assert person.role is not None
        exclusive(session, f"username:{person.username}")
        user = session.scalar(select(UserRow).where(UserRow.username == person.username))
        if user is None:
            if session.get(TenantRow, person.tenant) is None:
                raise Denied(f"Your tenant {person.tenant!r} is not known here: an admin makes it first")
            wanted = UserCreate(
                username=person.username,
                display_name=person.display_name,
                role=person.role,
                tenant=person.tenant,
            )
            user = create_user(session, SYSTEM, wanted, NO_PASSWORD)
            user.must_change_password = False
            session.flush()
        elif not self._may_take_over(session, user):
            raise Conflict(
                f"There is an account {person.username!r} here not linked to yours at {self._settings.name}: "
                "an admin gives you another name there, or sets `oidc.link_by_username`"
            )
        now = utcnow()
        link = IdentityRow(
            issuer=self._provider.issuer,
            subject=person.subject,
            user_id=user.id,
            linked_at=now,
            signed_on_at=now,
        )
        session.add(link)
        after = {"issuer": link.issuer, "subject": link.subject}
        record(session, SYSTEM, "user.link", "user", user.id, None, after, tenant=user.tenant)
        return user

    def _may_take_over(self, session: Session, user: UserRow) -> bool:
        if not self._settings.link_by_username or not may_enter(session, user):
            return False
        linked = select(IdentityRow.subject).where(
            IdentityRow.user_id == user.id, IdentityRow.issuer == self._provider.issuer
        )
        return session.scalar(linked) is None


def _follow(session: Session, user: UserRow, person: Person) -> None:
    """Give a linked account the role, tenant and name that the provider says it has now."""
    wanted = {"role": person.role, "tenant": person.tenant}
    if person.display_name:
        wanted["display_name"] = person.display_name
    changed = {name: value for name, value in wanted.items() if getattr(user, name) != value}
    if changed:
        change_user(session, SYSTEM, user, UserChange.model_validate(changed), None)


def _check(wish: Wish) -> None:
    """Raise `InvalidRequest` for a challenge or a place to go that can't be."""
    if not _CHALLENGE.fullmatch(wish.challenge):
        detail = "Send the S256 challenge of a code verifier (RFC 7636): 43 characters of base64url"
        raise InvalidRequest(detail, problems=[Problem("?code_challenge", "invalid_challenge", detail)])
    if wish.redirect_uri is not None and not _may_go_to(wish.redirect_uri):
        detail = "Only a path of the console (`/…`) or a port of your own machine (`http://127.0.0.1:PORT/…`)"
        raise InvalidRequest(detail, problems=[Problem("?redirect_uri", "invalid_redirect", detail)])


def _may_go_to(uri: str) -> bool:
    """Whether a one-time code may be sent there: nowhere but to whoever asked."""
    if _PATH.fullmatch(uri):
        return True
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return False
    plain = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1") and port is not None
    return plain and parts.username is None and not parts.fragment and uri.isascii() and uri.isprintable()


def _hash(secret: str) -> str:
    """256 random bits can't be guessed from their hash, so it needs no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()
