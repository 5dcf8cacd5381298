"""Runs as people see them: which of them, and what the API says of each. Reads the database only."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from broker.db import utcnow
from broker.errors import NotFound
from broker.identity import Principal, Role
from broker.identity.tables import UserRow
from broker.pipelines.schemas import NeedsApproval
from broker.pipelines.tables import PipelineVersionRow
from broker.runs.expected import ExpectedEnd
from broker.runs.forecasting import forecast_run
from broker.runs.progress import Progress
from broker.runs.schemas import GpuIdle, JobView, RunSummary, RunView
from broker.runs.states import RUN_STATE_KO, JobState, Phase, RunState, failure_class
from broker.runs.tables import ClusterRow, JobRow, RunHoldRow, RunRow

_TENANT_WIDE = (Role.VIEWER, Role.TENANT_ADMIN)


def may_see(principal: Principal, run: RunRow) -> bool:
    """Whether a person may know of a run: the rule of `visible_runs` for one that is at hand."""
    if principal.role == "admin":
        return True
    if principal.role in _TENANT_WIDE:
        return run.tenant == principal.tenant
    return run.owner_id == principal.user_id


def visible_runs(principal: Principal) -> Select[RunRow]:
    """The runs a person may see: an admin all, viewers and tenant admins the tenant's, others their own."""
    query = select(RunRow)
    if principal.role == "admin":
        return query
    if principal.role in _TENANT_WIDE:
        return query.where(RunRow.tenant == principal.tenant)
    return query.where(RunRow.owner_id == principal.user_id)


def find_run(session: Session, principal: Principal, run_id: str, *, lock: bool = False) -> RunRow:
    """A run by id; `NotFound` also when the person may not know of it."""
    run = session.get(RunRow, run_id, with_for_update=lock or None)
    if run is None or not may_see(principal, run):
        raise NotFound(f"There is no run {run_id!r}")
    return run


def view_run(session: Session, run: RunRow, attempt: int | None = None) -> RunView:
    """A run with the newest job of each component (or those of one attempt)."""
    owner, number = session.execute(
        select(UserRow.username, PipelineVersionRow.number)
        .join(PipelineVersionRow, PipelineVersionRow.id == run.pipeline_version_id)
        .where(UserRow.id == run.owner_id)
    ).one()
    jobs = newest_jobs(session, run.id) if attempt is None else attempt_jobs(session, run.id, attempt)
    holds = session.scalars(select(RunHoldRow.kind).where(RunHoldRow.run_id == run.id)).all()
    return compose_view(session, run, jobs, holds, owner, number)


def compose_view(
    session: Session, run: RunRow, jobs: Sequence[JobRow], holds: Sequence[str], owner: str, number: int
) -> RunView:
    """The same, of what is known already; `number` is the pipeline version's."""
    state = RunState(run.state)
    columns = {c: getattr(run, c) for c in RunView.model_fields if c in RunRow.__table__.columns}
    looked = session.scalar(select(ClusterRow.polled_at).where(ClusterRow.name == run.cluster))
    expected = forecast_run(session, run, jobs, holds, utcnow())
    return RunView.model_construct(
        **{
            **columns,
            "observed_at": run.ended_at if state.final else looked,
            "state": state,
            "state_ko": RUN_STATE_KO[state],
            "phase": Phase(run.phase),
            "holds": sorted(holds),
            "needs_approval": [NeedsApproval(**over) for over in run.needs_approval or []],
            "pipeline_version": number,
            "owner": owner,
            "expected_end": expected.run,
            "jobs": [view_job(job, expected.ends.get(job.component)) for job in jobs],
            "version": run.row_version,
        }
    )


def view_job(job: JobRow, end: ExpectedEnd | None) -> JobView:
    """A job as people see it."""
    state = JobState(job.state)
    columns = {c: getattr(job, c) for c in JobView.model_fields if c in JobRow.__table__.columns}
    return JobView.model_construct(
        **{
            **columns,
            "state": state,
            "failure_class": failure_class(state, job.reason),
            "progress": Progress.model_validate(job.progress) if job.progress else None,
            "expected_end": end,
            "gpu_idle": _gpu_idle(job),
            "slurm_job_name": job.name,
            "stored": job.storing,
        }
    )


def _gpu_idle(job: JobRow) -> GpuIdle | None:
    return GpuIdle.model_validate(job.gpu_idle) if job.gpu_idle and job.state == JobState.RUNNING else None


def attempt_jobs(session: Session, run_id: str, attempt: int) -> list[JobRow]:
    """The jobs of one attempt, in topological order."""
    query = select(JobRow).where(JobRow.run_id == run_id, JobRow.attempt == attempt)
    return list(session.scalars(query.order_by(JobRow.position)))


def newest_jobs(session: Session, run_id: str) -> list[JobRow]:
    """The newest job of each component, in topological order."""
    query = select(JobRow).where(JobRow.run_id == run_id).order_by(JobRow.position, JobRow.attempt)
    newest: dict[str, JobRow] = {job.component: job for job in session.scalars(query)}
    return list(newest.values())


def running_jobs(session: Session, cluster: str) -> list[tuple[JobRow, str | None]]:
    """The jobs of a cluster that run, each with the Unix account it belongs to (None: the broker's own)."""
    query = (
        select(JobRow, RunRow.unix_account)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .where(RunRow.cluster == cluster, JobRow.state == JobState.RUNNING, JobRow.started_at.is_not(None))
    )
    return [(job, account) for job, account in session.execute(query)]


def summarise(session: Session, runs: Sequence[RunRow]) -> list[RunSummary]:
    """Runs as list entries: three queries, however many runs."""
    ids = [run.id for run in runs]
    rows = session.execute(
        select(JobRow.run_id, JobRow.component, JobRow.state)
        .where(JobRow.run_id.in_(ids))
        .order_by(JobRow.attempt)
    )
    states: dict[str, dict[str, str]] = {run_id: {} for run_id in ids}
    for run_id, component, state in rows:
        states[run_id][component] = state
    owner_ids = {run.owner_id for run in runs}
    version_ids = {run.pipeline_version_id for run in runs}
    people = session.execute(select(UserRow.id, UserRow.username).where(UserRow.id.in_(owner_ids)))
    owners = {row.id: row.username for row in people}
    numbered = session.execute(
        select(PipelineVersionRow.id, PipelineVersionRow.number).where(PipelineVersionRow.id.in_(version_ids))
    )
    versions = {row.id: row.number for row in numbered}
    common = [c for c in RunSummary.model_fields if c in RunRow.__table__.columns]
    return [
        RunSummary(
            **{c: getattr(run, c) for c in common},
            state_ko=RUN_STATE_KO[RunState(run.state)],
            owner=owners[run.owner_id],
            pipeline_version=versions[run.pipeline_version_id],
            components=len(states[run.id]),
            completed=sum(state == JobState.COMPLETED for state in states[run.id].values()),
        )
        for run in runs
    ]
