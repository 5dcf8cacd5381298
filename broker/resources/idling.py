"""Jobs that leave GPUs idle: followed with each look at their use, told once, and once more when they work.

What was measured is kept with the look itself. Telling comes after it, in a transaction for each run: what
goes wrong with one is that one's, and what was cut off in between is decided again at the next look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.context import Context
from broker.db.leases import Lease
from broker.resources.idle import (
    News,
    Rule,
    Standing,
    as_json,
    follow,
    from_json,
    looks_of,
    news,
    span_at,
    standing,
)
from broker.resources.usage import JobUse
from broker.runs.events import emit
from broker.runs.measured import JobUsageRow
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import contained, gpus_idle


def follow_gpus(
    session: Session, rule: Rule, now: datetime, jobs: Sequence[JobRow], uses: Mapping[str, JobUse]
) -> dict[str, Standing]:
    """Keep what this look adds, and where each running job stands (by id; without GPUs or looks: not at all).

    Called in the transaction that keeps the look. A job that was not seen this time is judged as well: what
    is not measured any more does not stay idle for ever.
    """
    query = select(JobUsageRow).where(JobUsageRow.job_id.in_([job.id for job in jobs]), JobUsageRow.gpus > 0)
    restarts = {job.id: job.restarts for job in jobs}
    told = {job.id for job in jobs if job.gpu_idle is not None}
    found = {}
    for row in session.scalars(query):
        if row.restart != restarts[row.job_id]:
            continue  # of an earlier start
        with contained("gpus_not_followed", run_id=row.run_id):
            span = span_at(row.first_at, now, rule)
            before = from_json(row.gpu_spans, rule)
            looks = looks_of(uses.get(row.job_id), span, row.gpus)
            if not (before or looks):
                continue
            tracks = follow(before, looks, span, rule, told=row.job_id in told)
            row.gpu_spans = as_json(tracks, rule)
            found[row.job_id] = standing(tracks, span, rule, row.gpus)
    return found


def tell(
    ctx: Context,
    cluster: str,
    lease: Lease,
    now: datetime,
    jobs: Sequence[JobRow],
    found: Mapping[str, Standing],
) -> None:
    """Tell what is new about the running jobs of a cluster, and show how much they leave idle."""
    rule = rule_of(ctx, cluster)
    for job in jobs:
        if news(job.gpu_idle, found.get(job.id)) is not None:
            with contained("gpu_idle_not_told", cluster=cluster, run_id=job.run_id):
                _tell(ctx, lease, now, job, found.get(job.id), rule)
    idle = {job.id: job.run_id for job in jobs if job.id in found and found[job.id].idle}
    gpus_idle(cluster, len(set(idle.values())), sum(found[job_id].idle for job_id in idle))


def rule_of(ctx: Context, cluster: str) -> Rule | None:
    """What the settings call idle; None: nothing."""
    settings = ctx.settings.resources
    interval = ctx.cluster(cluster).usage_interval_s
    return Rule.of(settings.gpu_idle_after_s, settings.gpu_idle_below, interval)


def _tell(
    ctx: Context, lease: Lease, now: datetime, seen: JobRow, state: Standing | None, rule: Rule | None
) -> None:
    with ctx.db.write() as session:
        lease.confirm(session)
        run = session.get_one(RunRow, seen.run_id, with_for_update=True)
        job = session.get_one(JobRow, seen.id)
        if job.state != JobState.RUNNING or job.restarts != seen.restarts:
            return  # it ended, or began anew, meanwhile
        told = job.gpu_idle
        what = news(told, state)
        if what is None:
            return
        run.updated_at = now
        about = {"component": job.component, "job_id": job.slurm_job_id}
        if what is News.FORGOTTEN or state is None or rule is None:
            job.gpu_idle = None
        elif what is News.BUSY and told is not None:
            job.gpu_idle = None
            idle_s = round((now - datetime.fromisoformat(told["since"])).total_seconds())
            more = {"since": told["since"], "idle_s": idle_s, "gpu_util": state.percent}
            emit(session, run, "gpu_busy", **about, gpus=state.allocated, **more)
        else:
            since = told["since"] if told else (now - timedelta(seconds=rule.over_s)).isoformat()
            numbers = {"measured": state.measured, "gpu_util": state.percent, "since": since}
            job.gpu_idle = {"gpus": state.idle, "of": state.allocated, **numbers}
            if what is News.IDLE:
                shown = {"gpus_idle": state.idle, "gpus": state.allocated, **numbers, "below": rule.below}
                emit(session, run, "gpu_idle", **about, **shown)
