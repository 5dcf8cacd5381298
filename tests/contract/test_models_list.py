"""Stored models as a list: right, and at the same cost however long it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import event

from broker.db import utcnow
from broker.models.tables import ModelRow, ModelVersionRow
from broker.runs.views import attempt_jobs
from tests.api_support import Api, context


def add_model(api: Api, owner: str, number: int) -> str:
    """A run of the stored pipeline whose trainer left a model."""
    run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    with api.ctx.db.write() as session:
        run = api.call("GET", f"/runs/{run_id}", "ann").json()
        model = session.get(ModelRow, "mdl-1")
        if model is None:
            model = ModelRow(
                id="mdl-1",
                pipeline_id=run["pipeline_id"],
                component="trainer",
                name="Digits/trainer",
                tenant="default",
                latest_version=0,
                created_at=utcnow(),
            )
            session.add(model)
            session.flush()
        session.add(
            ModelVersionRow(
                id=f"mv-{number}",
                model_id="mdl-1",
                number=number,
                job_id=attempt_jobs(session, run_id, 1)[-1].id,
                run_id=run_id,
                owner_id=owner,
                tenant="default",
                state="READY",
                size=5,
                files=1,
                artifact="outputs/best_model.pkl",
                training={},
                manifest_key="k",
                manifest_sha256="0" * 64,
                created_at=utcnow(),
            )
        )
    return run_id


def test_a_list_of_models_costs_the_same_however_long_it_is(tmp_path: Path) -> None:
    statements: list[str] = []

    def noted(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with context(tmp_path) as ctx:
        api = Api(ctx)
        owner = api.add("ann")
        api.store("ann")
        runs, cost = [], []
        event.listen(ctx.db.engine, "before_cursor_execute", noted)
        for number in range(1, 4):
            runs.append(add_model(api, owner, number))
            statements.clear()
            items = api.call("GET", "/models", "ann").json()["items"]
            cost.append(len(statements))
        assert len(set(cost)) == 1
        assert [item["run_id"] for item in items] == runs[::-1]
        assert [item["version"] for item in items] == [3, 2, 1]
        assert {(i["name"], i["component"], i["owner"], i["workload"]) for i in items} == {
            ("Digits/trainer", "trainer", "ann", "Handwritten digits")
        }
        assert [item["run_number"] for item in items] == [3, 2, 1]
