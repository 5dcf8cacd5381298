"""The last look at a cluster's queue, kept for everybody who asks: reading it never asks Slurm.

The tracker hands over each look it takes at squeue. The parts of the priorities come from sprio, which is
asked less often: what they add up to is in every row of squeue.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from broker.context import Context
from broker.db.leases import Lease
from broker.errors import BrokerError
from broker.identity import SYSTEM
from broker.queueing.tables import PriorityRow
from broker.queueing.wishes import Wish, fulfilled, overtaken
from broker.runs.priority import Level, nice_of
from broker.runs.states import Gate, JobState, Phase
from broker.runs.strays import OUR_NAME
from broker.runs.tables import JobRow, QueueRow, RunRow
from broker.runs.telemetry import contained, slurm_call
from broker.slurm import JobPriority, QueueJob, QueueSnapshot
from broker.slurm.changes import Shown

log = structlog.get_logger("broker.queue")

PARTS_PAUSE_S = 10.0
"""Time between two looks at sprio, seconds."""
MAX_RESTORES = 5
"""How often a wish is given again because Slurm shows something else; then it is left as it is, visibly."""
WAITING = tuple(
    JobState(word) for word in ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
)
"""States of a job that Slurm has and that waits."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A waiting job as squeue showed it, and the parts of its priority where sprio has told them.

    `submit`, `start` (an estimate): seconds since the epoch. `parts`: age, fair_share, job_size, partition,
    qos (weighted), and nice, which is taken off.
    """

    priority: int
    nice: int
    reason: str
    dependency: str
    submit: float | None
    start: float | None
    restarts: int
    parts: dict[str, int] | None = None

    @property
    def held(self) -> bool:
        """Slurm holds it, whoever wanted that."""
        return self.priority == 0

    @property
    def frozen(self) -> bool:
        """It has an explicit priority: sprio shows a sum that has no parts."""
        return self.parts is not None and self.priority > 1 and not any(self.parts.values())


def seen(entry: QueueJob, parts: dict[str, int] | None) -> Seen:
    """A row of squeue as it is kept."""
    return Seen(
        priority=entry.priority,
        nice=entry.nice,
        reason=entry.reason,
        dependency=entry.dependency,
        submit=entry.submit.timestamp() if entry.submit else None,
        start=entry.start.timestamp() if entry.start else None,
        restarts=entry.restart_count,
        parts=parts if entry.priority else None,
    )


def parts_of(found: JobPriority) -> dict[str, int]:
    """The parts of a priority by name."""
    return {
        name: getattr(found, name) for name in ("age", "fair_share", "job_size", "partition", "qos", "nice")
    }


def stored(session: Session, cluster: str) -> tuple[datetime | None, dict[int, Seen]]:
    """The last look at a cluster: when it was taken, and the jobs that waited, by Slurm job id."""
    row = session.get(QueueRow, cluster)
    if row is None:
        return None, {}
    return row.taken_at, {int(number): Seen(**job) for number, job in row.jobs.items()}


def note_change(session: Session, cluster: str, shown: Mapping[int, Shown]) -> None:
    """Write into the last look what a change has just shown, so that it need not wait for the next one."""
    row = session.get(QueueRow, cluster, with_for_update=True)
    if row is None:
        return
    jobs = dict(row.jobs)
    for number, job in shown.items():
        if (known := jobs.get(str(number))) is not None:
            before = Seen(**known)
            parts = before.parts if job.priority == before.priority else None
            jobs[str(number)] = asdict(
                replace(before, priority=job.priority, nice=job.nice, reason=job.reason, parts=parts)
            )
    row.jobs = jobs


class QueueKeeper:
    """Keeps the last look at one cluster. Used by the thread that polls."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease
        self._parts: dict[int, tuple[int, dict[str, int]]] = {}
        self._parts_at: datetime | None = None
        self._ask_after = 0.0

    def keep(self, snapshot: QueueSnapshot) -> None:
        """Store what waits; find out where a wish no longer stands."""
        waiting = {
            entry.job_id: entry
            for entry in snapshot.jobs
            if entry.state.pending and OUR_NAME.fullmatch(entry.name)
        }
        self._look_at_parts(waiting, snapshot.taken_at)
        jobs = {number: seen(entry, self._part(entry)) for number, entry in waiting.items()}
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            row = session.get(QueueRow, self._cluster)
            if row is None:
                row = QueueRow(cluster=self._cluster)
                session.add(row)
            row.taken_at, row.parts_at = snapshot.taken_at, self._parts_at
            row.jobs = {str(number): asdict(job) for number, job in jobs.items()}
            restore_wishes(session, self._cluster, jobs, snapshot.taken_at, self._step)
            keep_low(session, self._cluster, jobs, self._step)

    @property
    def _step(self) -> int:
        return self._ctx.cluster(self._cluster).level_nice

    def _part(self, entry: QueueJob) -> dict[str, int] | None:
        """The parts that sprio told, as long as the job has not been given another kind of priority since."""
        total, parts = self._parts.get(entry.job_id, (0, None))
        return parts if parts is not None and (any(parts.values()) or total == entry.priority) else None

    def _look_at_parts(self, waiting: Mapping[int, QueueJob], taken_at: datetime) -> None:
        """Ask sprio now and then, if anything waits that is not held; without an answer old parts stay."""
        if time.monotonic() < self._ask_after or not any(entry.priority for entry in waiting.values()):
            return
        self._ask_after = time.monotonic() + PARTS_PAUSE_S
        try:
            with slurm_call(self._cluster, "priorities"):
                found = self._ctx.slurm(self._cluster).priorities()
        except BrokerError as error:  # priority/basic has none; a slow controller answers the next time
            log.info("no_priorities", cluster=self._cluster, detail=error.detail)
            return
        self._parts = {job.job_id: (job.total, parts_of(job)) for job in found if job.job_id in waiting}
        self._parts_at = taken_at


