"""What the jobs of a pipeline's last runs have used: out of the warehouse, as the rules of advice take it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from broker.accounting.tables import AccountingCursorRow, AccountingJobRow
from broker.advice.jobs import peak_of
from broker.advice.rules import Asked, Attempt
from broker.identity import Principal
from broker.pipelines.tables import PipelineVersionRow
from broker.runs.states import JobState, RunState
from broker.runs.tables import JobRow, RunRow
from broker.runs.views import visible_runs
from broker.spec import Component, PipelineSpec, parse

_ENDED: Final = (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)
_USED: Final = (
    AccountingJobRow.run_id,
    AccountingJobRow.job_id,
    AccountingJobRow.state,
    AccountingJobRow.end_at,
    AccountingJobRow.elapsed_s,
    AccountingJobRow.nodes,
    AccountingJobRow.max_rss_mib,
    AccountingJobRow.mem_in_tot_mib,
    AccountingJobRow.total_cpu_s,
    AccountingJobRow.cpu_partial,
    AccountingJobRow.gpu_util,
)


@dataclass(frozen=True, slots=True)
class Unread:
    """A job that has ended and whose end accounting does not show yet."""

    run_id: str
    component: str
    cluster: str
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Jobs that ended, by component, in the order of their runs and attempts; what is missing; from where."""

    attempts: Mapping[str, Sequence[Attempt]]
    unread: Sequence[Unread]
    cursors: Sequence[AccountingCursorRow]


def asked_of(component: Component) -> Asked:
    """What a component of a spec asks for."""
    wants = component.resources
    return Asked(wants.memory.mib, wants.time, wants.gpu_count, wants.gpu_type, wants.cpus, wants.nodes)


def last_runs(session: Session, principal: Principal, pipeline_id: str, limit: int) -> list[RunRow]:
    """The last runs of a pipeline that have run and ended and that one may see, oldest first; no test runs:
    they may well work on less.
    """
    query = visible_runs(principal).where(
        RunRow.pipeline_id == pipeline_id,
        RunRow.kind == "normal",
        RunRow.state.in_(_ENDED),
        RunRow.started_at.is_not(None),
    )
    return list(session.scalars(query.order_by(RunRow.number.desc()).limit(limit)))[::-1]


def specs_of(session: Session, runs: Sequence[RunRow]) -> dict[str, PipelineSpec]:
    """The specs of the runs' versions, by the version's id."""
    ids = {run.pipeline_version_id for run in runs}
    query = select(PipelineVersionRow.id, PipelineVersionRow.spec).where(PipelineVersionRow.id.in_(ids))
    return {version: parse(document) for version, document in session.execute(query)}


def facts_of(
    session: Session,
    runs: Sequence[RunRow],
    specs: Mapping[str, PipelineSpec],
    like: PipelineSpec | None = None,
) -> Facts:
    """What the jobs of these runs used; with `like`, only of components that do the same work there."""
    wanted = None if like is None else _works(like)
    works = {version: _works(spec) for version, spec in specs.items()}
    by_id = {run.id: run for run in runs}
    cursors = _cursors(session, {run.cluster for run in runs})
    read_to = {row.cluster: row.read_to for row in cursors}
    used = _used(session, list(by_id))
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    unread: list[Unread] = []
    for job in _jobs(session, list(by_id)):
        run = by_id[job.run_id]
        work = works[run.pipeline_version_id][job.component]
        if wanted is not None and wanted.get(job.component) != work:
            continue
        rows = used.get((job.run_id, job.slurm_job_id), [])
        if not _complete(job, rows, read_to.get(run.cluster, 0)):
            unread.append(Unread(run.id, job.component, run.cluster, job.ended_at))
        elif any(row.elapsed_s for row in rows):
            attempts[job.component].append(_attempt(run, job, rows, nodes=work[1]))
    partly = {(one.run_id, one.component) for one in unread}  # how long its work took is not known
    whole = {
        name: [one for one in found if (one.run_id, name) not in partly] for name, found in attempts.items()
    }
    return Facts(whole, unread, cursors)


