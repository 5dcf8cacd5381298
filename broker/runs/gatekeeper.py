"""The worker's part of holding and releasing: makes Slurm follow a run's holds, and sees that it stays so.

Every step is read → act on the cluster → write down, guarded like the submission's. Nothing is believed that
was not read back: a hold counts when Slurm shows an administrator's hold on every waiting job of the run, and
a run that somebody approved is released only if Slurm still holds what was approved (`drift`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError, OutcomeUnknown, SlurmRefused, Unreachable
from broker.identity import SYSTEM
from broker.runs.drift import Difference, Holder, differences, grown
from broker.runs.events import emit
from broker.runs.holding import is_approved, request_approval, why_refused
from broker.runs.ledger import is_reserved, reserve_or_hold
from broker.runs.planning import load_plan
from broker.runs.priority import Level, nice_of
from broker.runs.states import Gate, JobState, Phase
from broker.runs.tables import JobRow, RunHoldRow, RunRow, SubmissionRow
from broker.runs.telemetry import contained, slurm_call
from broker.runs.views import attempt_jobs
from broker.slurm import DONE, QueueJob, QueueSnapshot, Result, ResultKind, SlurmState, Tres
from broker.slurm.held import held_by_admin

_GATED = (Phase.RELEASING, Phase.ACTIVE)
NAMED = 3
"""Differences that a sentence names; events and the audit trail list up to `LISTED`."""
LISTED = 50
NO_OPERATOR = (
    "its account must be a Slurm operator for that: sacctmgr modify user {user} set adminlevel=operator"
)


def locked(
    session: Session, lease: Lease, seen: RunRow, phases: Sequence[Phase] | None = None
) -> RunRow | None:
    """The run, locked, if it is still in the attempt it was seen in, and in one of `phases`.

    While the cluster was asked, it may have ended and been retried: then nothing of this concerns it.
    Raises `LeaseLost` when another worker took over.
    """
    lease.confirm(session)
    run = session.get_one(RunRow, seen.id, with_for_update=True)
    return run if run.attempt == seen.attempt and (phases is None or run.phase in phases) else None


class Gatekeeper:
    """Holds and releases the runs of one cluster."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease

    def follow(self, seen: RunRow) -> bool:
        """Do what the set of holds asks for; True when a next step can follow at once."""
        with self._ctx.db.read() as session:
            held = session.scalar(select(RunHoldRow.kind).where(RunHoldRow.run_id == seen.id).limit(1))
            # After its holds, never before: what a decision lets go is released as that decision says.
            run = session.get_one(RunRow, seen.id)
            if (run.attempt, run.phase) != (seen.attempt, seen.phase):
                return True
            everything = attempt_jobs(session, run.id, run.attempt)
            ready = run.phase == Phase.ACTIVE or (
                not run.needs_approval and is_reserved(session, run, everything)
            )
        jobs = [job for job in everything if job.slurm_job_id and not JobState(job.state).ended]
        if held is not None:
            return run.gate == Gate.CLOSING and self._hold(run, jobs)
        if run.phase == Phase.ACTIVE and run.gate != Gate.OPENING:
            return False
        return (ready or self._may_release(run, everything)) and self._release(run, everything)

    # ---- holding ------------------------------------------------------------------------------------

    def _hold(self, run: RunRow, jobs: Sequence[JobRow]) -> bool:
        """Put every waiting job under an administrator's hold, and read it back."""
        ids = {job.slurm_job_id: job.component for job in jobs if job.slurm_job_id}
        slurm = self._ctx.slurm(self._cluster)
        with slurm_call(self._cluster, "hold"):
            # A hold on a job that runs only marks it: requeued one day, it would wait for a release.
            results = slurm.hold([job.slurm_job_id for job in jobs if job.slurm_job_id and _waits(job)])
            found = slurm.held(list(ids)) if ids else {}
        _reached(results, "Holding")
        started = [ids[job.job_id] for job in found.values() if _started(job.state)]
        if started and _undecided(run):
            raise SlurmRefused(
                f"{', '.join(started)} was started before the run was approved, by somebody who may release "
                "jobs in Slurm; all of it was ended. Request it again and wait for the decision"
            )
        loose = [job for job in found.values() if job.state is SlurmState.PENDING and not job.held_by_admin]
        if loose:
            user = slurm.capabilities().user
            said = results.get(loose[0].job_id, DONE)
            raise OutcomeUnknown(
                f"{ids[loose[0].job_id]} is not under an administrator's hold yet (Slurm says "
                f"{loose[0].reason}): {said.message or NO_OPERATOR.format(user=user)}"
            )
        with self._ctx.db.write() as session:
            row = locked(session, self._lease, run, _GATED)
            if row is not None and row.gate == Gate.CLOSING:
                row.gate = Gate.CLOSED
                row.tries, row.next_try_at, row.trouble = 0, None, why_refused(session, row)
                emit(session, row, "hold_confirmed", jobs=len(found))
        return False

    # ---- releasing ----------------------------------------------------------------------------------

    def _release(self, run: RunRow, jobs: Sequence[JobRow]) -> bool:
        """Let Slurm start what waits, children before roots, if that is what was asked for and approved.

        What the broker's own account submitted without needing approval nobody else can have changed.
        """
        approved = run.approval == "approved"
        if approved or (run.unix_account is not None and run.phase == Phase.RELEASING):
            found = self._differences(run, jobs)
            if found and not approved:
                raise SlurmRefused(f"Slurm does not hold what was to run: {_sentence(found)}. Retry the run")
            if found:
                self._refuse_release(run, found)
                return False
        waiting = [job.slurm_job_id for job in reversed(jobs) if job.slurm_job_id and _waits(job)]
        slurm = self._ctx.slurm(self._cluster)
        with slurm_call(self._cluster, "release"):
            if run.requested_qos is not None:
                _moved(slurm.update([(number, {"QOS": run.requested_qos}) for number in waiting]))
            if run.priority == Level.HIGH and run.phase == Phase.RELEASING:
                # No more than a wish, before anything starts: `queueing.changing` reads back what came of it.
                nice = str(nice_of(run.priority, self._ctx.cluster(self._cluster).level_nice))
                slurm.update([(number, {"Nice": nice}) for number in waiting])
            results = slurm.release(waiting)
        _reached(results, "Releasing")
        for number, result in results.items():
            if result.kind in {ResultKind.DENIED, ResultKind.INVALID_REQUEST}:
                raise SlurmRefused(f"Slurm refused to release job {number}: {result.message}")
        with self._ctx.db.write() as session:
            row = locked(session, self._lease, run, _GATED)
            if row is not None:
                self._released(session, row)
        return False

    def _released(self, session: Session, run: RunRow) -> None:
        if run.gate == Gate.OPENING or run.phase == Phase.RELEASING:
            submission = session.get_one(SubmissionRow, (run.id, run.attempt))
            submission.released_at = submission.released_at or utcnow()
            emit(session, run, "run_released", attempt=run.attempt)
        if run.gate == Gate.OPENING:  # else a hold was added meanwhile: it comes next
            run.gate = Gate.OPEN
        run.phase = Phase.ACTIVE
        run.tries, run.next_try_at, run.trouble = 0, None, None

    def _may_release(self, run: RunRow, jobs: Sequence[JobRow]) -> bool:
        """Whether the tenant's quota has room, and what needs approval has one that still counts."""
        with self._ctx.db.write() as session:
            row = locked(session, self._lease, run, _GATED)
            if row is None:
                return False
            plan_hash = session.get_one(SubmissionRow, (row.id, row.attempt)).plan_hash
            if row.needs_approval and not (row.approval == "approved" and is_approved(row, plan_hash)):
                request_approval(session, row)
                emit(session, row, "approval_requested", needs=row.needs_approval)
                return False
            return is_reserved(session, row, jobs) or reserve_or_hold(self._ctx, session, row, jobs)

    def _differences(self, run: RunRow, jobs: Sequence[JobRow]) -> list[Difference]:
        with self._ctx.db.read() as session:
            plan = load_plan(session, run.id, run.attempt)
        if plan is None:
            raise SlurmRefused("The run has no stored plan; retry it")
        slurm = self._ctx.slurm(self._cluster)
        ids = {job.component: job.slurm_job_id for job in jobs if job.slurm_job_id}
        with slurm_call(self._cluster, "compare"):
            held = slurm.held(list(ids.values()))
            if run.phase == Phase.ACTIVE:  # an administrator's hold never touches what runs
                held = {number: job for number, job in held.items() if job.state is SlurmState.PENDING}
            scripts = slurm.batch_scripts([job.job_id for job in held.values() if not job.state.finished])
            partition = next((each.name for each in slurm.partitions() if each.default), "")
        holder = Holder(run.unix_account or slurm.capabilities().user, partition, run.requested_qos)
        ended = {job.component for job in jobs if JobState(job.state).ended}
        started = {job.component for job in jobs if "start_s" in job.resources and job.started_at is not None}
        return differences(plan, ids, held, scripts, holder, ended, started)

    def _refuse_release(self, run: RunRow, found: Sequence[Difference]) -> None:
        """Nothing is released: the run waits for a decision again, and says what differs."""
        sentence = _sentence(found)
        with self._ctx.db.write() as session:
            row = locked(session, self._lease, run, _GATED)
            if row is None:
                return
            reason = f"Slurm does not hold what was to run: {sentence}"
            remedy = "Cancel and retry the run, or put it right with scontrol and approve it"
            request_approval(session, row, f"{reason}. {remedy}")
            row.trouble = why_refused(session, row)
            emit(session, row, "release_refused", differences=[str(each) for each in found[:LISTED]])
            emit(session, row, "approval_requested", needs=row.needs_approval)
            after = {"differences": [str(each) for each in found[:LISTED]]}
            record(session, SYSTEM, "run.release_refused", "run", row.id, None, after, tenant=row.tenant)

    # ---- watching -----------------------------------------------------------------------------------

    def watch(self, snapshot: QueueSnapshot) -> None:
        """What the queue shows against the holds: a job that got loose, or grew after its release."""
        queue = snapshot.by_id()
        query = (
            select(JobRow, RunRow)
            .join(RunRow, RunRow.id == JobRow.run_id)
            .where(
                RunRow.cluster == self._cluster,
                RunRow.phase.in_(_GATED),
                JobRow.attempt == RunRow.attempt,
                JobRow.slurm_job_id.is_not(None),
                JobRow.ended_at.is_(None),
                (RunRow.gate == Gate.CLOSED)
                | ((RunRow.approval == "approved") & RunRow.unix_account.is_not(None)),
            )
        )
        by_run: dict[str, tuple[RunRow, list[JobRow]]] = {}
        with self._ctx.db.read() as session:
            for job, run in session.execute(query):
                by_run.setdefault(run.id, (run, []))[1].append(job)
        for run, jobs in by_run.values():
            if run.gate == Gate.CLOSED:
                with contained("run_not_tracked", cluster=self._cluster, run_id=run.id):
                    self._check_held(run, jobs, queue)
        self._check_sizes([each for each in by_run.values() if each[0].gate != Gate.CLOSED], queue)

    def _check_held(self, run: RunRow, jobs: Sequence[JobRow], queue: Mapping[int, QueueJob]) -> None:
        seen = [queue[job.slurm_job_id] for job in jobs if job.slurm_job_id and job.slurm_job_id in queue]
        loose = [
            job
            for job in seen
            if (job.state is SlurmState.PENDING and not held_by_admin(job.state, job.priority, job.reason))
            or (_undecided(run) and _started(job.state))
        ]
        if not loose:
            return
        with self._ctx.db.write() as session:
            row = locked(session, self._lease, run, _GATED)
            if row is not None and row.gate == Gate.CLOSED:
                row.gate, row.next_try_at = Gate.CLOSING, None
                emit(session, row, "hold_lost", jobs=[job.job_id for job in loose])

    def _check_sizes(
        self, runs: Sequence[tuple[RunRow, Sequence[JobRow]]], queue: Mapping[int, QueueJob]
    ) -> None:
        """End what its owner has made larger than what was approved."""
        large: dict[str, QueueJob] = {}
        for job in (job for _, jobs in runs for job in jobs if not job.reap):
            with contained("run_not_tracked", cluster=self._cluster, run_id=job.run_id):
                entry = queue.get(job.slurm_job_id or 0)
                if entry is None or entry.state.finished:
                    continue
                if grown(job.component, job.resources, entry.tres, entry.time_limit_s):
                    large[job.id] = entry
        asked = self._asked([each.job_id for each in large.values() if each.state is not SlurmState.PENDING])
        for run, jobs in runs:
            found: dict[str, list[Difference]] = {}
            for job in jobs:
                if (entry := large.get(job.id)) is None:
                    continue
                tres = entry.tres if entry.state is SlurmState.PENDING else asked.get(entry.job_id)
                if tres and (more := grown(job.component, job.resources, tres, entry.time_limit_s)):
                    found[job.id] = more
            if found:
                with contained("run_not_tracked", cluster=self._cluster, run_id=run.id):
                    self._end(run, found)

    def _asked(self, job_ids: Sequence[int]) -> Mapping[int, Tres]:
        """What jobs that run had asked for: a partition that gives whole nodes gives more than that.

        One that accounting does not know yet is absent, and all of them when it does not answer: the next
        look asks again.
        """
        if not job_ids:
            return {}
        try:
            with slurm_call(self._cluster, "accounting"):
                found = self._ctx.slurm(self._cluster).accounting(job_ids)
        except BrokerError:
            return {}
        return {job.job_id: job.req_tres for job in found}

    def _end(self, run: RunRow, found: Mapping[str, Sequence[Difference]]) -> None:
        """Mark jobs to be ended, by row id, for what is not as approved about them."""
        listed = [str(each) for more in found.values() for each in more]
        with self._ctx.db.write() as session:
            row = locked(session, self._lease, run, _GATED)
            if row is None:
                return
            for job in attempt_jobs(session, row.id, row.attempt):
                if job.id in found:
                    job.reap, job.reason = True, "made larger than what was approved"
            row.error_code = SlurmRefused.code
            row.error = f"Changed after its approval, and ended for that: {'; '.join(listed)}. Retry the run"
            emit(session, row, "job_outgrew_approval", differences=listed)
            after = {"differences": listed}
            record(session, SYSTEM, "run.outgrew_approval", "run", row.id, None, after, tenant=row.tenant)


