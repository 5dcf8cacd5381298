"""The worker's look at the nodes: one `scontrol show node` per poll, kept for everybody who asks.

What runs where is told by the look at the queue that the tracker took just before: it is asked once, for all.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError
from broker.resources import dcgm
from broker.resources.gauge import Gauge
from broker.resources.samples import forget_samples, keep_samples, samples_of, tenants_amounts
from broker.resources.snapshot import Look, summarize
from broker.resources.tables import ResourceRow
from broker.runs.tables import ClusterRow, JobRow, RunRow
from broker.runs.telemetry import slurm_call
from broker.slurm import QueueJob, QueueSnapshot

log = structlog.get_logger("broker.resources")

FORGET_S = 3600.0
"""Time between two looks for samples that are too old, seconds."""
DCGM_PAUSE_S = 60.0
"""After a failure Prometheus is left alone for this long."""


class ResourceKeeper:
    """Keeps the last look at one cluster's nodes. Used by the thread that polls."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease, gauge: Gauge | None = None) -> None:
        self._ctx, self._cluster, self._lease, self._gauge = ctx, cluster, lease, gauge
        self._settings = ctx.cluster(cluster)
        self._queue: QueueSnapshot | None = None
        self._forget_after = 0.0
        self._dcgm_after = 0.0

    def see(self, snapshot: QueueSnapshot) -> None:
        """The queue was just looked at."""
        self._queue = snapshot

    def tick(self) -> None:
        """Look once, if the queue was seen since the last time: a silent cluster is not asked again."""
        if self._queue is None:
            return
        queue, self._queue = self._queue, None
        taken_at = utcnow()
        with slurm_call(self._cluster, "nodes"):
            nodes = self._ctx.slurm(self._cluster).nodes()
        gpu_use = self._gpu_use()
        running = [job for job in queue.jobs if job.nodes and job.state.active and not job.state.pending]
        known = self._known(running)
        jobs = defaultdict(list)
        for job in running:
            for node in job.nodes:
                jobs[node].append(_job(job, known.get(job.job_id)))
        look = summarize(nodes, gpu_use, jobs, self._gauge.nodes(taken_at) if self._gauge else {})
        have = [
            (run.tenant, job.tres.gpus, job.tres.cpus or job.cpus, job.tres.memory_mib)
            for job in running
            if (run := known.get(job.job_id, (None, None))[1]) is not None
        ]
        self._keep(taken_at, look, have)

    def _gpu_use(self) -> dict[str, tuple[float, int]]:
        """What DCGM measured by node; nothing where nobody measures, or Prometheus is silent."""
        url = self._settings.prometheus_url
        if url is None or time.monotonic() < self._dcgm_after:
            return {}
        try:
            return dict(dcgm.ask(url, utcnow()).nodes)
        except BrokerError as error:
            self._dcgm_after = time.monotonic() + DCGM_PAUSE_S
            log.warning("gpu_use_unknown", cluster=self._cluster, detail=error.detail)
            return {}

    def _known(self, running: list[QueueJob]) -> dict[int, tuple[JobRow, RunRow]]:
        """The broker's own among the jobs, by Slurm's id: told by id and name, which only one of ours has."""
        names = {job.job_id: job.name for job in running}
        query = (
            select(JobRow, RunRow)
            .join(RunRow, RunRow.id == JobRow.run_id)
            .where(
                RunRow.cluster == self._cluster, JobRow.ended_at.is_(None), JobRow.slurm_job_id.is_not(None)
            )
        )
        with self._ctx.db.read() as session:
            rows = session.execute(query).all()
        return {
            job.slurm_job_id: (job, run)
            for job, run in rows
            if job.slurm_job_id is not None and names.get(job.slurm_job_id) == job.name
        }

    def _keep(self, taken_at: datetime, look: Look, have: list[tuple[str, int, int, int]]) -> None:
        settings = self._ctx.settings.resources
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            row = session.get(ResourceRow, self._cluster) or ResourceRow(cluster=self._cluster)
            session.add(row)
            row.taken_at, row.all_jobs = taken_at, self._sees_all()
            row.summary = {
                "cluster": asdict(look.cluster),
                "partitions": {name: asdict(amounts) for name, amounts in look.partitions.items()},
            }
            row.nodes = [dict(node) for node in look.nodes]
            self._keep_release(session)
            if row.sampled_at is None or taken_at - row.sampled_at >= timedelta(
                seconds=settings.sample_interval_s
            ):
                row.sampled_at = taken_at
                keep_samples(session, list(samples_of(self._cluster, taken_at, look, tenants_amounts(have))))
            if time.monotonic() >= self._forget_after:
                self._forget_after = time.monotonic() + FORGET_S
                forget_samples(session, self._cluster, settings, taken_at)

    def _keep_release(self, session: Session) -> None:
        """Which Slurm it is, when it was asked by whoever needed to know: nobody is asked for this."""
        if release := self._ctx.slurm(self._cluster).known_version:
            other = ClusterRow.slurm_version.is_distinct_from(release)
            here = update(ClusterRow).where(ClusterRow.name == self._cluster, other)
            session.execute(here.values(slurm_version=release))

    def _sees_all(self) -> bool:
        """Whether the look at the queue was at everybody's jobs: over SSH as one account it is at its own."""
        return self._settings.transport == "local" or self._settings.run_as == "user"


def _job(job: QueueJob, ours: tuple[JobRow, RunRow] | None) -> dict[str, Any]:
    """A running job as it is kept with a node."""
    shown: dict[str, Any] = {
        "job_id": job.job_id,
        "user": job.user,
        "partition": job.partition,
        "state": str(job.state),
        "since": job.start.isoformat() if job.start else None,
    }
    if ours is not None:
        row, run = ours
        shown |= {
            "run_id": run.id,
            "component": row.component,
            "tenant": run.tenant,
            "owner_id": run.owner_id,
        }
    return shown
