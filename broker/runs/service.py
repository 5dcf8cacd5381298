"""Use cases around runs: request, read, cancel, retry. Nothing here talks to a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker.audit import record
from broker.compiler import ClusterProfile, RunIdentity, job_name
from broker.compiler.sbatch_args import start_limit, time_limit
from broker.context import Context
from broker.db import new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import Conflict, Denied, InvalidRequest, Problem
from broker.identity import Principal
from broker.pipelines.service import get_version
from broker.pipelines.tables import PipelineVersionRow
from broker.runs.accounts import account_for
from broker.runs.events import emit
from broker.runs.holding import begin_attempt, request_approval
from broker.runs.ledger import admit_run
from broker.runs.priority import RETRY_LEVEL, check_class, first_level
from broker.runs.schemas import RunRequest, RunView
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import CounterRow, JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs, compose_view, find_run, may_see, newest_jobs, view_run
from broker.spec import Component, Overrides, PipelineSpec, Thresholds, apply_overrides, needs_approval, parse
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
    wanted = request.priority_class
    check_class(principal.role, wanted, ctx.cluster(cluster).classes[wanted].roles)
    with ctx.db.read() as session:
        version = get_version(session, principal, request.pipeline, request.version)
        _check_test_run(session, principal, request, version)
    spec = effective_spec(version.spec, request.overrides)
    now = utcnow()
    with ctx.db.write() as session:
        if once:
            once.before(session)
        run_id = new_id("run")
        admit_run(
            ctx,
            session,
            principal,
            run_id=run_id,
            attempt=1,
            tenant=principal.tenant,
            priority_class=request.priority_class,
            resources={c.name: _resources(c) for c in spec.components},
            now=now,
        )
        run = RunRow(
            id=run_id,
            number=_next_number(session),
            name=spec.name,
            kind=request.kind,
            cluster=cluster,
            tenant=principal.tenant,
            owner_id=principal.user_id,
            unix_account=account_for(ctx, session, cluster, principal.user_id),
            pipeline_id=version.pipeline_id,
            pipeline_version_id=version.id,
            test_run_ref=request.test_run_ref,
            overrides=request.overrides.model_dump(mode="json", exclude_none=True)
            if request.overrides
            else {},
            state=RunState.QUEUED,
            phase=Phase.PREPARING,
            approval="not_required",
            needs_approval=[
                asdict(over) for over in needs_approval(spec, Thresholds.of(ctx.settings.approval))
            ]
            or None,
            priority_class=request.priority_class,
            priority=first_level(principal.role, request.priority_class, request.priority),
            attempt=1,
            created_at=now,
            updated_at=now,
            event_seq=0,
        )
        session.add(run)
        session.flush()
        identity = run_identity(run, principal.username)
        jobs = [
            _new_job(run, spec, position, component, identity, profile)
            for position, component in enumerate(topological(spec))
        ]
        session.add_all(jobs)
        session.add(RunHoldRow(run_id=run.id, kind="submission", reason="It is submitted", since=now))
        if run.needs_approval:
            request_approval(session, run)
        emit(session, run, "run_requested", kind=run.kind, components=len(spec.components))
        after = {
            "pipeline": run.pipeline_id,
            "version": version.number,
            "kind": run.kind,
            "cluster": cluster,
            "approval": run.approval,
        }
        record(session, principal, "run.create", "run", run.id, None, after, tenant=run.tenant)
        session.flush()
        holds = ["submission", "approval"] if run.needs_approval else ["submission"]
        view = compose_view(session, run, jobs, holds, principal.username, version.number)
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
        priority_class=run.priority_class,
    )


def _new_job(
    run: RunRow,
    spec: PipelineSpec,
    position: int,
    name: str,
    identity: RunIdentity,
    profile: ClusterProfile,
) -> JobRow:
    component = next(c for c in spec.components if c.name == name)
    limit = start_limit(component.resources, profile.for_run(run.tenant, run.priority_class))
    several = {"start_s": limit} if limit < time_limit(component.resources) else {}
    return JobRow(
        id=new_id("job"),
        run_id=run.id,
        component=name,
        position=position,
        attempt=run.attempt,
        name=job_name(profile, identity, name),
        state=JobState.INTENDED,
        resources=_resources(component) | several,
    )


def _resources(component: Component) -> dict[str, Any]:
    """What a component asks for, as its job keeps it."""
    resources = component.resources
    return {
        "gpu_type": resources.gpu_type,
        "gpu_count": resources.gpu_count,
        "memory_mib": resources.memory.mib,
        "cpus": resources.cpus,
        "time_s": resources.time,
    }


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
        or not may_see(principal, earlier)
        or earlier.kind != "test"
        or earlier.pipeline_id != version.pipeline_id
    ):
        detail = (
            f"There is no test run {request.test_run_ref!r} of this pipeline; list them: GET /runs?kind=test"
        )
        raise InvalidRequest(detail, problems=[Problem("/test_run_ref", "unknown_test_run", detail)])


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
            before, after = {"state": run.state}, {"cancel": True}
            record(session, principal, "run.cancel", "run", run.id, before, after, tenant=run.tenant)
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
    """Run the failed components (and those named) and their descendants again, as a new attempt.

    A tenant's admin cancels other people's runs but does not start them: their quota and limits would pay.
    """
    with ctx.db.write() as session:
        if once:
            once.before(session)
        run = find_run(session, principal, run_id, lock=True)
        if not principal.may_change(run.owner_id):
            raise Denied("Only its owner, or an admin, runs it again")
        if RunState(run.state) not in {RunState.FAILED, RunState.CANCELLED}:
            raise Conflict(f"Only a failed or cancelled run can be retried; this one is {run.state}")
        if run.removed_at is not None:
            raise Conflict("The run's files were removed from the cluster; submit the pipeline as a new run")
        again = start_attempt(ctx, session, run, components, principal.username)
        _admit_retry(ctx, session, principal, run)
        record(
            session,
            principal,
            "run.retry",
            "run",
            run.id,
            None,
            {"attempt": run.attempt, "components": again},
            tenant=run.tenant,
        )
        session.flush()
        view = view_run(session, run)
        if once:
            once.after(session, view)
    ctx.wake()
    return view


def _admit_retry(ctx: Context, session: Session, principal: Principal, run: RunRow) -> None:
    """A retry counts like a request; one that an admin makes for the owner counts for nobody."""
    if principal.user_id == run.owner_id:
        session.flush()
        admit_run(
            ctx,
            session,
            principal,
            run_id=run.id,
            attempt=run.attempt,
            tenant=run.tenant,
            priority_class=run.priority_class,
            resources={job.component: job.resources for job in attempt_jobs(session, run.id, run.attempt)},
            now=utcnow(),
        )


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
    run.phase, run.state, run.priority = Phase.PREPARING, RunState.QUEUED, RETRY_LEVEL
    run.cancel_requested_at = run.cancelled_by = run.ended_at = run.error = run.error_code = None
    run.trouble = run.next_try_at = None
    run.tries = 0
    profile, identity = ctx.profile(run.cluster), run_identity(run, username)
    again = [name for name in order if name in wanted]
    for position, name in enumerate(order):
        if name in wanted:
            session.add(_new_job(run, spec, position, name, identity, profile))
    begin_attempt(session, run)
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
