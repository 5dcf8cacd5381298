"""The worker's eyes: one look at a cluster's queue per tick, and what follows from it for every run.

A tick reads squeue once, for all runs together, and writes down what lives; then it asks sacct once, for
jobs that ended or that squeue no longer has, and reads completion markers only for those that both have lost.
Each run that changed is written in a transaction of its own. When a source does not answer, the tick ends
there: what was not seen is not concluded from.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError, Denied, InvalidRequest, NotFound, Unreachable
from broker.notifications import Kind, notify
from broker.runs import journal
from broker.runs.events import emit
from broker.runs.gatekeeper import Gatekeeper
from broker.runs.observation import (
    Marker,
    Sighting,
    change,
    culprits,
    from_accounting,
    from_marker,
    from_queue,
    never_starts,
    unseen,
)
from broker.runs.planning import load_plan
from broker.runs.settling import settle
from broker.runs.sightings import give_up, known, read_marker, write_sighting
from broker.runs.states import JobState, Phase
from broker.runs.strays import ENDED, adopt_strays
from broker.runs.tables import ClusterRow, JobRow, RunRow
from broker.runs.telemetry import connection, contained, polled, slurm_call
from broker.runs.views import attempt_jobs
from broker.slurm import AccountingJob, QueueJob, QueueSnapshot, ResultKind
from broker.slurm.queue import CLOCK_SKEW

log = structlog.get_logger("broker.tracking")

SACCT_PAUSE_S = 15.0
SACCT_CHUNK = 500
"""Job ids in one sacct call: far below the argument limit, and one query stays short for slurmdbd."""


class Tracker:
    """Watches one cluster; hands each look at its queue to `keep`. Used by one thread."""

    def __init__(
        self,
        ctx: Context,
        cluster: str,
        lease: Lease,
        keep: Callable[[QueueSnapshot], None] = lambda snapshot: None,
    ) -> None:
        self._ctx, self._cluster, self._lease, self._keep = ctx, cluster, lease, keep
        self._settings = ctx.cluster(cluster)
        self._sacct_after = 0.0
        self._people: dict[str, str] = {}
        self._gates = Gatekeeper(ctx, cluster, lease)

    def tick(self) -> None:
        """Look once. Never raises a `BrokerError`: an unreachable cluster is noted, not failed."""
        self._people = self._accounts()
        try:
            with slurm_call(self._cluster, "poll"), connection(self._cluster, self._ctx.host(self._cluster)):
                snapshot = self._ctx.slurm(self._cluster).jobs(user=self._account())
        except BrokerError as error:
            polled(self._cluster, None)
            self._note(error.detail, None)
            return
        everything = self._watched()
        polled(self._cluster, snapshot.taken_at, len(everything))
        watched, seen = self._in_queue(everything, snapshot)
        alive = {job_id: sighting for job_id, sighting in seen.items() if not sighting.state.ended}
        self._conclude(watched, alive, snapshot.taken_at)  # does not wait for accounting
        with contained("holds_not_watched", cluster=self._cluster):
            self._gates.watch(snapshot)
        with contained("look_not_kept", cluster=self._cluster):
            self._keep(snapshot)
        ends, trouble = self._ends(watched, seen, snapshot)
        self._note(trouble, snapshot.taken_at)
        with contained("strays_not_adopted", cluster=self._cluster):
            names = {job.name for job in everything}
            adopt_strays(self._ctx, self._cluster, self._lease, names, snapshot.jobs)
        self._conclude(watched, ends, snapshot.taken_at)
        self._reap(seen | ends)

    def _conclude(self, watched: Sequence[JobRow], seen: Mapping[str, Sighting], taken_at: datetime) -> None:
        by_run: dict[str, list[JobRow]] = defaultdict(list)
        for job in watched:
            if job.id in seen:
                by_run[job.run_id].append(job)
        for run_id, jobs in by_run.items():
            with contained("run_not_tracked", cluster=self._cluster, run_id=run_id):
                self._apply(run_id, jobs, seen, taken_at)

    # ---- seeing -------------------------------------------------------------------------------------

    def _accounts(self) -> dict[str, str]:
        """Unix accounts of the runs that have not ended and are not the service account's, by run id."""
        query = select(RunRow.id, RunRow.unix_account).where(
            RunRow.cluster == self._cluster, RunRow.unix_account.is_not(None), RunRow.phase != Phase.DONE
        )
        with self._ctx.db.read() as session:
            return {run_id: account for run_id, account in session.execute(query) if account is not None}

    def _account(self) -> str | None:
        """Whose jobs are looked at; None: everybody's."""
        people = self._people or self._settings.run_as == "user"
        return self._settings.ssh_user if self._settings.transport == "ssh" and not people else None

    def _is_of(self, job: JobRow, found: QueueJob | AccountingJob) -> bool:
        """Whether Slurm's row is this job's, and not one that got its id later.

        By its name, which is nobody else's; but a person may give their own job another (scontrol(1)).
        """
        if found.name == job.name:
            return True
        theirs = found.user == self._people.get(job.run_id)
        if not theirs or job.submitted_at is None or found.submit is None:
            return False
        return abs(found.submit - job.submitted_at) < CLOCK_SKEW

    def _watched(self) -> list[JobRow]:
        """Every job of this cluster that Slurm has and that has not ended, or is to be ended."""
        query = (
            select(JobRow)
            .join(RunRow, RunRow.id == JobRow.run_id)
            .where(
                RunRow.cluster == self._cluster,
                JobRow.slurm_job_id.is_not(None),
                JobRow.state.not_in(ENDED) | JobRow.reap,
            )
        )
        with self._ctx.db.read() as session:
            return list(session.scalars(query))

    def _in_queue(
        self, watched: Sequence[JobRow], snapshot: QueueSnapshot
    ) -> tuple[list[JobRow], dict[str, Sighting]]:
        """(the jobs that were looked for, what squeue says of them by row id).

        A job id under another name may be a recycled id: not ours. A job that a defect keeps from being
        looked for is left out: it is not one that squeue has lost.
        """
        queue = {entry.job_id: entry for entry in snapshot.jobs}
        looked: list[JobRow] = []
        seen: dict[str, Sighting] = {}
        for job in watched:
            with contained("run_not_tracked", cluster=self._cluster, run_id=job.run_id):
                entry = queue.get(job.slurm_job_id or 0)
                if entry is not None and self._is_of(job, entry):
                    seen[job.id] = from_queue(entry)
                looked.append(job)
        return looked, seen

    def _ends(
        self, watched: Sequence[JobRow], seen: Mapping[str, Sighting], snapshot: QueueSnapshot
    ) -> tuple[dict[str, Sighting], str | None]:
        """What became of jobs that squeue saw end or no longer has, and what stood in the way of asking.

        Without accounting, what squeue says still counts, and of jobs it has lost nothing is concluded.
        A job that squeue has lost and that lives on in accounting is a "runaway" (sacctmgr(1)), or its end is
        under way to slurmdbd: that it runs is not believed, unless squeue had rows that were not understood.
        """
        ended = [job for job in watched if job.id in seen and seen[job.id].state.ended]
        gone = [
            job
            for job in watched
            if job.id not in seen and (job.submitted_at is None or job.submitted_at < snapshot.taken_at)
        ]
        found = {job.id: seen[job.id] for job in ended}
        try:
            accounts = self._accounting([*gone, *ended])
            for job in ended:  # squeue knows the end but not the exit status
                exact = accounts.get(job.id)
                if exact is None or not exact.state.ended:
                    exact = self._exit_status(job, found[job.id])
                found[job.id] = exact
            now = utcnow()
            deadline = timedelta(seconds=self._settings.unknown_deadline_s)
            for job in gone:
                with contained(
                    "run_not_tracked", but=(BrokerError,), cluster=self._cluster, run_id=job.run_id
                ):
                    account = accounts.get(job.id)
                    if account is None or not (account.state.ended or snapshot.bad_rows):
                        account = self._marked(job) or unseen(known(job), now, deadline)
                    found[job.id] = account
        except BrokerError as error:
            return found, error.detail
        return found, None

    def _exit_status(self, job: JobRow, seen: Sighting) -> Sighting:
        """An end as squeue saw it, with the exit status from the job's own marker while sacct lags."""
        marked = self._marked(job)
        return replace(seen, exit_code=marked.exit_code) if marked is not None else seen

    def _accounting(self, jobs: Sequence[JobRow]) -> dict[str, Sighting]:
        """sacct's rows by row id. After a failure it is left alone for a while: a try may block for long."""
        if not jobs:
            return {}
        if time.monotonic() < self._sacct_after:
            raise Unreachable("Accounting did not answer; it is asked again in a moment")
        self._sacct_after = time.monotonic() + SACCT_PAUSE_S
        found: dict[str, Sighting] = {}
        for start in range(0, len(jobs), SACCT_CHUNK):
            chunk = {job.slurm_job_id: job for job in jobs[start : start + SACCT_CHUNK]}
            with slurm_call(self._cluster, "accounting"):
                rows = self._ctx.slurm(self._cluster).accounting([number for number in chunk if number])
            for row in rows:
                job = chunk.get(row.job_id)
                if job is not None and self._is_of(job, row):
                    found[job.id] = from_accounting(row)
        self._sacct_after = 0.0
        return found

    def _marked(self, job: JobRow) -> Sighting | None:
        """What its marker says. A defect in reading it, a folder that is closed to us, or one that its owner
        changes meanwhile, is as if there were none: the job is unknown, until its deadline, and holds up
        nobody else.
        """
        host = self._ctx.host_for(self._cluster, self._people.get(job.run_id))
        marker: Marker | None = None
        with (
            suppress(Denied, NotFound, InvalidRequest),
            contained("marker_not_read", but=(BrokerError,), cluster=self._cluster, run_id=job.run_id),
        ):
            marker = read_marker(host, self._ctx.profile(self._cluster), job)
        return from_marker(marker) if marker is not None and marker.job_id == job.slurm_job_id else None

    # ---- concluding ---------------------------------------------------------------------------------

    def _apply(
        self, run_id: str, jobs: Sequence[JobRow], seen: Mapping[str, Sighting], taken_at: datetime
    ) -> None:
        changes = {
            job.id: sighting
            for job in jobs
            if job.id in seen and (sighting := change(known(job), seen[job.id], taken_at)) is not None
        }
        settled = [job.id for job in jobs if job.reap and job.id in seen and seen[job.id].state.ended]
        if not changes and not settled:
            return
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            run = session.get_one(RunRow, run_id, with_for_update=True)
            run.updated_at = utcnow()  # a new version of the run: what its ETag stands for has changed
            rows = {job.id: job for job in session.scalars(select(JobRow).where(JobRow.run_id == run_id))}
            for job_id in settled:
                rows[job_id].reap = False
            for job_id, sighting in changes.items():
                job = rows[job_id]
                if change(known(job), sighting, taken_at) is not None:
                    write_sighting(session, run, job, sighting, taken_at)
                    if never_starts(sighting):
                        give_up(session, run, job)
            self._reap_descendants(session, run)
            settle(self._ctx, session, run)

    def _reap_descendants(self, session: Session, run: RunRow) -> None:
        """Mark what a failure has made impossible, with the culprit; the tick ends it in Slurm."""
        jobs = {job.component: job for job in attempt_jobs(session, run.id, run.attempt)}
        failed = {
            name: JobState(job.state)
            for name, job in jobs.items()
            if JobState(job.state).failed and job.state != JobState.UPSTREAM_FAILED
        }
        alive = [name for name, job in jobs.items() if not JobState(job.state).ended]
        if not failed or not alive or run.cancel_requested_at is not None:
            return
        plan = load_plan(session, run.id, run.attempt)
        if plan is None:
            return
        parents = {job.component: job.depends_on for job in plan.jobs}
        for name, culprit in culprits(parents, failed, alive).items():
            job = jobs[name]
            job.state, job.culprit, job.reap = JobState.UPSTREAM_FAILED, culprit, True
            job.reason = f"{culprit} ended {failed[culprit]}"
            job.ended_at = utcnow()
            emit(session, run, "job_failed", component=name, state=job.state, culprit=culprit)
            journal.job_ended(run, job)

    def _reap(self, seen: Mapping[str, Sighting]) -> None:
        """End in Slurm what is marked so and still lives there; repeated until squeue agrees.

        A job that had not started is gone as soon as scancel has been believed; of one that runs, a later
        look sees the end.
        """
        live = {
            job.slurm_job_id: job
            for job in self._watched()
            if job.reap and job.slurm_job_id and job.id in seen and not seen[job.id].state.ended
        }
        if not live:
            return
        try:
            with slurm_call(self._cluster, "cancel"):
                results = self._ctx.slurm(self._cluster).cancel(list(live))
        except BrokerError as error:
            self._note(error.detail, None)
            return
        over = [
            job
            for number, job in live.items()
            if results[number].kind is ResultKind.DONE and seen[job.id].state is JobState.PENDING
        ]
        for run_id in {job.run_id for job in over}:
            with (
                contained("run_not_tracked", cluster=self._cluster, run_id=run_id),
                self._ctx.db.write() as session,
            ):
                self._lease.confirm(session)
                run = session.get_one(RunRow, run_id, with_for_update=True)
                gone = [job.id for job in over if job.run_id == run_id]
                session.execute(update(JobRow).where(JobRow.id.in_(gone)).values(reap=False))
                settle(self._ctx, session, run)

    def _note(self, trouble: str | None, polled_at: datetime | None) -> None:
        """Record how the look went. The time of a good look is the age of everything shown."""
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            row = session.get(ClusterRow, self._cluster) or ClusterRow(name=self._cluster)
            session.add(row)
            if polled_at is not None:
                row.polled_at = polled_at
            if trouble is None:
                row.trouble, row.trouble_since = None, None
            else:
                row.trouble, row.trouble_since = trouble, row.trouble_since or utcnow()
                if polled_at is None:
                    self._tell_of_outage(session, row)

    def _tell_of_outage(self, session: Session, row: ClusterRow) -> None:
        """Tell the admins, once, when the cluster has not been seen for long: since its last good look."""
        since = row.polled_at or row.trouble_since or utcnow()
        if utcnow() - since < timedelta(seconds=self._ctx.settings.notifications.unreachable_after_s):
            return
        notify(
            session,
            Kind.CLUSTER_UNREACHABLE,
            None,
            subject=self._cluster,
            data={"cluster": self._cluster, "since": since.isoformat(), "trouble": row.trouble},
            once=f"{Kind.CLUSTER_UNREACHABLE}:{self._cluster}:{since.isoformat()}",
        )