_Work = tuple[Component, int, Mapping[str, str]]


def _works(spec: PipelineSpec) -> dict[str, _Work]:
    """What decides on the use of a component, but for its resources: itself, its nodes, the environment."""
    bare = {"resources": None, "order": 0}
    return {
        one.name: (one.model_copy(update=bare), one.resources.nodes, spec.env_vars) for one in spec.components
    }


def _cursors(session: Session, clusters: set[str]) -> Sequence[AccountingCursorRow]:
    query = select(AccountingCursorRow).where(AccountingCursorRow.cluster.in_(clusters))
    return session.scalars(query.order_by(AccountingCursorRow.cluster)).all()


def _jobs(session: Session, run_ids: Sequence[str]) -> Sequence[Row[Any]]:
    """The jobs that began and ended."""
    columns = (JobRow.run_id, JobRow.component, JobRow.state, JobRow.slurm_job_id, JobRow.resources)
    query = (
        select(*columns, JobRow.ended_at)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .where(JobRow.run_id.in_(run_ids), JobRow.slurm_job_id.is_not(None), JobRow.started_at.is_not(None))
        .order_by(RunRow.number, JobRow.attempt)
    )
    return [row for row in session.execute(query) if JobState(row.state).ended]


def _used(session: Session, run_ids: Sequence[str]) -> dict[tuple[str, int], list[Row[Any]]]:
    """The starts of the runs' jobs as accounting has them, in order."""
    query = select(*_USED).where(AccountingJobRow.run_id.in_(run_ids))
    found: dict[tuple[str, int], list[Row[Any]]] = defaultdict(list)
    for row in session.execute(query.order_by(AccountingJobRow.submit_at)):
        found[row.run_id, row.job_id].append(cast(Row[Any], row))
    return found


def _complete(job: Row[Any], rows: Sequence[Row[Any]], read_to: int) -> bool:
    """Whether accounting shows the job's last start with its end."""
    if not rows or rows[-1].end_at is None:
        return False
    return rows[-1].state == job.state or (job.ended_at is not None and read_to >= job.ended_at.timestamp())


def _attempt(run: RunRow, job: Row[Any], rows: Sequence[Row[Any]], nodes: int) -> Attempt:
    wants, ran = job.resources, [row for row in rows if row.elapsed_s]
    elapsed = sum(row.elapsed_s for row in ran)
    peaks = [
        peak for row in ran if (peak := peak_of(row.mem_in_tot_mib, row.max_rss_mib, row.nodes)) is not None
    ]
    cpu = [row.total_cpu_s for row in ran if not row.cpu_partial and row.total_cpu_s is not None]
    utils = [row.gpu_util for row in ran]
    return Attempt(
        run_id=run.id,
        state=job.state,
        asked=Asked(
            wants["memory_mib"],
            wants["time_s"],
            wants["gpu_count"],
            wants["gpu_type"],
            wants["cpus"],
            nodes,
        ),
        elapsed_s=elapsed,
        starts=len(ran),
        peak_mib=max(peaks, default=None),
        cpu_s=sum(cpu) if len(cpu) == len(ran) else None,
        gpu_util=None
        if None in utils
        else min(1.0, sum(row.gpu_util * row.elapsed_s for row in ran) / elapsed / 100),
        overridden=_overridden(run.overrides, job.component),
    )


def _overridden(overrides: Mapping[str, Any], component: str) -> frozenset[str]:
    """The resources that a run has set for a component."""
    parts = (overrides.get("all"), overrides.get("components", {}).get(component))
    return frozenset(name for part in parts for name in part or {})


def moment(seconds: int) -> datetime:
    """Epoch seconds as a time (UTC)."""
    return datetime.fromtimestamp(seconds, UTC)
