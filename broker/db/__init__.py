"""The database: engine, sessions, column types, leases. SQLite (WAL) or PostgreSQL."""

from broker.db.engine import Database
from broker.db.types import Base, ExactDecimal, JsonType, UTCDateTime, first_id, new_id, utcnow

__all__ = ["Base", "Database", "ExactDecimal", "JsonType", "UTCDateTime", "first_id", "new_id", "utcnow"]
