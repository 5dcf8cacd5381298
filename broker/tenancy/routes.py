"""Tenants in Slurm over REST."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from broker.api.security import Ctx, requires
from broker.context import Context
from broker.errors import NotFound
from broker.identity import Permission, Principal
from broker.tenancy.schemas import SyncRequest, SyncView
from broker.tenancy.service import apply_sync, sync_plan

router = APIRouter(tags=["clusters"])
Admin = Annotated[Principal, Depends(requires(Permission.CLUSTERS_MANAGE))]


@router.get("/clusters/{name}/sync", dependencies=[Depends(requires(Permission.CLUSTERS_MANAGE))])
def plan_sync(ctx: Ctx, name: str) -> SyncView:
    """How Slurm's accounts, people and QOS differ from the tenants and classes here; asks the cluster."""
    return sync_plan(ctx, _known(ctx, name))


@router.post("/clusters/{name}/sync")
def run_sync(ctx: Ctx, principal: Admin, name: str, body: SyncRequest) -> SyncView:
    """Bring Slurm into line and give what there is then. What was set by hand is left unless it is named."""
    return apply_sync(ctx, principal, _known(ctx, name), body.adopt)


def _known(ctx: Context, name: str) -> str:
    if name not in ctx.settings.clusters:
        raise NotFound(f"There is no cluster {name!r}; known: {', '.join(ctx.settings.clusters)}")
    return name
