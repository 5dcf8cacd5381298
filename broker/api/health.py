"""Is it alive, can it serve, and its numbers.

Probes and scrapes filter nothing: what a load balancer or Prometheus (`params`) adds to an address passes.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from sqlalchemy import select

from broker import metrics as figures
from broker import schema
from broker.api.backlog import Backlog
from broker.api.parameters import any_parameters
from broker.api.security import Ctx, open_to_all, requires_unless
from broker.db import utcnow
from broker.identity import Permission
from broker.runs.tables import ClusterRow

router = APIRouter(tags=["health"], dependencies=[Depends(any_parameters)])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One thing that was looked at."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """Whether requests can be served. Clusters do not count: without them data is older, not gone."""

    ready: bool
    checks: dict[str, Check] = Field(description="`database`, `object_store`, `cluster:NAME`")


@router.get("/healthz", dependencies=[Depends(open_to_all)])
async def healthz() -> Alive:
    """Whether the process is alive. It looks at nothing else."""
    return Alive()


@router.get("/readyz", dependencies=[Depends(open_to_all)], responses={503: {"model": Readiness}})
def readyz(ctx: Ctx, response: Response) -> Readiness:
    """Whether requests can be served: 503 without a database whose tables are current."""
    checks = {"database": _database(ctx)}
    ready = checks["database"].ok
    if ready:
        checks |= _clusters(ctx)
    checks["object_store"] = _object_store(ctx)
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, checks=checks)


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(requires_unless(Permission.METRICS_READ, lambda ctx: ctx.settings.metrics_public))],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(ctx: Ctx) -> Response:
    """Metrics for Prometheus; open to all when `metrics_public` is set."""
    return Response(
        figures.exposition(Backlog(ctx.db, ctx.settings.clusters)), media_type=CONTENT_TYPE_LATEST
    )


def _database(ctx: Ctx) -> Check:
    try:
        behind = schema.pending(ctx.db)
    except Exception as error:  # whatever the driver raises: the answer is the same
        return Check(ok=False, detail=f"does not answer ({type(error).__name__})")
    return Check(
        ok=not behind, detail="answers" if not behind else "tables are not current: broker db upgrade"
    )


def _object_store(ctx: Ctx) -> Check:
    """As configured: a store that is down makes results late, not the API dead; nobody waits for it."""
    return Check(
        ok=True, detail=f"{ctx.objects.config.endpoint_url or 'Amazon S3'}, bucket {ctx.objects.bucket}"
    )


def _clusters(ctx: Ctx) -> dict[str, Check]:
    with ctx.db.read() as session:
        rows = {row.name: row for row in session.scalars(select(ClusterRow))}
    checks = {}
    for name in ctx.settings.clusters:
        row = rows.get(name)
        if row is None or row.polled_at is None:
            checks[f"cluster:{name}"] = Check(ok=False, detail="never looked at: is a worker running?")
        else:
            age = (utcnow() - row.polled_at).total_seconds()
            checks[f"cluster:{name}"] = Check(
                ok=row.trouble is None, detail=row.trouble or f"seen {age:.0f} s ago"
            )
    return checks
