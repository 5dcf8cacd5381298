"""The brake on guessing passwords. Its state lies in the database: every process slows the same guesser."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import String, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker.db import Base, Database, UTCDateTime
from broker.db.leases import database_time
from broker.db.locks import exclusive
from broker.errors import LimitReached

FREE_TRIES: Final = 5
LONGEST: Final = timedelta(minutes=15)
AT_ONCE: Final = 16
"""Logins under way in one process: each holds a thread for the tenth of a second that its hash takes."""


class LoginTriesRow(Base):
    """Tries of one (user name, address) since the last success.

    `key` is a hash: people type passwords into the field for their name.
    """

    __tablename__ = "login_tries"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int]
    blocked_until: Mapped[datetime] = mapped_column(UTCDateTime, index=True)


class LoginThrottle:
    """Slows guessing: after five failures of one (user name, address) each further try waits longer.

    The wait doubles from 2 s to 15 min; a success forgets it, and so does as long a quiet. A try counts as
    failed from its beginning until it fits, so tries that are made at once, by however many processes, are
    not more than tries made one after the other. `clock` is the database's own.
    """

    def __init__(self, db: Database, clock: Callable[[Session], datetime] = database_time) -> None:
        self._db, self._clock = db, clock
        self._places = threading.BoundedSemaphore(AT_ONCE)

    @contextmanager
    def attempt(self, username: str, address: str) -> Iterator[Callable[[], None]]:
        """One try; the block calls what it is given when the password did fit.

        Raises `LimitReached` with the time to wait while the brake is on.
        """
        if not self._places.acquire(blocking=False):
            raise _wait(1.0)
        try:
            key = hashlib.sha256(f"{username}\0{address}".encode()).hexdigest()
            self._begin(key)
            fitted = threading.Event()
            yield fitted.set
            if fitted.is_set():
                with self._db.write() as session:
                    session.execute(delete(LoginTriesRow).where(LoginTriesRow.key == key))
        finally:
            self._places.release()

    def _begin(self, key: str) -> None:
        with self._db.write() as session:
            exclusive(session, f"login:{key}")
            now = self._clock(session)
            row = session.get(LoginTriesRow, key)
            if row is None:
                session.execute(delete(LoginTriesRow).where(LoginTriesRow.blocked_until < now - LONGEST))
                row = LoginTriesRow(key=key, failures=0, blocked_until=now)
                session.add(row)
            if now < row.blocked_until:
                raise _wait((row.blocked_until - now).total_seconds())
            if now - row.blocked_until > LONGEST:
                row.failures = 0  # long quiet: start over
            row.failures += 1
            row.blocked_until = now + pause(row.failures)


def pause(failures: int) -> timedelta:
    """How long the next try waits after so many failures."""
    over = failures - FREE_TRIES
    return timedelta() if over < 0 else min(timedelta(seconds=2.0 ** min(over + 1, 30)), LONGEST)


def _wait(seconds: float) -> LimitReached:
    return LimitReached(
        f"Too many logins: try again in {max(1.0, seconds):.0f} s", retry_after_s=max(1.0, seconds)
    )
