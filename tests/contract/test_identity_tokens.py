"""Tokens, the accounts they name, and the first admin."""

import stat
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import jwt
import pytest
from sqlalchemy import func, select

from broker.audit.tables import AuditRow
from broker.errors import ConfigurationError, Unauthenticated
from broker.identity import SYSTEM, Permission, Principal, Role
from broker.identity.passwords import verify_password
from broker.identity.permissions import ALLOWED
from broker.identity.schemas import UserCreate
from broker.identity.service import create_user, ensure_first_admin, reset_admin
from broker.identity.sessions import Authenticator
from broker.identity.tables import UserRow
from broker.identity.tokens import KEY_FILE, TokenSigner, load_key
from tests.api_support import context, password_hash

SIGNER = TokenSigner("k" * 64, 60)


@pytest.fixture
def ctx(tmp_path):
    with context(tmp_path) as made:
        yield made


@pytest.fixture
def user(ctx):
    with ctx.db.write() as session:
        return create_user(session, SYSTEM, UserCreate(username="ann"), password_hash())


def change(ctx, user, **fields):
    with ctx.db.write() as session:
        row = session.get_one(UserRow, user.id)
        for name, value in fields.items():
            setattr(row, name, value)


def test_token_names_the_account_and_ends():
    token, life = SIGNER.issue("us-1", "viewer", 3)
    claims = SIGNER.verify(token)
    assert (claims.user_id, claims.token_version, life) == ("us-1", 3, 3600)
    assert abs(claims.expires_at - time.time() - 3600) < 5


def _claims(**changes):
    now = datetime.now(UTC)
    claims = {"iss": "broker", "sub": "u", "tv": 1, "iat": now, "exp": now + timedelta(hours=1), "jti": "t"}
    return {k: v for k, v in (claims | changes).items() if v is not None}


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        jwt.encode(_claims(), "other" * 16, algorithm="HS256"),
        jwt.encode(_claims(), None, algorithm="none"),
        jwt.encode(_claims(), SIGNER.key, algorithm="HS512"),
        jwt.encode(_claims(iss="somebody"), SIGNER.key, algorithm="HS256"),
        jwt.encode(_claims(exp=None), SIGNER.key, algorithm="HS256"),
        jwt.encode(_claims(sub=None), SIGNER.key, algorithm="HS256"),
        jwt.encode(_claims(tv=None), SIGNER.key, algorithm="HS256"),
        jwt.encode(_claims(tv="many"), SIGNER.key, algorithm="HS256"),
        jwt.encode(_claims(exp=datetime.now(UTC) - timedelta(seconds=1)), SIGNER.key, algorithm="HS256"),
    ],
)
def test_token_that_is_not_ours_or_over_is_refused(token):
    with pytest.raises(Unauthenticated):
        SIGNER.verify(token)


