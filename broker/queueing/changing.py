"""The worker's part of a priority: one remote command for all waiting jobs of a run, read back in the same.

The intent is a row (`PriorityRow`), committed by the request. What came of it is written with one audit row
for the person who asked. Only jobs that wait are named to Slurm; one that starts meanwhile is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, bindparam, exists, func, or_, select
from sqlalchemy.orm import Session

from broker.audit import record, source_ip
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError
from broker.identity import SYSTEM
from broker.queueing import snapshot, wishes
from broker.queueing.snapshot import WAITING, wish_of
from broker.queueing.tables import PriorityRow
from broker.queueing.wishes import Verdict, Wish
from broker.runs.events import emit
from broker.runs.journal import concerning
from broker.runs.priority import Level
from broker.runs.states import Gate, Phase
from broker.runs.submission import back_off
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.telemetry import slurm_call
from broker.runs.views import attempt_jobs
from broker.slurm.changes import Adjusted

IN_SLURM = (Phase.RELEASING, Phase.ACTIVE)
EXPLICIT = ("number", "before", "after")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked, for the audit trail; the change is made for an admin or the broker itself."""

    user_id: str
    username: str
    tenant: str
    is_admin: bool = True


@dataclass(frozen=True, slots=True)
class _Work:
    """What was read before Slurm is asked."""

    run: RunRow
    row: PriorityRow
    jobs: Sequence[JobRow]
    held: bool
    number: int | None


class PriorityChanger:
    """Applies wishes on one cluster. The worker calls it for one run at a time, never while the same run is
    being submitted, held or released.
    """

    def __init__(self, ctx: Context, cluster: str, lease: Lease) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease

    def due(self) -> list[str]:
        """Runs whose wish can be applied now, and new ones whose level has to be given in Slurm."""
        with self._ctx.db.read() as session:
            return list(session.scalars(_DUE, {"cluster": self._cluster, "now": utcnow()}))

    def apply(self, run_id: str) -> None:
        """Apply what is wished for a run; nothing when it has moved on meanwhile."""
        work = self._read(run_id)
        if work is None:
            return
        components = {job.slurm_job_id: job.component for job in work.jobs if job.slurm_job_id is not None}
        wish = self._wish(work)
        if not components:
            self._write(work, wish, Verdict((), True, False, "Nothing of the run waits any more"), None)
        elif wish.explicit and wish.number is None:
            told = "There is no place: the other run does not wait, or is the last of all"
            self._write(work, wish, Verdict((), False, False, told), None)
        else:
            steps = [
                step
                for number in components
                for step in wishes.steps(wish, number, held=work.held, frozen=work.row.frozen)
            ]
            try:
                with concerning(work.run), slurm_call(self._cluster, "priority"):
                    adjusted = self._ctx.slurm(self._cluster).adjust(steps)
            except BrokerError as error:
                self._write(work, wish, Verdict((), False, True, error.detail), None)
            else:
                self._write(work, wish, wishes.verdict(wish, components, adjusted), adjusted)

    # ---- reading ------------------------------------------------------------------------------------

    def _read(self, run_id: str) -> _Work | None:
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            run = session.get_one(RunRow, run_id, with_for_update=True)
            row = session.get(PriorityRow, run_id)
            if (row is None or row.attempt != run.attempt) and run.priority == Level.HIGH:
                row = row or PriorityRow(run_id=run.id)  # the account that submits may not give that itself
                row.ask(run.attempt, SYSTEM, "level", level=run.priority)
                session.add(row)
                session.flush()
            if row is None or row.attempt != run.attempt:
                return None
            held = run.phase != Phase.ACTIVE or run.gate != Gate.OPEN or _holds(session, run_id) > 0
            if row.state != "pending" or run.phase not in IN_SLURM or (row.kind in EXPLICIT and held):
                return None
            jobs = [job for job in attempt_jobs(session, run_id, run.attempt) if job.state in WAITING]
            number = row.number if row.kind == "number" else self._beside(session, row)
            return _Work(run, row, jobs, held, number)

    def _beside(self, session: Session, row: PriorityRow) -> int | None:
        if row.kind not in EXPLICIT or row.other_run_id is None:
            return None
        _, queue = snapshot.stored(session, self._cluster)
        others = [job.priority for job in snapshot.priorities_of(session, row.other_run_id, queue)]
        kind: wishes.WishKind = "before" if row.kind == "before" else "after"
        return wishes.beside(kind, others, again=row.applied_at is not None) or row.number

    def _wish(self, work: _Work) -> Wish:
        wish = wish_of(work.row, work.run, self._ctx.cluster(self._cluster).level_nice)
        return Wish(wish.kind, wish.nice, work.number if wish.explicit else None)

    # ---- writing ------------------------------------------------------------------------------------

    def _write(self, work: _Work, wish: Wish, came: Verdict, adjusted: Adjusted | None) -> None:
        """What came of it, with the audit row; nothing if another wish has replaced this one meanwhile."""
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            run = session.get_one(RunRow, work.run.id, with_for_update=True)
            row = session.get_one(PriorityRow, run.id)
            if adjusted is not None:
                snapshot.note_change(session, self._cluster, adjusted.after)
            if row.row_version != work.row.row_version:
                row.frozen = row.frozen or wish.explicit
                return
            if came.jobs:
                row.jobs = wishes.remember(row.jobs if row.tries else (), came.jobs)
            row.message = came.message
            if not (came.jobs or came.again) and row.asked_by_id == SYSTEM.user_id:
                row.state = "applied"  # it started before it could be given its level: nothing to tell
                return
            if came.again:
                row.next_try_at, row.tries = utcnow() + back_off(row.tries), row.tries + 1
                return
            first = row.applied_at is None
            before = {"level": run.priority, "jobs": _column(row.jobs, "before")}
            row.state, row.next_try_at = "applied" if came.done else "failed", None
            row.number, row.frozen = wish.number, wish.explicit
            if came.done:
                row.applied_at = utcnow()
                run.priority = row.level or run.priority
            after = {
                "wish": row.kind,
                "level": run.priority,
                "number": wish.number,
                "nice": wish.nice,
                "other_run_id": row.other_run_id,
                "state": row.state,
                "jobs": _column(row.jobs, "after"),
            }
            self._audit(session, run, row, before, after, came.message, first=first)
            emit(
                session,
                run,
                "run_priority_changed",
                wish=row.kind,
                level=run.priority,
                number=wish.number,
                state=row.state,
            )

    def _audit(
        self,
        session: Session,
        run: RunRow,
        row: PriorityRow,
        before: dict[str, Any],
        after: dict[str, Any],
        answer: str,
        *,
        first: bool,
    ) -> None:
        asker = Asker(row.asked_by_id, row.asked_by, run.tenant) if first else SYSTEM
        token = source_ip.set(row.source_ip if first else None)
        try:
            action = "run.priority" if first else "run.priority_restored"
            record(session, asker, action, "run", run.id, before, after, answer, tenant=run.tenant)
        finally:
            source_ip.reset(token)


