"""What waits in the queues, as the report of the longest waiting jobs needs it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType


class AccountingQueueRow(Base):
    """All jobs of a cluster that waited when its queue was last looked at: one row, replaced as a whole.

    Accounting can't say it: it leaves out held jobs, and why a job waits is not kept up to date in it.
    `taken_at`: seconds since the epoch. `jobs`: a list of `waiting.Pending`.
    """

    __tablename__ = "accounting_queues"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    taken_at: Mapped[int] = mapped_column(BigInteger)
    jobs: Mapped[list[dict[str, Any]]] = mapped_column(JsonType)
