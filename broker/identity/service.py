"""Use cases of accounts. Each change and its audit row share the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import Database, new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import Conflict, InvalidRequest, NotFound, Problem, Unauthenticated
from broker.identity.authority import check_authority
from broker.identity.passwords import (
    check_new_password,
    hash_password,
    one_time_password,
    verify_password,
)
from broker.identity.permissions import SYSTEM, Principal, Role
from broker.identity.schemas import UserChange, UserCreate
from broker.identity.tables import ApiKeyRow, SessionRow, UserRow
from broker.identity.tenants import check_tenant, may_enter
from broker.identity.throttle import LoginThrottle
from broker.identity.tokens import write_private

FIRST_ADMIN = "admin"
FIRST_ADMIN_FILE = "first-admin-password"
_ADMINS = "admins"  # name of the lock under which the number of admins may shrink or begin
_SHOWN = (
    "username",
    "display_name",
    "role",
    "tenant",
    "active",
    "must_change_password",
    "unix_account",
    "max_training_hours",
)


@dataclass(frozen=True, slots=True)
class OneTimePassword:
    """A password that was just made: print it once. It also lies in `path` (0600)."""

    username: str
    password: str
    path: Path


def authenticate(
    db: Database, throttle: LoginThrottle, username: str, password: str, address: str
) -> UserRow:
    """The account that fits; raises `Unauthenticated`, or `LimitReached` after too many failures.

    The hash is computed outside any transaction: it takes a tenth of a second.
    """
    with throttle.attempt(username, address) as fits:
        with db.read() as session:
            user = session.scalar(select(UserRow).where(UserRow.username == username))
            welcome = user is not None and may_enter(session, user)
        good = verify_password(password, user.password_hash if user else None)
        if good:
            fits()
        if user is not None:
            with db.write() as session:
                action = "auth.login" if good and welcome else "auth.login_failed"
                record(session, user.principal(), action, "user", user.id, None, None)
    if user is None or not good or not welcome:
        raise Unauthenticated("User name and password do not fit together, or the account is not active")
    return user


def change_password(
    db: Database, throttle: LoginThrottle, principal: Principal, old: str, new: str
) -> UserRow:
    """Change one's own password; every login given out before ends. API keys stay: programs go on."""
    check_new_password(new, principal.username)
    if old == new:
        raise InvalidRequest(
            "The new password can't be used",
            problems=[Problem("/new", "weak_password", "The new password is the old one: choose another")],
        )
    with db.read() as session:
        stored = find_user(session, principal.user_id).password_hash
    with throttle.attempt(principal.username, "change") as fits:
        if not verify_password(old, stored):
            raise InvalidRequest(
                "The password was not changed",
                problems=[
                    Problem("/old", "wrong_password", "The old password is another one: type it again")
                ],
            )
        fits()
    hashed = hash_password(new)
    with db.write() as session:
        user = find_user(session, principal.user_id)
        if user.password_hash != stored:
            raise Conflict("The password was changed meanwhile: log in again")
        before = shown(user)
        _set_password(user, hashed, must_change=False)
        user.token_version += 1
        record(session, principal, "user.password", "user", user.id, before, shown(user))
        return user


def create_user(session: Session, principal: Principal, wanted: UserCreate, hashed: str) -> UserRow:
    """Add an account whose password (given as hash) must be changed at the first login."""
    check_authority(principal, None, wanted.model_dump())
    tenant = wanted.tenant or principal.tenant
    check_tenant(session, principal, tenant)
    if session.scalar(select(UserRow.id).where(UserRow.username == wanted.username)):
        raise Conflict(f"There is a user {wanted.username!r} already: choose another name")
    _check_unix_account(session, None, wanted.unix_account)
    now = utcnow()
    user = UserRow(
        id=new_id("us"),
        username=wanted.username,
        display_name=wanted.display_name,
        password_hash=hashed,
        role=wanted.role,
        tenant=tenant,
        unix_account=wanted.unix_account,
        max_training_hours=wanted.max_training_hours,
        active=True,
        must_change_password=True,
        token_version=1,
        created_at=now,
        updated_at=now,
    )
    session.add(user)
    record(session, principal, "user.create", "user", user.id, None, shown(user), tenant=tenant)
    return user


def change_user(
    session: Session, principal: Principal, user: UserRow, change: UserChange, hashed: str | None
) -> None:
    """Apply the fields that were sent. Deactivation and a new password end all that the account had open."""
    before = shown(user)
    fields = change.sent("unix_account", "max_training_hours")
    fields.pop("password", None)
    check_authority(principal, Role(user.role), fields)
    if fields.get("tenant", user.tenant) != user.tenant:
        check_tenant(session, principal, fields["tenant"])
    _check_unix_account(session, user, fields.get("unix_account"))
    for name, value in fields.items():
        setattr(user, name, value)
    if hashed is not None:
        _set_password(user, hashed, must_change=True)
    if hashed is not None or (before["active"] and not user.active):
        withdraw(session, user)
    if before["active"] and before["role"] == Role.ADMIN:
        _keep_an_admin(session)
    user.updated_at = utcnow()
    record(session, principal, "user.change", "user", user.id, before, shown(user), tenant=before["tenant"])


