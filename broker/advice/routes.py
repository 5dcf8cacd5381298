"""Advice over HTTP: for a run, for a pipeline, and applied to it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from broker.advice.applying import apply_advice
from broker.advice.schemas import (
    MOST_RUNS,
    AppliedAdvice,
    ApplyRequest,
    PipelineAdvice,
    RunAdvice,
)
from broker.advice.views import advice_for_pipeline, advice_for_run
from broker.api.idempotency import IdempotencyKey, lookup, remember, request_hash
from broker.api.security import Ctx, requires
from broker.identity import Permission, Principal
from broker.pipelines.routes import view_pipelines
from broker.pipelines.schemas import VersionSummary

router = APIRouter(tags=["advice"])
Reader = Annotated[Principal, Depends(requires(Permission.RUNS_READ))]
Writer = Annotated[Principal, Depends(requires(Permission.PIPELINES_WRITE))]
Runs = Annotated[int, Query(ge=1, le=MOST_RUNS, description="How many of the last runs to tell from")]


@router.get("/runs/{run_id}/advice")
def show_run_advice(run_id: str, ctx: Ctx, principal: Reader, runs: Runs = 20) -> RunAdvice:
    """What each component of a run should ask for next time, by this run and by the last ones."""
    with ctx.db.read() as session:
        return advice_for_run(session, principal, run_id, runs, ctx.settings.accounting.sample_s)


@router.get("/pipelines/{ref}/advice")
def show_pipeline_advice(ref: str, ctx: Ctx, principal: Reader, runs: Runs = 20) -> PipelineAdvice:
    """What the newest version of a pipeline should ask for, by the last runs that one may see."""
    with ctx.db.read() as session:
        return advice_for_pipeline(session, principal, ref, runs, ctx.settings.accounting.sample_s)


@router.post("/pipelines/{ref}/advice", status_code=201, response_model=AppliedAdvice)
def apply_pipeline_advice(
    ref: str,
    body: ApplyRequest,
    ctx: Ctx,
    principal: Writer,
    idempotency_key: IdempotencyKey = None,
) -> Any:
    """Store the newest version with the advised resources as a new version; all else in it stays as it is.

    409 when there is a newer version than the one that the advice was read for, or the advice has changed.
    """
    fingerprint = request_hash(f"POST /pipelines/{ref}/advice", body)
    with ctx.db.write() as session:
        if known := lookup(session, principal, idempotency_key, fingerprint):
            return known.response()
        (pipeline, version, _), changes = apply_advice(ctx, session, principal, ref, body)
        answer = AppliedAdvice(
            pipeline=view_pipelines(session, [pipeline])[0],
            version=VersionSummary.model_validate(version),
            changes=changes,
        )
        remember(session, principal, idempotency_key, fingerprint, 201, answer)
    return answer
