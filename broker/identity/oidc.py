"""Single sign-on, from the browser's first step to a login of the broker.

  console or CLI ─ challenge ─► begin ─ state, nonce, PKCE ─► provider ─ code ─► complete ─ own code ─► redeem

Two proofs of possession, one inside the other: the broker proves to the provider that it is the one who began
(PKCE, state bound to the browser by a cookie, nonce bound to the ID token), and whoever began at the broker,
the console or the command line, proves the same to the broker (its own PKCE) when it turns the one-time code
into tokens. So neither a stolen redirect nor a foreign browser is worth anything.

Between two steps nothing is kept in memory: any process serves the next one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import Database, utcnow
from broker.db.locks import exclusive
from broker.errors import (
    BrokerError,
    Conflict,
    Denied,
    InvalidRequest,
    LimitReached,
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

AT_THE_PROVIDER: Final = timedelta(minutes=10)
"""How long somebody may take to sign on."""
TO_REDEEM: Final = timedelta(minutes=5)
"""How long the one-time code is good; people may have to copy it."""
UNDER_WAY: Final = 10_000
"""Sign-ons under way at once; whoever is not logged in can begin one."""
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
    """The use cases of one provider."""

    def __init__(self, db: Database, settings: OidcSettings, provider: Provider) -> None:
        self._db, self._settings, self._provider = db, settings, provider

    def begin(self, wish: Wish, browser: str) -> str:
        """Where to send the browser; `browser` is the secret of its cookie."""
        _check(wish)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        url = self._provider.authorization_url(state=state, nonce=nonce, verifier=verifier)
        now = utcnow()
        with self._db.write() as session:
            session.execute(delete(SignOnRow).where(SignOnRow.expires_at <= now))
            if (session.scalar(select(func.count()).select_from(SignOnRow)) or 0) >= UNDER_WAY:
                raise LimitReached("Too many people are signing on: try again", retry_after_s=60)
            session.add(
                SignOnRow(
                    state_hash=_hash(state),
                    browser_hash=_hash(browser),
                    nonce=nonce,
                    verifier=verifier,
                    challenge=wish.challenge,
                    redirect_uri=wish.redirect_uri,
                    client_state=wish.state,
                    expires_at=now + AT_THE_PROVIDER,
                )
            )
        return url

    def complete(
        self, *, state: str, browser: str, code: str | None, error: str | None, issuer: str | None
    ) -> Outcome:
        """What the provider sent the browser back with; raises `Unauthenticated` for a state not ours.

        A state is good once, whatever comes of it.
        """
        row = self._claim(state, browser)
        try:
            if issuer not in (None, self._provider.issuer):  # RFC 9207: another provider's answer
                raise Unauthenticated(_OVER)
            if error is not None or code is None:
                raise Denied(f"The provider did not let you in: {(error or 'no code')[:200]}")
            claims = self._provider.claims(code=code, verifier=row.verifier, nonce=row.nonce)
            user = self._account(person_of(claims, self._settings))
        except BrokerError as problem:
            return Outcome(row.redirect_uri, row.client_state, None, problem)
        one_time = secrets.token_urlsafe(32)
        with self._db.write() as session:
            waiting = session.get_one(SignOnRow, row.state_hash)
            waiting.code_hash, waiting.user_id = _hash(one_time), user.id
            waiting.expires_at = utcnow() + TO_REDEEM
        return Outcome(row.redirect_uri, row.client_state, one_time, None)

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
        if row is None or user is None or not fits or not let_in or row.expires_at <= utcnow():
            raise Unauthenticated("The one-time code is not good, or was used: begin again")
        return user

    def _claim(self, state: str, browser: str) -> SignOnRow:
        with self._db.write() as session:
            row = session.get(SignOnRow, _hash(state), with_for_update=True)
            if row is None or row.returned or row.expires_at <= utcnow():
                raise Unauthenticated(_OVER)
            if not hmac.compare_digest(row.browser_hash, _hash(browser)):
                raise Unauthenticated(_OVER)
            row.returned = True
            return row

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
