"""What would be submitted, shown without submitting it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from broker.api.security import Ctx, requires
from broker.compiler import RunIdentity, draft, preview
from broker.costs.schemas import CostEstimate
from broker.costs.views import view_estimate
from broker.identity import Permission, Principal
from broker.pipelines.service import get_version
from broker.spec import Overrides, apply_overrides, parse
from broker.text import RequestModel

router = APIRouter(tags=["pipelines"])


class CompileRequest(RequestModel):
    """Changes and cluster, as in a run's request."""

    overrides: Overrides | None = Field(None, description="Resources that replace the spec's")
    cluster: str | None = Field(None, max_length=64, description="Cluster by name; the default one if unset")


class CompiledJobView(BaseModel):
    """One job as it would be submitted."""

    component: str
    name: str = Field(description="Slurm job name; run number and key are stand-ins")
    depends_on: list[str]
    sbatch_args: list[str]
    script: str


class Compiled(BaseModel):
    """The jobs in topological order. Image digests, commits, run id and keys are stand-ins."""

    cluster: str
    jobs: list[CompiledJobView]
    estimate: CostEstimate


@router.post("/pipelines/{ref}/versions/{version}/compile")
def compile_version(
    ref: str,
    version: str,
    ctx: Ctx,
    principal: Annotated[Principal, Depends(requires(Permission.PIPELINES_READ))],
    body: CompileRequest | None = None,
) -> Compiled:
    """Show the scripts and sbatch arguments of a version, exactly but for what only a run has, and its cost.

    `estimate`: what a run costs, as training, if each component uses up its time limit once.
    """
    request = body or CompileRequest()
    with ctx.db.read() as session:
        spec = parse(get_version(session, principal, ref, version).spec)
    if request.overrides is not None:
        spec = apply_overrides(spec, request.overrides)
    cluster = ctx.settings.cluster_name(request.cluster)
    identity = RunIdentity("run-preview", 0, 1, principal.tenant, principal.username)
    profile = ctx.profile(cluster)
    jobs = [CompiledJobView(**job) for job in preview(draft(spec, profile, identity))["jobs"]]
    with ctx.db.read() as session:
        there = profile.for_run(identity.tenant, identity.priority_class)
        estimate = view_estimate(session, spec, there, ctx.settings.costs)
    return Compiled(cluster=cluster, jobs=jobs, estimate=estimate)