def _sentence(found: Sequence[Difference]) -> str:
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(map(str, found[:NAMED])) + more


def _undecided(run: RunRow) -> bool:
    """Whether nothing of a run may have started: what runs of an active one, an earlier decision let go."""
    return run.approval == "pending" and run.phase == Phase.RELEASING


def _waits(job: JobRow) -> bool:
    state = JobState(job.state)
    return not state.ended and not state.occupies_nodes  # one that was put back into the queue waits again


def _started(state: SlurmState) -> bool:
    """Whether a job that had to wait did not: one that was cancelled while it was held never started."""
    return state not in {SlurmState.PENDING, SlurmState.CANCELLED}


def _reached(results: Mapping[int, Result], what: str) -> None:
    for number, result in results.items():
        if result.kind in {ResultKind.UNREACHABLE, ResultKind.OUTCOME_UNKNOWN}:
            raise Unreachable(f"{what} job {number} is not confirmed: {result.message}")


def _moved(results: Mapping[int, Result]) -> None:
    """The run waits, and says so, where the cluster has not the QOS that it was approved for."""
    _reached(results, "Moving")
    for number, result in results.items():
        if result.kind in {ResultKind.DENIED, ResultKind.INVALID_REQUEST}:
            raise Unreachable(
                f"Slurm refused to move job {number} to its approved QOS ({result.message}); an admin runs: "
                "broker cluster sync --script, and a Slurm Administrator what it prints"
            )
