"""Tables of what people are told: the outbox, its deliveries, webhooks, and what people chose."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class NotificationRow(Base):
    """One thing to tell: the outbox. Added with what happened, numbered afterwards by the worker alone.

    `id` is the message's id for ever, on every way and at every try. `seq` follows the order of *commits*: a
    reader that has seen a number has seen all below it (ids are made before the commit and can't say that).
    `once` is the key under which it is told only once; `tenant` is None for what concerns no single one.
    """

    __tablename__ = "notifications"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    seq: Mapped[int | None] = mapped_column(unique=True)
    once: Mapped[str | None] = mapped_column(String(200), unique=True)
    kind: Mapped[str] = mapped_column(String(32))
    tenant: Mapped[str | None] = mapped_column(String(64))
    user_id: Mapped[str | None] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(200))
    data: Mapped[dict[str, Any]] = mapped_column(JsonType)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (
        Index("ix_notifications_user_id_seq", "user_id", "seq"),
        Index("ix_notifications_tenant_seq", "tenant", "seq"),
        Index("ix_notifications_created_at", "created_at"),
    )


class WebhookRow(Base):
    """A receiver of messages. `tenant` None: of every tenant's and of the broker's own notices.

    Its secret is not here: it is made from the key file, the id and `secret_version` (`signing.Keyring`).
    Until `previous_until` messages are signed with the version before as well.
    """

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str | None] = mapped_column(String(64), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    description: Mapped[str] = mapped_column(String(128), default="")
    kinds: Mapped[list[str]] = mapped_column(JsonType)
    active: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None] = mapped_column(String(200))
    secret_version: Mapped[int] = mapped_column(default=1)
    previous_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    created_by: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    row_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": row_version}  # noqa: RUF012 - SQLAlchemy's own form


class DeliveryRow(Base):
    """One notice on its way to one receiver.

    `target`: a webhook's id, `user:ID` or `tenant:NAME` (e-mail), or a chat room's name in the settings. No
    foreign key: the log outlives a webhook. `state`: `pending`, `delivered`, `dead` (given up; `last_error`
    says why) or `skipped` (the receiver does not want it any more).
    """

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    notification_id: Mapped[str] = mapped_column(ForeignKey("notifications.id"))
    channel: Mapped[str] = mapped_column(String(8))
    target: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(10))
    tries: Mapped[int] = mapped_column(default=0)
    """All that were made; `forgiven` of them before somebody asked for another round."""
    forgiven: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_status: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (
        UniqueConstraint("notification_id", "channel", "target"),
        Index("ix_deliveries_state_channel_target_id", "state", "channel", "target", "id"),
        Index("ix_deliveries_channel_target_id", "channel", "target", "id"),
    )


class AttemptRow(Base):
    """One try of a delivery, written before it is made; without `ended_at` nobody knows how it went."""

    __tablename__ = "delivery_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("deliveries.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    began_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    status: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(500))


class PreferenceRow(Base):
    """What somebody chose. `owner`: `user:ID`, or `tenant:NAME` for a tenant's shared address."""

    __tablename__ = "notification_preferences"

    owner: Mapped[str] = mapped_column(String(80), primary_key=True)
    email: Mapped[str | None] = mapped_column(String(254))
    language: Mapped[str] = mapped_column(String(2), default="en")
    channels: Mapped[dict[str, list[str]]] = mapped_column(JsonType)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
