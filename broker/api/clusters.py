"""The clusters that runs can go to, and how fresh the knowledge of each is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy import select

from broker.api.security import Ctx, requires
from broker.db import utcnow
from broker.identity import Permission, Principal
from broker.runs.tables import ClusterRow

router = APIRouter(tags=["clusters"])


class ClusterView(BaseModel):
    """A cluster."""

    name: str
    default: bool = Field(description="Whether runs that name no cluster go there")
    slurm_version: str | None
    reachable: bool | None = Field(description="null: no worker has looked yet")
    polled_at: datetime | None
    age_s: float | None = Field(description="Seconds since the queue was last read")
    accounting_at: datetime | None
    trouble: str | None
    trouble_since: datetime | None
    gpu_types: list[str]


class ClusterList(BaseModel):
    """Every configured cluster."""

    items: list[ClusterView]


@router.get("/clusters")
def list_clusters(
    ctx: Ctx, principal: Annotated[Principal, Depends(requires(Permission.CLUSTERS_READ))]
) -> ClusterList:
    """The configured clusters and how old what is known of each is; asks no cluster."""
    with ctx.db.read() as session:
        rows = {row.name: row for row in session.scalars(select(ClusterRow))}
    names = list(ctx.settings.clusters)
    default = ctx.settings.default_cluster or (names[0] if len(names) == 1 else None)
    return ClusterList(items=[_view(ctx, name, rows.get(name), name == default) for name in names])


def _view(ctx: Ctx, name: str, row: ClusterRow | None, default: bool) -> ClusterView:
    polled = row.polled_at if row else None
    return ClusterView(
        name=name,
        default=default,
        slurm_version=row.slurm_version if row else None,
        reachable=row.trouble is None if row and (polled or row.trouble) else None,
        polled_at=polled,
        age_s=round((utcnow() - polled).total_seconds(), 1) if polled else None,
        accounting_at=row.accounting_at if row else None,
        trouble=row.trouble if row else None,
        trouble_since=row.trouble_since if row else None,
        gpu_types=sorted(ctx.settings.clusters[name].gpu_types),
    )
