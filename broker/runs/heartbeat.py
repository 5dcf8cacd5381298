"""Signs of life of what runs: progress, heartbeat, and what follows when there is none (GC-03, AM-11).

Once per `watch_interval_s` one `find` per Unix account looks at the files of all its running jobs: the
progress file, the logs, and the folders of logs, outputs and checkpoints. Any change of size or time is a
sign of life, and dated by the broker's clock: no clock of the cluster is believed. What could not be looked
at is not concluded from. Only files that changed are read, and of a log only its end.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.compiler import ClusterProfile
from broker.compiler.names import log_dir, log_paths, output_dir, run_dir, spent_path
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError, Unreachable
from broker.hosts import Host
from broker.hosts.files import stat_all
from broker.identity import SYSTEM
from broker.runs.events import emit
from broker.runs.progress import FILE_LIMIT, Progress, Report, advance, read_file, read_log
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import contained
from broker.runs.views import running_jobs

log = structlog.get_logger("broker.heartbeat")

TAIL = 64 * 1024
"""Bytes at a log's end that progress is looked for in."""
AT_ONCE = 200
"""Jobs in one command."""
STEADY = timedelta(seconds=60)
"""How exact a stored heartbeat is at worst: a job that lives is not written down at every look."""


class Verdict(Enum):
    """What follows from a heartbeat's age."""

    ALIVE = "alive"
    STALLED = "stalled"
    OVER = "over"


def judge(
    heartbeat_at: datetime,
    stalled_since: datetime | None,
    now: datetime,
    timeout: timedelta,
    grace: timedelta,
) -> Verdict:
    """Alive, silent for longer than `timeout`, or silent for `grace` more after it was flagged.

    The grace counts from the flag, which people could see: a broker that was away all night ends nothing
    at its first look.
    """
    if not timeout or now - heartbeat_at <= timeout:
        return Verdict.ALIVE
    return Verdict.OVER if stalled_since is not None and now - stalled_since >= grace else Verdict.STALLED


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one start of a job that tell of life."""

    progress: str
    training: str
    spent: str
    others: tuple[str, ...]

    @classmethod
    def of(cls, profile: ClusterProfile, job: JobRow) -> Places:
        """Of the newest start."""
        start = profile, job.run_id, job.component, job.attempt, job.restarts
        logs = log_paths(*start)
        checkpoints = f"{run_dir(profile, job.run_id)}/{job.component}/checkpoints"
        return cls(
            logs.progress,
            logs.training,
            spent_path(profile, job.run_id, job.component, job.attempt),
            (logs.error, logs.slurm, log_dir(*start), output_dir(*start), checkpoints),
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every path, always in this order."""
        return (self.progress, self.training, self.spent, *self.others)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the start `restart` of a running job. `mark` changes with every sign of life. `spent_s`:
    `JobRow.spent_s`.
    """

    restart: int
    mark: str
    progress: Progress | None
    spent_s: int | None


def mark_of(restart: int, signs: Iterable[tuple[int, float] | None]) -> str:
    """Sizes and times of a start's files as a short text: equal when nothing has changed."""
    return f"{restart}.{hashlib.sha256(repr(list(signs)).encode()).hexdigest()[:24]}"


