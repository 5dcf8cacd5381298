"""Tables of result models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class ModelRow(Base):
    """A model: what one component of one pipeline produces, version after version."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    pipeline_id: Mapped[str] = mapped_column(ForeignKey("pipelines.id"))
    component: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(300))
    tenant: Mapped[str] = mapped_column(String(64))
    latest_version: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (UniqueConstraint("pipeline_id", "component"),)


class ModelVersionRow(Base):
    """One version: the outputs of one job. `job_id` is unique: storing twice makes one version."""

    __tablename__ = "model_versions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    tenant: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8))
    size: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    artifact: Mapped[str]
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JsonType)
    training: Mapped[dict[str, Any]] = mapped_column(JsonType)
    manifest_key: Mapped[str]
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        Index("ix_model_versions_tenant_id", "tenant", "id"),
    )
