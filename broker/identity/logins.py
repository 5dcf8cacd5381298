"""Logins: a short access token, and a refresh token that is replaced at each use.

A login is a row (`SessionRow`) with the number of its present refresh token. A token with an earlier number
was used before: by its owner, and now by whoever took it, or the other way round. Nobody can tell, so the
login ends for both (RFC 9700, 4.14.2). The tokens themselves are signed and stored nowhere.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import Database, new_id, utcnow
from broker.errors import Unauthenticated
from broker.identity.schemas import TokenView
from broker.identity.tables import SessionRow, UserRow
from broker.identity.tenants import may_enter
from broker.identity.tokens import TokenSigner

KEPT: Final = 50
"""Logins of one account at once; a further one ends the oldest."""
_ENDED = "This login has ended: log in again"


def begin(db: Database, signer: TokenSigner, user: UserRow) -> TokenView:
    """A new login of an account that has proven who it is."""
    now = utcnow()
    row = SessionRow(
        id=new_id("ses"),
        user_id=user.id,
        token_version=user.token_version,
        generation=1,
        started_at=now,
        refreshed_at=now,
        ends_at=now + timedelta(days=signer.session_days),
    )
    with db.write() as session:
        _make_room(session, user.id, now)
        session.add(row)
    return _tokens(signer, user, row, now)


def refresh(db: Database, signer: TokenSigner, token: str) -> TokenView:
    """New tokens for a refresh token, which is used up; raises `Unauthenticated`.

    Rotation leaves no audit row: it changes nothing that the login did not.
    """
    claims, now = signer.verify_refresh(token), utcnow()
    with db.write() as session:
        row = session.get(SessionRow, claims.session_id, with_for_update=True)
        user = session.get(UserRow, row.user_id) if row else None
        if row is not None and user is not None and _holds(session, row, user, now):
            if claims.generation == row.generation:
                row.generation += 1
                row.refreshed_at = now
                return _tokens(signer, user, row, now)
            session.delete(row)
            note = "A refresh token was used twice: the login was ended"
            record(session, user.principal(), "auth.refresh_reused", "user", user.id, None, None, note)
    raise Unauthenticated(_ENDED)


def end(db: Database, signer: TokenSigner, token: str) -> None:
    """End the login of a refresh token, used or not; one that has ended already is no error."""
    claims = signer.verify_refresh(token)
    with db.write() as session:
        row = session.get(SessionRow, claims.session_id)
        if row is not None:
            user = session.get_one(UserRow, row.user_id)
            session.delete(row)
            record(session, user.principal(), "auth.logout", "user", user.id, None, None)


def _holds(session: Session, row: SessionRow, user: UserRow, now: datetime) -> bool:
    return row.ends_at > now and row.token_version == user.token_version and may_enter(session, user)


def _make_room(session: Session, user_id: str, now: datetime) -> None:
    own = select(SessionRow.id).where(SessionRow.user_id == user_id, SessionRow.ends_at > now)
    newest = list(session.scalars(own.order_by(SessionRow.id.desc()).limit(KEPT - 1)))
    session.execute(
        delete(SessionRow).where(SessionRow.user_id == user_id, SessionRow.id.not_in(newest)),
    )


def _tokens(signer: TokenSigner, user: UserRow, row: SessionRow, now: datetime) -> TokenView:
    access, life = signer.issue(user.id, user.role, user.token_version)
    return TokenView(
        access_token=access,
        expires_in=life,
        refresh_token=signer.issue_refresh(row.id, row.generation, row.ends_at),
        refresh_expires_in=int((row.ends_at - now).total_seconds()),
        must_change_password=user.must_change_password,
    )
