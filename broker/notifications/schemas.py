"""What the API says about notices, deliveries, webhooks and choices; and what a webhook's message is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from broker.identity.schemas import Change
from broker.notifications.delivery import DeliveryState
from broker.notifications.kinds import NEWS, Channel, Kind
from broker.notifications.tables import AttemptRow, DeliveryRow, NotificationRow, WebhookRow
from broker.notifications.texts import Message, write
from broker.settings import News
from broker.text import Line, RequestModel

Email = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$", max_length=254),
]
Personal = Literal["stream", "email"]


class Text(BaseModel):
    """A notice as people read it."""

    title: str
    body: str


class NoticeView(BaseModel):
    """One thing one was told."""

    id: str
    seq: int = Field(description="Number in the order of events; `Last-Event-ID` of the stream")
    kind: Kind
    type: str = Field(description="The kind as a webhook's `type`: `run.failed`")
    at: datetime
    tenant: str | None
    subject: str
    text: dict[str, Text] = Field(description="In each language: `en`, `ko`")
    data: dict[str, Any]


class WebhookCreate(RequestModel):
    """A new receiver of messages."""

    url: str = Field(max_length=2000, description="https://…; private addresses are refused")
    description: Line = ""
    kinds: list[News] = Field([], max_length=len(NEWS), description="What it is told of; empty: everything")
    tenant: Annotated[str | None, StringConstraints(max_length=64)] = Field(
        None, description="Whose notices; an admin may leave it out: every tenant's, and the broker's own"
    )


class WebhookChange(Change):
    """What to change of a receiver."""

    url: str | None = Field(None, max_length=2000)
    description: Line | None = None
    kinds: list[News] | None = Field(None, max_length=len(NEWS))
    active: bool | None = None


class WebhookView(BaseModel):
    """A receiver of messages. Its `ETag` is `version`."""

    id: str
    tenant: str | None
    url: str
    description: str
    kinds: list[str]
    active: bool
    disabled_reason: str | None = Field(description="Why the broker switched it off by itself")
    previous_secret_until: datetime | None = Field(description="Till then the old signature comes too")
    pending: int = Field(description="Deliveries under way")
    dead: int = Field(description="Deliveries that were given up")
    created_at: datetime
    updated_at: datetime
    version: int


class WebhookSecret(WebhookView):
    """The same with its secret, shown this one time."""

    secret: str = Field(description="`whsec_…`, as the libraries of Standard Webhooks take it")


class Rotation(RequestModel):
    """How long the old secret stays valid beside the new one."""

    overlap_hours: float = Field(24, ge=0, le=24 * 30, description="0: at once not any more")


class AttemptView(BaseModel):
    """One try; without `ended_at` nobody knows how it went, and it was made again."""

    number: int
    began_at: datetime
    ended_at: datetime | None
    status: int | None = Field(description="HTTP status of the answer")
    error: str | None


class DeliveryView(BaseModel):
    """A notice on its way to one receiver."""

    id: str
    message_id: str = Field(description="The message's id, the same at every try (`webhook-id`)")
    kind: Kind
    subject: str
    channel: Channel
    target: str = Field(description="A webhook's id, `user:ID`, `tenant:NAME`, or a chat room's name")
    state: DeliveryState
    tries: int
    next_try_at: datetime | None
    status: int | None
    error: str | None
    created_at: datetime
    ended_at: datetime | None
    attempts: list[AttemptView] | None = Field(None, description="Every try; only of a single delivery")


class Preferences(RequestModel):
    """What somebody chose. Kinds that are not named follow the default."""

    email: Email | None = Field(None, description="Where e-mail goes; null: nowhere")
    language: Literal["en", "ko"] = "en"
    channels: dict[News, list[Personal]] = Field(
        {}, description="By kind, the ways one wants; an empty list: not at all"
    )


class PreferencesView(BaseModel):
    """What somebody chose, and what follows from it for every kind."""

    email: str | None
    language: Literal["en", "ko"]
    channels: dict[str, list[str]] = Field(description="As chosen")
    effective: dict[str, list[Channel]] = Field(description="For every kind, the ways it comes")
    email_available: bool = Field(description="Whether a mail server is configured")


def texts(kind: Kind, row: NotificationRow) -> dict[str, Message]:
    """A notice in every language."""
    return {
        "en": write(kind, row.subject, row.data, "en"),
        "ko": write(kind, row.subject, row.data, "ko"),
    }


def notice_view(row: NotificationRow) -> NoticeView:
    """A numbered notice as people see it."""
    kind = Kind(row.kind)
    return NoticeView(
        id=row.id,
        seq=row.seq or 0,
        kind=kind,
        type=kind.event_type,
        at=row.created_at,
        tenant=row.tenant,
        subject=row.subject,
        text={name: Text(title=one.title, body=one.body) for name, one in texts(kind, row).items()},
        data=row.data,
    )


def payload(row: NotificationRow) -> dict[str, Any]:
    """A webhook's message, as the convention wants it: `type`, `timestamp`, `data`. The same at every try."""
    kind = Kind(row.kind)
    titles = {name: one.title for name, one in texts(kind, row).items()}
    data = {**row.data, "tenant": row.tenant, "subject": row.subject, "text": titles}
    return {"type": kind.event_type, "timestamp": row.created_at.isoformat(), "data": data}


def webhook_view(row: WebhookRow, pending: int, dead: int) -> WebhookView:
    """A webhook as people see it."""
    return WebhookView(
        id=row.id,
        tenant=row.tenant,
        url=row.url,
        description=row.description,
        kinds=row.kinds,
        active=row.active,
        disabled_reason=row.disabled_reason,
        previous_secret_until=row.previous_until,
        pending=pending,
        dead=dead,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.row_version,
    )


def delivery_view(
    row: DeliveryRow, notice: NotificationRow, attempts: list[AttemptRow] | None = None
) -> DeliveryView:
    """A delivery as people see it."""
    return DeliveryView(
        id=row.id,
        message_id=row.notification_id,
        kind=Kind(notice.kind),
        subject=notice.subject,
        channel=Channel(row.channel),
        target=row.target,
        state=DeliveryState(row.state),
        tries=row.tries,
        next_try_at=row.next_try_at,
        status=row.last_status,
        error=row.last_error,
        created_at=row.created_at,
        ended_at=row.ended_at,
        attempts=None
        if attempts is None
        else [
            AttemptView(
                number=one.number,
                began_at=one.began_at,
                ended_at=one.ended_at,
                status=one.status,
                error=one.error,
            )
            for one in attempts
        ],
    )
