"""The price list: rows are added, never changed, but for the note of who withdrew one, and why."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import Date, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, ExactDecimal, UTCDateTime


class PriceRow(Base):
    """What an hour of a resource costs from a day (UTC) on, until another row says so for the same place.

    `cluster`, `partition`, `qos`, `gpu_type`: where it holds; `*` is everywhere. `amount` null: from this day
    on there is no price of this place's own, and that of a wider one holds. A withdrawn row holds for no day,
    past ones neither; `corrects` is the id of the withdrawn one that a row stands in the place of.
    """

    __tablename__ = "prices"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    resource: Mapped[str] = mapped_column(String(16))
    cluster: Mapped[str] = mapped_column(String(64))
    partition: Mapped[str] = mapped_column(String(255))
    qos: Mapped[str] = mapped_column(String(64))
    gpu_type: Mapped[str] = mapped_column(String(64))
    amount: Mapped[Decimal | None] = mapped_column(ExactDecimal)
    currency: Mapped[str] = mapped_column(String(3))
    valid_from: Mapped[date] = mapped_column(Date)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    created_by: Mapped[str] = mapped_column(String(64))
    withdrawn_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    withdrawn_by: Mapped[str | None] = mapped_column(String(64))
    withdrawn_why: Mapped[str | None] = mapped_column(String(500))
    corrects: Mapped[str | None] = mapped_column(ForeignKey("prices.id"), unique=True)

    __table_args__ = (
        Index(
            "uq_prices_that_hold",
            *("currency", "resource", "cluster", "partition", "qos", "gpu_type", "valid_from"),
            unique=True,
            sqlite_where=text("withdrawn_at IS NULL"),
            postgresql_where=text("withdrawn_at IS NULL"),
        ),
    )
