"""Cursor pagination: `?limit=50&cursor=…` → `{"items": […], "next_cursor": "…" | null}`.

Ids sort by time (`broker.db.new_id`), so a page goes on below the last id, newest first: nothing is shown
twice or left out when rows are added meanwhile. Clients treat the cursor as opaque.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from broker.errors import InvalidRequest, Problem

T = TypeVar("T")
Row = TypeVar("Row")
MAX_LIMIT = 200
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Page(BaseModel, Generic[T]):
    """A part of a list."""

    items: list[T]
    next_cursor: str | None = Field(description="For the next page; null on the last one")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """How many, and below which id (None: from the newest)."""

    limit: int = 50
    after: str | None = None


async def page_request(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Entries on a page")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next_cursor` of the page before")
    ] = None,
) -> PageRequest:
    """The page that a request asks for."""
    return PageRequest(limit, decode(cursor) if cursor else None)


PageParams = Annotated[PageRequest, Depends(page_request)]


def encode(last_id: str) -> str:
    """The cursor that goes on below `last_id`."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """The id in a cursor; raises `InvalidRequest` for one that we never gave out."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
    except (binascii.Error, ValueError):
        text = ""
    if not _ID.fullmatch(text):
        detail = "The cursor is none of ours: leave it out to begin at the first page"
        raise InvalidRequest(detail, problems=[Problem("?cursor", "invalid_cursor", detail)])
    return text


def fetch(
    session: Session, query: Select[Row], key: InstrumentedAttribute[str], page: PageRequest
) -> tuple[Sequence[Row], str | None]:
    """The rows of a page, newest first by `key`, and the next cursor. One query, one row more than asked."""
    if page.after is not None:
        below: ColumnElement[bool] = key < page.after
        query = query.where(below)
    rows = session.scalars(query.order_by(key.desc()).limit(page.limit + 1)).all()
    if len(rows) <= page.limit:
        return rows, None
    shown = rows[: page.limit]
    return shown, encode(getattr(shown[-1], key.key))


def paginate(
    session: Session,
    query: Select[Row],
    key: InstrumentedAttribute[str],
    page: PageRequest,
    make: Callable[[Row], T],
) -> dict[str, Any]:
    """A page as the fields of `Page`, each row made with `make`."""
    rows, cursor = fetch(session, query, key, page)
    return {"items": [make(row) for row in rows], "next_cursor": cursor}
