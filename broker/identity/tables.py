"""Accounts, the tenants they belong to, and what stands for their passwords."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime
from broker.identity.permissions import Permission, Principal, Role


class TenantRow(Base):
    """Who shares work, a quota and a part of the cluster: a Slurm account of the same name. Never deleted."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(128))
    fairshare: Mapped[int]
    """Shares relative to its siblings (`sacctmgr … fairshare=`, sacctmgr(1))."""
    active: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    row_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": row_version}  # noqa: RUF012 - SQLAlchemy's own form


class UserRow(Base):
    """One account. `token_version` grows whenever every token given out so far must die."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    username: Mapped[str] = mapped_column(String(64), unique=True)
    display_name: Mapped[str] = mapped_column(String(128), default="")
    password_hash: Mapped[str] = mapped_column(String(256))
    role: Mapped[str] = mapped_column(String(16))
    tenant: Mapped[str] = mapped_column(String(64))
    active: Mapped[bool] = mapped_column(default=True)
    must_change_password: Mapped[bool] = mapped_column(default=False)
    token_version: Mapped[int] = mapped_column(default=1)
    unix_account: Mapped[str | None] = mapped_column(String(32))
    max_training_hours: Mapped[int | None]
    """Longest time limit that this one may ask for, hours; None: everybody's (AM-10)."""
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    row_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": row_version}  # noqa: RUF012 - SQLAlchemy's own form

    def principal(self, scopes: frozenset[Permission] | None = None) -> Principal:
        """The account as the one who asks; `scopes` are those of an API key."""
        return Principal(self.id, self.username, Role(self.role), self.tenant, scopes)


class ApiKeyRow(Base):
    """A key for programs. Only its hash is here; revoking it, or shutting its owner out, deletes the row."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(String(128))
    secret_hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str] | None] = mapped_column(JsonType)
    """Permissions; None: all that the owner's role has."""
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    __table_args__ = (Index("ix_api_keys_user_id_id", "user_id", "id"),)


class SessionRow(Base):
    """One login; its refresh token is replaced at each use, and only that of this `generation` is good."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    token_version: Mapped[int]
    """The account's at login: whatever voids its access tokens voids the session too."""
    generation: Mapped[int]
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    refreshed_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ends_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (Index("ix_sessions_user_id", "user_id"),)
