"""The queue over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from broker.api.security import Ctx, requires
from broker.errors import NotFound
from broker.identity import Permission, Principal
from broker.queueing.listing import list_queue
from broker.queueing.schemas import HoldRequest, PriorityRequest, PriorityView, QueueView
from broker.queueing.service import hold_run, release_run, set_priority, show_priority
from broker.runs.schemas import RunView

router = APIRouter(tags=["queue"])
Reader = Annotated[Principal, Depends(requires(Permission.QUEUE_READ))]
Manager = Annotated[Principal, Depends(requires(Permission.QUEUE_MANAGE))]


@router.get("/queue", response_model=QueueView)
def show_queue(
    ctx: Ctx,
    principal: Reader,
    cluster: Annotated[str | None, Query(max_length=64, description="Only this cluster")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Runs at most")] = 200,
    offset: Annotated[int, Query(ge=0, le=1_000_000, description="Runs to leave out at the beginning")] = 0,
) -> Response:
    """What waits, in the order in which Slurm would start it, and why it waits; asks no cluster."""
    if cluster is not None and cluster not in ctx.settings.clusters:
        raise NotFound(f"There is no cluster {cluster!r}; known: {', '.join(ctx.settings.clusters)}")
    view = list_queue(ctx, principal, cluster, limit, offset)
    # Dumped by pydantic's core: FastAPI would validate the whole of a long queue once more.
    return Response(view.model_dump_json(), media_type="application/json")


@router.get("/runs/{run_id}/priority")
def get_priority(run_id: str, ctx: Ctx, principal: Reader) -> PriorityView:
    """The level of a run, and what became of the last wish for its place."""
    return show_priority(ctx, principal, run_id)


@router.put("/runs/{run_id}/priority", status_code=202)
def put_priority(run_id: str, body: PriorityRequest, ctx: Ctx, principal: Manager) -> PriorityView:
    """Move a run: all its waiting jobs together; what runs is never touched. `GET` shows what came of it."""
    return set_priority(ctx, principal, run_id, body)


@router.post("/runs/{run_id}/hold", status_code=202)
def hold(run_id: str, body: HoldRequest, ctx: Ctx, principal: Manager) -> RunView:
    """Hold what waits of a run, as its owner can't undo; components that run already go on."""
    return hold_run(ctx, principal, run_id, body.reason)


@router.post("/runs/{run_id}/release", status_code=202)
def release(run_id: str, body: HoldRequest, ctx: Ctx, principal: Manager) -> RunView:
    """Lift an administrator's hold; an approval or a quota that is waited for goes on holding the run."""
    return release_run(ctx, principal, run_id, body.reason)
