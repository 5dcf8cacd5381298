"""A run's use as people see it: from the database alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from broker.context import Context
from broker.db import utcnow
from broker.errors import InvalidRequest, Problem
from broker.identity import Principal
from broker.resources.job_usage import newest, over_time, span_for, step_and_span
from broker.resources.usage import Source
from broker.resources.usage_schemas import FigureView, GpuUseView, JobUsageView, RunUsageView, UsagePoint
from broker.runs.measured import JobUsageRow
from broker.runs.states import JobState
from broker.runs.tables import JobRow
from broker.runs.views import attempt_jobs, find_run, newest_jobs

LIVE_INTERVALS = 3
"""A look is of now for so many of its intervals."""


def show_usage(
    ctx: Context,
    principal: Principal,
    run_id: str,
    attempt: int | None,
    since: datetime | None,
    until: datetime | None,
    points: int,
) -> RunUsageView:
    """The newest look at each job of a run, and its history in at most `points` points."""
    now = utcnow()
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        jobs = newest_jobs(session, run.id) if attempt is None else attempt_jobs(session, run.id, attempt)
        end = until or run.ended_at or now
        begin = since or run.started_at or end
        if begin > end:
            detail = "`until` must not be earlier than `since`"
            raise InvalidRequest(detail, problems=[Problem("/until", "not_later", detail)])
        raw_from = now - timedelta(days=ctx.settings.resources.usage_raw_days)
        _, span = step_and_span(begin, span_for(begin, end, points), raw_from)
        looks = newest(session, [job.id for job in jobs])
        fresh = timedelta(seconds=LIVE_INTERVALS * ctx.cluster(run.cluster).usage_interval_s)
        return RunUsageView(
            run_id=run.id,
            span_s=span,
            jobs=[
                _job(
                    job,
                    looks.get(job.id),
                    now,
                    fresh,
                    [
                        UsagePoint(**asdict(point))
                        for point in over_time(session, job.id, begin, end, span, raw_from)
                    ],
                )
                for job in jobs
            ],
        )


def _job(
    job: JobRow, look: JobUsageRow | None, now: datetime, fresh: timedelta, history: list[UsagePoint]
) -> JobUsageView:
    use: Mapping[str, Any] = look.use if look else {}
    state = JobState(job.state)
    mean = look.gpu_util_sum / look.gpu_util_looks if look and look.gpu_util_looks else None
    return JobUsageView(
        component=job.component,
        attempt=job.attempt,
        job_id=job.slurm_job_id,
        state=state,
        live=look is not None and state is JobState.RUNNING and now - look.taken_at <= fresh,
        taken_at=look.taken_at if look else None,
        cpu_cores=_figure(use.get("cpu_cores"), look.cpus if look else None, now),
        memory_mib=_figure(use.get("memory_mib"), look.memory_mib if look else None, now),
        memory_peak_mib=look.memory_peak_mib if look else None,
        gpu_util=_figure(use.get("gpu_util"), None, now),
        gpu_util_mean=None if mean is None else round(mean, 2),
        gpu_memory_mib=_figure(use.get("gpu_memory_mib"), _gpu_memory(use), now),
        gpus_allocated=look.gpus if look else None,
        gpus_measured=_measured(use, look.gpus) if look else None,
        gpus=[_gpu(gpu) for gpu in use.get("gpus", ())],
        history=history,
    )


def _figure(stored: Mapping[str, Any] | None, allocated: float | None, now: datetime) -> FigureView | None:
    if stored is None:
        return None
    at = datetime.fromisoformat(stored["at"])
    return FigureView(
        used=round(stored["value"], 3),
        allocated=allocated or None,
        source=stored["source"],
        sampled_at=at,
        age_s=round((now - at).total_seconds(), 1),
        over_s=round(stored["over_s"], 1),
    )


def _gpu_memory(use: Mapping[str, Any]) -> float | None:
    """The memory of the job's GPUs, where that of each is known; shared memory once."""
    totals = {
        (gpu["node"], gpu["memory_of"] or gpu["uuid"] or gpu["index"]): gpu["memory_total"]
        for gpu in use.get("gpus", ())
    }
    return sum(totals.values()) if totals and None not in totals.values() else None


def _measured(use: Mapping[str, Any], allocated: int) -> int:
    """GPUs of which something is known; one figure of Slurm's is of all."""
    known = [gpu for gpu in use.get("gpus", ()) if gpu["util"] is not None or gpu["memory_used"] is not None]
    return allocated if any(gpu["source"] == Source.SLURM for gpu in known) else len(known)


def _gpu(stored: Mapping[str, Any]) -> GpuUseView:
    shown = {name: value for name, value in stored.items() if name not in {"at", "memory_of"}}
    return GpuUseView(**shown, sampled_at=stored["at"])
