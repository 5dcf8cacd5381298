"""The worker's part from a requested run to one that Slurm may start: prepare, submit, release, cancel.

Every step is: read → act on the cluster, outside any transaction → write down what came of it, guarded by
the lease and by the attempt and phase the run was read in. Every action may be repeated: the submission
script finds its own jobs by their keys, a release or a cancel of a job that had one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta

from sqlalchemy import and_, delete, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from broker.compiler import Plan, SubmissionExit, fence_argv, stage_argv, staging_archive
from broker.compiler.names import run_dir
from broker.compiler.profile import DEFAULT_TIME_S
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease, LeaseLost
from broker.errors import BrokerError, InvalidRequest, OutcomeUnknown, SlurmRefused, Unreachable
from broker.runs import journal
from broker.runs.accounts import check_account, foreign
from broker.runs.answers import Submitted, is_transient, parse_submission, refusal
from broker.runs.events import emit
from broker.runs.expected import usual_times
from broker.runs.gatekeeper import Gatekeeper, locked
from broker.runs.holding import drop_holds, plan_known
from broker.runs.ledger import reserve_or_hold
from broker.runs.planning import NotAtHand, encode, load_plan, make_plan, note_plan
from broker.runs.settling import settle
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import JobRow, RunHoldRow, RunRow, SubmissionRow
from broker.runs.telemetry import run_ended, slurm_call, submission_failed, submitted
from broker.runs.views import attempt_jobs

CANCEL_AGAIN = timedelta(seconds=10)
"""A job may be requeued between scancel and its end: a cancelled run is gone over until Slurm agrees."""

EVENT_IDS = 50
"""Job ids that the event of a submission names; the rest stand with the jobs."""


def back_off(tries: int) -> timedelta:
    """How long to wait before try number `tries` + 1: 1 s, 2 s, 4 s … 60 s."""
    return timedelta(seconds=min(60.0, 2.0 ** min(tries, 6)))


class _MovedOn(Exception):
    """The run is no longer where it was when it was read; it is read again."""


class Submitter:
    """Takes runs of one cluster forward. One thread at a time per run (the worker sees to it)."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease
        self._gates = Gatekeeper(ctx, cluster, lease)

    def advance(self, run_id: str) -> None:
        """Do whatever the run needs next, until it needs nothing more from here."""
        run = self._read(run_id)
        with journal.concerning(run):
            self._advance(run)

    def _advance(self, run: RunRow) -> None:
        steps: dict[Phase, Callable[[RunRow], bool]] = {
            Phase.PREPARING: self._prepare,
            Phase.SUBMITTING: self._submit,
            Phase.RELEASING: self._gates.follow,
            Phase.ACTIVE: self._gates.follow,
        }
        try:
            while True:
                if run.cancel_requested_at is not None:
                    self._cancel(run)
                    return
                step = steps.get(Phase(run.phase))
                if step is None or not step(run):
                    return
                run = self._read(run.id)
        except (Unreachable, OutcomeUnknown) as error:
            submission_failed(run, error)
            self._postpone(run, error)
        except BrokerError as error:
            submission_failed(run, error)
            if run.cancel_requested_at is not None or run.phase == Phase.ACTIVE:
                self._postpone(run, error)  # the wish, or the hold, stands, whatever stands in its way
            else:
                self._fail(run, error)
        except (LeaseLost, SQLAlchemyError):
            raise
        except Exception:  # a defect of ours: the run waits, visibly, and holds up nobody else
            defect = BrokerError("The broker met a defect of its own here; see its log")
            submission_failed(run, defect)
            self._postpone(run, defect)
            raise

    # ---- steps: each gives True when the next one can follow at once --------------------------------

    def _prepare(self, run: RunRow) -> bool:
        """Make the plan, and while it is being made start what will take it on the login node.

        sshd and the shells there take as long to start as the plan takes to be made. The intent is still
        committed before the first byte of it leaves.
        """
        try:
            return self._hand_over(run, lambda: self._planned(run, at_hand=True))
        except NotAtHand:
            self._planned(run)  # images are pulled, code is looked up
        except _MovedOn:
            pass
        return True

    def _planned(self, seen: RunRow, *, at_hand: bool = False) -> Plan:
        """Make the plan of an attempt and commit the intent to submit it."""
        plan, resolved = make_plan(self._ctx, seen.id, at_hand=at_hand)
        with self._ctx.db.read() as session:
            earlier = usual_times(session, seen, attempt_jobs(session, seen.id, seen.attempt))
        with self._ctx.db.write() as session:
            run = self._locked(session, seen, Phase.PREPARING)
            if run is None:
                raise _MovedOn
            session.merge(
                SubmissionRow(
                    run_id=run.id,
                    attempt=run.attempt,
                    plan=encode(plan),
                    plan_hash=plan.plan_hash,
                    intended_at=utcnow(),
                )
            )
            note_plan(attempt_jobs(session, run.id, run.attempt), plan, earlier)
            run.phase, run.resolved = Phase.SUBMITTING, resolved.document()
            run.tries, run.next_try_at, run.trouble = 0, None, None
            emit(session, run, "run_prepared", attempt=run.attempt, plan_hash=plan.plan_hash)
            plan_known(session, run, plan.plan_hash)
        return plan

    def _submit(self, run: RunRow) -> bool:
        with self._ctx.db.read() as session:
            plan = load_plan(session, run.id, run.attempt)
        if plan is None:
            raise InvalidRequest("The run has no stored plan; retry it")
        return self._hand_over(run, lambda: plan)

    def _hand_over(self, run: RunRow, plan: Callable[[], Plan]) -> bool:
        """Stage and submit in one remote command, and store the ids."""
        with slurm_call(self._cluster, "submit"):
            jobs, answer = self._send(run, plan)
        if answer.refused is not None and not is_transient(answer.complaint):
            raise SlurmRefused(refusal(answer.refused, answer.complaint))
        if answer.fenced:
            raise SlurmRefused("This attempt was called off when an earlier try had failed: retry the run")
        if answer.foreign:
            raise foreign(run_dir(self._ctx.profile(self._cluster), run.id))
        if not answer.complete:
            detail = answer.complaint or "the script gave no whole answer"
            raise OutcomeUnknown(f"The submission is not complete yet, and is gone over again: {detail}")
        self._confirm(run, jobs, answer.ids)
        now = utcnow()
        with self._ctx.db.write() as session:
            locked = self._locked(session, run, Phase.SUBMITTING)
            if locked is None:
                return True
            new = {"state": JobState.PENDING, "submitted_at": now, "observed_at": now}
            rows = [{"id": job.id, "slurm_job_id": answer.ids[job.component], **new} for job in jobs]
            session.execute(update(JobRow), rows)
            whole = and_(SubmissionRow.run_id == run.id, SubmissionRow.attempt == run.attempt)
            session.execute(update(SubmissionRow).where(whole).values(submitted_at=now))
            held = and_(RunHoldRow.run_id == run.id, RunHoldRow.kind == "submission")
            session.execute(delete(RunHoldRow).where(held))
            if not session.query(RunHoldRow).filter_by(run_id=run.id).count():
                reserve_or_hold(self._ctx, session, locked, jobs)
            locked.phase = Phase.RELEASING
            locked.tries, locked.next_try_at, locked.trouble = 0, None, None
            emit(
                session,
                locked,
                "job_submitted",
                attempt=run.attempt,
                jobs=len(jobs),
                job_ids=[row["slurm_job_id"] for row in rows[:EVENT_IDS]],
                gpu_count=sum(job.resources.get("gpu_count") or 0 for job in jobs),
                estimated_duration_s=sum(job.resources.get("time_s") or DEFAULT_TIME_S for job in jobs),
            )
        submitted(run, len(answer.ids), (now - run.created_at).total_seconds())
        for job in jobs:
            journal.job_submitted(run, job, answer.ids[job.component])
        return True

    def _send(self, run: RunRow, plan: Callable[[], Plan]) -> tuple[list[JobRow], Submitted]:
        cluster, profile = self._ctx.cluster(self._cluster), self._ctx.profile(self._cluster)
        with self._ctx.db.read() as session:
            check_account(session, run)
            jobs = attempt_jobs(session, run.id, run.attempt)

        def archive() -> Iterator[bytes]:
            yield staging_archive(plan())

        done = self._ctx.host_for(self._cluster, run.unix_account).run(
            stage_argv(run_dir(profile, run.id), run.attempt, len(jobs), cluster.path),
            stdin=archive(),
            timeout=cluster.submit_timeout_s + 0.1 * len(jobs),
        )
        answer = parse_submission(
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
            {job.component for job in jobs},
        )
        return jobs, answer

    def _confirm(self, run: RunRow, jobs: Sequence[JobRow], ids: Mapping[str, int]) -> None:
        """Compare with Slurm what a script said that ran with a person's rights: it can be made to lie.

        What is held, released and cancelled afterwards, as a Slurm operator, is theirs, and of this run.
        """
        if run.unix_account is None:
            return
        names = {job.name: ids[job.component] for job in jobs}
        found = self._ctx.slurm(self._cluster).find_by_name(list(names), run.created_at, run.unix_account)
        strange = next((name for name, number in names.items() if number not in found.get(name, [])), None)
        if strange is not None:
            raise SlurmRefused(
                f"Job {names[strange]} is not the {strange} of {run.unix_account}: the run's folder was "
                "changed while it was submitted"
            )

    # ---- cancelling and failing ---------------------------------------------------------------------

    def _cancel(self, run: RunRow) -> None:
        """Pursue the wish to cancel; what Slurm has not yet ended is left to the tracker to see end."""
        self._end_jobs(run, "cancelled before it was submitted")
        with self._ctx.db.write() as session:
            locked = self._locked(session, run)
            if locked is None or locked.phase == Phase.DONE:
                return
            locked.phase = Phase.ACTIVE
            locked.trouble, locked.tries = None, 0
            locked.next_try_at = utcnow() + CANCEL_AGAIN
            drop_holds(session, locked)
            settle(self._ctx, session, locked)

    def _end_jobs(self, run: RunRow, reason: str) -> None:
        """End every job of the attempt in Slurm, by id and by key; those that never got there are CANCELLED.

        The fence comes first: a submission script that may still be going (a cut connection does not end it)
        holds the run's lock; after the fence no script submits anything for this attempt any more.
        """
        with self._ctx.db.read() as session:
            plan = load_plan(session, run.id, run.attempt)
            jobs = attempt_jobs(session, run.id, run.attempt)
        found: dict[str, int] = {}
        if plan is not None:
            found = self._fence_and_find(run, plan, [job for job in jobs if job.slurm_job_id is None])
        ids = [job.slurm_job_id or found.get(job.name) for job in jobs if not JobState(job.state).ended]
        live = [number for number in ids if number is not None]
        if live:
            with slurm_call(self._cluster, "cancel"):
                self._ctx.slurm(self._cluster).cancel(live)
        with self._ctx.db.write() as session:
            if self._locked(session, run) is None:
                return
            for job in attempt_jobs(session, run.id, run.attempt):
                job.slurm_job_id = job.slurm_job_id or found.get(job.name)
                if JobState(job.state).ended:
                    continue
                if job.slurm_job_id is None:
                    job.state, job.reason, job.ended_at = JobState.CANCELLED, reason, utcnow()
                else:
                    job.reap = True

    def _fence_and_find(self, run: RunRow, plan: Plan, unsure: Sequence[JobRow]) -> dict[str, int]:
        if not unsure:
            return {}
        cluster = self._ctx.cluster(self._cluster)
        done = self._ctx.host_for(self._cluster, run.unix_account).run(
            fence_argv(plan), timeout=cluster.submit_timeout_s, readonly=True
        )
        if done.rc not in {0, SubmissionExit.FOREIGN}:  # in somebody else's folder no script of ours begins
            raise Unreachable(f"The run's folder could not be fenced off: {done.complaint}")
        by_name = self._ctx.slurm(self._cluster).find_by_name(
            [job.name for job in unsure], run.created_at, run.unix_account
        )
        return {name: ids[-1] for name, ids in by_name.items() if ids}

    def _fail(self, run: RunRow, error: BrokerError) -> None:
        """A run that can't go on: what was submitted of it is cancelled by key, all or nothing.

        It is not over before that is certain: whatever stands in the way is waited for.
        """
        try:
            self._end_jobs(run, error.detail)
        except BrokerError as obstacle:
            self._postpone(run, obstacle)
            return
        now = utcnow()
        with self._ctx.db.write() as session:
            locked = self._locked(session, run)
            if locked is None or locked.phase not in _BEFORE_ACTIVE:
                return
            if locked.cancel_requested_at is not None:  # it was cancelled or rejected meanwhile: that stands
                return
            locked.error_code, locked.error = error.code, error.detail
            locked.phase, locked.state, locked.ended_at = Phase.DONE, RunState.FAILED, now
            locked.trouble, locked.next_try_at = None, None
            drop_holds(session, locked)
            emit(session, locked, "run_finished", state=RunState.FAILED, error=error.detail)
            run_ended(locked)

    def _postpone(self, seen: RunRow, error: BrokerError) -> None:
        """Time mends it: note what stands in the way and when to try again."""
        with self._ctx.db.write() as session:
            run = self._locked(session, seen)
            if run is None:
                return
            delay = back_off(run.tries)
            run.tries += 1
            run.next_try_at = utcnow() + delay
            if run.trouble != error.detail:
                run.trouble = error.detail
                emit(session, run, "run_trouble", code=error.code, detail=error.detail)

    # ---- reading ------------------------------------------------------------------------------------

    def _read(self, run_id: str) -> RunRow:
        with self._ctx.db.read() as session:
            return session.get_one(RunRow, run_id)

    def _locked(self, session: Session, seen: RunRow, phase: Phase | None = None) -> RunRow | None:
        """The run, locked, if it is still in the attempt it was seen in, and in `phase`.

        While the cluster was asked, it may have ended and been retried: then nothing of this concerns it.
        Raises `LeaseLost` when another worker took over.
        """
        return locked(session, self._lease, seen, None if phase is None else (phase,))


_BEFORE_ACTIVE = {Phase.PREPARING, Phase.SUBMITTING, Phase.RELEASING}
