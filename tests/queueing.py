"""A world of waiting runs: a database, people, and a controller that answers as slurmctld would."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from broker.audit.tables import AuditRow
from broker.context import Context
from broker.db import utcnow
from broker.identity import Role
from broker.queueing.changing import PriorityChanger
from broker.queueing.snapshot import QueueKeeper
from broker.runs.states import JobState, Phase
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.slurm import DONE, JobPriority, QueueJob, QueueSnapshot, Result, ResultKind
from broker.slurm.changes import Adjusted, Change, Shown
from broker.slurm.states import SlurmState
from tests.api_support import Api, worker_lease
from tests.queue_jobs import queue_job

SUBMITTED = datetime(2026, 11, 1, 8, tzinfo=UTC)


class Controller:
    """Jobs by id. Answers `adjust` and `priorities` as the controller would, and counts the commands."""

    def __init__(self) -> None:
        self.jobs: dict[int, QueueJob] = {}
        self.explicit: set[int] = set()
        self.commands: list[list[str]] = []
        self.unreachable = False

    def add(self, number: int, name: str, priority: int, **more: Any) -> None:
        submitted = SUBMITTED + timedelta(seconds=number)
        self.jobs[number] = queue_job(number, name, submit=submitted, priority=priority)
        self.set(number, **more)

    def set(self, number: int, **more: Any) -> None:
        self.jobs[number] = replace(self.jobs[number], **more)

    def shown(self) -> dict[int, Shown]:
        return {n: Shown(job.state, job.reason, job.priority, job.nice) for n, job in self.jobs.items()}

    def adjust(self, wanted: Sequence[Change]) -> Adjusted:
        self.commands.append([change.line for change in wanted])
        if self.unreachable:
            return Adjusted(
                {c.job_id: Result(ResultKind.OUTCOME_UNKNOWN, "Socket timed out") for c in wanted}
            )
        before = self.shown()
        results = {change.job_id: self._change(change) for change in wanted}
        ids = set(results)
        return Adjusted(
            results, *({n: s for n, s in look.items() if n in ids} for look in (before, self.shown()))
        )

    def _change(self, change: Change) -> Result:
        job = self.jobs[change.job_id]
        if found := re.search(r" Nice=(-?\d+)", change.line):
            nice = int(found[1])
            lost = 0 if job.job_id in self.explicit or not job.priority else nice - job.nice
            self.set(job.job_id, nice=nice, priority=max(1, job.priority - lost) if job.priority else 0)
        elif found := re.search(r" Priority=(\d+)", change.line):
            if not job.priority:
                return Result(ResultKind.HELD, "Job is in held state")
            self.explicit.add(job.job_id)
            self.set(job.job_id, priority=int(found[1]))
        elif change.line.startswith("release"):
            self.explicit.discard(job.job_id)
            self.set(job.job_id, priority=1000 - job.nice)
        return DONE

    def priorities(self) -> list[JobPriority]:
        return [
            JobPriority(n, "broker", job.priority, 0, 0 if n in self.explicit else 1000, 0, 0, 0, 0)
            for n, job in self.jobs.items()
            if job.priority and job.state is SlurmState.PENDING
        ]


class World:
    """One API, one cluster's worker parts, and the Slurm that is not there."""

    def __init__(self, ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ctx, self.api, self.slurm = ctx, Api(ctx), Controller()
        self.tenant = "t" + secrets.token_hex(4)  # the tests share one PostgreSQL
        self.admin, self.ann = f"root-{self.tenant}", f"ann-{self.tenant}"
        self.admin_id = self.api.add(self.admin, Role.ADMIN)
        self.api.add(self.ann, tenant=self.tenant)
        client = ctx.slurm("main")
        for name in ("adjust", "priorities"):
            monkeypatch.setattr(client, name, getattr(self.slurm, name))
        lease = worker_lease(ctx)
        self.lease = lease
        self.keeper = QueueKeeper(ctx, "main", lease)
        self.changer = PriorityChanger(ctx, "main", lease)
        with ctx.db.write() as session:  # what other tests left in the same database waits no more
            for run in session.scalars(select(RunRow)):
                run.state, run.phase = "cancelled", Phase.DONE

    def run(self, who: str | None = None, priority: int = 1000, *, number: int = 0, **body: Any) -> str:
        """A run of two components, released, in Slurm with ids from `number`."""
        who = who or self.ann
        if self.api.store(who).status_code not in {200, 201}:
            raise AssertionError
        run = self.api.call("POST", "/runs", who, json={"pipeline": "digits", **body})
        assert run.status_code == 201, run.text
        run_id: str = run.json()["id"]
        start = number or 100 + 10 * len(self.slurm.jobs)
        with self.ctx.db.write() as session:
            row = session.get_one(RunRow, run_id)
            row.phase = Phase.ACTIVE
            for hold in session.scalars(select(RunHoldRow).where(RunHoldRow.run_id == run_id)):
                session.delete(hold)
            for n, job in enumerate(attempt_jobs(session, run_id, row.attempt), start):
                job.slurm_job_id, job.state = n, JobState.PENDING
                job.submitted_at = job.observed_at = SUBMITTED
                self.slurm.add(n, job.name, priority)
        return run_id

    def jobs(self, run_id: str) -> dict[str, QueueJob]:
        with self.ctx.db.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.run_id == run_id))
            return {row.component: self.slurm.jobs[row.slurm_job_id or 0] for row in rows}

    def look(self) -> None:
        self.keeper._ask_after = 0.0
        self.keeper.keep(QueueSnapshot(utcnow(), tuple(self.slurm.jobs.values())))

    def work(self) -> list[str]:
        due = self.changer.due()
        for run_id in due:
            self.changer.apply(run_id)
        return due

    def queue(self, who: str | None = None, **query: Any) -> list[dict[str, Any]]:
        answer = self.api.call("GET", "/queue", who or self.admin, params=query)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    def wish(self, run_id: str, **wanted: Any) -> Any:
        return self.api.call("PUT", f"/runs/{run_id}/priority", self.admin, json=wanted)

    def change(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call("GET", f"/runs/{run_id}/priority", self.admin).json()["change"]
        return found

    def audit(self, run_id: str) -> list[AuditRow]:
        query = select(AuditRow).where(AuditRow.object_id == run_id, AuditRow.action != "run.create")
        with self.ctx.db.read() as session:
            return list(session.scalars(query.order_by(AuditRow.id)))

    def level(self, run_id: str) -> str:
        with self.ctx.db.read() as session:
            return session.get_one(RunRow, run_id).priority


on_both = pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)


def order(items: Sequence[Mapping[str, Any]]) -> list[str]:
    return [item["run_id"] for item in items]