class Watcher:
    """Looks after the running jobs of one cluster. Used by one thread."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease
        self._settings = ctx.cluster(cluster)
        self._profile = ctx.profile(cluster)
        timeout = timedelta(seconds=self._settings.heartbeat_timeout_s)
        self._steady = min(STEADY, timeout / 10) if timeout else STEADY

    def tick(self) -> None:
        """Look once at everything that runs; trouble with one account's files holds up no other's."""
        self._pause_what_does_not_run()
        accounts: dict[str | None, list[JobRow]] = defaultdict(list)
        for job, account in self._running():
            accounts[account].append(job)
        for account, jobs in accounts.items():
            for start in range(0, len(jobs), AT_ONCE):
                try:
                    self._look_at(account, jobs[start : start + AT_ONCE])
                except BrokerError as error:
                    log.warning("heartbeats_not_seen", cluster=self._cluster, detail=error.detail)
                    break

    def _running(self) -> list[tuple[JobRow, str | None]]:
        with self._ctx.db.read() as session:
            running = running_jobs(session, self._cluster)
        return [(job, account) for job, account in running if not job.reap]

    def _pause_what_does_not_run(self) -> None:
        """A suspended job can't give a sign: its silence begins anew when it goes on."""
        query = (
            select(JobRow)
            .join(RunRow, RunRow.id == JobRow.run_id)
            .where(
                RunRow.cluster == self._cluster,
                JobRow.heartbeat_mark.is_not(None),
                JobRow.state.in_([JobState.SUSPENDED, JobState.STOPPED]),
            )
        )
        with self._ctx.db.read() as session:
            paused = [(job.run_id, job.id) for job in session.scalars(query)]
        for run_id, job_id in paused:
            with (
                contained("run_not_watched", cluster=self._cluster, run_id=run_id),
                self._ctx.db.write() as session,
            ):
                self._lease.confirm(session)
                session.get_one(RunRow, run_id, with_for_update=True)
                job = session.get_one(JobRow, job_id)
                job.heartbeat_mark, job.stalled_since = None, None

    def _look_at(self, account: str | None, jobs: Sequence[JobRow]) -> None:
        host = self._ctx.host_for(self._cluster, account)
        places = {job.id: Places.of(self._profile, job) for job in jobs}
        signs = stat_all(host, [path for place in places.values() for path in place.all])
        now = utcnow()
        looks: dict[str, Look] = {}
        for job in jobs:
            place = places[job.id]
            if not any(path in signs for path in place.all):
                continue  # they can't be seen just now: that is no silence
            mark = mark_of(job.restarts, (signs.get(path) for path in place.all))
            progress, spent_s = None, job.spent_s
            with contained("progress_not_read", but=(BrokerError,), cluster=self._cluster, run_id=job.run_id):
                progress = job_progress(job)
                if mark != job.heartbeat_mark:
                    progress = self._progress(host, job, place, signs, now)
                if spent_s is None and job.restarts and "start_s" in job.resources:
                    spent_s = _spent(host, place.spent) if place.spent in signs else 0
            looks[job.id] = Look(job.restarts, mark, progress, spent_s)
        for run_id in {job.run_id for job in jobs}:
            of_run = [job for job in jobs if job.run_id == run_id and job.id in looks]
            with contained("run_not_watched", cluster=self._cluster, run_id=run_id):
                if any(self._worth_writing(job, looks[job.id], now) for job in of_run):
                    self._write(run_id, {job.id: looks[job.id] for job in of_run}, now)

    def _progress(
        self,
        host: Host,
        job: JobRow,
        place: Places,
        signs: Mapping[str, tuple[int, float]],
        now: datetime,
    ) -> Progress | None:
        """What its own file says; without one, what its log shows."""
        before = job_progress(job)
        report: Report | None = None
        if place.progress in signs:
            report = read_file(_read(host, place.progress, 0, FILE_LIMIT + 1))
            if report is not None:
                return advance(before, report, "file", now, job.restarts)
        if place.training in signs and not (before and before.source == "file"):
            size = signs[place.training][0]
            tail = _read(host, place.training, max(0, size - TAIL), TAIL)
            same = before is not None and before.restart == job.restarts
            report = read_log(tail.decode(errors="replace"), before.epoch if before and same else None)
            if report is not None:
                return advance(before, report, "log", now, job.restarts)
        return before

    def _worth_writing(self, job: JobRow, look: Look, now: datetime) -> bool:
        if look.spent_s != job.spent_s:
            return True
        if look.mark != job.heartbeat_mark:
            fresh = job.heartbeat_at is not None and now - job.heartbeat_at < self._steady
            same = look.progress == job_progress(job)
            return not (fresh and same and job.heartbeat_mark is not None and job.stalled_since is None)
        return self._judge(job, now) is not (Verdict.STALLED if job.stalled_since else Verdict.ALIVE)

    def _judge(self, job: JobRow, now: datetime) -> Verdict:
        timeout = timedelta(seconds=self._settings.heartbeat_timeout_s)
        grace = timedelta(seconds=self._settings.heartbeat_grace_s)
        found = judge(job.heartbeat_at or now, job.stalled_since, now, timeout, grace)
        flag_only = self._settings.on_lost_heartbeat == "flag"
        return Verdict.STALLED if found is Verdict.OVER and flag_only else found

    def _write(self, run_id: str, looks: Mapping[str, Look], now: datetime) -> None:
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            run = session.get_one(RunRow, run_id, with_for_update=True)
            run.updated_at = now
            for job_id, look in looks.items():
                job = session.get_one(JobRow, job_id)
                if job.state == JobState.RUNNING and not job.reap:
                    self._note(session, run, job, look, now)

    def _note(self, session: Session, run: RunRow, job: JobRow, look: Look, now: datetime) -> None:
        if look.mark != job.heartbeat_mark:
            job.heartbeat_mark, job.heartbeat_at = look.mark, now
            job.progress = look.progress.model_dump(mode="json") if look.progress else None
        if look.restart == job.restarts:  # else it was requeued meanwhile
            job.spent_s = look.spent_s
        about = {"component": job.component, "job_id": job.slurm_job_id}
        since = job.heartbeat_at.isoformat() if job.heartbeat_at else None
        match self._judge(job, now):
            case Verdict.ALIVE if job.stalled_since is not None:
                job.stalled_since = None
                emit(session, run, "job_alive_again", **about)
            case Verdict.STALLED if job.stalled_since is None:
                job.stalled_since = now
                emit(session, run, "job_stalled", **about, silent_since=since)
            case Verdict.OVER:
                job.reap, job.stall_ended_at = True, now
                emit(session, run, "job_ended_for_silence", **about, silent_since=since)
                after = {**about, "silent_since": since}
                record(
                    session, SYSTEM, "run.ended_for_silence", "run", run.id, None, after, tenant=run.tenant
                )


def _read(host: Host, path: str, offset: int, length: int) -> bytes:
    """A piece of a program's file; nothing where none can be read (a link, a folder, a pipe, gone meanwhile).

    What one program does with its own files must not end the look at everybody else's.
    """
    try:
        return b"".join(host.read(path, offset, length))
    except BrokerError as error:
        if isinstance(error, Unreachable):
            stat_all(host, [path])  # raises where it is the host
        log.info("file_not_read", path=path, detail=error.detail)
        return b""


def _spent(host: Host, path: str) -> int | None:
    """Seconds that earlier starts took; None where their script's file says no such thing."""
    text = _read(host, path, 0, 32).strip()
    return int(text) if re.fullmatch(rb"\d{1,9}", text) else None


def job_progress(job: JobRow) -> Progress | None:
    """The stored progress of a job."""
    return Progress.model_validate(job.progress) if job.progress else None
