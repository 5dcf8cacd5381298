"""Where runs meet quotas: who may ask for one, what is reserved at its release, what it used in the end.

`broker.quotas` decides; this module knows the runs. The `Bookkeeper` is the worker's: it settles from
accounting what has ended (every attempt of a job once, however often it is seen) and lets runs that wait
for their tenant's quota go on when there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from broker.compiler.profile import DEFAULT_TIME_S
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.identity import Principal
from broker.identity.tables import UserRow
from broker.quotas import accounts
from broker.quotas.accounts import Want
from broker.quotas.ledger import attempts_of, knows_end, observed
from broker.quotas.limits import check_times, max_run_hours
from broker.quotas.service import admit, lock_user, quota_of
from broker.quotas.tables import ReservationRow
from broker.runs.events import emit
from broker.runs.holding import add_hold, lift_hold
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.slurm import AccountingJob
from broker.slurm.queue import CLOCK_SKEW

PATIENCE = timedelta(hours=1)
"""How long accounting may take to know of an end; then what the broker has seen is charged."""
REOPENED = timedelta(days=2)
"""How long after its account was closed a job may be put back into the queue: Slurm forgets it far sooner
(`MinJobAge`).
"""
LONGEST_PAUSE_S = 300.0
BATCH = 500
TIMED_CLASSES = frozenset({"training", "fine-tuning"})
"""Priority classes with the longest time limit of AM-10; inference has none (CD-06)."""


def admit_run(
    ctx: Context,
    session: Session,
    principal: Principal,
    *,
    run_id: str,
    attempt: int,
    tenant: str,
    priority_class: str,
    resources: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> None:
    """Let an attempt of a run in, or raise `InvalidRequest` or `LimitReached`; counted in this transaction.

    `resources`: by component, as `JobRow.resources` has them.
    """
    settings = ctx.settings.quotas
    wants = [_want(name, each) for name, each in resources.items()]
    if priority_class in TIMED_CLASSES:
        allowed = session.scalar(select(UserRow.max_training_hours).where(UserRow.id == principal.user_id))
        check_times({want.job_id: want.limit_s for want in wants}, max_run_hours(settings, allowed))
    lock_user(session, principal.user_id)
    admit(
        session,
        settings,
        principal,
        run_id=run_id,
        attempt=attempt,
        tenant=tenant,
        active=active_runs(session, principal.user_id, but=run_id),
        gpu_seconds=accounts.gpu_seconds(wants),
        now=now,
    )


def active_runs(session: Session, user_id: str, but: str = "") -> int:
    """A person's runs that have not ended."""
    final = [state for state in RunState if state.final]
    query = select(func.count()).where(
        RunRow.owner_id == user_id, RunRow.state.not_in(final), RunRow.id != but
    )
    return session.scalar(query.select_from(RunRow)) or 0


def wants_of(jobs: Iterable[JobRow]) -> list[Want]:
    """What the jobs of an attempt may use at most."""
    return [_want(job.id, job.resources) for job in jobs]


def _want(key: str, resources: Mapping[str, Any]) -> Want:
    return Want(key, resources.get("gpu_count") or 0, resources.get("time_s") or DEFAULT_TIME_S)


def is_reserved(session: Session, run: RunRow, jobs: Iterable[JobRow]) -> bool:
    """Whether the GPU time of an attempt is set aside already, or none is needed."""
    wanted = {want.job_id for want in wants_of(jobs) if want.gpus}
    known = select(ReservationRow.job_id).where(ReservationRow.run_id == run.id)
    return not wanted or wanted <= set(session.scalars(known))


def reserve_or_hold(ctx: Context, session: Session, run: RunRow, jobs: Iterable[JobRow]) -> bool:
    """Set aside the GPU time of an attempt before its release; False: there is no room, and now it waits.

    The caller has locked the run. Repeating it changes nothing.
    """
    reason = _reserve(ctx, session, run, wants_of(jobs), utcnow())
    if reason is not None and add_hold(session, run, "quota", reason):
        emit(session, run, "run_waits_for_quota", reason=reason)
    return reason is None


def _reserve(ctx: Context, session: Session, run: RunRow, wants: Sequence[Want], now: datetime) -> str | None:
    return accounts.reserve(
        session,
        ctx.settings.quotas,
        tenant=run.tenant,
        user_id=run.owner_id,
        cluster=run.cluster,
        run_id=run.id,
        wants=wants,
        now=now,
    )


_Question = tuple[str, int, bool]
"""A job, how often it was put back, and whether it has ended: when one of these changes, it is asked anew."""


class _Tries(NamedTuple):
    made: int
    again_at: datetime


