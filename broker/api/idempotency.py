"""`Idempotency-Key`: a request that was repeated because no answer came is done once and answered alike.

The answer is stored in the transaction of the effect, so there is none without the other:

    with db.write() as session:
        if stored := lookup(session, principal, key, request_hash(route, body)):
            return stored
        … the effect …
        remember(session, principal, key, hash, 201, body)

`lookup` must be in the writing transaction: two requests with one key are then one after the other (SQLite
has one writer at a time; PostgreSQL takes an advisory lock on the key).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy import Index, String, Text, delete
from sqlalchemy.orm import Mapped, Session, mapped_column
from starlette.responses import Response

from broker.db import Base, UTCDateTime, utcnow
from broker.db.locks import exclusive
from broker.errors import KeyReused
from broker.identity import Principal

KEPT = timedelta(hours=24)
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,128}$",
        description="Any unique text; repeating the request with it within 24 h gives the first answer again",
    ),
]


class IdempotencyRow(Base):
    """An answer that was given, kept for a day."""

    __tablename__ = "idempotency"

    user_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    status: Mapped[int]
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)

    __table_args__ = (Index("ix_idempotency_user_id_created_at", "user_id", "created_at"),)


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as it was given: status and JSON text."""

    status: int
    body: str

    def response(self) -> Response:
        """The same answer again, marked as such."""
        headers = {"Idempotency-Replayed": "true"}
        return Response(self.body, self.status, headers, media_type="application/json")

    def json(self) -> Any:
        """The body as JSON value."""
        return json.loads(self.body)


def request_hash(route: str, body: BaseModel | bytes | Any) -> str:
    """SHA-256 over the route (method and path) and the body: what must be equal in a repetition."""
    if isinstance(body, BaseModel):
        body = body.model_dump(mode="json", exclude_unset=True)
    data = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, default=str).encode()
    return hashlib.sha256(route.encode() + b"\n" + data).hexdigest()


def lookup(session: Session, principal: Principal, key: str | None, request_hash: str) -> StoredAnswer | None:
    """The stored answer of an earlier request with this key; None without a key or on its first use.

    Raises `KeyReused` when the key belongs to a different request.
    """
    if key is None:
        return None
    exclusive(session, f"idempotency {principal.user_id} {key}")
    row = session.get(IdempotencyRow, (principal.user_id, key))
    if row is None or row.created_at < utcnow() - KEPT:
        return None
    if row.request_hash != request_hash:
        raise KeyReused("This Idempotency-Key was used for another request: send a new one")
    return StoredAnswer(row.status, row.body)


class Replayed(Exception):
    """Ends a service's transaction: the request was answered before; `answer` is what was said."""

    def __init__(self, answer: StoredAnswer) -> None:
        super().__init__("answered before")
        self.answer = answer


@dataclass(frozen=True, slots=True)
class OnceByKey:
    """The two ends of a service's transaction, for services that do not know HTTP (`runs.service.Once`)."""

    principal: Principal
    key: str | None
    fingerprint: str
    status: int

    def before(self, session: Session) -> None:
        """End the transaction with the answer that was given to this key before, if there is one."""
        answer = lookup(session, self.principal, self.key, self.fingerprint)
        if answer is not None:
            raise Replayed(answer)

    def after(self, session: Session, view: BaseModel) -> None:
        """Keep the answer."""
        remember(session, self.principal, self.key, self.fingerprint, self.status, view)


def remember(
    session: Session,
    principal: Principal,
    key: str | None,
    request_hash: str,
    status: int,
    body: BaseModel | Any,
) -> None:
    """Store the answer in the effect's transaction (without a key nothing); drop the user's expired ones."""
    if key is None:
        return
    expired = IdempotencyRow.created_at < utcnow() - KEPT
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.user_id == principal.user_id, expired))
    answer = body.model_dump_json() if isinstance(body, BaseModel) else json.dumps(body)
    session.add(
        IdempotencyRow(
            user_id=principal.user_id,
            key=key,
            request_hash=request_hash,
            status=status,
            body=answer,
            created_at=utcnow(),
        )
    )
