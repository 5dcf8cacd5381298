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


def record(
    session: Session,
    principal: Actor,
    action: str,
    object_type: str,
    object_id: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    note: str = "",
) -> None:
    """Add one row in the caller's transaction: it stands if and only if the change does.

    `action` is a verb with its object (`user.create`, `run.cancel`); `before` and `after` are JSON values of
    the fields that matter, never a secret.
    """
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
        )
    )
