"""Tables of what the clusters have and had."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, deferred, mapped_column

from broker.db import Base, JsonType, UTCDateTime


class ResourceRow(Base):
    """A cluster's nodes when they were last looked at: one row, replaced as a whole.

    `summary`: `cluster` and `partitions` (by name) → `snapshot.Amounts`. `nodes`: `snapshot.Look.nodes`; read
    only where they are shown. `all_jobs`: whether the look at the queue saw everybody's jobs. `sampled_at`:
    the look that was last kept as a sample.
    """

    __tablename__ = "resource_snapshots"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    taken_at: Mapped[datetime] = mapped_column(UTCDateTime)
    sampled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    all_jobs: Mapped[bool]
    summary: Mapped[dict[str, Any]] = mapped_column(JsonType)
    nodes: Mapped[list[dict[str, Any]]] = deferred(mapped_column(JsonType))


class SampleRow(Base):
    """Amounts over time. `step_s` 0: one look; 3600: the sums over the `samples` looks of one hour.

    `scope`: `cluster` (name ""), `gpu_type`, `partition`, `tenant`. `resource`: gpu, cpu, memory (MiB). `at`:
    seconds since the epoch, of an hour its beginning. `used` is the sum over the `measured` looks that had
    it, `measured_of` that of the amounts it was measured on. A tenant has `allocated` only.
    """

    __tablename__ = "resource_samples"

    cluster: Mapped[str] = mapped_column(String(64), primary_key=True)
    step_s: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    scope: Mapped[str] = mapped_column(String(10), primary_key=True)
    resource: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    at: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    samples: Mapped[int]
    total: Mapped[int] = mapped_column(BigInteger)
    allocated: Mapped[int] = mapped_column(BigInteger)
    idle: Mapped[int] = mapped_column(BigInteger)
    unavailable: Mapped[int] = mapped_column(BigInteger)
    measured: Mapped[int]
    measured_of: Mapped[int] = mapped_column(BigInteger, server_default="0")
    used: Mapped[float]
