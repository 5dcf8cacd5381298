"""Tenants: who shares work, a quota and a part of the cluster. In Slurm a tenant is an account.

A tenant is never deleted, only closed: its runs, results and accounting outlive it, and its name must not
come to mean another. So an account's `tenant` needs no foreign key; whoever sets it looks here first.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Select, insert, inspect, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import utcnow
from broker.errors import Conflict, InvalidRequest, NotFound, Problem
from broker.identity.permissions import Principal, Role
from broker.identity.schemas import TenantChange, TenantCreate
from broker.identity.tables import TenantRow, UserRow

DEFAULT_TENANT: Final = "default"
_SHOWN = ("name", "display_name", "fairshare", "active")


def ensure_tenants(connection: Connection) -> None:
    """Make `default`, and every tenant that an account of an older version names; part of the upgrade.

    Does nothing at a revision that has no tenants yet.
    """
    if not inspect(connection).has_table(TenantRow.__tablename__):
        return
    named = {DEFAULT_TENANT, *connection.scalars(select(UserRow.tenant).distinct())}
    now = utcnow()
    for name in sorted(named - set(connection.scalars(select(TenantRow.name)))):
        row = {"name": name, "display_name": "", "fairshare": 1, "active": True, "row_version": 1}
        connection.execute(insert(TenantRow).values(**row, created_at=now, updated_at=now))


def visible_tenants(principal: Principal) -> Select[TenantRow]:
    """The tenants that may be read: one's own; an admin's is every tenant."""
    query = select(TenantRow)
    return query if principal.is_admin else query.where(TenantRow.name == principal.tenant)


def find_tenant(session: Session, principal: Principal, name: str) -> TenantRow:
    """One tenant that may be read; raises `NotFound`."""
    row = session.get(TenantRow, name) if principal.sees(name) else None
    if row is None:
        raise NotFound(f"There is no tenant {name!r}")
    return row


def check_tenant(session: Session, principal: Principal, name: str) -> None:
    """Raise `InvalidRequest` unless `name` is an open tenant whose people `principal` looks after."""
    row = session.get(TenantRow, name) if principal.governs(name) else None
    if row is None:
        detail = f"There is no tenant {name!r} that you look after: an admin makes one (POST /api/v1/tenants)"
        raise InvalidRequest(detail, problems=[Problem("/tenant", "unknown_tenant", detail)])
    if not row.active:
        detail = f"The tenant {name!r} is closed: an admin opens it again, or name another"
        raise InvalidRequest(detail, problems=[Problem("/tenant", "closed_tenant", detail)])


def may_enter(session: Session, user: UserRow) -> bool:
    """Whether the account is let in: active, and its tenant open (an admin's tenant locks nobody out)."""
    if not user.active or user.role == Role.ADMIN:
        return user.active
    return bool(session.scalar(select(TenantRow.active).where(TenantRow.name == user.tenant)))


def create_tenant(session: Session, principal: Principal, wanted: TenantCreate) -> TenantRow:
    """Add a tenant; `broker cluster sync` makes its Slurm account."""
    if session.get(TenantRow, wanted.name) is not None:
        raise Conflict(f"There is a tenant {wanted.name!r} already: choose another name")
    now = utcnow()
    row = TenantRow(
        name=wanted.name,
        display_name=wanted.display_name,
        fairshare=wanted.fairshare,
        active=True,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    record(session, principal, "tenant.create", "tenant", row.name, None, shown(row), tenant=row.name)
    return row


def change_tenant(session: Session, principal: Principal, row: TenantRow, change: TenantChange) -> None:
    """Apply the fields that were sent. Closing a tenant shuts its people out until it is open again."""
    before = shown(row)
    fields = change.sent()
    if row.name == DEFAULT_TENANT and fields.get("active") is False:
        raise Conflict(f"The tenant {DEFAULT_TENANT!r} stays open: move its people to another instead")
    for name, value in fields.items():
        setattr(row, name, value)
    row.updated_at = utcnow()
    record(session, principal, "tenant.change", "tenant", row.name, before, shown(row), tenant=row.name)


def shown(row: TenantRow) -> dict[str, Any]:
    """The fields of a tenant that the audit trail keeps."""
    return {name: getattr(row, name) for name in _SHOWN}
