"""What was decided about runs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, UTCDateTime


class DecisionRow(Base):
    """One decision about one attempt of a run; never changed. `decided_by` None: time ran out."""

    __tablename__ = "approval_decisions"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    attempt: Mapped[int]
    decision: Mapped[str] = mapped_column(String(16))
    plan_hash: Mapped[str | None] = mapped_column(String(80))
    comment: Mapped[str]
    decided_by: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    decided_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (Index("ix_approval_decisions_run_id", "run_id"),)
