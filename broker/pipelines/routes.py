"""Stored specs over HTTP."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.api.conditional import IfNoneMatch, etag, matches
from broker.api.idempotency import IdempotencyKey, lookup, remember, request_hash
from broker.api.pagination import Page, PageParams, fetch
from broker.api.security import Ctx, requires
from broker.errors import InvalidSpec
from broker.identity import Permission, Principal
from broker.identity.tables import UserRow
from broker.pipelines.schemas import (
    NeedsApproval,
    PipelineView,
    SpecProblem,
    StoredVersion,
    Validation,
    VersionSummary,
    VersionView,
)
from broker.pipelines.service import (
    find_pipeline,
    get_version,
    remove_pipeline,
    store_parsed,
    versions_of,
    visible_pipelines,
)
from broker.pipelines.tables import PipelineRow, PipelineVersionRow
from broker.spec import (
    PipelineSpec,
    Thresholds,
    content_hash,
    default_resources,
    needs_approval,
    parse,
    warnings,
)

router = APIRouter(prefix="/pipelines", tags=["pipelines"])
Reader = Annotated[Principal, Depends(requires(Permission.PIPELINES_READ))]
Writer = Annotated[Principal, Depends(requires(Permission.PIPELINES_WRITE))]
SPEC_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A pipeline spec, unchanged",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/PipelineSpec"}}},
    }
}


UNCHANGED: dict[str, Any] = {
    "model": StoredVersion,
    "description": "The newest version has this content already",
}


async def raw_body(request: Request) -> bytes:
    """The body as it was sent: a spec is parsed by its own reader, which finds everything at once."""
    return await request.body()


Body = Annotated[bytes, Depends(raw_body)]


@router.post(
    "", status_code=201, openapi_extra=SPEC_BODY, response_model=StoredVersion, responses={200: UNCHANGED}
)
def store_pipeline(
    data: Body, ctx: Ctx, response: Response, principal: Writer, idempotency_key: IdempotencyKey = None
) -> Any:
    """Store a spec: a new version of its pipeline, or (200) the newest one if that has this content."""
    return _store(ctx, principal, data, None, idempotency_key, response)


@router.get("")
def list_pipelines(ctx: Ctx, page: PageParams, principal: Reader) -> Page[PipelineView]:
    """The tenant's pipelines, newest first."""
    with ctx.db.read() as session:
        rows, cursor = fetch(session, visible_pipelines(principal), PipelineRow.id, page)
        return Page(items=view_pipelines(session, list(rows)), next_cursor=cursor)


@router.post(
    "/validate", openapi_extra=SPEC_BODY, dependencies=[Depends(requires(Permission.PIPELINES_READ))]
)
def validate_spec(data: Body, ctx: Ctx) -> Validation:
    """Check a spec without storing it: every problem at once, the resources to begin a run with, and whether
    a run would wait for approval, because of which component.
    """
    try:
        spec = parse(data)
    except InvalidSpec as error:
        problems = [SpecProblem.model_validate(problem) for problem in error.problems]
        return Validation(
            valid=False, problems=problems, warnings=[], defaults=None, content_hash=None, needs_approval=[]
        )
    return Validation(
        valid=True,
        problems=[],
        warnings=_warnings(spec),
        defaults=default_resources(spec).model_dump(mode="json"),
        content_hash=content_hash(spec),
        needs_approval=[
            NeedsApproval.model_validate(over)
            for over in needs_approval(spec, Thresholds.of(ctx.settings.approval))
        ],
    )


@router.get("/{ref}")
def show_pipeline(ref: str, ctx: Ctx, principal: Reader) -> PipelineView:
    """One pipeline, by id or by the `pipeline_id` of its spec."""
    with ctx.db.read() as session:
        return view_pipelines(session, [find_pipeline(session, principal, ref)])[0]


@router.delete("/{ref}", status_code=204)
def delete_pipeline(ref: str, ctx: Ctx, principal: Writer) -> None:
    """Take a pipeline out of the lists; its runs and their specs stay."""
    with ctx.db.write() as session:
        remove_pipeline(session, principal, ref)


@router.get("/{ref}/versions")
def list_versions(ref: str, ctx: Ctx, page: PageParams, principal: Reader) -> Page[VersionSummary]:
    """The versions of a pipeline, newest first."""
    with ctx.db.read() as session:
        query = versions_of(find_pipeline(session, principal, ref))
        rows, cursor = fetch(session, query, PipelineVersionRow.id, page)
        return Page(items=[VersionSummary.model_validate(row) for row in rows], next_cursor=cursor)


@router.post(
    "/{ref}/versions",
    status_code=201,
    openapi_extra=SPEC_BODY,
    response_model=StoredVersion,
    responses={200: UNCHANGED},
)
def store_version(
    ref: str,
    data: Body,
    ctx: Ctx,
    response: Response,
    principal: Writer,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Store a spec as a new version of this pipeline; its `pipeline_id` must be the pipeline's."""
    return _store(ctx, principal, data, ref, idempotency_key, response)


@router.get("/{ref}/versions/{version}", response_model=VersionView)
def show_version(
    ref: str,
    version: str,
    ctx: Ctx,
    response: Response,
    principal: Reader,
    if_none_match: IfNoneMatch = None,
) -> Any:
    """One version in full (`version`: a number or `latest`). The `ETag` is the content's hash."""
    with ctx.db.read() as session:
        row = get_version(session, principal, ref, version)
    tag = etag(row.content_hash)
    if matches(if_none_match, tag):
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    summary = VersionSummary.model_validate(row).model_dump()
    return VersionView(**summary, pipeline_id=row.pipeline_id, spec=json.loads(row.spec))


def _store(
    ctx: Ctx, principal: Principal, data: bytes, into: str | None, key: str | None, response: Response
) -> StoredVersion | Response:
    fingerprint = request_hash(f"POST /pipelines/{into or ''}", data)
    spec = parse(data)
    with ctx.db.write() as session:
        if stored := lookup(session, principal, key, fingerprint):
            return stored.response()
        pipeline, version, created = store_parsed(session, principal, spec, data.decode("utf-8-sig"), into)
        answer = StoredVersion(
            pipeline=view_pipelines(session, [pipeline])[0],
            version=VersionSummary.model_validate(version),
            created=created,
            warnings=_warnings(spec),
        )
        response.status_code = 201 if created else 200
        remember(session, principal, key, fingerprint, response.status_code, answer)
    return answer


def _warnings(spec: PipelineSpec) -> list[SpecProblem]:
    return [SpecProblem.model_validate(warning) for warning in warnings(spec)]


def view_pipelines(session: Session, rows: list[PipelineRow]) -> list[PipelineView]:
    """Pipelines as they are shown."""
    owners = select(UserRow.id, UserRow.username).where(UserRow.id.in_({row.owner_id for row in rows}))
    names: dict[str, str] = dict(iter(session.execute(owners)))
    return [
        PipelineView(
            id=row.id,
            pipeline_id=row.external_id,
            name=row.name,
            tenant=row.tenant,
            owner=names[row.owner_id],
            latest_version=row.latest_version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row in rows
    ]
