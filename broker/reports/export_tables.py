"""Reports that are written to the object store when their period is over."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import Date, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class ReportExportRow(Base):
    """One version of one export of one period. Another version follows when the figures have changed since.

    `name`: of the setting `reports.exports.NAME`. `state`: `waiting` (accounting has not been read to the
    period's end, or the last try failed: `trouble`), `intended` (what will lie in the store is decided),
    `stored`, `dropped` (the settings don't say how to write it any more: `trouble`). `digest`: SHA-256 of
    lines and total. `sources`: up to when each cluster had been read. `files`: format, key, size, sha256 of
    each. `checked_at`: when the figures were last compared with it. `asked_at`:
    since when somebody wants it written, or compared, now; null once that is done. `by_hand`: the period
    has a row for that reason alone, so the schedule catches up on nothing because of it.
    """

    __tablename__ = "report_exports"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    period: Mapped[str] = mapped_column(String(10), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    report: Mapped[str] = mapped_column(String(32))
    since: Mapped[date] = mapped_column(Date)
    until: Mapped[date] = mapped_column(Date)
    state: Mapped[str] = mapped_column(String(8))
    digest: Mapped[str | None] = mapped_column(String(64))
    sources: Mapped[list[dict[str, Any]]] = mapped_column(JsonType)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JsonType)
    made_at: Mapped[datetime] = mapped_column(UTCDateTime)
    stored_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    tries: Mapped[int]
    next_try_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    trouble: Mapped[str | None]
    asked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    by_hand: Mapped[bool]

    __table_args__ = (Index("ix_report_exports_until", "until"),)