class Bookkeeper:
    """Keeps the ledger of one cluster. Used by one thread."""

    def __init__(
        self, ctx: Context, cluster: str, lease: Lease, clock: Callable[[], datetime] = utcnow
    ) -> None:
        self._ctx, self._cluster, self._lease, self._clock = ctx, cluster, lease, clock
        self._tries: dict[_Question, _Tries] = {}

    def tick(self) -> None:
        """Settle what can be settled, then let go on what has room. Raises what accounting answers with."""
        try:
            self._settle()
        finally:
            self._let_go_on()

    # ---- settling -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        pairs = self._open()
        self._follow(pairs)
        due = self._due([(row, job) for row, job in pairs if _ended(job) or job.restarts > row.restarts])
        ids = [job.slurm_job_id for _, job in due if job.slurm_job_id is not None]
        rows = self._ctx.slurm(self._cluster).attempts(ids) if ids else []
        if due:
            self._write(due, rows)

    def _due(self, pairs: Sequence[tuple[ReservationRow, JobRow]]) -> list[tuple[ReservationRow, JobRow]]:
        """Those to ask accounting for now: the same question at ever longer intervals (1 s, 2 s … 5 min)."""
        now = self._clock()
        asked = {(job.id, job.restarts, _ended(job)): (row, job) for row, job in pairs}
        never = _Tries(0, now)
        self._tries = {question: self._tries.get(question, never) for question in asked}
        ready = [question for question, tries in self._tries.items() if tries.again_at <= now][:BATCH]
        for question in ready:
            made = self._tries[question].made
            pause = timedelta(seconds=min(2.0 ** min(made, 9), LONGEST_PAUSE_S))
            self._tries[question] = _Tries(made + 1, now + pause)
        return [asked[question] for question in ready]

    def _open(self) -> list[tuple[ReservationRow, JobRow]]:
        """Reservations that are not settled, and those whose job Slurm has put back into the queue since."""
        query = (
            select(ReservationRow, JobRow)
            .join(JobRow, JobRow.id == ReservationRow.job_id)
            .where(
                ReservationRow.cluster == self._cluster,
                or_(
                    ReservationRow.settled_at.is_(None),
                    and_(
                        ReservationRow.settled_at > self._clock() - REOPENED,
                        JobRow.restarts > ReservationRow.restarts,
                    ),
                ),
            )
            .order_by(JobRow.ended_at, ReservationRow.job_id)
        )
        with self._ctx.db.read() as session:
            return [(row, job) for row, job in session.execute(query)]

    def _follow(self, pairs: Sequence[tuple[ReservationRow, JobRow]]) -> None:
        """Note when what is reserved began to be used: what runs over a month's end counts in both."""
        begun = {
            row.job_id: _started(job)
            for row, job in pairs
            if not _ended(job) and row.started_at != _started(job)
        }
        if not begun:
            return
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            for row in session.scalars(select(ReservationRow).where(ReservationRow.job_id.in_(begun))):
                row.started_at = begun[row.job_id]

    def _write(self, due: Sequence[tuple[ReservationRow, JobRow]], rows: Sequence[AccountingJob]) -> None:
        now = self._clock()
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            tenants = sorted({row.tenant for row, _ in due})
            for tenant in tenants:  # in order: two workers that wait for each other would wait for ever
                accounts.lock_ledger(session, tenant)
            for seen, job in due:
                row = session.get_one(ReservationRow, seen.job_id)
                since = (job.submitted_at or row.reserved_at) - CLOCK_SKEW
                attempts = attempts_of(rows, job.slurm_job_id or 0, since)
                ended = _ended(job)
                closed = accounts.settle(
                    session,
                    row,
                    attempts,
                    restarts=job.restarts,
                    began=job.started_at,
                    ended=ended,
                    now=now,
                )
                if not closed and ended and _no_hope(job, now):
                    _settle_observed(session, row, job, attempts, now)
            session.flush()
            for tenant in tenants:
                accounts.tell_use(session, self._ctx.settings.quotas, tenant, now)

    # ---- going on -----------------------------------------------------------------------------------

    def _let_go_on(self) -> None:
        """Lift the quota's hold, oldest request first; one that is too large yet holds up no smaller one."""
        lifted = False
        for run_id in self._waiting():
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                run = session.get_one(RunRow, run_id, with_for_update=True)
                if run.cancel_requested_at is not None or run.phase == Phase.DONE:
                    continue
                wants = wants_of(attempt_jobs(session, run.id, run.attempt))
                if _reserve(self._ctx, session, run, wants, self._clock()) is None:
                    lift_hold(session, run, "quota")
                    lifted = True
        if lifted:
            self._ctx.wake()

    def _waiting(self) -> list[str]:
        """Runs that wait for nothing but their tenant's quota, and that seem to have room now."""
        others = select(RunHoldRow.run_id).where(RunHoldRow.kind != "quota")
        query = (
            select(RunRow)
            .join(RunHoldRow, RunHoldRow.run_id == RunRow.id)
            .where(RunRow.cluster == self._cluster, RunRow.phase != Phase.DONE)
            .where(RunHoldRow.kind == "quota", RunRow.id.not_in(others))
            .order_by(RunRow.number)
        )
        now = self._clock()
        with self._ctx.db.read() as session:
            return [run.id for run in session.scalars(query) if self._fits(session, run, now)]

    def _fits(self, session: Session, run: RunRow, now: datetime) -> bool:
        need = accounts.gpu_seconds(wants_of(attempt_jobs(session, run.id, run.attempt)))
        quota = quota_of(session, self._ctx.settings.quotas, run.tenant)
        return accounts.taken(session, run.tenant, now) + need <= quota.gpu_seconds


def _ended(job: JobRow) -> bool:
    return JobState(job.state).ended


def _started(job: JobRow) -> datetime | None:
    state = JobState(job.state)
    return job.started_at if state.occupies_nodes or state is JobState.UNKNOWN else None


def _no_hope(job: JobRow, now: datetime) -> bool:
    """Whether accounting will not tell: Slurm never had the job, or it has had its time."""
    return job.slurm_job_id is None or (job.ended_at is not None and now - job.ended_at > PATIENCE)


def _settle_observed(
    session: Session, row: ReservationRow, job: JobRow, attempts: Sequence[AccountingJob], now: datetime
) -> None:
    """Close an account that accounting leaves open: the last attempt by what was seen of it, if accounting
    has no end of it; under accounting's submit time if it has one.
    """
    charges = []
    if job.slurm_job_id is not None and not knows_end(attempts, job.started_at):
        going_on = attempts[-1].submit if attempts and attempts[-1].end is None else None
        submit = going_on or job.submitted_at or row.reserved_at
        charges = observed(submit, job.started_at, job.ended_at or now, row.gpus, row.limit_s)
    accounts.settle_observed(session, row, job.slurm_job_id or 0, job.restarts, charges, now)
