"""Webhooks over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from broker.api.conditional import IfMatch, check_if_match, etag
from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Ctx, requires
from broker.context import Context
from broker.identity import Permission, Principal
from broker.notifications.deliveries import counts, notices_of, visible_deliveries
from broker.notifications.delivery import DeliveryState
from broker.notifications.guard import Rules
from broker.notifications.kinds import Channel
from broker.notifications.schemas import (
    DeliveryView,
    Rotation,
    WebhookChange,
    WebhookCreate,
    WebhookSecret,
    WebhookView,
    delivery_view,
    webhook_view,
)
from broker.notifications.signing import load_keyring
from broker.notifications.tables import DeliveryRow, WebhookRow
from broker.notifications.webhooks import (
    change_webhook,
    create_webhook,
    delete_webhook,
    find_webhook,
    rotate_secret,
    send_test,
    visible_webhooks,
)

router = APIRouter(prefix="/webhooks", tags=["webhooks"])
Manager = Annotated[Principal, Depends(requires(Permission.NOTIFICATIONS_MANAGE))]


@router.get("")
def list_webhooks(ctx: Ctx, page: PageParams, principal: Manager) -> Page[WebhookView]:
    """The webhooks one looks after, newest first."""
    with ctx.db.read() as session:
        rows, cursor = fetch(session, visible_webhooks(principal), WebhookRow.id, page)
        numbers = counts(session, rows)
    return Page(items=[_view(row, numbers) for row in rows], next_cursor=cursor)


@router.post("", status_code=201)
def add_webhook(body: WebhookCreate, ctx: Ctx, principal: Manager, response: Response) -> WebhookSecret:
    """Register a receiver. Its secret is in this answer alone."""
    with ctx.db.write() as session:
        row = create_webhook(session, principal, _rules(ctx), body)
        session.flush()
    response.headers["Location"] = f"/api/v1/webhooks/{row.id}"
    return _with_secret(ctx, row, {})


@router.get("/{webhook_id}")
def show_webhook(webhook_id: str, ctx: Ctx, principal: Manager, response: Response) -> WebhookView:
    """One webhook, without its secret."""
    with ctx.db.read() as session:
        row = find_webhook(session, principal, webhook_id)
        numbers = counts(session, [row])
    response.headers["ETag"] = etag(row.row_version)
    return _view(row, numbers)


@router.patch("/{webhook_id}")
def edit_webhook(
    webhook_id: str,
    body: WebhookChange,
    ctx: Ctx,
    principal: Manager,
    response: Response,
    if_match: IfMatch = None,
) -> WebhookView:
    """Change a webhook, or switch it on and off."""
    with ctx.db.write() as session:
        row = find_webhook(session, principal, webhook_id)
        check_if_match(if_match, etag(row.row_version))
        change_webhook(session, principal, _rules(ctx), row, body)
        session.flush()
        numbers = counts(session, [row])
    response.headers["ETag"] = etag(row.row_version)
    return _view(row, numbers)


@router.delete("/{webhook_id}", status_code=204)
def remove_webhook(webhook_id: str, ctx: Ctx, principal: Manager) -> None:
    """Delete a webhook; nothing is sent to it any more, the log of its deliveries stays."""
    with ctx.db.write() as session:
        delete_webhook(session, principal, find_webhook(session, principal, webhook_id))


@router.post("/{webhook_id}/rotate")
def rotate(
    webhook_id: str, ctx: Ctx, principal: Manager, response: Response, body: Rotation | None = None
) -> WebhookSecret:
    """Give a new secret; for a while messages carry the signature of the old one as well."""
    overlap = timedelta(hours=(body or Rotation()).overlap_hours)
    with ctx.db.write() as session:
        row = find_webhook(session, principal, webhook_id)
        rotate_secret(session, principal, row, overlap)
        session.flush()
        numbers = counts(session, [row])
    response.headers["ETag"] = etag(row.row_version)
    return _with_secret(ctx, row, numbers)


@router.post("/{webhook_id}/test", status_code=202)
def test(webhook_id: str, ctx: Ctx, principal: Manager) -> DeliveryView:
    """Send a test message the way of all others, once; the answer's delivery says how it went."""
    with ctx.db.write() as session:
        row, notice = send_test(session, principal, find_webhook(session, principal, webhook_id))
    ctx.wake()
    return delivery_view(row, notice)


@router.get("/{webhook_id}/deliveries")
def list_webhook_deliveries(
    webhook_id: str,
    ctx: Ctx,
    page: PageParams,
    principal: Manager,
    state: Annotated[list[DeliveryState] | None, Query(description="Only these states")] = None,
) -> Page[DeliveryView]:
    """What was sent to a webhook, newest first."""
    with ctx.db.read() as session:
        hook = find_webhook(session, principal, webhook_id)
        query = visible_deliveries(principal).where(
            DeliveryRow.channel == Channel.WEBHOOK, DeliveryRow.target == hook.id
        )
        if state:
            query = query.where(DeliveryRow.state.in_(state))
        rows, cursor = fetch(session, query, DeliveryRow.id, page)
        notices = notices_of(session, rows)
    return Page(items=[delivery_view(row, notices[row.notification_id]) for row in rows], next_cursor=cursor)


def _rules(ctx: Context) -> Rules:
    return Rules.of(ctx.settings.notifications.allowed_networks)


def _view(row: WebhookRow, numbers: dict[tuple[str, str], int]) -> WebhookView:
    pending = numbers.get((row.id, DeliveryState.PENDING), 0)
    return webhook_view(row, pending, numbers.get((row.id, DeliveryState.DEAD), 0))


def _with_secret(ctx: Context, row: WebhookRow, numbers: dict[tuple[str, str], int]) -> WebhookSecret:
    secret = load_keyring(ctx.settings.data_dir).shown(row.id, row.secret_version)
    return WebhookSecret(**_view(row, numbers).model_dump(), secret=secret)
