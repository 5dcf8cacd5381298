"""The expected ends of a run and its components, as the database knows them: it asks nobody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from sqlalchemy.orm import Session

from broker.pipelines.tables import PipelineVersionRow
from broker.runs.expected import Start, allowance, end_of, left_of
from broker.runs.run_end import Forecast, Part, forecast
from broker.runs.starts import starts_of
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import JobRow, RunRow
from broker.spec import parse
from broker.spec.graph import parents

_BEFORE_ACTIVE = {Phase.PREPARING, Phase.SUBMITTING, Phase.RELEASING}


def forecast_run(
    session: Session, run: RunRow, jobs: Sequence[JobRow], holds: Sequence[str], now: datetime
) -> Forecast:
    """When what is left of a run is likely to end; `jobs`: the newest of each component, parents first.

    Of a run that is being cancelled only what runs has an expected end.
    """
    alive = [job for job in jobs if not JobState(job.state).ended and job.attempt == run.attempt]
    if not alive or RunState(run.state).final:
        return Forecast({}, None)
    if run.cancel_requested_at is not None:
        ends = {job.component: end for job in alive if (end := end_of(job, now)) is not None}
        return Forecast(ends, None)
    graph = _graph(session.get_one(PipelineVersionRow, run.pipeline_version_id).spec)
    waits = {job.component for job in alive}
    roots = [job for job in alive if waits.isdisjoint(graph.get(job.component, ()))]
    starts = _starts(session, run, roots)
    held = any(kind != "submission" for kind in holds)
    parts = [
        Part(
            component=job.component,
            state=JobState(job.state),
            waits_for=graph.get(job.component, ()),
            end=end_of(job, now),
            left=left_of(job),
            allowed=allowance(job),
            start=starts.get(job.id),
            held=held or (job.reason or "").startswith("JobHeld"),
            restarts=job.restarts,
        )
        for job in alive
    ]
    return forecast(parts, now)


@lru_cache(maxsize=256)
def _graph(document: str) -> Mapping[str, tuple[str, ...]]:
    """What each component of a stored pipeline waits for: a version never changes, and overrides no graph."""
    return parents(parse(document))


def _starts(session: Session, run: RunRow, jobs: Sequence[JobRow]) -> dict[str, Start]:
    """When jobs that wait for no other one start, as the last look at the queue has it, by row id; before
    they are released, not before the broker's next try.
    """
    waiting = [job for job in jobs if not JobState(job.state).occupies_nodes]
    if run.phase in _BEFORE_ACTIVE:
        retry = Start(run.next_try_at, "retry") if run.next_try_at is not None else None
        return {job.id: retry for job in waiting if retry is not None}
    return starts_of(session, run.cluster, waiting)
