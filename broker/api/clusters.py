"""The clusters that runs can go to, and how fresh the knowledge of each is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.accounting.tables import AccountingCursorRow
from broker.api.security import Ctx, requires
from broker.db import utcnow
from broker.identity import Permission, Principal
from broker.resources.tables import ResourceRow
from broker.runs.tables import ClusterRow

router = APIRouter(tags=["clusters"])


class ClusterView(BaseModel):
    """A cluster."""

    name: str
    default: bool = Field(description="Whether runs that name no cluster go there")
    slurm_version: str | None = Field(description="null: not known yet")
    reachable: bool | None = Field(description="null: no worker has looked yet")
    polled_at: datetime | None
    age_s: float | None = Field(description="Seconds since the queue was last read")
    accounting_at: datetime | None = Field(description="Up to when accounting was read; null: never yet")
    trouble: str | None
    trouble_since: datetime | None
    gpu_types: list[str] = Field(description="Slurm's names of the GPUs there, by the last look at the nodes")


class ClusterList(BaseModel):
    """Every configured cluster."""

    items: list[ClusterView]


@router.get("/clusters")
def list_clusters(
    ctx: Ctx, principal: Annotated[Principal, Depends(requires(Permission.CLUSTERS_READ))]
) -> ClusterList:
    """The configured clusters and how old what is known of each is; asks no cluster."""
    names = list(ctx.settings.clusters)
    default = ctx.settings.default_cluster or (names[0] if len(names) == 1 else None)
    with ctx.db.read() as session:
        return ClusterList(items=[_view(session, name, name == default) for name in names])


def _view(session: Session, name: str, default: bool) -> ClusterView:
    row = session.get(ClusterRow, name) or ClusterRow(name=name)
    read_to = session.scalar(select(AccountingCursorRow.read_to).where(AccountingCursorRow.cluster == name))
    look = session.scalar(select(ResourceRow.summary).where(ResourceRow.cluster == name))
    polled = row.polled_at
    return ClusterView(
        name=name,
        default=default,
        slurm_version=row.slurm_version,
        reachable=row.trouble is None if polled or row.trouble else None,
        polled_at=polled,
        age_s=round((utcnow() - polled).total_seconds(), 1) if polled else None,
        accounting_at=datetime.fromtimestamp(read_to, UTC) if read_to is not None else None,
        trouble=row.trouble,
        trouble_since=row.trouble_since,
        gpu_types=sorted(look["cluster"]["gpus"]) if look else [],
    )
