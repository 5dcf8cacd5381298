"""Sealing what was written, and verifying what was sealed.

Rows are written without a seal, in the transaction of their change, so that no two changes ever wait for each
other. One sealer at a time, behind a lease, appends them to the chain seconds later, in the order of their
ids. A transaction that commits late is sealed late: the sealer looks back by `LATE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from broker import metrics
from broker.audit.chain import EMPTY, FIELDS, LATE, Breach, Broken, Head, Link, digest, examine
from broker.audit.guard import is_guarded
from broker.audit.tables import AuditRow, SealRow
from broker.db import Database, first_id
from broker.db.leases import Lease, database_time
from broker.errors import InvalidRequest

log = structlog.get_logger("broker.audit")

LEASE: Final = "audit"
"""Name of the lease under which one process seals."""
HEAD_FILE: Final = "audit-head"
"""In the data folder: the last link that this machine made, on another medium than the database."""
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. `unsealed` rows were written just now, or nobody seals.

    `guarded`: the database refuses to change and remove rows (`broker.audit.guard`).
    """

    sealed: int
    unsealed: int
    head: Head
    broken: Broken | None
    guarded: bool


def seal(db: Database, lease: Lease, data_dir: Path) -> int:
    """Append every row that has no seal yet; how many. Raises `LeaseLost` when another process seals."""
    done = 0
    while True:
        with db.write() as session:
            lease.confirm(session)
            head, count = _seal_batch(session)
        if count:
            metrics.AUDIT_SEALED.inc(count)
            _keep_head(data_dir, head)
            log.info("audit_sealed", rows=count, number=head.number, hash=head.hash)
        done += count
        if count < _BATCH:
            return done


def _seal_batch(session: Session) -> tuple[Head, int]:
    last = session.execute(
        select(SealRow.number, SealRow.hash, AuditRow.at)
        .join(AuditRow, AuditRow.id == SealRow.audit_id)
        .order_by(SealRow.number.desc())
        .limit(1)
    ).first()
    head = Head(last.number, last.hash) if last else EMPTY
    query = select(AuditRow).where(~_sealed())
    if last:
        query = query.where(AuditRow.id >= first_id("au", last.at - LATE))
    rows = session.scalars(query.order_by(AuditRow.id).limit(_BATCH)).all()
    now = database_time(session)
    for row in rows:
        head = Head(head.number + 1, digest(head, now, _fields(row)))
        session.add(SealRow(number=head.number, audit_id=row.id, sealed_at=now, hash=head.hash))
    return head, len(rows)


def _sealed() -> Any:
    return exists().where(SealRow.audit_id == AuditRow.id)


def _fields(row: AuditRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in FIELDS}


def verify(db: Database, known: Sequence[Head] = ()) -> Verification:
    """Walk the whole chain, and look for rows of the past that have no seal.

    All of it is one reading of the database at one moment; memory does not grow with the trail.
    """
    with db.read() as session:
        if not db.is_sqlite:  # SQLite's readers see one moment anyway
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        found = examine(_links(session), known)
        unsealed = select(AuditRow.id).where(~_sealed())
        count = session.scalar(select(func.count()).select_from(unsealed.subquery())) or 0
        broken, stray = found.broken, None
        if broken is None and found.last_at is not None:
            past = unsealed.where(AuditRow.id < first_id("au", found.last_at - LATE))
            stray = session.scalar(past.order_by(AuditRow.id).limit(1))
        if stray:
            detail = "The row lies in the time of sealed ones and has no seal: it was inserted afterwards"
            broken = Broken(Breach.INSERTED, None, stray, detail)
        guarded = is_guarded(session.connection())
    return Verification(found.head.number, count, found.head, broken, guarded)


def _links(session: Session) -> Iterator[Link]:
    query = (
        select(SealRow, AuditRow)
        .join(AuditRow, AuditRow.id == SealRow.audit_id, isouter=True)
        .order_by(SealRow.number)
        .execution_options(yield_per=_BATCH)
    )
    for link, row in session.execute(query):
        yield Link(
            link.number, link.audit_id, link.sealed_at, link.hash, None if row is None else _fields(row)
        )
        session.expunge(link)
        if row is not None:
            session.expunge(row)


def parse_head(text: str) -> Head:
    """A head as `str(head)` writes it; raises `InvalidRequest`."""
    number, _, hashed = text.strip().partition(":")
    if not number.isdecimal() or len(hashed) != 64 or set(hashed) - set("0123456789abcdef"):
        raise InvalidRequest(
            f"{text.strip()!r} is not the head of a chain: give NUMBER:HASH, as `audit verify` prints it"
        )
    return Head(int(number), hashed)


def kept_head(data_dir: Path) -> Head | None:
    """The last link that this machine made; None when it never sealed."""
    try:
        return parse_head((data_dir / HEAD_FILE).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def _keep_head(data_dir: Path, head: Head) -> None:
    draft = data_dir / f".{HEAD_FILE}.{os.getpid()}"
    draft.write_text(f"{head}\n", encoding="ascii")
    draft.replace(data_dir / HEAD_FILE)
