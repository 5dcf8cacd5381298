"""Which events of a run are told to people (`broker.notifications`), and with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from broker.notifications import Kind, notify
from broker.runs.states import JobState, RunState
from broker.runs.tables import JobRow, RunRow

_GPUS = {"gpu_idle": Kind.RUN_GPU_IDLE, "gpu_busy": Kind.RUN_GPU_BUSY}
_OUT_OF_TIME = (JobState.TIMEOUT, JobState.DEADLINE)


def tell(session: Session, run: RunRow, event: str, data: Mapping[str, Any]) -> None:
    """Put a notice into the outbox when the event is one that people are told of; else nothing.

    A start is told once per run; all else once per event.
    """
    kind, about = _news(session, run, event, data)
    if kind is None:
        return
    told = {"run_id": run.id, "number": run.number, "name": run.name, "cluster": run.cluster, **about}
    number = "" if kind is Kind.RUN_STARTED else f":{run.event_seq}"
    notify(
        session,
        kind,
        run.tenant,
        subject=f"{run.name} #{run.number}",
        data=told,
        user_id=run.owner_id,
        once=f"{kind}:{run.id}{number}",
    )


def _news(
    session: Session, run: RunRow, event: str, data: Mapping[str, Any]
) -> tuple[Kind | None, dict[str, Any]]:
    if event == "approval_requested":
        over = [_excess(**one) for one in run.needs_approval or []]
        return Kind.RUN_APPROVAL_REQUESTED, {"components": over, "attempt": run.attempt}
    if event in {"approved", "rejected"}:
        about = {"decided_by": data.get("by"), "comment": data.get("comment"), "attempt": run.attempt}
        return Kind.RUN_DECIDED, {"decision": event, **about}
    if event == "job_started" and run.started_at is None:
        return Kind.RUN_STARTED, {}
    if event == "job_stalled":
        about = {name: data[name] for name in ("component", "job_id")}
        return Kind.RUN_STALLED, {**about, "since": data["silent_since"]}
    if event in _GPUS:
        return _GPUS[event], dict(data)
    if event == "run_finished":
        state = RunState(data["state"])
        if state is RunState.SUCCEEDED:
            return Kind.RUN_COMPLETED, {"state": state}
        if state is RunState.FAILED:
            kind = Kind.RUN_TIMED_OUT if _out_of_time(session, run) else Kind.RUN_FAILED
            return kind, {"state": state, "error": data.get("error"), "error_code": run.error_code}
    return None, {}


def _excess(component: str, resource: str, requested: int, threshold: int) -> str:
    """A component over a threshold, for people (`spec.thresholds.Excess`: GPUs, or MiB of memory).

    >>> _excess("trainer", "memory_mib", 262144, 131072)
    'trainer: 256 GiB (≥ 128)'
    """
    if resource == "memory_mib":
        return f"{component}: {requested / 1024:g} GiB (≥ {threshold / 1024:g})"
    return f"{component}: GPU {requested} (≥ {threshold})"


def _out_of_time(session: Session, run: RunRow) -> bool:
    """Whether the newest attempt of any component ended at its time limit."""
    newest = (
        select(JobRow.component, func.max(JobRow.attempt).label("attempt"))
        .where(JobRow.run_id == run.id)
        .group_by(JobRow.component)
        .subquery()
    )
    query = (
        select(JobRow.id)
        .join(newest, (JobRow.component == newest.c.component) & (JobRow.attempt == newest.c.attempt))
        .where(JobRow.run_id == run.id, JobRow.state.in_(_OUT_OF_TIME))
    )
    return session.scalar(query.limit(1)) is not None
