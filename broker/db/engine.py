"""One engine, two kinds of session: reading and writing.

A write on SQLite begins with `BEGIN IMMEDIATE`: a transaction that starts by reading and then writes would
otherwise fail with "database is locked" whenever another one wrote in between. No network call ever
happens inside either kind (the rule is held by the callers, and by `Database.in_transaction`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session, sessionmaker

_in_transaction: ContextVar[bool] = ContextVar("in_transaction", default=False)


class Database:
    """A database by its SQLAlchemy URL; safe to share between threads."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if self.is_sqlite and parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self.is_sqlite:
            options = {"connect_args": {"timeout": 30}}
        self.engine: Engine = create_engine(url, pool_size=20, max_overflow=40, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._writes = sessionmaker(self.engine.execution_options(broker_write=True), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading; what it changes is thrown away, what it loaded stays readable afterwards.

        (Closing rolls back without expiring; `session.rollback()` would expire every loaded row.)
        """
        with self._sessions() as session, _marked():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        with self._writes() as session, _marked(), session.begin():
            yield session

    def ping(self) -> None:
        """One round trip; raises SQLAlchemy's error when the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("select 1"))

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def in_transaction() -> bool:
    """Whether this thread is inside a session: hosts refuse to talk to the network then."""
    return _in_transaction.get()


@contextmanager
def _marked() -> Iterator[None]:
    token = _in_transaction.set(True)
    try:
        yield
    finally:
        _in_transaction.reset(token)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late: we say when
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a committed intent must survive a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("broker_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
