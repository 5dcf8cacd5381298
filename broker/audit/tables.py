"""The audit trail's tables. Rows are added, never altered: the database refuses (`broker.audit.guard`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class AuditRow(Base):
    """One change. `actor_id` is no foreign key: the trail outlives accounts, and `system` has none."""

    __tablename__ = "audit"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    actor_id: Mapped[str] = mapped_column(String(32))
    actor_name: Mapped[str] = mapped_column(String(64))
    source_ip: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    object_type: Mapped[str] = mapped_column(String(32))
    object_id: Mapped[str] = mapped_column(String(64))
    before: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    after: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    note: Mapped[str] = mapped_column(default="")
    tenant: Mapped[str | None] = mapped_column(String(64))

    __table_args__ = (
        Index("ix_audit_object_type_object_id", "object_type", "object_id"),
        Index("ix_audit_actor_id_id", "actor_id", "id"),
        Index("ix_audit_action_id", "action", "id"),
        Index("ix_audit_tenant_id", "tenant", "id"),
    )


class SealRow(Base):
    """A link of the chain: the row of this number, and the hash over it and the link before."""

    __tablename__ = "audit_seals"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    audit_id: Mapped[str] = mapped_column(ForeignKey(AuditRow.id), unique=True)
    sealed_at: Mapped[datetime] = mapped_column(UTCDateTime)
    hash: Mapped[str] = mapped_column(String(64))