def restore_wishes(
    session: Session, cluster: str, jobs: Mapping[int, Seen], taken_at: datetime, step: int
) -> None:
    """Let the worker apply again what no longer stands: a release took an explicit priority away, an owner
    changed nice, or ageing moved the other run past.
    """
    applied = select(PriorityRow, RunRow).join(RunRow, RunRow.id == PriorityRow.run_id)
    standing = session.execute(
        applied.where(
            RunRow.cluster == cluster,
            RunRow.phase == Phase.ACTIVE,
            RunRow.gate == Gate.OPEN,
            RunRow.attempt == PriorityRow.attempt,
            PriorityRow.state == "applied",
            PriorityRow.applied_at < taken_at,
        )
    ).all()
    waiting = _priorities(session, jobs, RunRow.cluster == cluster) if standing else {}
    for row, run in standing:
        with contained("priority_not_watched", cluster=cluster, run_id=run.id):
            _restore_wish(row, run, waiting, step)


def _restore_wish(row: PriorityRow, run: RunRow, waiting: Mapping[str, Sequence[Seen]], step: int) -> None:
    """The same of one run's wish; `waiting`: what waits of every run, by id."""
    mine = waiting.get(run.id, [])
    wish = wish_of(row, run, step)
    moved = [job for job in mine if not fulfilled(wish, job.priority, job.nice)]
    past = (
        wish.number is not None
        and row.other_run_id is not None
        and bool(mine)
        and overtaken(wish.kind, wish.number, [job.priority for job in waiting.get(row.other_run_id, [])])
    )
    if past or (moved and row.restores < MAX_RESTORES):
        row.restores += not past
        row.state, row.tries, row.next_try_at = "pending", 0, None
        log.info("priority_restored", run_id=run.id, overtaken=past)


def keep_low(session: Session, cluster: str, jobs: Mapping[int, Seen], step: int) -> None:
    """Let the worker give `low` again where it is gone: an owner may take off the nice value of a submission
    (scontrol(1)); what an administrator wished for is looked after by `restore_wishes`.
    """
    unwished = and_(PriorityRow.run_id == RunRow.id, PriorityRow.attempt == RunRow.attempt)
    low = session.execute(
        select(RunRow, JobRow.slurm_job_id)
        .join(JobRow, and_(JobRow.run_id == RunRow.id, JobRow.attempt == RunRow.attempt))
        .outerjoin(PriorityRow, unwished)
        .where(
            RunRow.cluster == cluster,
            RunRow.phase.in_([Phase.RELEASING, Phase.ACTIVE]),
            RunRow.priority == Level.LOW,
            PriorityRow.run_id.is_(None),
            JobRow.state.in_(WAITING),
        )
    )
    nice = nice_of(Level.LOW, step)
    gone = {run.id: run for run, number in low if (job := jobs.get(number or 0)) and job.nice < nice}
    for run in gone.values():
        with contained("priority_not_watched", but=(SQLAlchemyError,), cluster=cluster, run_id=run.id):
            row = session.get(PriorityRow, run.id) or PriorityRow(run_id=run.id)
            row.ask(run.attempt, SYSTEM, "level", level=Level.LOW)
            session.add(row)
            log.info("low_priority_restored", run_id=run.id)


def priorities_of(session: Session, run_id: str, jobs: Mapping[int, Seen]) -> list[Seen]:
    """The waiting jobs of a run that Slurm does not hold."""
    return _priorities(session, jobs, RunRow.id == run_id).get(run_id, [])


def _priorities(
    session: Session, jobs: Mapping[int, Seen], which: ColumnElement[bool]
) -> Mapping[str, list[Seen]]:
    """The same of many runs, by run id, in one query."""
    query = select(JobRow.run_id, JobRow.slurm_job_id).join(RunRow, RunRow.id == JobRow.run_id)
    mine = session.execute(query.where(which, JobRow.attempt == RunRow.attempt, JobRow.state.in_(WAITING)))
    found: dict[str, list[Seen]] = {}
    for run_id, number in mine:
        if (job := jobs.get(number or 0)) is not None and not job.held:
            found.setdefault(run_id, []).append(job)
    return found


def wish_of(row: PriorityRow, run: RunRow, step: int) -> Wish:
    """The wish of a row as the pure functions take it."""
    level: Any = row.level or run.priority
    kind: Any = row.kind
    return Wish(kind, nice_of(level, step), row.number)
