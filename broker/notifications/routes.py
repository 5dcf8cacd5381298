"""What one was told, live or afterwards; what one chose; and the log of deliveries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket
from fastapi.responses import StreamingResponse

from broker.api.pagination import Page, PageParams, fetch, paginate
from broker.api.security import Auth, Credentials, Ctx, requires
from broker.api.sockets import Who, reader, serve_socket
from broker.api.streams import EVENT_STREAM, Streams
from broker.context import Context
from broker.errors import BrokerError
from broker.identity import Permission, Principal
from broker.identity.tenants import find_tenant
from broker.notifications.deliveries import (
    attempts_of,
    find_delivery,
    notices_of,
    redeliver,
    visible_deliveries,
)
from broker.notifications.delivery import DeliveryState
from broker.notifications.feed import Feed, follow, frame
from broker.notifications.kinds import Channel
from broker.notifications.outbox import tenant_owner, user_owner
from broker.notifications.preferences import read_preferences, tenant_wants, write_preferences
from broker.notifications.schemas import (
    DeliveryView,
    NoticeView,
    Preferences,
    PreferencesView,
    delivery_view,
    notice_view,
)
from broker.notifications.service import visible
from broker.notifications.tables import DeliveryRow, NotificationRow
from broker.settings import News

router = APIRouter(prefix="/notifications", tags=["notifications"])
Self = Annotated[Principal, Depends(requires(Permission.ACCOUNT))]
Reader = Annotated[Principal, Depends(requires(Permission.RUNS_READ))]
Manager = Annotated[Principal, Depends(requires(Permission.NOTIFICATIONS_MANAGE))]
Number = Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^\d{1,15}$")]


@router.get("")
def list_notifications(
    ctx: Ctx,
    page: PageParams,
    principal: Reader,
    kind: Annotated[list[News] | None, Query(description="Only these kinds")] = None,
) -> Page[NoticeView]:
    """What one was told, newest first."""
    query = visible(principal)
    if kind:
        query = query.where(NotificationRow.kind.in_(kind))
    with ctx.db.read() as session:
        return Page[NoticeView](**paginate(session, query, NotificationRow.id, page, notice_view))


@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses=EVENT_STREAM,
)
async def stream_notifications(
    request: Request,
    ctx: Ctx,
    auth: Auth,
    credentials: Credentials,
    principal: Reader,
    streams: Streams,
    last_event_id: Number = None,
) -> StreamingResponse:
    """The same live, as server-sent events; goes on after `Last-Event-ID`, else with what comes from now on.

    The token is checked all the while: the stream ends when it does.
    """
    assert credentials is not None  # `Reader` has refused a request without
    who = reader(auth, credentials)
    news = follow(ctx.db, feed_of(request.app.state, ctx), who, int(last_event_id) if last_event_id else None)

    async def body() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        with suppress(BrokerError):  # the token has ended: so does the stream
            async for found in news:
                yield "".join(map(frame, found)) or ": still here\n\n"

    return streams.respond(principal, body())


@router.websocket("/ws")
async def follow_by_socket(socket: WebSocket) -> None:
    """The same over a WebSocket, one JSON document per notice.

    A browser can't send `Authorization` with it: then the first message says
    `{"token": "…", "after": 12}`, within ten seconds. `after` as `Last-Event-ID`.
    """
    ctx: Context = socket.app.state.context

    async def messages(who: Who, said: dict[str, Any]) -> AsyncIterator[str]:
        after = _number(str(said.get("after", "")))
        async for found in follow(ctx.db, feed_of(socket.app.state, ctx), who, after):
            for notice in found:
                yield notice.model_dump_json()

    await serve_socket(socket, messages, {"after"})


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def feed_of(state: object, ctx: Context) -> Feed:
    """The application's one feed."""
    feed: Feed | None = getattr(state, "feed", None)
    if feed is None:
        feed = Feed(ctx.db)
        setattr(state, "feed", feed)  # noqa: B010 - starlette's state takes any name
    return feed


@router.get("/preferences")
def show_preferences(ctx: Ctx, principal: Self) -> PreferencesView:
    """What one chose to be told, and how."""
    with ctx.db.read() as session:
        return read_preferences(session, user_owner(principal.user_id), ctx.settings.notifications)


@router.put("/preferences")
def set_preferences(body: Preferences, ctx: Ctx, principal: Self) -> PreferencesView:
    """Choose what one is told, and how; replaces what was chosen."""
    owner = user_owner(principal.user_id)
    with ctx.db.write() as session:
        write_preferences(session, principal, owner, ctx.settings.notifications, body)
        return read_preferences(session, owner, ctx.settings.notifications)


@router.get("/preferences/{tenant}")
def show_tenant_preferences(tenant: str, ctx: Ctx, principal: Manager) -> PreferencesView:
    """What a tenant's shared address is told."""
    with ctx.db.read() as session:
        find_tenant(session, principal, tenant)
        return read_preferences(session, tenant_owner(tenant), ctx.settings.notifications, tenant_wants)


@router.put("/preferences/{tenant}")
def set_tenant_preferences(tenant: str, body: Preferences, ctx: Ctx, principal: Manager) -> PreferencesView:
    """Give a tenant a shared address, and choose what it is told."""
    owner = tenant_owner(tenant)
    with ctx.db.write() as session:
        find_tenant(session, principal, tenant)
        write_preferences(session, principal, owner, ctx.settings.notifications, body)
        return read_preferences(session, owner, ctx.settings.notifications, tenant_wants)


@router.get("/deliveries")
def list_deliveries(
    ctx: Ctx,
    page: PageParams,
    principal: Manager,
    state: Annotated[list[DeliveryState] | None, Query(description="`dead`: those given up")] = None,
    channel: Annotated[Channel | None, Query(description="Only this way")] = None,
) -> Page[DeliveryView]:
    """What was sent to whom and how it went, newest first."""
    query = visible_deliveries(principal)
    if state:
        query = query.where(DeliveryRow.state.in_(state))
    if channel:
        query = query.where(DeliveryRow.channel == channel)
    with ctx.db.read() as session:
        rows, cursor = fetch(session, query, DeliveryRow.id, page)
        notices = notices_of(session, rows)
    return Page(items=[delivery_view(row, notices[row.notification_id]) for row in rows], next_cursor=cursor)


@router.get("/deliveries/{delivery_id}")
def show_delivery(delivery_id: str, ctx: Ctx, principal: Manager) -> DeliveryView:
    """A delivery with every try."""
    with ctx.db.read() as session:
        row = find_delivery(session, principal, delivery_id)
        notice = notices_of(session, [row])[row.notification_id]
        return delivery_view(row, notice, attempts_of(session, row))


@router.post("/deliveries/{delivery_id}/retry", status_code=202)
def retry_delivery(delivery_id: str, ctx: Ctx, principal: Manager) -> DeliveryView:
    """Send what was given up (or taken) again, under the same message id."""
    with ctx.db.write() as session:
        row = find_delivery(session, principal, delivery_id)
        redeliver(session, principal, row)
        notice = notices_of(session, [row])[row.notification_id]
    ctx.wake()
    return delivery_view(row, notice)
