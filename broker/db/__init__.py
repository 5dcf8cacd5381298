"""The database: engine, sessions, column types, leases. SQLite (WAL) or PostgreSQL."""

from broker.db.engine import Database
from broker.db.types import Base, JsonType, UTCDateTime, first_id, new_id, utcnow

__all__ = ["Base", "Database", "JsonType", "UTCDateTime", "first_id", "new_id", "utcnow"]
