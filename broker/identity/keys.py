"""API keys: for programs, instead of a person's password. `brk_<id>_<secret>`, shown once.

The secret is 256 random bits, so a plain SHA-256 is enough to store: a slow hash protects passwords because
people choose ones that can be guessed, and nobody guesses 256 bits. A key never makes or revokes keys
(`KEYS_MANAGE`): what leaks once must not outlive its own end by making another.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import Database, new_id, utcnow
from broker.errors import Conflict, InvalidRequest, NotFound, Problem, Unauthenticated
from broker.identity.authority import check_authority
from broker.identity.permissions import ALLOWED, Permission, Principal, Role
from broker.identity.schemas import KeyCreate
from broker.identity.service import find_person
from broker.identity.tables import ApiKeyRow, UserRow
from broker.identity.tenants import may_enter
from broker.settings import ApiSettings

PREFIX: Final = "brk_"
KEPT: Final = 50
"""Keys of one account."""
SCOPES: Final = frozenset(Permission) - {Permission.KEYS_MANAGE}
"""What a key may be given."""
_USE_NOTED: Final = timedelta(minutes=10)
"""`last_used_at` is written no more often: reads must not become writes."""
_FORM: Final = re.compile(r"brk_([0-9a-z]{16})_([0-9a-f]{64})")
_REFUSED = "The API key is not valid: it was revoked, has expired, or its owner is not active"


def create_key(
    session: Session, principal: Principal, wanted: KeyCreate, limits: ApiSettings
) -> tuple[ApiKeyRow, str]:
    """Add a key of one's own; the row, and the key's text that is not stored anywhere.

    The owner's row is locked and looked at first: a key that is made while its owner is shut out would else
    be there when they are let in again.
    """
    days = wanted.expires_in_days or limits.key_days
    if days > limits.key_days_max:
        detail = f"A key lives at most {limits.key_days_max} days (`api.key_days_max`)"
        raise InvalidRequest(detail, problems=[Problem("/expires_in_days", "beyond_limit", detail)])
    _check_scopes(principal, wanted.scopes)
    owner = session.get(UserRow, principal.user_id, with_for_update=True)
    if owner is None or not may_enter(session, owner):
        raise Unauthenticated("The account is not active any more")
    count = select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.user_id == principal.user_id)
    if (session.scalar(count) or 0) >= KEPT:
        raise Conflict(f"You have {KEPT} keys already: delete one that is not used any more")
    secret, now = secrets.token_hex(32), utcnow()
    row = ApiKeyRow(
        id=new_id("key"),
        user_id=principal.user_id,
        name=wanted.name,
        secret_hash=_hash(secret),
        scopes=None if wanted.scopes is None else sorted(set(wanted.scopes)),
        created_at=now,
        expires_at=now + timedelta(days=days),
    )
    session.add(row)
    record(session, principal, "key.create", "key", row.id, None, shown(row))
    return row, f"{PREFIX}{row.id.removeprefix('key-')}_{secret}"


def _check_scopes(principal: Principal, scopes: list[Permission] | None) -> None:
    problems = [
        Problem(
            f"/scopes/{index}",
            "scope_not_yours",
            f"You can't give {scope}: {'keys do not manage keys' if scope not in SCOPES else 'you lack it'}",
        )
        for index, scope in enumerate(scopes or ())
        if scope not in SCOPES & ALLOWED[principal.role]
    ]
    if problems:
        raise InvalidRequest("A key may do only what you may", problems=problems)


def keys_of(session: Session, principal: Principal, user: str | None) -> Select[ApiKeyRow]:
    """One's own keys, or those of a person that `principal` looks after; raises `NotFound`."""
    owner = principal.user_id
    if user not in {None, principal.user_id, principal.username}:
        owner = _governed(session, principal, str(user)).id
    return select(ApiKeyRow).where(ApiKeyRow.user_id == owner)


def delete_key(session: Session, principal: Principal, key_id: str) -> ApiKeyRow:
    """Revoke a key of one's own, or of a person that `principal` looks after.

    Raises `NotFound`, and `Denied` where the account itself would not be `principal`'s to change.
    """
    row = session.get(ApiKeyRow, key_id)
    try:
        if row is not None and row.user_id != principal.user_id:
            person = _governed(session, principal, row.user_id)
            check_authority(principal, Role(person.role), {})
    except NotFound:
        row = None
    if row is None:
        raise NotFound(f"There is no key {key_id!r}")
    tenant = session.get_one(UserRow, row.user_id).tenant
    session.delete(row)
    record(session, principal, "key.delete", "key", row.id, shown(row), None, tenant=tenant)
    return row


def _governed(session: Session, principal: Principal, user: str) -> UserRow:
    person = find_person(session, principal, user)
    if not principal.can(Permission.USERS_MANAGE):
        raise NotFound(f"There is no user {user!r}")
    return person


def key_id(text: str) -> str | None:
    """The id in a key's text, for the log; None for a token that is no key. The key may not exist."""
    form = _FORM.fullmatch(text)
    return f"key-{form[1]}" if form else None


def verify_key(db: Database, text: str) -> tuple[UserRow, Principal]:
    """The owner of a key, and as whom it acts; raises `Unauthenticated`."""
    form, now = _FORM.fullmatch(text), utcnow()
    if form is None:
        raise Unauthenticated(_REFUSED)
    with db.read() as session:
        row = session.get(ApiKeyRow, f"key-{form[1]}")
        if row is None or not hmac.compare_digest(row.secret_hash, _hash(form[2])) or row.expires_at <= now:
            raise Unauthenticated(_REFUSED)
        user = session.get_one(UserRow, row.user_id)
        if not may_enter(session, user):
            raise Unauthenticated(_REFUSED)
    if row.last_used_at is None or now - row.last_used_at > _USE_NOTED:
        with db.write() as session:
            session.execute(update(ApiKeyRow).where(ApiKeyRow.id == row.id).values(last_used_at=now))
    scopes = ALLOWED[Role(user.role)] if row.scopes is None else {Permission.ACCOUNT, *_known(row.scopes)}
    return user, user.principal(frozenset(scopes) & SCOPES)


def _known(scopes: list[str]) -> set[Permission]:
    """The permissions among stored words: a later version may have renamed one."""
    return {Permission(word) for word in scopes if word in set(Permission)}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def shown(row: ApiKeyRow) -> dict[str, Any]:
    """The fields of a key that the audit trail keeps."""
    owner = {"user_id": row.user_id, "name": row.name, "scopes": row.scopes}
    return owner | {"expires_at": row.expires_at.isoformat()}
