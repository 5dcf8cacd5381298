"""Uploading code over HTTP: the raw archive as body, or a form with one file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from broker.api.idempotency import IdempotencyKey, lookup, remember, request_hash
from broker.api.security import Ctx, requires
from broker.context import Context
from broker.errors import InvalidRequest, Problem, TransferInterrupted
from broker.identity import Permission, Principal
from broker.pipelines.archives import CHUNK
from broker.pipelines.schemas import UploadView
from broker.pipelines.tables import UploadRow
from broker.pipelines.uploads import (
    find_upload,
    mark_stored,
    receive,
    refuse_beyond_quota,
    scratch_file,
    store_upload,
)

router = APIRouter(prefix="/uploads", tags=["uploads"])
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FORM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}},
        "required": ["file"],
    }
}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A .tar.gz or .zip archive",
        "content": {
            "application/gzip": _BINARY,
            "application/zip": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": _FORM,
        },
    }
}


@router.post("", status_code=201, openapi_extra=BODY, response_model=UploadView)
async def upload_code(
    request: Request,
    ctx: Ctx,
    principal: Annotated[Principal, Depends(requires(Permission.PIPELINES_WRITE))],
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Send an archive with code; name its `upload_id` in a component's `code`.

    Links, devices, paths that lead out of the archive and the like are refused; a body that is too large is
    cut off while it arrives.
    """
    if idempotency_key is None:  # with a key it may be a repetition, whose answer is known
        await run_in_threadpool(refuse_beyond_quota, ctx, principal)
    with scratch_file(ctx) as file:
        try:
            sha256, size = await receive(_archive(request), file)
        except ClientDisconnect:
            raise TransferInterrupted("The upload broke off: send it again") from None
        return await run_in_threadpool(_keep, ctx, principal, idempotency_key, file, sha256, size)


@router.get("/{upload_id}")
def show_upload(
    upload_id: str, ctx: Ctx, principal: Annotated[Principal, Depends(requires(Permission.PIPELINES_READ))]
) -> UploadView:
    """What is known of an upload."""
    with ctx.db.read() as session:
        return _view(find_upload(session, principal, upload_id))


async def _archive(request: Request) -> AsyncIterator[bytes]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async for chunk in request.stream():
            yield chunk
        return
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            detail = "The form has no file in its field `file`"
            raise InvalidRequest(detail, problems=[Problem("/file", "missing", detail)])
        while chunk := await file.read(CHUNK):
            yield chunk


def _keep(
    ctx: Context, principal: Principal, key: str | None, file: Any, sha256: str, size: int
) -> UploadView | Response:
    fingerprint = request_hash("POST /uploads", sha256.encode())
    with ctx.db.write() as session:
        if stored := lookup(session, principal, key, fingerprint):
            return stored.response()
    row = store_upload(ctx, principal, file, sha256, size)
    with ctx.db.write() as session:
        if stored := lookup(session, principal, key, fingerprint):
            return stored.response()
        view = _view(mark_stored(session, principal, row.id))
        remember(session, principal, key, fingerprint, 201, view)
    return view


def _view(row: UploadRow) -> UploadView:
    return UploadView(
        upload_id=row.id, sha256=row.sha256, size=row.size, files=row.files, created_at=row.created_at
    )
