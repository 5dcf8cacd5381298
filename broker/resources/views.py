"""Resources as people see them: from the database alone, what others run left out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import select

from broker.context import Context
from broker.db import utcnow
from broker.errors import InvalidRequest, NotFound, Problem
from broker.identity import Principal, Role
from broker.resources.samples import history, step_for
from broker.resources.schemas import (
    AmountsView,
    AmountView,
    ClusterResources,
    GpuView,
    HistoryView,
    NodeJob,
    NodesView,
    NodeView,
    PartitionView,
    PointView,
    ResourcesView,
    SeriesView,
    ShardView,
)
from broker.resources.snapshot import Amount, NodeState, is_slice
from broker.resources.tables import ResourceRow

UNITS = {"gpu": "GPUs", "cpu": "CPUs", "memory": "MiB"}


def show_resources(ctx: Context, cluster: str | None) -> ResourcesView:
    """Each configured cluster, or one, as it was last seen."""
    wanted = [check_cluster(ctx, cluster)] if cluster is not None else list(ctx.settings.clusters)
    with ctx.db.read() as session:
        query = select(ResourceRow).where(ResourceRow.cluster.in_(wanted))
        rows = {row.cluster: row for row in session.scalars(query)}
    return ResourcesView(
        items=[_cluster(rows[name]) for name in wanted if name in rows],
        unseen=[name for name in wanted if name not in rows],
    )


def show_nodes(
    ctx: Context,
    principal: Principal,
    cluster: str | None,
    state: NodeState | None,
    partition: str | None,
    limit: int,
    offset: int,
) -> NodesView:
    """The nodes of a cluster; `NotFound` when nobody has looked at it yet."""
    name = ctx.settings.cluster_name(cluster) if cluster is None else check_cluster(ctx, cluster)
    with ctx.db.read() as session:
        row = session.get(ResourceRow, name)
        if row is None:
            raise NotFound(f"Nobody has looked at the nodes of {name!r} yet: is a worker running?")
        nodes, taken_at, all_jobs = row.nodes, row.taken_at, row.all_jobs
    fitting = [
        node
        for node in nodes
        if (state is None or node["state"] == state)
        and (partition is None or partition in node["partitions"])
    ]
    return NodesView(
        cluster=name,
        taken_at=taken_at,
        age_s=_age(taken_at),
        total=len(fitting),
        items=[_node(principal, node, all_jobs=all_jobs) for node in fitting[offset : offset + limit]],
    )


def show_history(
    ctx: Context,
    principal: Principal,
    cluster: str | None,
    by: str,
    resource: str,
    since: datetime,
    until: datetime,
    step_s: int | None,
    name: str | None,
) -> HistoryView:
    """Use over time; of tenants, everybody but an admin sees the own one."""
    where = ctx.settings.cluster_name(cluster) if cluster is None else check_cluster(ctx, cluster)
    if until <= since:
        detail = "`until` must be later than `since`"
        raise InvalidRequest(detail, problems=[Problem("/until", "not_later", detail)])
    if by == "gpu_type" and resource != "gpu":
        detail = "By GPU type there are GPUs only: ask with resource=gpu, or by partition or tenant"
        raise InvalidRequest(detail, problems=[Problem("/resource", "not_by_gpu_type", detail)])
    if by == "tenant" and not principal.is_admin:
        if name is not None and name != principal.tenant:
            raise NotFound(f"There is no tenant {name!r}")
        name = principal.tenant
    step = step_for(since, until, utcnow(), ctx.settings.resources.raw_days) if step_s is None else step_s
    with ctx.db.read() as session:
        points = history(session, where, by, resource, since, until, step, name)
    return HistoryView(
        cluster=where,
        by=by,
        resource=resource,
        unit=UNITS[resource],
        step_s=step,
        since=since,
        until=until,
        series=[
            SeriesView(
                name=label,
                points=[
                    PointView(
                        at=point.at,
                        total=round(point.total, 3),
                        allocated=round(point.allocated, 3),
                        idle=round(point.idle, 3),
                        unavailable=round(point.unavailable, 3),
                        used=None if point.used is None else round(point.used, 3),
                        measured=round(point.measured, 3),
                    )
                    for point in found
                ],
            )
            for label, found in groupby(points, key=lambda point: point.name)
        ],
    )


def check_cluster(ctx: Context, name: str) -> str:
    """The name of a configured cluster; `NotFound` for any other."""
    if name not in ctx.settings.clusters:
        raise NotFound(f"There is no cluster {name!r}; known: {', '.join(ctx.settings.clusters)}")
    return name


def _age(taken_at: datetime) -> float:
    return round((utcnow() - taken_at).total_seconds(), 1)


def _amount(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {**stored, "unavailable": Amount(**stored).unavailable}


def _amounts(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "gpus": [
            GpuView(type=kind, slice=is_slice(kind), **_amount(amount))
            for kind, amount in sorted(stored["gpus"].items())
        ],
        "shards": [
            ShardView(type=kind, **_amount(amount)) for kind, amount in sorted(stored["shards"].items())
        ],
        "cpus": AmountView(**_amount(stored["cpus"])),
        "memory_mib": AmountView(**_amount(stored["memory_mib"])),
    }


def _cluster(row: ResourceRow) -> ClusterResources:
    return ClusterResources(
        cluster=row.cluster,
        taken_at=row.taken_at,
        age_s=_age(row.taken_at),
        partitions=[
            PartitionView(name=name, **_amounts(stored)) for name, stored in row.summary["partitions"].items()
        ],
        **_amounts(row.summary["cluster"]),
    )


def _node(principal: Principal, node: Mapping[str, Any], *, all_jobs: bool) -> NodeView:
    seen = [job for job in node["jobs"] if _may_see(principal, job)]
    return NodeView(
        name=node["name"],
        state=node["state"],
        slurm_state=node["slurm_state"],
        reason=node["reason"],
        partitions=node["partitions"],
        resources=AmountsView(**_amounts(node["resources"])),
        jobs=[
            NodeJob(
                run_id=job.get("run_id"),
                component=job.get("component"),
                tenant=job.get("tenant"),
                **{key: job[key] for key in ("job_id", "user", "partition", "state", "since")},
            )
            for job in seen
        ],
        other_jobs=len(node["jobs"]) - len(seen) if all_jobs else None,
    )


def _may_see(principal: Principal, job: Mapping[str, Any]) -> bool:
    """The rule of `broker.runs.views.may_see`, for a job as it was kept; strangers' jobs are for admins."""
    if principal.is_admin:
        return True
    if principal.role in (Role.VIEWER, Role.TENANT_ADMIN):
        return job.get("tenant") == principal.tenant
    return job.get("owner_id") == principal.user_id
