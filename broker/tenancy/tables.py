"""What the broker has set in Slurm's accounting."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class ClusterObjectRow(Base):
    """A QOS, account or person in an account that the broker has made or changed.

    `applied`: the fields as they were read back after the last change; null: none came about yet. `intended`:
    those of a change whose end nobody has seen (it is committed before sacctmgr is called).
    """

    __tablename__ = "cluster_objects"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    applied: Mapped[dict[str, str] | None] = mapped_column(JsonType)
    intended: Mapped[dict[str, str] | None] = mapped_column(JsonType)
    changed_at: Mapped[datetime] = mapped_column(UTCDateTime)