def test_key_is_private_and_made_once_by_many(tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_key(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and len(found[0]) == 64
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_key_that_others_can_read_is_refused(tmp_path):
    load_key(tmp_path)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_key(tmp_path)


def test_remembered_account_costs_no_query_and_ages(ctx, user):
    now = [100.0]
    authenticator = Authenticator(ctx.db, SIGNER, clock=lambda: now[0])
    token, _ = SIGNER.issue(user.id, user.role, user.token_version)
    assert authenticator.remembered_account(token) is None
    assert authenticator.verify(token).principal.username == "ann"
    assert authenticator.remembered_account(token).principal.username == "ann"
    now[0] += 1.5
    assert authenticator.remembered_account(token) is None


def test_deactivation_and_token_version_end_a_session_within_a_second(ctx, user):
    now = [100.0]
    authenticator = Authenticator(ctx.db, SIGNER, clock=lambda: now[0])
    token, _ = SIGNER.issue(user.id, user.role, user.token_version)
    authenticator.verify(token)
    change(ctx, user, active=False)
    now[0] += 1.01
    assert authenticator.remembered_account(token) is None
    with pytest.raises(Unauthenticated):
        authenticator.verify(token)
    change(ctx, user, active=True, token_version=2)
    with pytest.raises(Unauthenticated):
        authenticator.verify(token)


def test_new_token_is_not_refused_because_the_remembered_account_is_older(ctx, user):
    authenticator = Authenticator(ctx.db, SIGNER, clock=lambda: 100.0)
    old, _ = SIGNER.issue(user.id, user.role, 1)
    new, _ = SIGNER.issue(user.id, user.role, 2)
    authenticator.verify(old)
    change(ctx, user, token_version=2)  # in another process
    assert authenticator.remembered_account(new) is None
    assert authenticator.verify(new).token_version == 2
    assert authenticator.remembered_account(new) is not None


def test_role_is_the_accounts_not_the_tokens(ctx, user):
    authenticator = Authenticator(ctx.db, SIGNER)
    token, _ = SIGNER.issue(user.id, "admin", 1)
    assert authenticator.verify(token).principal.role is Role.RESEARCHER


def test_memory_of_tokens_is_bounded(ctx, user):
    authenticator = Authenticator(ctx.db, SIGNER)
    authenticator.remembered = 5
    for _ in range(20):
        authenticator.verify(SIGNER.issue(user.id, user.role, 1)[0])
    assert len(authenticator._claims) == 5


def test_first_admin_is_made_once_with_a_private_one_time_password(ctx):
    made = ensure_first_admin(ctx.db, ctx.settings.data_dir)
    assert made is not None and made.path.read_text() == made.password + "\n"
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert ensure_first_admin(ctx.db, ctx.settings.data_dir) is None
    with ctx.db.read() as session:
        (admin,) = session.scalars(select(UserRow)).all()
        assert (admin.username, admin.role, admin.must_change_password) == ("admin", "admin", True)
        assert verify_password(made.password, admin.password_hash)
        (row,) = session.scalars(select(AuditRow)).all()
        assert (row.actor_id, row.action) == ("system", "user.create")
        assert made.password not in str(row.after)


def test_first_admin_is_made_once_by_many(ctx):
    made = []

    def start():
        made.append(ensure_first_admin(ctx.db, ctx.settings.data_dir))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (only,) = [one for one in made if one]
    assert only.path.read_text() == only.password + "\n"
    with ctx.db.read() as session:
        assert session.scalar(select(func.count()).select_from(UserRow)) == 1


def test_reset_admin_lets_a_locked_out_admin_in_and_ends_old_sessions(ctx):
    first = ensure_first_admin(ctx.db, ctx.settings.data_dir)
    with ctx.db.write() as session:
        admin = session.scalars(select(UserRow)).one()
        admin.active = False
        before = admin.token_version
    again = reset_admin(ctx.db, ctx.settings.data_dir)
    assert again.password != first.password and again.path.read_text() == again.password + "\n"
    with ctx.db.read() as session:
        admin = session.scalars(select(UserRow)).one()
        assert admin.active and admin.must_change_password and admin.token_version > before
        assert verify_password(again.password, admin.password_hash)


def test_reset_admin_makes_the_account_that_does_not_exist(ctx):
    reset_admin(ctx.db, ctx.settings.data_dir, "root-of-trust")
    with ctx.db.read() as session:
        assert session.scalars(select(UserRow)).one().role == "admin"


def test_roles_grow_and_every_permission_is_somebodys():
    grow = [ALLOWED[role] for role in (Role.VIEWER, Role.RESEARCHER, Role.TENANT_ADMIN, Role.ADMIN)]
    assert all(less < more for less, more in pairwise(grow))
    assert ALLOWED[Role.INTERNAL] == ALLOWED[Role.RESEARCHER]
    assert ALLOWED[Role.ADMIN] == set(Permission)
    assert not any(permission.endswith(":write") for permission in ALLOWED[Role.VIEWER])


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
def test_only_admins_decide_for_every_tenant(role):
    deciding = {"approvals:decide", "queue:manage", "quotas:manage", "clusters:manage", "tenants:manage"}
    assert not deciding & ALLOWED[role]


@pytest.mark.parametrize("role", list(Role))
def test_scopes_only_ever_narrow(role):
    every = Principal("us_1", "ann", role, "default", frozenset(Permission))
    reading = Principal("us_1", "ann", role, "default", frozenset({Permission.RUNS_READ}))
    assert every.permissions == ALLOWED[role]
    assert reading.can(Permission.RUNS_READ) and reading.permissions == {Permission.RUNS_READ}
