"""Runs that have ended with their jobs in the accounting warehouse, as a cluster leaves them."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from broker.db import utcnow
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import JobRow, RunRow
from tests.accounting import job, keep
from tests.api_support import Api

NUMBER = itertools.count(1000)
USED: dict[str, dict[str, Any]] = {
    "loader": {"mem_in_tot_mib": 500},
    "trainer": {"mem_in_tot_mib": 9000, "gpu_util": 90.0},
}
"""What the jobs of the example spec use, unless a test says otherwise."""


def requested(api: Api, who: str = "ann", document: dict[str, Any] | None = None, **more: Any) -> str:
    """A run of the pipeline in its newest version."""
    if document is not None:
        assert api.store(who, document).status_code in (200, 201)
    answer = api.call("POST", "/runs", who, json={"pipeline": "digits", **more})
    assert answer.status_code == 201, answer.text
    run: str = answer.json()["id"]
    return run


def ended(
    api: Api,
    run_id: str,
    state: JobState = JobState.COMPLETED,
    used: dict[str, dict[str, Any]] | None = None,
    *,
    accounted: bool = True,
) -> str:
    """The run's jobs ran for half an hour and ended; accounting has them."""
    now = utcnow()
    begun = now - timedelta(hours=1)
    rows = []
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        good = state is JobState.COMPLETED
        run.state, run.phase = RunState.SUCCEEDED if good else RunState.FAILED, Phase.DONE
        run.started_at, run.ended_at = begun, now
        for one in session.scalars(select(JobRow).where(JobRow.run_id == run_id, JobRow.state == "INTENDED")):
            one.slurm_job_id, one.state = next(NUMBER), state
            one.started_at, one.ended_at = begun, begun + timedelta(seconds=1800)
            rows.append(
                job(
                    one.slurm_job_id,
                    int(begun.timestamp()),
                    run_s=1800,
                    state=str(state),
                    run_id=run_id,
                    cpu_partial=not good,
                    gpu_count=one.resources["gpu_count"],
                    **{"max_rss_mib": None} | (used or USED)[one.component],
                )
            )
        if accounted:
            keep(session, *rows)
    return run_id
