"""Resources over HTTP. No route asks a cluster: the worker looks, readers read what it saw."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AwareDatetime

from broker.api.security import Ctx, requires
from broker.db import utcnow
from broker.identity import Permission, Principal
from broker.resources.schemas import HistoryView, NodesView, ResourcesView
from broker.resources.snapshot import NodeState
from broker.resources.usage_schemas import RunUsageView
from broker.resources.usage_views import show_usage
from broker.resources.views import show_history, show_nodes, show_resources

router = APIRouter(tags=["resources"])
Reader = Annotated[Principal, Depends(requires(Permission.RESOURCES_READ))]
Cluster = Annotated[str | None, Query(max_length=64, description="This cluster")]
STEPS = {"raw": 0, "hour": 3600, "day": 86_400}


@router.get("/resources")
def get_resources(ctx: Ctx, principal: Reader, cluster: Cluster = None) -> ResourcesView:
    """What each cluster has: total, allocated, used, idle and unavailable, per GPU type, CPU, memory."""
    return show_resources(ctx, cluster)


@router.get("/resources/nodes", response_model=NodesView)
def get_nodes(
    ctx: Ctx,
    principal: Reader,
    cluster: Cluster = None,
    state: Annotated[NodeState | None, Query(description="Only nodes in this state")] = None,
    partition: Annotated[str | None, Query(max_length=100, description="Only this partition's")] = None,
    limit: Annotated[int, Query(ge=1, le=5000, description="Nodes at most")] = 1000,
    offset: Annotated[int, Query(ge=0, le=100_000, description="Nodes to leave out at the beginning")] = 0,
) -> Response:
    """The nodes of a cluster: state, reason, amounts, and the jobs there that one may know of."""
    view = show_nodes(ctx, principal, cluster, state, partition, limit, offset)
    # Dumped by pydantic's core: FastAPI would validate a thousand nodes once more.
    return Response(view.model_dump_json(), media_type="application/json")


@router.get("/resources/history")
def get_history(
    ctx: Ctx,
    principal: Reader,
    cluster: Cluster = None,
    by: Annotated[
        Literal["cluster", "gpu_type", "partition", "tenant"], Query(description="One series for each")
    ] = "cluster",
    resource: Annotated[Literal["gpu", "cpu", "memory"], Query(description="GPUs, CPUs, or MiB")] = "gpu",
    since: Annotated[AwareDatetime | None, Query(description="Beginning; a day ago if unset")] = None,
    until: Annotated[AwareDatetime | None, Query(description="End; now if unset")] = None,
    step: Annotated[
        Literal["raw", "hour", "day"] | None, Query(description="Span of a point; by the period if unset")
    ] = None,
    name: Annotated[
        str | None, Query(max_length=100, description="Only this type, partition, tenant")
    ] = None,
) -> HistoryView:
    """Use over time: means of each span; a tenant's own for its people, every tenant's for admins."""
    end: datetime = until or utcnow()
    begin: datetime = since or end - timedelta(days=1)
    return show_history(
        ctx, principal, cluster, by, resource, begin, end, STEPS[step] if step else None, name
    )


@router.get("/runs/{run_id}/usage", tags=["runs"])
def get_run_usage(
    run_id: str,
    ctx: Ctx,
    principal: Annotated[Principal, Depends(requires(Permission.RUNS_READ))],
    attempt: Annotated[
        int | None, Query(ge=1, description="An earlier attempt; unset: the newest of each component")
    ] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Beginning of the histories; the run's if unset")
    ] = None,
    until: Annotated[AwareDatetime | None, Query(description="End; the run's, or now, if unset")] = None,
    points: Annotated[int, Query(ge=1, le=1000, description="Points of a history at most")] = 120,
) -> RunUsageView:
    """What a run's jobs really use: CPU, memory, GPUs, each with who measured it and when."""
    return show_usage(ctx, principal, run_id, attempt, since, until, points)
