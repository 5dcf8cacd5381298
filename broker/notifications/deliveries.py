"""The log of deliveries: who may read it, and another round for what was given up."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import utcnow
from broker.errors import Conflict, NotFound
from broker.identity.permissions import Principal
from broker.notifications.delivery import DeliveryState
from broker.notifications.kinds import Channel
from broker.notifications.tables import AttemptRow, DeliveryRow, NotificationRow, WebhookRow
from broker.notifications.webhooks import visible_webhooks


def visible_deliveries(principal: Principal) -> Select[DeliveryRow]:
    """The deliveries one may know of: an admin's are all, else those of the own tenant's notices.

    What a receiver of every tenant's notices answered is the admins' alone.
    """
    query = select(DeliveryRow).join(NotificationRow, NotificationRow.id == DeliveryRow.notification_id)
    if principal.is_admin:
        return query
    hooks = visible_webhooks(principal).with_only_columns(WebhookRow.id)
    own = DeliveryRow.target.in_(hooks) | (DeliveryRow.channel == Channel.EMAIL)
    return query.where(NotificationRow.tenant == principal.tenant, own)


def find_delivery(session: Session, principal: Principal, delivery_id: str) -> DeliveryRow:
    """A delivery that one may know of; raises `NotFound`."""
    row = session.scalar(visible_deliveries(principal).where(DeliveryRow.id == delivery_id))
    if row is None:
        raise NotFound(f"There is no delivery {delivery_id!r}")
    return row


def attempts_of(session: Session, row: DeliveryRow) -> list[AttemptRow]:
    """Every try of a delivery, in order."""
    query = select(AttemptRow).where(AttemptRow.delivery_id == row.id).order_by(AttemptRow.number)
    return list(session.scalars(query))


def notices_of(session: Session, rows: Sequence[DeliveryRow]) -> dict[str, NotificationRow]:
    """What the deliveries carry, by id: one query."""
    query = select(NotificationRow).where(NotificationRow.id.in_({row.notification_id for row in rows}))
    return {row.id: row for row in session.scalars(query)}


def redeliver(session: Session, principal: Principal, row: DeliveryRow) -> None:
    """Begin another round for a delivery that ended, under the same message id; it has all tries again."""
    if row.state == DeliveryState.PENDING:
        raise Conflict("This delivery is still under way: wait for its next try")
    before = {"state": row.state, "tries": row.tries, "error": row.last_error}
    row.state, row.next_try_at, row.ended_at = DeliveryState.PENDING, utcnow(), None
    row.forgiven = row.tries
    tenant = session.get_one(NotificationRow, row.notification_id).tenant
    after = {"state": row.state}
    record(session, principal, "delivery.retry", "delivery", row.id, before, after, tenant=tenant)


def counts(session: Session, rows: Sequence[WebhookRow]) -> dict[tuple[str, str], int]:
    """How many deliveries of each webhook are under way or given up, by (webhook, state)."""
    query = (
        select(DeliveryRow.target, DeliveryRow.state, func.count())
        .where(
            DeliveryRow.channel == Channel.WEBHOOK,
            DeliveryRow.target.in_([row.id for row in rows]),
            or_(DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.state == DeliveryState.DEAD),
        )
        .group_by(DeliveryRow.target, DeliveryRow.state)
    )
    return {(target, state): number for target, state, number in session.execute(query)}
