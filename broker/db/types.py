"""What every table shares: the declarative base, column types and identifiers."""

from __future__ import annotations

import secrets
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import JSON, DateTime, MetaData, String
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"

JsonType = JSON()
"""JSON as text on both databases: PostgreSQL's `jsonb` would forget the order in which people wrote it."""


class Base(DeclarativeBase):
    """Base of all tables; names of constraints are fixed so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UTCDateTime(TypeDecorator[datetime]):
    """A moment. Always aware and UTC in Python; a naive value is refused, not guessed at."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC on the way in."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a datetime without time zone can't be stored: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite gives naive values back; they are UTC because nothing else goes in."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ExactDecimal(TypeDecorator[Decimal]):
    """A decimal number as text: SQLite would keep a NUMERIC as a binary fraction."""

    impl = String(32)
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> str | None:
        """To text, never in exponential form."""
        return None if value is None else f"{value:f}"

    def process_result_value(self, value: str | None, dialect: Dialect) -> Decimal | None:
        """Back, digit by digit."""
        return None if value is None else Decimal(value)


def utcnow() -> datetime:
    """Now, aware, UTC."""
    return datetime.now(UTC)


_MAKING = threading.Lock()
_last = (0, 0)  # the millisecond and the chance of the newest identifier


def new_id(prefix: str) -> str:
    """An identifier that sorts by time: prefix, 9 digits of milliseconds, 7 of chance (Crockford base 32).

    Of one millisecond, those of one process sort in the order of their making; a clock that was set back is
    followed.

    >>> new_id("run")  # doctest: +SKIP
    'run-1hgw2x9k4a7c3mq0'
    """
    global _last
    with _MAKING:
        milliseconds = int(time.time() * 1000)
        # Begun in the lower half, so that 2**18 steps of 2**16 at most never reach the end.
        again = milliseconds == _last[0]
        chance = _last[1] + 1 + secrets.randbits(16) if again else secrets.randbits(34)
        _last = milliseconds, chance
    return _id(prefix, milliseconds, chance)


def first_id(prefix: str, moment: datetime) -> str:
    """The least identifier that `new_id` can make at `moment`: a bound for what was made since."""
    return _id(prefix, int(moment.timestamp() * 1000), 0)


def _id(prefix: str, milliseconds: int, chance: int) -> str:
    number = (max(milliseconds, 0) & ((1 << 45) - 1)) << 35 | chance
    digits = "".join(CROCKFORD[(number >> shift) & 31] for shift in range(75, -5, -5))
    return f"{prefix}-{digits}"
