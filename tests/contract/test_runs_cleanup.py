"""Which run directories have had their time, on a real database. That they go is seen on a real cluster."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from broker.db import utcnow
from broker.runs.cleanup import due_for_removal
from broker.runs.states import Phase, RunState
from broker.runs.tables import RunRow
from broker.runs.views import attempt_jobs
from tests.api_support import Api, context


@pytest.mark.parametrize("state", [state for state in RunState if state.final])
def test_no_run_directory_stays_for_ever_once_its_run_has_ended(tmp_path: Path, state: RunState) -> None:
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("ann")
        api.store("ann")
        run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
        settings = ctx.cluster("main")
        kept = settings.keep_succeeded_days if state is RunState.SUCCEEDED else settings.keep_failed_days
        due = []
        for age in (kept - 1, kept + 1):
            with ctx.db.write() as session:
                run = session.get_one(RunRow, run_id)
                run.state, run.phase, run.ended_at = state, Phase.DONE, utcnow() - timedelta(days=age)
            due.append(due_for_removal(ctx, "main"))
        assert due == [[], [run_id]]
        with ctx.db.write() as session:
            attempt_jobs(session, run_id, 1)[0].storing = "failed"
        assert due_for_removal(ctx, "main") == []  # what it made lies nowhere else
