"""Reading the audit trail: filters as one query, and rows as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Select, select

from broker.audit.tables import AuditRow
from broker.db import Database, first_id

COLUMNS: Final = (
    "id",
    "at",
    "actor_id",
    "actor_name",
    "source_ip",
    "action",
    "object_type",
    "object_id",
    "tenant",
    "before",
    "after",
    "note",
)
"""Columns of the CSV, in this order."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_PAGE: Final = 500
_MARGIN: Final = timedelta(minutes=1)
"""An id is made in the same moment as its row's time; ids bound the search, times decide."""
_FIRST: Final = datetime(1970, 1, 2, tzinfo=UTC)
_LAST: Final = datetime(3000, 1, 1, tzinfo=UTC)
"""No row is older or younger, and no id can say so; people write year 1 or 9999 and mean "any"."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows; each field that is set narrows.

    `actor` is an id or a name. `action` is a whole one or a prefix like `run.*`. `since` is included, `until`
    is not.
    """

    tenant: str | None = None
    actor: str | None = None
    action: str | None = None
    object_type: str | None = None
    object_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def query(self) -> Select[AuditRow]:
        """The rows, in no order yet."""
        query = select(AuditRow)
        if self.actor is not None:
            query = query.where((AuditRow.actor_id == self.actor) | (AuditRow.actor_name == self.actor))
        if self.action is not None and self.action.endswith(".*"):
            query = query.where(AuditRow.action.startswith(self.action[:-1], autoescape=True))
        elif self.action is not None:
            query = query.where(AuditRow.action == self.action)
        for column, value in (
            (AuditRow.tenant, self.tenant),
            (AuditRow.object_type, self.object_type),
            (AuditRow.object_id, self.object_id),
        ):
            if value is not None:
                query = query.where(column == value)
        if self.since is not None:
            since = _storable(self.since)
            query = query.where(AuditRow.at >= since, AuditRow.id >= first_id("au", since - _MARGIN))
        if self.until is not None:
            until = _storable(self.until)
            query = query.where(AuditRow.at < until, AuditRow.id < first_id("au", until + _MARGIN))
        return query


def _storable(moment: datetime) -> datetime:
    return min(max(moment, _FIRST), _LAST)


def csv_lines(db: Database, wanted: Filter) -> Iterator[str]:
    """The rows as CSV (RFC 4180), oldest first, a page of them at a time.

    Each page is a short reading of its own: a slow reader holds up nothing, and memory does not grow. The
    first character is a byte order mark, without which Excel takes UTF-8 for something else.
    """
    yield "\ufeff" + csv_text([COLUMNS])
    last = ""
    while True:
        with db.read() as session:
            query = wanted.query().where(AuditRow.id > last).order_by(AuditRow.id).limit(_PAGE)
            rows = session.scalars(query).all()
        if rows:
            yield csv_text([[_text(getattr(row, name)) for name in COLUMNS] for row in rows])
        if len(rows) < _PAGE:
            return
        last = rows[-1].id


def csv_text(rows: Sequence[Sequence[str]]) -> str:
    """Lines of CSV, every field quoted and none of them a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerows([[harmless(value) for value in row] for row in rows])
    return buffer.getvalue()


def harmless(value: str) -> str:
    """The text so that no spreadsheet takes it for a formula: an apostrophe goes before what begins like one.

    (OWASP, CSV injection; the full-width signs count in East Asian versions.)

    >>> harmless("=HYPERLINK(1)"), harmless("run-7h2k")
    ("'=HYPERLINK(1)", 'run-7h2k')
    """
    return f"'{value}" if value.startswith(_FORMULA) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
