"""One such transaction at a time, by a name that need not be a row."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session


def exclusive(session: Session, name: str) -> None:
    """Wait until no other open transaction holds `name`; held until this one ends.

    On SQLite every write transaction is alone anyway (`BEGIN IMMEDIATE`); on PostgreSQL it is an advisory
    lock, under which the next statement sees what the transaction before it committed.
    """
    if session.get_bind().dialect.name == "postgresql":
        lock = text("select pg_advisory_xact_lock(hashtextextended(:name, 0))")
        session.execute(lock, {"name": name})
