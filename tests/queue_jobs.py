"""Jobs as `squeue` shows them, and runs whose jobs they are, for tests that have no Slurm."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select

from broker.db import utcnow
from broker.runs.tables import JobRow
from broker.slurm import QueueJob, SlurmState, parse_tres
from tests.api_support import Api, spec


def queue_job(number: int, name: str = "job", tres: str = "", **more: Any) -> QueueJob:
    """One row of the queue: it waits, has asked for `tres` in Slurm's form, and differs by `more`."""
    fields: dict[str, Any] = {
        "state": SlurmState.PENDING,
        "reason": "Priority",
        "user": "broker",
        "account": "default",
        "qos": "training",
        "partition": "gpu",
        "submit": None,
        "start": None,
        "end": None,
        "time_limit_s": 3600,
        "nodes": (),
        "node_count": max(len(more.get("nodes", ())), 1),
        "cpus": 1,
        "priority": 1,
        "nice": 0,
        "dependency": "",
        "restart_count": 0,
    }
    return QueueJob(job_id=number, name=name, tres=parse_tres(tres), **fields | more)


def running_run(api: Api, who: str, number: int) -> tuple[str, str]:
    """A run whose trainer Slurm runs under `number`, for ten minutes now: its id, the job's name."""
    name = f"{who}-{number}"
    pipeline = api.store(who, spec(pipeline_id=name, name=name)).json()["pipeline"]["id"]
    run_id: str = api.call("POST", "/runs", who, json={"pipeline": pipeline}).json()["id"]
    with api.ctx.db.write() as session:
        query = select(JobRow).where(JobRow.run_id == run_id, JobRow.component == "trainer")
        job = session.scalars(query).one()
        job.slurm_job_id, job.state = number, "RUNNING"
        job.started_at = utcnow() - timedelta(minutes=10)
        return run_id, job.name
