"""Leases: which worker is the active one for a cluster.

A lease is a row with an expiry in *database time* (no worker's clock is trusted). It carries a token that
grows with every new holder; whoever writes on the strength of a lease checks the token in the same
transaction (`Lease.confirm`), so a worker that was frozen beyond its expiry changes nothing when it wakes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import String, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker.db.engine import Database
from broker.db.types import Base, UTCDateTime


class LeaseRow(Base):
    """A named right that one process holds at a time."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    holder: Mapped[str] = mapped_column(String(100))
    token: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)


class LeaseLost(Exception):
    """Another holder took over; what was about to be written must not be."""


@dataclass(slots=True)
class Lease:
    """A held lease. `lost` is set as soon as renewal finds another holder."""

    name: str
    holder: str
    token: int
    lost: threading.Event

    def confirm(self, session: Session) -> None:
        """Raise `LeaseLost` unless the lease is still ours, within the caller's transaction."""
        token = session.scalar(
            select(LeaseRow.token).where(LeaseRow.name == self.name).with_for_update(read=True)
        )
        if token != self.token or self.lost.is_set():
            self.lost.set()
            raise LeaseLost(self.name)


def database_time(session: Session) -> datetime:
    """The database's clock, UTC."""
    if session.get_bind().dialect.name == "sqlite":
        value = session.scalar(text("select strftime('%Y-%m-%dT%H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
    moment: datetime = session.execute(text("select clock_timestamp()")).scalar_one()
    return moment.astimezone(UTC)


def acquire(db: Database, name: str, holder: str, ttl_s: float) -> Lease | None:
    """Take the lease if it is free, expired or already `holder`'s; None while another holds it."""
    with db.write() as session:
        now = database_time(session)
        row = session.get(LeaseRow, name, with_for_update=True)
        if row is None:
            row = LeaseRow(name=name, holder=holder, token=0, expires_at=now)
            session.add(row)
        elif row.holder != holder and row.expires_at > now:
            return None
        row.token += 1
        row.holder = holder
        row.expires_at = now + timedelta(seconds=ttl_s)
        return Lease(name=name, holder=holder, token=row.token, lost=threading.Event())


def renew(db: Database, lease: Lease, ttl_s: float) -> bool:
    """Push the expiry out; False (and `lease.lost` set) when the lease went to another holder."""
    with db.write() as session:
        row = session.get(LeaseRow, lease.name, with_for_update=True)
        if row is None or row.token != lease.token:
            lease.lost.set()
            return False
        row.expires_at = database_time(session) + timedelta(seconds=ttl_s)
        return True


def release(db: Database, lease: Lease) -> None:
    """Give the lease back, so that the next worker need not wait for its expiry."""
    lease.lost.set()
    with db.write() as session:
        row = session.get(LeaseRow, lease.name, with_for_update=True)
        if row is not None and row.token == lease.token:
            row.expires_at = database_time(session)
