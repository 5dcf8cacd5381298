"""Adding to the outbox, and reading what one has been told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, and_, false, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broker.db import new_id, utcnow
from broker.identity.permissions import Principal, Role
from broker.notifications.kinds import Audience, Kind, kinds_for
from broker.notifications.tables import NotificationRow

_SUBJECT = 200


def notify(
    session: Session,
    kind: str,
    tenant: str | None,
    *,
    subject: str,
    data: Mapping[str, Any],
    user_id: str | None = None,
    once: str | None = None,
) -> None:
    """Tell of something, in the transaction in which it happens. One row; nothing is sent here.

    `subject` is what it is about, as people know it (a run's name and number, a tenant, a cluster); `data`
    are JSON values for programs and for the text (`texts.DETAILS`), never a secret; `user_id` is whose run it
    is. With `once` (a key of up to 200 characters) a second notice under the same key is no notice.
    """
    values = {
        "id": new_id("msg"),
        "once": once,
        "kind": Kind(kind),
        "tenant": tenant,
        "user_id": user_id,
        "subject": subject[:_SUBJECT],
        "data": dict(data),
        "created_at": utcnow(),
    }
    # Both dialects' own INSERT: a key that exists must not end the caller's transaction with an error.
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.execute(insert(NotificationRow).values(values).on_conflict_do_nothing(index_elements=["once"]))


def visible(principal: Principal) -> Select[NotificationRow]:
    """The numbered notices that concern a person: `kinds.concerns`, as a query."""

    def of(audience: Audience) -> Any:
        return NotificationRow.kind.in_(kinds_for(audience))

    leads = principal.role is Role.TENANT_ADMIN
    own_tenant = NotificationRow.tenant == principal.tenant if leads else false()
    return select(NotificationRow).where(
        NotificationRow.seq.is_not(None),
        or_(
            and_(of(Audience.OWNER), NotificationRow.user_id == principal.user_id),
            of(Audience.ADMINS) if principal.is_admin else false(),
            and_(of(Audience.TENANT_ADMINS), own_tenant),
        ),
    )