def _column(jobs: Iterable[Mapping[str, Any]], when: str) -> dict[str, Any]:
    """What is told of each component in the audit row: its numbers, and afterwards what became of it."""
    return {
        job["component"]: {**(job[when] or {}), **({"outcome": job["outcome"]} if when == "after" else {})}
        for job in jobs
    }


def _holds(session: Session, run_id: str) -> int:
    return (
        session.scalar(select(func.count()).select_from(RunHoldRow).where(RunHoldRow.run_id == run_id)) or 0
    )


def _due_query() -> Select[str]:
    free = and_(
        RunRow.phase == Phase.ACTIVE,
        RunRow.gate == Gate.OPEN,
        ~exists().where(RunHoldRow.run_id == RunRow.id),
    )
    wished = and_(
        PriorityRow.attempt == RunRow.attempt,
        PriorityRow.state == "pending",
        or_(PriorityRow.next_try_at.is_(None), PriorityRow.next_try_at <= bindparam("now")),
        or_(PriorityRow.kind.not_in(EXPLICIT), free),
    )
    new = and_(
        RunRow.priority == Level.HIGH,
        or_(PriorityRow.run_id.is_(None), PriorityRow.attempt != RunRow.attempt),
    )
    query = select(RunRow.id).outerjoin(PriorityRow, PriorityRow.run_id == RunRow.id)
    here = and_(RunRow.cluster == bindparam("cluster"), RunRow.phase.in_(IN_SLURM))
    return (
        query.where(here, RunRow.cancel_requested_at.is_(None), or_(wished, new))
        .order_by(RunRow.id)
        .limit(200)
    )


_DUE = _due_query()