def withdraw(session: Session, user: UserRow) -> None:
    """End everything the account has open, at once: access tokens, sessions and API keys."""
    user.token_version += 1
    session.execute(delete(SessionRow).where(SessionRow.user_id == user.id))
    session.execute(delete(ApiKeyRow).where(ApiKeyRow.user_id == user.id))


def _check_unix_account(session: Session, user: UserRow | None, name: str | None) -> None:
    """Raise `InvalidRequest` for root, and for an account that acts for somebody else already.

    Two people with one Unix account could read and cancel each other's jobs.
    """
    if name is None or (user is not None and user.unix_account == name):
        return
    exclusive(session, "unix accounts")
    other = session.scalar(select(UserRow.username).where(UserRow.unix_account == name))
    if name == "root":
        detail = "Nobody runs jobs as root: name an account with a uid of 1000 or more"
        raise InvalidRequest(detail, problems=[Problem("/unix_account", "unix_account", detail)])
    if other is not None:
        detail = f"The Unix account {name!r} is {other}'s: two people would see each other's files"
        raise InvalidRequest(detail, problems=[Problem("/unix_account", "unix_account_taken", detail)])


def _keep_an_admin(session: Session) -> None:
    exclusive(session, _ADMINS)
    session.flush()
    admins = select(func.count()).where(UserRow.role == Role.ADMIN, UserRow.active.is_(True))
    if not session.scalar(admins):
        raise Conflict("This is the last active admin: make another one first")


def _set_password(user: UserRow, hashed: str, *, must_change: bool) -> None:
    user.password_hash = hashed
    user.must_change_password = must_change
    user.updated_at = utcnow()


def find_user(session: Session, user_id: str) -> UserRow:
    """The account with this id or user name."""
    user = session.get(UserRow, user_id) or session.scalar(select(UserRow).where(UserRow.username == user_id))
    if user is None:
        raise NotFound(f"There is no user {user_id!r}")
    return user


def visible_people(principal: Principal) -> Select[UserRow]:
    """The accounts that `principal` looks after: one tenant's; an admin's are all."""
    query = select(UserRow)
    return query if principal.is_admin else query.where(UserRow.tenant == principal.tenant)


def find_person(session: Session, principal: Principal, user_id: str) -> UserRow:
    """The account with this id or user name, if `principal` looks after its tenant; raises `NotFound`."""
    user = find_user(session, user_id)
    if not principal.governs(user.tenant):
        raise NotFound(f"There is no user {user_id!r}")
    return user


def shown(user: UserRow) -> dict[str, Any]:
    """The fields of an account that the audit trail keeps."""
    return {name: getattr(user, name) for name in _SHOWN}


def ensure_first_admin(db: Database, data_dir: Path) -> OneTimePassword | None:
    """Create the first admin when there is no account at all; None when there is one.

    The password file is written before the account is committed, so an account never exists without it.
    """
    anybody = select(UserRow.id).limit(1)
    with db.read() as session:
        if session.scalar(anybody):
            return None
    password = one_time_password()
    hashed = hash_password(password)
    with db.write() as session:
        exclusive(session, _ADMINS)
        if session.scalar(anybody):
            return None
        wanted = UserCreate(username=FIRST_ADMIN, display_name="First admin", role=Role.ADMIN)
        create_user(session, SYSTEM, wanted, hashed)
        return _write_once(data_dir, FIRST_ADMIN, password)


def reset_admin(db: Database, data_dir: Path, username: str = FIRST_ADMIN) -> OneTimePassword:
    """Give an admin who is locked out a new one-time password; makes the account if it does not exist.

    For whoever owns the data folder (`broker db reset-admin`): it withdraws every token of the account.
    """
    password = one_time_password()
    hashed = hash_password(password)
    with db.write() as session:
        exclusive(session, _ADMINS)
        user = session.scalar(select(UserRow).where(UserRow.username == username))
        if user is None:
            create_user(session, SYSTEM, UserCreate(username=username, role=Role.ADMIN), hashed)
        else:
            before = shown(user)
            user.role, user.active = Role.ADMIN, True
            _set_password(user, hashed, must_change=True)
            withdraw(session, user)
            record(
                session, SYSTEM, "user.reset_admin", "user", user.id, before, shown(user), tenant=user.tenant
            )
        return _write_once(data_dir, username, password)


def _write_once(data_dir: Path, username: str, password: str) -> OneTimePassword:
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = data_dir / FIRST_ADMIN_FILE
    write_private(path, f"{password}\n")
    return OneTimePassword(username, password, path)
