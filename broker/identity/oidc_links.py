"""Which people at a provider an account belongs to, and taking them away from it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.errors import NotFound
from broker.identity.authority import check_authority
from broker.identity.oidc_tables import IdentityRow
from broker.identity.permissions import Principal, Role
from broker.identity.service import find_person, withdraw
from broker.identity.tables import UserRow


def links_of(session: Session, principal: Principal, user: str) -> Sequence[IdentityRow]:
    """The links of an account that `principal` looks after, oldest first."""
    return _links(session, find_person(session, principal, user))


def unlink(session: Session, principal: Principal, user: str) -> UserRow:
    """Take every link from an account and end what it has open; raises `NotFound` when there is none.

    For somebody whom the provider made anew (another `sub`), or whose name was given to another person.
    Without a link nobody signs on as this account; it can get a password, or be linked again by its name.
    """
    found = find_person(session, principal, user)
    check_authority(principal, Role(found.role), {})
    links = _links(session, found)
    if not links:
        raise NotFound(f"Nobody at a provider is linked to {found.username!r}")
    before = {"identities": [{"issuer": link.issuer, "subject": link.subject} for link in links]}
    for link in links:
        session.delete(link)
    withdraw(session, found)
    record(session, principal, "user.unlink", "user", found.id, before, None, tenant=found.tenant)
    return found


def _links(session: Session, user: UserRow) -> Sequence[IdentityRow]:
    query = select(IdentityRow).where(IdentityRow.user_id == user.id)
    return session.scalars(query.order_by(IdentityRow.linked_at)).all()
