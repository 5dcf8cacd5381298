"""Use cases around runs: request, read, cancel, retry. Nothing here talks to a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from broker.audit import record
from broker.compiler import RunIdentity, job_name
from broker.context import Context
from broker.db import new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import Conflict, InvalidRequest, NotFound, Problem
from broker.identity import Principal
from broker.identity.tables import UserRow
from broker.pipelines.service import get_version
from broker.pipelines.tables import PipelineVersionRow
from broker.runs.events import emit
from broker.runs.schemas import JobView, RunRequest, RunSummary, RunView
from broker.runs.states import RUN_STATE_KO, JobState, Phase, RunState, failure_class
from broker.runs.tables import ClusterRow, CounterRow, JobRow, RunHoldRow, RunRow
from broker.spec import Overrides, PipelineSpec, apply_overrides, parse
from broker.spec.graph import descendants, topological


class Once(Protocol):
    """What makes a request that is repeated take effect once (the API's `Idempotency-Key`)."""

    def before(self, session: Session) -> None:
        """First in the transaction; raises the caller's own exception when the answer is known already."""

    def after(self, session: Session, view: RunView) -> None:
        """Last in the transaction: store the answer."""


def create_run(ctx: Context, principal: Principal, request: RunRequest, once: Once | None = None) -> RunView:
    """Store a run, its jobs and the intent to submit them in one transaction, then wake the worker.

    Raises `NotFound` (pipeline, test run), `InvalidSpec` (overrides), `ConfigurationError` (cluster).
    """
    cluster = ctx.settings.cluster_name(request.cluster)
    profile = ctx.profile(cluster)
    with ctx.db.read() as session:
        version = get_version(session, principal, request.pipeline, request.version)
        _check_test_run(session, principal, request, version)
    spec = effective_spec(version.spec, request.overrides)
    now = utcnow()
    with ctx.db.write() as session:
        if once:
            once.before(session)
        run = RunRow(
            id=new_id("run"),
            number=_next_number(session),
            name=spec.name,
            kind=request.kind,
            cluster=cluster,
            tenant=principal.tenant,
            owner_id=principal.user_id,
            pipeline_id=version.pipeline_id,
            pipeline_version_id=version.id,
            test_run_ref=request.test_run_ref,
            overrides=request.overrides.model_dump(mode="json", exclude_none=True)
            if request.overrides
            else {},
            state=RunState.QUEUED,
            phase=Phase.PREPARING,
            approval="not_required",
            attempt=1,
            created_at=now,
            updated_at=now,
            event_seq=0,
        )
        session.add(run)
        session.flush()
        identity = run_identity(run, principal.username)
        jobs = [
            _new_job(run, spec, position, component, job_name(profile, identity, component))
            for position, component in enumerate(topological(spec))
        ]
        session.add_all(jobs)
        session.add(RunHoldRow(run_id=run.id, kind="submission", since=now))
        emit(session, run, "run_requested", kind=run.kind, components=len(spec.components))
        after = {"pipeline": run.pipeline_id, "version": version.number, "kind": run.kind, "cluster": cluster}
        record(session, principal, "run.create", "run", run.id, None, after)
        session.flush()
        view = compose_view(session, run, jobs, ["submission"], principal.username, version.number)
        if once:
            once.after(session, view)
    ctx.wake()
    return view


def effective_spec(document: str, overrides: Overrides | dict[str, object] | None) -> PipelineSpec:
    """The spec that runs: the stored one with the run's overrides applied (WR-02)."""
    spec = parse(document)
    if not overrides:
        return spec
    if isinstance(overrides, dict):
        overrides = Overrides.model_validate(overrides)
    return apply_overrides(spec, overrides)


def run_identity(run: RunRow, username: str) -> RunIdentity:
    """Who a run is, as the compiler takes it."""
    return RunIdentity(
        run_id=run.id,
        number=run.number,
        attempt=run.attempt,
        tenant=run.tenant,
        user=username,
        kind="test" if run.kind == "test" else "normal",
    )


def _new_job(run: RunRow, spec: PipelineSpec, position: int, component: str, name: str) -> JobRow:
    resources = next(c for c in spec.components if c.name == component).resources
    return JobRow(
        id=new_id("job"),
        run_id=run.id,
        component=component,
        position=position,
        attempt=run.attempt,
        name=name,
        state=JobState.INTENDED,
        resources={
            "gpu_type": resources.gpu_type,
            "gpu_count": resources.gpu_count,
            "memory_mib": resources.memory.mib,
            "cpus": resources.cpus,
            "time_s": resources.time,
        },
    )


def _next_number(session: Session) -> int:
    grow = update(CounterRow).where(CounterRow.name == "run").values(value=CounterRow.value + 1)
    number: int | None = session.scalar(grow.returning(CounterRow.value))
    if number is None:  # the first run ever, perhaps asked for twice at once
        exclusive(session, "run number")
        number = session.scalar(grow.returning(CounterRow.value))
    if number is None:
        session.add(CounterRow(name="run", value=1))
        session.flush()
        return 1
    return number


def _check_test_run(
    session: Session, principal: Principal, request: RunRequest, version: PipelineVersionRow
) -> None:
    if request.test_run_ref is None:
        return
    earlier = session.get(RunRow, request.test_run_ref)
    if (
        earlier is None
        or not _may_see(principal, earlier)
        or earlier.kind != "test"
        or earlier.pipeline_id != version.pipeline_id
    ):
        detail = (
            f"There is no test run {request.test_run_ref!r} of this pipeline; list them: GET /runs?kind=test"
        )
        raise InvalidRequest(detail, problems=[Problem("/test_run_ref", "unknown_test_run", detail)])


# ---- reading ------------------------------------------------------------------------------------------


def _may_see(principal: Principal, run: RunRow) -> bool:
    if principal.role == "admin":
        return True
    if principal.role == "viewer":
        return run.tenant == principal.tenant
    return run.owner_id == principal.user_id


def visible_runs(principal: Principal) -> Select[RunRow]:
    """The runs a person may see: an admin all, a viewer the tenant's, everybody else their own."""
    query = select(RunRow)
    if principal.role == "admin":
        return query
    if principal.role == "viewer":
        return query.where(RunRow.tenant == principal.tenant)
    return query.where(RunRow.owner_id == principal.user_id)


def find_run(session: Session, principal: Principal, run_id: str, *, lock: bool = False) -> RunRow:
    """A run by id; `NotFound` also when the person may not know of it."""
    run = session.get(RunRow, run_id, with_for_update=lock or None)
    if run is None or not _may_see(principal, run):
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
    return RunView.model_construct(
        **{
            **columns,
            "observed_at": run.ended_at if state.final else looked,
            "state": state,
            "state_ko": RUN_STATE_KO[state],
            "phase": Phase(run.phase),
            "holds": sorted(holds),
            "pipeline_version": number,
            "owner": owner,
            "jobs": [view_job(job) for job in jobs],
            "version": run.row_version,
        }
    )


def view_job(job: JobRow) -> JobView:
    """A job as people see it."""
    state = JobState(job.state)
    columns = {c: getattr(job, c) for c in JobView.model_fields if c in JobRow.__table__.columns}
    return JobView.model_construct(
        **{
            **columns,
            "state": state,
            "failure_class": failure_class(state),
            "slurm_job_name": job.name,
            "stored": job.storing,
        }
    )


def attempt_jobs(session: Session, run_id: str, attempt: int) -> list[JobRow]:
    """The jobs of one attempt, in topological order."""
    query = select(JobRow).where(JobRow.run_id == run_id, JobRow.attempt == attempt)
    return list(session.scalars(query.order_by(JobRow.position)))


def newest_jobs(session: Session, run_id: str) -> list[JobRow]:
    """The newest job of each component, in topological order."""
    query = select(JobRow).where(JobRow.run_id == run_id).order_by(JobRow.position, JobRow.attempt)
    newest: dict[str, JobRow] = {job.component: job for job in session.scalars(query)}
    return list(newest.values())


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


# ---- changing -----------------------------------------------------------------------------------------


def cancel_run(ctx: Context, principal: Principal, run_id: str) -> RunView:
    """Ask for a run to be cancelled; repeating changes nothing. `Conflict` if it has ended already."""
    with ctx.db.write() as session:
        run = find_run(session, principal, run_id, lock=True)
        if run.cancel_requested_at is None:
            if RunState(run.state).final:
                raise Conflict(f"The run has ended ({run.state}); there is nothing to cancel")
            if run.phase == Phase.STORING:
                raise Conflict("Every component has ended; only their results are still being stored")
            run.cancel_requested_at = utcnow()
            run.cancelled_by = principal.user_id
            run.next_try_at = None
            emit(session, run, "cancel_requested", by=principal.username)
            record(session, principal, "run.cancel", "run", run.id, {"state": run.state}, {"cancel": True})
        session.flush()
        view = view_run(session, run)
    ctx.wake()
    return view


def retry_run(
    ctx: Context,
    principal: Principal,
    run_id: str,
    components: Sequence[str] | None,
    once: Once | None = None,
) -> RunView:
    """Run the failed components (and those named) and their descendants again, as a new attempt."""
    with ctx.db.write() as session:
        if once:
            once.before(session)
        run = find_run(session, principal, run_id, lock=True)
        if RunState(run.state) not in {RunState.FAILED, RunState.CANCELLED}:
            raise Conflict(f"Only a failed or cancelled run can be retried; this one is {run.state}")
        if run.removed_at is not None:
            raise Conflict("The run's files were removed from the cluster; submit the pipeline as a new run")
        again = start_attempt(ctx, session, run, components, principal.username)
        record(
            session,
            principal,
            "run.retry",
            "run",
            run.id,
            None,
            {"attempt": run.attempt, "components": again},
        )
        session.flush()
        view = view_run(session, run)
        if once:
            once.after(session, view)
    ctx.wake()
    return view


def start_attempt(
    ctx: Context, session: Session, run: RunRow, components: Sequence[str] | None, username: str
) -> list[str]:
    """Add the jobs of a new attempt to a locked run; gives the components in it, in order."""
    spec = effective_spec(stored_spec(session, run), run.overrides)
    order = topological(spec)
    newest = {job.component: job for job in newest_jobs(session, run.id)}
    unknown = sorted(set(components or ()) - set(order))
    if unknown:
        detail = f"The run has no component {unknown[0]!r}; it has: {', '.join(order)}"
        raise InvalidRequest(detail, problems=[Problem("/components", "unknown_component", detail)])
    failed = [name for name in order if not _is_safe(newest[name])]
    roots = list(components) if components else failed
    if not roots:
        raise Conflict("Every component has completed; name in `components` what shall run again")
    wanted = {*roots, *failed, *descendants(spec, [*roots, *failed])}
    run.attempt += 1
    run.phase, run.state = Phase.PREPARING, RunState.QUEUED
    run.cancel_requested_at = run.cancelled_by = run.ended_at = run.error = run.error_code = None
    run.trouble = run.next_try_at = None
    run.tries = 0
    profile, identity = ctx.profile(run.cluster), run_identity(run, username)
    again = [name for name in order if name in wanted]
    for position, name in enumerate(order):
        if name in wanted:
            session.add(_new_job(run, spec, position, name, job_name(profile, identity, name)))
    session.merge(RunHoldRow(run_id=run.id, kind="submission", reason="", since=utcnow()))
    emit(session, run, "run_retried", attempt=run.attempt, components=again)
    return again


def _is_safe(job: JobRow) -> bool:
    """Whether a component need not run again: it completed, and what it made did not get lost on the way."""
    return job.state == JobState.COMPLETED and job.storing != "failed"


def stored_spec(session: Session, run: RunRow) -> str:
    """The spec of a run's pipeline version, as JSON text."""
    return session.execute(
        select(PipelineVersionRow.spec).where(PipelineVersionRow.id == run.pipeline_version_id)
    ).scalar_one()


def count_active(session: Session) -> int:
    """Runs that have not ended (metric `gpu_jobs_active` counts their jobs separately)."""
    ended = [state for state in RunState if state.final]
    return session.scalar(select(func.count()).select_from(RunRow).where(RunRow.state.not_in(ended))) or 0
