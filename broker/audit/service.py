"""Writing the audit trail."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from sqlalchemy.orm import Session

from broker.audit.tables import AuditRow
from broker.db import new_id, utcnow

source_ip: ContextVar[str | None] = ContextVar("source_ip", default=None)
"""The address the present request came from; set once per request, none for the worker."""


class Actor(Protocol):
    """Who acts: a `Principal`, or `SYSTEM` for what the broker does by itself."""

    @property
    def user_id(self) -> str:
        """Id of the account, or `system`."""

    @property
    def username(self) -> str:
        """Name at the time of the act."""

    @property
    def tenant(self) -> str:
        """The actor's own tenant."""

    @property
    def is_admin(self) -> bool:
        """Whether the actor acts in every tenant."""


def record(
    session: Session,
    principal: Actor,
    action: str,
    object_type: str,
    object_id: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    note: str = "",
    *,
    tenant: str | None = None,
) -> None:
    """Add one row in the caller's transaction: it stands if and only if the change does.

    `action` is a verb with its object (`user.create`, `run.cancel`); `before` and `after` are JSON values of
    the fields that matter, never a secret; `note` is a comment, or Slurm's answer in its own words.

    `tenant` is the one whose administrator may read the row: the actor's own; where the actor acts in every
    tenant (an admin, the broker itself) the caller names the object's, else only admins read it.
    """
    if tenant is None and not principal.is_admin:
        tenant = principal.tenant
    session.add(
        AuditRow(
            id=new_id("au"),
            at=utcnow(),
            actor_id=principal.user_id,
            actor_name=principal.username,
            source_ip=source_ip.get(),
            action=action,
            object_type=object_type,
            object_id=object_id,
            before=None if before is None else dict(before),
            after=None if after is None else dict(after),
            note=note,
            tenant=tenant,
        )
    )
