"""Use cases of stored specs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, defer

from broker.audit import record
from broker.context import Context
from broker.db import new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import Conflict, Denied, InvalidRequest, NotFound, Problem
from broker.identity import Principal
from broker.pipelines.tables import PipelineRow, PipelineVersionRow
from broker.spec import PipelineSpec, content_hash, parse

LATEST = "latest"
Stored = tuple[PipelineRow, PipelineVersionRow, bool]


def store_spec(ctx: Context, principal: Principal, data: bytes, into: str | None = None) -> Stored:
    """Keep a spec as a version of its pipeline; the last of the three says whether it is a new one.

    The pipeline is the tenant's one with the spec's `pipeline_id`, made if there is none; `into` (id or
    `pipeline_id`) says which it must be. The content of the newest version is not stored twice.
    Raises `InvalidSpec`; `Denied` when the pipeline is another person's.
    """
    spec = parse(data)
    with ctx.db.write() as session:
        return store_parsed(session, principal, spec, data.decode("utf-8-sig"), into)


def store_parsed(
    session: Session, principal: Principal, spec: PipelineSpec, document: str, into: str | None = None
) -> Stored:
    """`store_spec` within the caller's transaction, for a spec that is parsed already."""
    now = utcnow()
    pipeline = _pipeline_for(session, principal, spec, into)
    if pipeline is None:
        pipeline = PipelineRow(
            id=new_id("pl"),
            external_id=spec.pipeline_id,
            name=spec.name,
            tenant=principal.tenant,
            owner_id=principal.user_id,
            latest_version=0,
            created_at=now,
            updated_at=now,
        )
        session.add(pipeline)
        session.flush()
    check_owner(principal, pipeline)
    fingerprint = content_hash(spec)
    latest = _version(session, pipeline, pipeline.latest_version) if pipeline.latest_version else None
    if latest is not None and latest.content_hash == fingerprint and pipeline.deleted_at is None:
        return pipeline, latest, False
    version = _add_version(session, principal, pipeline, spec, document, fingerprint, now)
    return pipeline, version, True


def _add_version(
    session: Session,
    principal: Principal,
    pipeline: PipelineRow,
    spec: PipelineSpec,
    document: str,
    fingerprint: str,
    now: datetime,
) -> PipelineVersionRow:
    pipeline.latest_version += 1
    pipeline.name, pipeline.updated_at, pipeline.deleted_at = spec.name, now, None
    version = PipelineVersionRow(
        id=new_id("pv"),
        pipeline_id=pipeline.id,
        number=pipeline.latest_version,
        spec=document,
        content_hash=fingerprint,
        spec_version=spec.version,
        created_by=principal.user_id,
        created_at=now,
    )
    session.add(version)
    after = {"pipeline_id": pipeline.external_id, "number": version.number, "content_hash": fingerprint}
    record(session, principal, "pipeline.store", "pipeline", pipeline.id, None, after, tenant=pipeline.tenant)
    session.flush()
    return version


def _pipeline_for(
    session: Session, principal: Principal, spec: PipelineSpec, into: str | None
) -> PipelineRow | None:
    if into is not None:
        pipeline = find_pipeline(session, principal, into, lock=True)
        if pipeline.external_id != spec.pipeline_id:
            detail = (
                f"The spec is of {spec.pipeline_id!r} and was sent to {pipeline.external_id!r}: change one"
            )
            raise InvalidRequest(detail, problems=[Problem("/pipeline_id", "other_pipeline", detail)])
        return pipeline
    exclusive(session, f"pipeline {principal.tenant} {spec.pipeline_id}")
    return session.scalar(
        select(PipelineRow)
        .where(PipelineRow.tenant == principal.tenant, PipelineRow.external_id == spec.pipeline_id)
        .with_for_update()
    )


def visible_pipelines(principal: Principal) -> Select[PipelineRow]:
    """The pipelines a person may read: the tenant's; an admin's are everyone's. Removed ones are left out."""
    query = select(PipelineRow).where(PipelineRow.deleted_at.is_(None))
    return query if principal.is_admin else query.where(PipelineRow.tenant == principal.tenant)


def find_pipeline(session: Session, principal: Principal, ref: str, *, lock: bool = False) -> PipelineRow:
    """A pipeline by id, or by the `pipeline_id` of its spec; raises `NotFound` when it is not visible."""
    query = visible_pipelines(principal).where((PipelineRow.id == ref) | (PipelineRow.external_id == ref))
    if lock:
        query = query.with_for_update()
    found = session.scalars(query.limit(50)).all()
    best = [p for p in found if p.id == ref] or [p for p in found if p.tenant == principal.tenant] or found
    if not best:
        raise NotFound(f"There is no pipeline {ref!r}; list them: GET /api/v1/pipelines")
    if len(best) > 1:
        ids = ", ".join(f"{p.id} ({p.tenant})" for p in best)
        raise Conflict(f"Several tenants have a pipeline {ref!r}: name it by its id: {ids}")
    return best[0]


def get_version(
    session: Session, principal: Principal, pipeline_ref: str, version_ref: int | str = LATEST
) -> PipelineVersionRow:
    """A version by pipeline (id or `pipeline_id`) and number or `latest`; raises `NotFound`."""
    pipeline = find_pipeline(session, principal, pipeline_ref)
    if version_ref == LATEST:
        number = pipeline.latest_version
    elif str(version_ref).isascii() and str(version_ref).isdigit() and len(str(version_ref)) <= 9:
        number = int(version_ref)
    else:
        raise NotFound(f"A version is a number or `latest`, not {str(version_ref)[:40]!r}")
    version = _version(session, pipeline, number)
    if version is None:
        newest = pipeline.latest_version
        raise NotFound(f"Pipeline {pipeline_ref!r} has no version {number}; its newest is {newest}")
    return version


def _version(session: Session, pipeline: PipelineRow, number: int) -> PipelineVersionRow | None:
    return session.scalar(
        select(PipelineVersionRow).where(
            PipelineVersionRow.pipeline_id == pipeline.id, PipelineVersionRow.number == number
        )
    )


def versions_of(pipeline: PipelineRow) -> Select[PipelineVersionRow]:
    """Every version of a pipeline, without the specs themselves."""
    query = select(PipelineVersionRow).where(PipelineVersionRow.pipeline_id == pipeline.id)
    return query.options(defer(PipelineVersionRow.spec, raiseload=True))


def remove_pipeline(session: Session, principal: Principal, ref: str) -> None:
    """Take a pipeline out of the lists. Its versions stay for the runs that used them."""
    pipeline = find_pipeline(session, principal, ref, lock=True)
    check_owner(principal, pipeline)
    pipeline.deleted_at = pipeline.updated_at = utcnow()
    before = {"pipeline_id": pipeline.external_id, "latest_version": pipeline.latest_version}
    record(
        session, principal, "pipeline.remove", "pipeline", pipeline.id, before, None, tenant=pipeline.tenant
    )


def check_owner(principal: Principal, pipeline: PipelineRow) -> None:
    """Raise `Denied` unless the person may change the pipeline."""
    if not principal.may_change(pipeline.owner_id):
        raise Denied(f"Pipeline {pipeline.external_id!r} is another person's: choose another `pipeline_id`")
