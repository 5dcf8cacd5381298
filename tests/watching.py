"""A desk at which runs are watched: a cluster on this machine, a run on it, and who looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from broker.compiler.names import LogPaths, control_dir, log_paths
from broker.context import Context
from broker.db import utcnow
from broker.identity import Principal, Role
from broker.queueing.snapshot import Seen
from broker.runs.events import events_after
from broker.runs.heartbeat import Watcher
from broker.runs.observation import Sighting
from broker.runs.settling import settle
from broker.runs.sightings import write_sighting
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import JobRow, QueueRow, RunRow
from broker.runs.views import newest_jobs
from tests.api_support import Api, context, worker_lease


@dataclass
class Desk:
    """A run whose trainer runs, and the files that it writes."""

    api: Api
    ann: Principal
    run_id: str
    paths: LogPaths
    watcher: Watcher

    @property
    def ctx(self) -> Context:
        return self.api.ctx

    def job(self) -> JobRow:
        with self.ctx.db.read() as session:
            return session.scalars(
                select(JobRow)
                .where(JobRow.run_id == self.run_id, JobRow.component == "trainer")
                .order_by(JobRow.attempt)
            ).all()[-1]

    def change(self, what: Callable[[RunRow, JobRow], object]) -> None:
        with self.ctx.db.write() as session:
            jobs = {job.component: job for job in newest_jobs(session, self.run_id)}
            what(session.get_one(RunRow, self.run_id), jobs["trainer"])

    def say(self, text: str) -> None:
        with Path(self.paths.training).open("a", encoding="utf-8", newline="") as file:
            file.write(text)

    def report(self, **values: float) -> None:
        Path(self.paths.progress).write_text(json.dumps(values))

    def view(self) -> Any:
        jobs = self.api.call("GET", f"/runs/{self.run_id}", "ann").json()["jobs"]
        return next(job for job in jobs if job["component"] == "trainer")

    def run_end(self, run_id: str | None = None) -> Any:
        return self.api.call("GET", f"/runs/{run_id or self.run_id}", "ann").json()["expected_end"]

    def queue_shows(self, start: datetime, **fields: object) -> None:
        """What a look at the queue has of the trainer, in place of a tick of the tracker."""
        shown = asdict(Seen(1, 0, "Priority", "", None, start.timestamp(), 0)) | fields
        jobs = {str(self.job().slurm_job_id): shown}
        with self.ctx.db.write() as session:
            session.merge(QueueRow(cluster="main", taken_at=utcnow(), jobs=jobs))

    def events(self) -> list[str]:
        with self.ctx.db.read() as session:
            return [event.type for event in events_after(session, self.run_id, 0)]

    def silent_for(self, silent: timedelta, flagged: timedelta | None = None) -> None:
        """What is stored after so long a silence: no test waits an hour."""

        def age(_run: RunRow, job: JobRow) -> None:
            job.heartbeat_at = utcnow() - silent
            job.stalled_since = utcnow() - flagged if flagged is not None else job.stalled_since

        self.change(age)

    def end(self) -> None:
        """Slurm shows that the job was cancelled, and its results are stored."""
        with self.ctx.db.write() as session:
            run = session.get_one(RunRow, self.run_id)
            for job in newest_jobs(session, self.run_id):
                if job.component == "trainer":
                    seen = Sighting(JobState.CANCELLED, reason=None, ended_at=utcnow())
                    write_sighting(session, run, job, seen, utcnow())
                    job.reap, job.storing = False, "stored"
            settle(self.ctx, session, run)


def make_desk(tmp_path: Path, **cluster: Any) -> Iterator[Desk]:
    settings = {"transport": "local", "base_path": str(tmp_path / "jobs"), "default_cpus": 1} | cluster
    with context(tmp_path / "data", clusters={"main": settings}) as ctx:
        api = Api(ctx)
        user_id = api.add("ann")
        api.add("bob")
        assert api.store("ann").status_code == 201
        run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
        lease = worker_lease(ctx)
        paths = log_paths(ctx.profile("main"), run_id, "trainer", 1, 0)
        ann = Principal(user_id, "ann", Role.RESEARCHER, "default")
        desk = Desk(api, ann, run_id, paths, Watcher(ctx, "main", lease))
        with ctx.db.write() as session:
            run = session.get_one(RunRow, run_id)
            run.phase, run.state = Phase.ACTIVE, RunState.RUNNING
            for number, job in enumerate(newest_jobs(session, run_id), 7):
                job.slurm_job_id, job.submitted_at, job.started_at = number, utcnow(), utcnow()
                job.state = JobState.RUNNING if job.component == "trainer" else JobState.COMPLETED
                job.storing = "none" if job.component == "trainer" else "stored"
        Path(paths.training).parent.mkdir(parents=True)
        Path(control_dir(ctx.profile("main"), run_id, "trainer", 1)).mkdir(parents=True)
        desk.say("start\n")
        with api.http:
            yield desk
