"""All there is to know about a request before somebody decides about it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.approvals.changes import changed
from broker.approvals.schemas import Change, CompiledView, ComponentView, Requester, Review, TestOutcome
from broker.approvals.service import decisions_of, expires_at, requested_at, why_not
from broker.approvals.tables import DecisionRow
from broker.compiler import preview
from broker.context import Context
from broker.db import utcnow
from broker.errors import NotFound
from broker.identity import Permission, Principal
from broker.identity.tables import UserRow
from broker.quotas.views import view_quota
from broker.runs.planning import load_plan
from broker.runs.service import effective_spec, stored_spec
from broker.runs.states import RunState
from broker.runs.tables import EventRow, RunRow
from broker.runs.views import find_run, newest_jobs, view_run
from broker.spec import PipelineSpec, Thresholds, needs_approval

NOT_ALLOWED = "Only an administrator decides about requests"


def review(ctx: Context, principal: Principal, run_id: str) -> Review:
    """A request in full. `NotFound` for a run that one may not see, or that needs no approval."""
    thresholds = Thresholds.of(ctx.settings.approval)
    with ctx.db.read() as session:
        run = find_run(session, principal, run_id)
        if run.approval == "not_required":
            raise NotFound(f"Run {run_id!r} needs no approval")
        spec = effective_spec(stored_spec(session, run), run.overrides)
        plan = load_plan(session, run.id, run.attempt)
        test = session.get(RunRow, run.test_run_ref) if run.test_run_ref else None
        obstacle = (
            why_not(session, principal, run) if principal.can(Permission.APPROVALS_DECIDE) else NOT_ALLOWED
        )
        return Review(
            run=view_run(session, run),
            requester=_requester(session, run),
            thresholds={"gpu_count": thresholds.gpu_count, "memory_mib": thresholds.memory_mib},
            components=_components(spec, thresholds),
            spec=spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            plan_hash=plan.plan_hash if plan else None,
            jobs=[CompiledView(**job) for job in preview(plan)["jobs"]] if plan else [],
            tenant_usage=view_quota(session, ctx.settings.quotas, run.tenant, utcnow()),
            test_run=_outcome(session, test) if test else None,
            changes=_changes(session, test, run, spec) if test else None,
            differences=_refusal(session, run),
            requested_at=requested_at(run),
            expires_at=expires_at(run, ctx.settings.approval.expires_days),
            decisions=decisions_of(session, run.id),
            may_decide=obstacle is None,
            why_not=obstacle,
        )


def _requester(session: Session, run: RunRow) -> Requester:
    person = session.get_one(UserRow, run.owner_id)
    earlier = dict(
        iter(
            session.execute(
                select(DecisionRow.decision, func.count())
                .join(RunRow, RunRow.id == DecisionRow.run_id)
                .where(RunRow.owner_id == run.owner_id, RunRow.id != run.id)
                .group_by(DecisionRow.decision)
            )
        )
    )
    return Requester(
        username=person.username,
        display_name=person.display_name,
        role=person.role,
        tenant=run.tenant,
        approved_before=earlier.get("approved", 0),
        rejected_before=earlier.get("rejected", 0),
    )


def _components(spec: PipelineSpec, thresholds: Thresholds) -> list[ComponentView]:
    over = needs_approval(spec, thresholds)
    return [
        ComponentView(
            component=component.name,
            gpu_type=component.resources.gpu_type,
            gpu_count=component.resources.gpu_count,
            memory_mib=component.resources.memory.mib,
            cpus=component.resources.cpus,
            time_s=component.resources.time,
            over=[one.resource for one in over if one.component == component.name],
        )
        for component in spec.components
    ]


def _outcome(session: Session, test: RunRow) -> TestOutcome:
    view = view_run(session, test)
    took = (test.ended_at - test.started_at) if test.ended_at and test.started_at else None
    return TestOutcome(
        run_id=test.id,
        number=test.number,
        state=RunState(test.state),
        pipeline_version=view.pipeline_version,
        ended_at=test.ended_at,
        duration_s=round(took.total_seconds()) if took else None,
        error=test.error,
        metrics={job.component: job.metrics for job in newest_jobs(session, test.id) if job.metrics},
    )


def _changes(session: Session, test: RunRow, run: RunRow, spec: PipelineSpec) -> list[Change]:
    """What was tested against what is requested: specs, clusters, and what the names stood for."""
    tested = effective_spec(stored_spec(session, test), test.overrides)
    found = changed(_document(test, tested), _document(run, spec))
    return [Change(pointer=place, tested=before, requested=after) for place, before, after in found]


def _document(run: RunRow, spec: PipelineSpec) -> dict[str, Any]:
    resolved = run.resolved or {}
    names = {
        kind: {name: one["digest"] for name, one in resolved.get(kind, {}).items()}
        for kind in ("images", "code")
    }
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True) | {
        "cluster": run.cluster,
        "priority_class": run.priority_class,
        **({"resolved": names} if run.resolved else {}),
    }


def _refusal(session: Session, run: RunRow) -> list[str]:
    """What differed when a release of this attempt was refused last, as long as the run waits for that."""
    if run.approval != "pending" or RunState(run.state).final:
        return []
    told = session.scalar(
        select(EventRow)
        .where(EventRow.run_id == run.id, EventRow.type.in_(["release_refused", "run_retried", "approved"]))
        .order_by(EventRow.seq.desc())
        .limit(1)
    )
    return list(told.data["differences"]) if told is not None and told.type == "release_refused" else []
