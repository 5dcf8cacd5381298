"""Tables of the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from broker.audit import Actor, source_ip
from broker.db import Base, JsonType, UTCDateTime, utcnow


class PriorityRow(Base):
    """What was last wished for a run's place in the queue, and what came of it. Who changed what when before
    stands in the audit trail.

    `state`: `pending` (the worker has yet to apply it, or it waits for the release), `applied`, `failed`.
    `number`: the explicit priority that jobs got; null: the scheduler's. `frozen`: jobs of this attempt have
    an explicit priority. `restores`: how often it had to be given again because Slurm showed something else.
    `asked_by_*`, `source_ip`: for the audit row, which is written with the result.
    """

    __tablename__ = "run_priorities"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    attempt: Mapped[int]
    kind: Mapped[str] = mapped_column(String(10))
    level: Mapped[str | None] = mapped_column(String(8))
    number: Mapped[int | None] = mapped_column(BigInteger)
    other_run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    state: Mapped[str] = mapped_column(String(8))
    frozen: Mapped[bool] = mapped_column(default=False)
    message: Mapped[str] = mapped_column(default="")
    jobs: Mapped[list[dict[str, Any]]] = mapped_column(JsonType)
    asked_by_id: Mapped[str] = mapped_column(String(32))
    asked_by: Mapped[str] = mapped_column(String(64))
    source_ip: Mapped[str | None] = mapped_column(String(64))
    asked_at: Mapped[datetime] = mapped_column(UTCDateTime)
    applied_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    tries: Mapped[int] = mapped_column(default=0)
    restores: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    row_version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": row_version}  # noqa: RUF012 - SQLAlchemy's own form

    def ask(
        self,
        attempt: int,
        actor: Actor,
        kind: str,
        level: str | None = None,
        number: int | None = None,
        other_run_id: str | None = None,
    ) -> None:
        """Make it a new wish, which the worker has yet to apply."""
        self.frozen = bool(self.frozen) and self.attempt == attempt
        self.attempt, self.kind, self.level = attempt, kind, level
        self.number, self.other_run_id = number, other_run_id
        self.asked_by_id, self.asked_by, self.source_ip = actor.user_id, actor.username, source_ip.get()
        self.asked_at, self.applied_at = utcnow(), None
        self.state, self.message, self.jobs = "pending", "", []
        self.tries, self.restores, self.next_try_at = 0, 0, None
