"""Models over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Ctx, requires
from broker.identity import Permission, Principal
from broker.models.schemas import Download, ModelDetail, ModelSummary
from broker.models.service import download, show_model, summarise, visible_models
from broker.models.tables import ModelVersionRow

router = APIRouter(prefix="/models", tags=["models"])
Reader = Annotated[Principal, Depends(requires(Permission.MODELS_READ))]


@router.get("")
def list_models(
    ctx: Ctx,
    page: PageParams,
    principal: Reader,
    run: Annotated[str | None, Query(max_length=64, description="Only versions made by this run")] = None,
) -> Page[ModelSummary]:
    """Stored model versions, newest first."""
    query = visible_models(principal)
    if run:
        query = query.where(ModelVersionRow.run_id == run)
    with ctx.db.read() as session:
        rows, cursor = fetch(session, query, ModelVersionRow.id, page)
        return Page(items=summarise(session, rows), next_cursor=cursor)


@router.get("/{version_id}")
def show(version_id: str, ctx: Ctx, principal: Reader) -> ModelDetail:
    """A model version: original spec, training configuration, metrics, files, logs."""
    return show_model(ctx, principal, version_id)


@router.get("/{version_id}/download")
def get_download(
    version_id: str,
    ctx: Ctx,
    principal: Reader,
    file: Annotated[str | None, Query(max_length=1024, description="One file; unset: every output")] = None,
) -> Download:
    """Presigned URLs, straight from the object store."""
    return download(ctx, principal, version_id, file)
