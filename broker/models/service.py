"""Making, listing and showing model versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from broker.context import Context
from broker.db import new_id, utcnow
from broker.errors import NotFound
from broker.identity import Principal
from broker.identity.tables import UserRow
from broker.models.schemas import Download, DownloadFile, ModelDetail, ModelFile, ModelSummary
from broker.models.tables import ModelRow, ModelVersionRow
from broker.objects import Manifest
from broker.objects.manifest import StoredFile
from broker.runs.collection import load_manifest
from broker.runs.events import emit
from broker.runs.service import effective_spec, stored_spec
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import model_stored

MODEL_PATTERN = "best_model.*"


def register_model(session: Session, run: RunRow, job: JobRow, manifest: Manifest) -> None:
    """Make a model version of a stored job that left a `best_model.*`; a second call changes nothing."""
    artifact = find_artifact(manifest)
    if artifact is None or session.scalar(select(ModelVersionRow.id).where(ModelVersionRow.job_id == job.id)):
        return
    model = _model_of(session, run, job)
    model.latest_version += 1
    outputs = [file for file in manifest.files if file.path.startswith("outputs/")]
    version = ModelVersionRow(
        id=new_id("mv"),
        model_id=model.id,
        number=model.latest_version,
        job_id=job.id,
        run_id=run.id,
        owner_id=run.owner_id,
        tenant=run.tenant,
        state="READY",
        size=sum(file.size for file in outputs),
        files=len(outputs),
        artifact=artifact.path,
        metrics=job.metrics,
        training=training_of(session, run, job),
        manifest_key=job.manifest_key,
        manifest_sha256=manifest.sha256,
        created_at=utcnow(),
    )
    session.add(version)
    emit(session, run, "model_ready", model=model.name, version=version.number, size=version.size)
    model_stored(model.name, job.metrics)


def find_artifact(manifest: Manifest) -> StoredFile | None:
    """The model file among a job's outputs: `best_model.*`, at the top level (DD-10)."""
    for file in manifest.files:
        path = PurePosixPath(file.path)
        if path.parent == PurePosixPath("outputs") and fnmatch(path.name, MODEL_PATTERN):
            return file
    return None


def training_of(session: Session, run: RunRow, job: JobRow) -> dict[str, Any]:
    """What a model was trained with (MD-03)."""
    spec = effective_spec(stored_spec(session, run), run.overrides)
    component = next(c for c in spec.components if c.name == job.component)
    return {
        "params": component.params,
        "image": component.image.model_dump(mode="json"),
        "resources": job.resources,
        "overrides": run.overrides,
        "env_vars": dict(spec.env_vars),
        "kind": run.kind,
        "attempt": job.attempt,
        "restarts": job.restarts,
        "slurm_job_id": job.slurm_job_id,
        "nodes": job.nodes,
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "ended_at": job.ended_at.isoformat() if job.ended_at else None,
    }


def _model_of(session: Session, run: RunRow, job: JobRow) -> ModelRow:
    query = select(ModelRow).where(
        ModelRow.pipeline_id == run.pipeline_id, ModelRow.component == job.component
    )
    model = session.scalar(query.with_for_update())
    if model is None:
        model = ModelRow(
            id=new_id("mdl"),
            pipeline_id=run.pipeline_id,
            component=job.component,
            name=f"{run.name}/{job.component}",
            tenant=run.tenant,
            latest_version=0,
            created_at=utcnow(),
        )
        session.add(model)
        session.flush()
    return model


def visible_models(principal: Principal) -> Select[ModelVersionRow]:
    """The versions a person may see: an admin all, everybody else their tenant's."""
    query = select(ModelVersionRow)
    return query if principal.is_admin else query.where(ModelVersionRow.tenant == principal.tenant)


def find_version(session: Session, principal: Principal, version_id: str) -> ModelVersionRow:
    """A version by id; `NotFound` also when the person may not know of it."""
    version = session.get(ModelVersionRow, version_id)
    if version is None or not principal.sees(version.tenant):
        raise NotFound(f"There is no model version {version_id!r}")
    return version


def summarise(session: Session, versions: Sequence[ModelVersionRow]) -> list[ModelSummary]:
    """Versions as list entries: one query, however many versions."""
    query = (
        select(ModelVersionRow.id, ModelRow, RunRow.number, RunRow.name, UserRow.username)
        .join(ModelRow, ModelRow.id == ModelVersionRow.model_id)
        .join(RunRow, RunRow.id == ModelVersionRow.run_id)
        .join(UserRow, UserRow.id == ModelVersionRow.owner_id)
        .where(ModelVersionRow.id.in_([version.id for version in versions]))
    )
    around = {row[0]: row for row in session.execute(query)}
    return [_summary(version, *around[version.id][1:]) for version in versions]


def _summary(
    version: ModelVersionRow, model: ModelRow, run_number: int, workload: str, owner: str
) -> ModelSummary:
    columns = {c: getattr(version, c) for c in ModelSummary.model_fields if hasattr(version, c)}
    around = {"run_number": run_number, "workload": workload, "owner": owner}
    named = {"name": model.name, "component": model.component, "version": version.number}
    return ModelSummary(**columns | named | around)


def show_model(ctx: Context, principal: Principal, version_id: str) -> ModelDetail:
    """Everything about a version: spec, training, files and logs (MD-03)."""
    with ctx.db.read() as session:
        version = find_version(session, principal, version_id)
        summary = summarise(session, [version])[0]
        run = session.get_one(RunRow, version.run_id)
        job = session.get_one(JobRow, version.job_id)
        spec = json.loads(stored_spec(session, run))
    manifest = load_manifest(ctx, job)
    files = [ModelFile(path=f.path, size=f.size, sha256=f.sha256, key=f.key) for f in manifest.files]
    return ModelDetail(
        **summary.model_dump(),
        artifact=version.artifact,
        spec=spec,
        training=version.training,
        artifacts=[file for file in files if file.path.startswith("outputs/")],
        logs=[file for file in files if file.path.startswith("logs/")],
        refused=[refused.model_dump() for refused in manifest.refused],
        manifest_key=version.manifest_key,
        manifest_sha256=version.manifest_sha256,
    )


def download(ctx: Context, principal: Principal, version_id: str, path: str | None) -> Download:
    """Presigned URLs of a version's outputs, or of one of its files (MD-04)."""
    with ctx.db.read() as session:
        version = find_version(session, principal, version_id)
        job = session.get_one(JobRow, version.job_id)
    expires = ctx.settings.s3.presign_expires_s
    chosen = [
        file
        for file in load_manifest(ctx, job).files
        if (file.path == path if path is not None else file.path.startswith("outputs/"))
    ]
    if path is not None and not chosen:
        raise NotFound(f"The model version has no file {path!r}; GET /models/{version_id} lists them")
    return Download(
        id=version_id,
        files=[
            DownloadFile(
                path=file.path,
                size=file.size,
                sha256=file.sha256,
                key=file.key,
                url=ctx.objects.presign_get(file.key, expires, PurePosixPath(file.path).name),
                expires_s=expires,
            )
            for file in chosen
        ],
    )
