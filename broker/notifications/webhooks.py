"""Use cases of webhooks: each change and its audit row share the caller's transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import Conflict, NotFound
from broker.identity.permissions import Principal
from broker.identity.tenants import check_tenant
from broker.notifications.guard import Rules, checked_url
from broker.notifications.kinds import Channel, Kind
from broker.notifications.outbox import new_delivery
from broker.notifications.schemas import WebhookChange, WebhookCreate
from broker.notifications.tables import DeliveryRow, NotificationRow, WebhookRow

MOST_PER_TENANT = 20


def visible_webhooks(principal: Principal) -> Select[WebhookRow]:
    """The webhooks one may know of: one's tenant's; an admin's are all."""
    query = select(WebhookRow)
    return query if principal.is_admin else query.where(WebhookRow.tenant == principal.tenant)


def find_webhook(session: Session, principal: Principal, webhook_id: str) -> WebhookRow:
    """A webhook that one may know of; raises `NotFound`."""
    row = session.scalar(visible_webhooks(principal).where(WebhookRow.id == webhook_id))
    if row is None:
        raise NotFound(f"There is no webhook {webhook_id!r}")
    return row


def create_webhook(session: Session, principal: Principal, rules: Rules, wanted: WebhookCreate) -> WebhookRow:
    """Add a receiver. Without a tenant: an admin's is told everything, anybody else's of the own tenant."""
    tenant = wanted.tenant
    if tenant is None and not principal.is_admin:
        tenant = principal.tenant
    if tenant is not None:
        check_tenant(session, principal, tenant)
    url = checked_url(wanted.url, rules)
    exclusive(session, f"webhooks {tenant or ''}")
    count = select(func.count()).select_from(WebhookRow).where(WebhookRow.tenant.is_not_distinct_from(tenant))
    if (session.scalar(count) or 0) >= MOST_PER_TENANT:
        raise Conflict(f"There are {MOST_PER_TENANT} webhooks already: delete one first")
    now = utcnow()
    row = WebhookRow(
        id=new_id("wh"),
        tenant=tenant,
        url=url,
        description=wanted.description,
        kinds=sorted(set(wanted.kinds)),
        active=True,
        secret_version=1,
        created_by=principal.user_id,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    record(session, principal, "webhook.create", "webhook", row.id, None, shown(row), tenant=row.tenant)
    return row


def change_webhook(
    session: Session, principal: Principal, rules: Rules, row: WebhookRow, change: WebhookChange
) -> None:
    """Apply the fields that were sent."""
    before = shown(row)
    fields = change.sent()
    if "url" in fields:
        checked_url(fields["url"], rules)
    if "kinds" in fields:
        fields["kinds"] = sorted(set(fields["kinds"]))
    for name, value in fields.items():
        setattr(row, name, value)
    if row.active:
        row.disabled_reason = None
    row.updated_at = utcnow()
    record(session, principal, "webhook.change", "webhook", row.id, before, shown(row), tenant=row.tenant)


def rotate_secret(session: Session, principal: Principal, row: WebhookRow, overlap: timedelta) -> None:
    """Begin a new secret; the one before stays valid for a while. Of earlier ones none is valid any more."""
    now = utcnow()
    row.secret_version += 1
    row.previous_until = now + overlap if overlap else None
    row.updated_at = now
    until = row.previous_until.isoformat() if row.previous_until else None
    after = {"secret_version": row.secret_version, "previous_until": until}
    before = {"secret_version": row.secret_version - 1}
    record(session, principal, "webhook.rotate", "webhook", row.id, before, after, tenant=row.tenant)


def delete_webhook(session: Session, principal: Principal, row: WebhookRow) -> None:
    """Take a receiver away. What was under way to it is skipped when its turn comes; the log stays."""
    record(session, principal, "webhook.delete", "webhook", row.id, shown(row), None, tenant=row.tenant)
    session.delete(row)


def send_test(session: Session, principal: Principal, row: WebhookRow) -> tuple[DeliveryRow, NotificationRow]:
    """Put a test message into the outbox, for this receiver alone; it goes the way of all others."""
    now = utcnow()
    notice = NotificationRow(
        id=new_id("msg"),
        kind=Kind.WEBHOOK_TEST,
        tenant=row.tenant,
        user_id=principal.user_id,
        subject=row.description or row.id,
        data={"webhook_id": row.id, "requested_by": principal.username},
        created_at=now,
    )
    session.add(notice)
    session.flush()
    delivery = new_delivery(notice.id, Channel.WEBHOOK, row.id, now)
    session.add(delivery)
    record(
        session,
        principal,
        "webhook.test",
        "webhook",
        row.id,
        None,
        {"delivery": delivery.id},
        tenant=row.tenant,
    )
    return delivery, notice


def shown(row: WebhookRow) -> dict[str, Any]:
    """What the audit trail keeps of a webhook; a query string may be a receiver's secret and is left out."""
    parts = urlsplit(row.url)
    url = parts._replace(query="…" if parts.query else "").geturl()
    return {
        "tenant": row.tenant,
        "url": url,
        "description": row.description,
        "kinds": row.kinds,
        "active": row.active,
    }
