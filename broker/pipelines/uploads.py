"""Uploaded code: received to disk, repacked safely, stored under `uploads/` in the object store."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from broker.audit import record
from broker.context import Context
from broker.db import new_id, utcnow
from broker.errors import BrokerError, NotFound
from broker.identity import Principal
from broker.pipelines.archives import CHUNK, repack
from broker.pipelines.tables import UploadRow
from broker.quotas.service import check_upload, count_upload


def scratch_file(ctx: Context) -> IO[bytes]:
    """A file without a name on the broker's own disk, in memory while it is small."""
    folder = ctx.settings.data_dir / "tmp"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return tempfile.SpooledTemporaryFile(max_size=1 << 20, dir=str(folder))


async def receive(chunks: AsyncIterator[bytes], file: IO[bytes]) -> tuple[str, int]:
    """Write a stream to `file`; its SHA-256 (hex) and size."""
    hasher, size = hashlib.sha256(), 0
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if len(pending) >= CHUNK:
            size += await run_in_threadpool(_drain, pending, file, hasher)
    size += await run_in_threadpool(_drain, pending, file, hasher)
    return hasher.hexdigest(), size


def _drain(pending: bytearray, file: IO[bytes], hasher: hashlib._Hash) -> int:
    file.write(pending)
    hasher.update(pending)
    size = len(pending)
    pending.clear()
    return size


def store_upload(ctx: Context, principal: Principal, file: IO[bytes], sha256: str, size: int) -> UploadRow:
    """Check, repack and store what was received. The row is written first, marked stored at the end.

    Raises `LimitReached` when the tenant has no room for it; one that can't be stored counts for nothing.
    """
    quotas = ctx.settings.quotas
    with scratch_file(ctx) as packed:
        files = repack(file, packed)
        packed.seek(0)
        digest = hashlib.sha256()
        object_size = 0
        while chunk := packed.read(CHUNK):
            digest.update(chunk)
            object_size += len(chunk)
        upload_id = new_id("up")
        row = UploadRow(
            id=upload_id,
            owner_id=principal.user_id,
            tenant=principal.tenant,
            sha256=sha256,
            size=size,
            files=files,
            object_key=f"uploads/{upload_id}.tar.gz",
            object_sha256=digest.hexdigest(),
            object_size=object_size,
            created_at=utcnow(),
        )
        with ctx.db.write() as session:
            count_upload(session, quotas, row.tenant, size, row.created_at)
            session.add(row)
        packed.seek(0)
        try:
            ctx.objects.upload_stream(
                row.object_key,
                packed,
                size_hint=object_size,
                content_type="application/gzip",
                expected_sha256=row.object_sha256,
            )
        except BrokerError:
            with ctx.db.write() as session:
                count_upload(session, quotas, row.tenant, -size, row.created_at)
            raise
    return row


def refuse_beyond_quota(ctx: Context, principal: Principal) -> None:
    """Raise `LimitReached` when nothing has room any more: an upload's own size is known at its end."""
    with ctx.db.read() as session:
        check_upload(session, ctx.settings.quotas, principal.tenant, 1, utcnow())


def mark_stored(session: Session, principal: Principal, upload_id: str) -> UploadRow:
    """The archive lies in the object store: from now on specs may name it."""
    row = session.get_one(UploadRow, upload_id)
    row.stored_at = utcnow()
    after = {"sha256": row.sha256, "size": row.size, "files": row.files}
    record(session, principal, "upload.store", "upload", row.id, None, after)
    return row


def find_upload(session: Session, principal: Principal, upload_id: str) -> UploadRow:
    """A stored upload of the tenant; raises `NotFound`."""
    row = session.get(UploadRow, upload_id)
    if row is None or row.stored_at is None or not principal.sees(row.tenant):
        raise NotFound(f"There is no upload {upload_id!r}: send the archive to POST /api/v1/uploads")
    return row
