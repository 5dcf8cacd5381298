"""Pipelines, their versions, and uploaded code."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, UTCDateTime


class PipelineRow(Base):
    """A pipeline: the name under which versions of a spec are kept. `external_id` is the spec's own id."""

    __tablename__ = "pipelines"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    external_id: Mapped[str] = mapped_column(String(128))
    name: Mapped[str] = mapped_column(String(200))
    tenant: Mapped[str] = mapped_column(String(64))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    latest_version: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (
        UniqueConstraint("tenant", "external_id"),
        Index("ix_pipelines_external_id", "external_id"),
        Index("ix_pipelines_owner_id", "owner_id"),
    )


class PipelineVersionRow(Base):
    """One immutable version. `spec` is the JSON document as it was sent, to the character."""

    __tablename__ = "pipeline_versions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    pipeline_id: Mapped[str] = mapped_column(ForeignKey("pipelines.id"))
    number: Mapped[int]
    spec: Mapped[str] = mapped_column(Text)
    content_hash: Mapped[str] = mapped_column(String(80))
    spec_version: Mapped[str] = mapped_column(String(128))
    created_by: Mapped[str] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (UniqueConstraint("pipeline_id", "number"),)


class UploadRow(Base):
    """Uploaded code. `stored_at` is set once the archive lies in the object store under `object_key`.

    What is stored is not what was sent but a tar.gz made anew from its checked members, so that no later
    reader can understand the archive differently than the check did.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    tenant: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    object_key: Mapped[str] = mapped_column(String(200))
    object_sha256: Mapped[str] = mapped_column(String(64))
    object_size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    stored_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (Index("ix_uploads_owner_id", "owner_id"),)
