"""Advice from runs in the database and jobs in the warehouse, on both databases: read, scoped, applied."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from broker.accounting.tables import AccountingCursorRow
from broker.audit.tables import AuditRow
from broker.db import utcnow
from broker.identity import Role
from broker.runs.states import JobState
from broker.runs.tables import JobRow
from broker.spec import parse
from tests.accounting import job, keep
from tests.advice_support import USED, ended, requested
from tests.api_support import SPEC, Api, codes, context, spec
from tests.postgres import database_of


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path / "data", url) as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("eye", Role.VIEWER, "team-a")
        made.add("ann", tenant="team-a")
        made.add("bob", tenant="team-a")
        made.add("eve", tenant="team-b")
        yield made


def advice(
    api: Api, path: str = "/pipelines/digits/advice", who: str = "ann", **params: Any
) -> dict[str, Any]:
    answer = api.call("GET", path, who, params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(found: dict[str, Any], component: str, part: str = "findings") -> dict[str, Any]:
    """Rule and suggestion by resource."""
    one = next(one for one in found["components"] if one["component"] == component)
    return {each["resource"]: (each["rule"], each["suggested"]) for each in one[part]}


def test_a_finished_run_gets_advice_by_itself_and_by_the_last_runs(api: Api) -> None:
    ended(api, requested(api, document=SPEC), used=USED | {"trainer": {"mem_in_tot_mib": 20_000}})
    run = ended(api, requested(api))
    found = advice(api, f"/runs/{run}/advice")
    assert said(found, "trainer") == {
        "memory": ("memory_lower", "11GB"),
        "time": ("time_lower", "40m"),
        "gpu_count": ("fits", None),
        "cpus": ("not_asked", None),
    }
    assert said(found, "trainer", "over_last_runs")["memory"] == ("memory_lower", "24GB")
    assert said(found, "loader")["memory"] == ("memory_lower", "640MB")
    assert (found["runs"], found["version"], found["unread"]) == (2, 1, [])
    memory = found["components"][1]["findings"][0]
    assert (memory["asked"], memory["sbatch"], memory["jobs"]) == ("64GB", "--mem=11264M", 1)
    assert memory["because"] == {"peak_mib": 9000, "asked_mib": 65536}
    assert memory["saves"] == {"amount": pytest.approx(0.5 * 53), "unit": "GiB h"}
    assert "8.789 GiB of 64 GiB" in memory["text"] and "8.789 GiB" in memory["text_ko"]


def test_a_requeued_job_counts_with_all_its_starts(api: Api) -> None:
    run = ended(api, requested(api, document=SPEC))
    with api.ctx.db.write() as session:
        row = session.scalars(select(JobRow).where(JobRow.run_id == run, JobRow.component == "trainer")).one()
        assert row.slurm_job_id is not None
        before = int((utcnow() - timedelta(hours=5)).timestamp())
        lost: dict[str, Any] = {"state": "NODE_FAIL", "mem_in_tot_mib": 30_000, "gpu_count": 2}
        keep(session, job(row.slurm_job_id, before, run_s=1800, run_id=run, **lost))
    found = said(advice(api, f"/runs/{run}/advice"), "trainer")
    assert (found["memory"][1], found["time"]) == ("36GB", ("time_lower", "1h15m"))
    assert found["gpu_count"][0] == "not_measured", "of one start nobody knows it"


def test_a_job_that_accounting_does_not_show_yet_is_named_and_gives_no_advice(api: Api) -> None:
    run = ended(api, requested(api, document=SPEC), accounted=False)
    found = advice(api, f"/runs/{run}/advice")
    assert {rule for rule, _ in said(found, "trainer").values()} == {"no_jobs", "not_asked"}
    assert [one["component"] for one in found["unread"]] == ["loader", "trainer"]
    assert "was never read yet" in found["unread"][0]["text"]
    with api.ctx.db.write() as session:
        keep(session, job(1, 1_700_000_000), read_to=1_700_000_000)
    [first, _] = advice(api)["unread"]
    assert "read until 2023-11-14 22:13:20 (UTC)" in first["text"] and "까지" in first["text_ko"]
    assert first["read_until"] == "2023-11-14T22:13:20Z"


def test_a_run_of_which_accounting_lacks_an_attempt_is_not_taken_for_a_short_one(api: Api) -> None:
    run, now = ended(api, requested(api, document=SPEC)), utcnow()
    with api.ctx.db.write() as session:
        row = session.scalars(select(JobRow).where(JobRow.run_id == run, JobRow.component == "trainer")).one()
        more = {"attempt": 2, "state": "COMPLETED", "slurm_job_id": 77, "started_at": now, "ended_at": now}
        kept = {name: getattr(row, name) for name in ("run_id", "component", "position", "resources")}
        session.add(JobRow(id="job-2", name=f"{row.name}-2", **kept | more))
    found = advice(api)
    assert said(found, "trainer")["time"] == said(found, "trainer")["memory"] == ("no_jobs", None)
    assert said(found, "loader")["time"] == ("time_lower", "40m")
    assert [one["component"] for one in found["unread"]] == ["trainer"]


def test_a_row_without_end_is_not_taken_for_the_whole_job(api: Api) -> None:
    run = ended(api, requested(api, document=SPEC), accounted=False)
    with api.ctx.db.write() as session:
        numbers = session.scalars(select(JobRow.slurm_job_id).where(JobRow.run_id == run)).all()
        rows = [job(one, 1_800_000_000, run_id=run, state="REQUEUED") for one in numbers if one]
        keep(session, *rows, read_to=1_800_003_000)
        session.get_one(AccountingCursorRow, "main").read_to = 1_000
    assert len(advice(api)["unread"]) == 2, "the start after the requeue is not there yet"


def test_jobs_of_other_work_and_test_runs_say_nothing(api: Api) -> None:
    ended(api, requested(api, document=SPEC))
    ended(api, requested(api, kind="test"), used={"loader": {}, "trainer": {"mem_in_tot_mib": 60_000}})
    assert said(advice(api), "trainer")["memory"] == ("memory_lower", "11GB")
    other = spec()
    other["components"][1]["params"] = {"layers": 96}
    other["components"][0]["resources"]["memory"] = "6GB"
    assert api.store("ann", other).status_code == 201
    found = advice(api)
    assert (found["version"], said(found, "trainer")["memory"]) == (2, ("no_jobs", None))
    assert said(found, "loader")["memory"] == ("memory_lower", "640MB"), "only its resources have changed"
    ended(api, requested(api, document=other | {"env_vars": {"EPOCHS": "300"}}), state=JobState.FAILED)
    assert {rule for rule, _ in said(advice(api), "loader").values()} == {"no_success", "not_asked"}


def test_each_job_is_judged_by_what_its_own_run_had_asked_for(api: Api) -> None:
    small = {"components": {"trainer": {"memory": "8GB"}}}
    ended(api, requested(api, document=SPEC, overrides=small), JobState.OUT_OF_MEMORY)
    doubled = {"components": {"trainer": {"memory": "16GB"}}}
    ended(api, requested(api, overrides=doubled))
    found = advice(api)
    assert said(found, "trainer")["memory"] == ("memory_lower", "12GB"), "1.5 times what was too little"
    assert (
        next(one for one in found["components"][1]["findings"] if one["resource"] == "memory")["overridden"]
        == 2
    )


def test_nobody_is_told_of_runs_that_they_may_not_see(api: Api) -> None:
    run = ended(api, requested(api, document=SPEC))
    assert advice(api, who="eye")["runs"] == advice(api, who="root")["runs"] == 1
    assert advice(api, who="bob")["runs"] == 0
    assert {rule for rule, _ in said(advice(api, who="bob"), "trainer").values()} == {"no_jobs", "not_asked"}
    for who, path in (
        ("eve", "/pipelines/digits/advice"),
        ("eve", f"/runs/{run}/advice"),
        ("bob", f"/runs/{run}/advice"),
    ):
        assert api.call("GET", path, who).status_code == 404
    for who, status in (("bob", 403), ("eye", 403), ("eve", 404)):
        answer = api.call("POST", "/pipelines/digits/advice", who, json={"version": 1})
        assert answer.status_code == status, (who, answer.text)


def test_the_last_runs_are_the_newest(api: Api) -> None:
    for peak in (50_000, 9_000, 2_000):
        ended(api, requested(api, document=SPEC), used={"loader": {}, "trainer": {"mem_in_tot_mib": peak}})
    told = [said(advice(api, runs=runs), "trainer")["memory"][1] for runs in (1, 2, 3)]
    assert told == ["2560MB", "11GB", None]
    assert api.call("GET", "/pipelines/digits/advice", "ann", params={"runs": 101}).status_code == 422


def test_every_job_behind_a_report_has_the_options_that_follow_from_it(api: Api) -> None:
    ended(api, requested(api, document=SPEC))
    until = (utcnow() + timedelta(days=1)).date()
    asked = {"since": str(until - timedelta(days=3)), "until": str(until)}
    answer = api.call("GET", "/reports/efficiency/jobs", "root", params=asked)
    options = {one["memory_efficiency"]: one["advice"] for one in answer.json()["items"]}
    assert options[round(500 / 8192, 4)] == "--mem=640M --time=0-00:40:00"
    table = api.call("GET", "/reports/efficiency/jobs", "root", params=asked | {"format": "csv"}).text
    assert table.count("--mem=640M --time=0-00:40:00") == 1


# ---- applying ---------------------------------------------------------------------------------------


def apply(api: Api, who: str = "ann", status: int = 201, **body: Any) -> Any:
    answer = api.call("POST", "/pipelines/digits/advice", who, json=body)
    assert answer.status_code == status, answer.text
    return answer


def stored(api: Api, version: int | str = "latest") -> dict[str, Any]:
    found: dict[str, Any] = api.call("GET", f"/pipelines/digits/versions/{version}", "ann").json()["spec"]
    return found


def test_advice_becomes_a_new_version_and_nothing_else_in_it_changes(api: Api) -> None:
    document = spec(name="손글씨 ✍", storage={"type": "s3", "path": "/results"})
    ended(api, requested(api, document=document))
    answer = apply(api, version=1).json()
    assert answer["version"]["number"] == answer["pipeline"]["latest_version"] == 2
    expected = spec(name="손글씨 ✍", storage={"type": "s3", "path": "/results"})
    expected["components"][0]["resources"] |= {"memory": "640MB", "time": "40m"}
    expected["components"][1]["resources"] |= {"memory": "11GB", "time": "40m"}
    assert stored(api) == expected and stored(api, 1) == document
    assert json.dumps(stored(api)) == json.dumps(expected), "fields stay in their order"
    first = next(one for one in answer["changes"] if one["pointer"] == "/components/1/resources/memory")
    assert (first["before"], first["after"]) == ("64GB", "11GB")
    with api.ctx.db.read() as session:
        [row] = session.scalars(select(AuditRow).where(AuditRow.action == "pipeline.advise")).all()
        assert row.before is not None and row.after is not None
        assert row.before["resources"]["/components/1/resources/memory"] == "64GB"
        assert row.after["resources"]["/components/1/resources/memory"] == "11GB"
    left = advice(api)
    assert not [
        one for part in left["components"] for one in part["findings"] if one["suggested"] is not None
    ]
    assert apply(api, version=2, status=409).json()["code"] == "conflict"


def test_only_what_was_chosen_is_applied_and_only_as_it_was_read(api: Api) -> None:
    ended(api, requested(api, document=SPEC))
    memory = {"component": "trainer", "resource": "memory"}
    apply(api, version=1, choose=[memory | {"suggested": "10GB"}], status=409)
    assert codes(apply(api, version=1, choose=[], status=422)) == {"nothing_chosen"}
    nothing = apply(api, version=1, choose=[memory, memory | {"resource": "gpu_count"}], status=422)
    assert codes(nothing) == {"no_such_advice"} and nothing.json()["errors"][0]["pointer"] == "/choose/1"
    assert [
        one["after"]
        for one in apply(api, version=1, choose=[memory | {"suggested": "11GB"}]).json()["changes"]
    ] == ["11GB"]
    resources = parse(json.dumps(stored(api))).component("trainer").resources
    assert (resources.memory.mib, resources.time) == (11 << 10, 7200)


def test_a_newer_version_is_never_written_over(api: Api) -> None:
    ended(api, requested(api, document=SPEC))
    other = spec()
    other["components"][1]["resources"]["memory"] = "80GB"
    assert api.store("ann", other).status_code == 201
    assert "newest version is 2" in apply(api, version=1, status=409).json()["detail"]
    assert stored(api) == other
    apply(api, version=2)
    assert stored(api)["components"][1]["resources"]["memory"] == "11GB"


def test_a_repeated_request_with_its_key_makes_one_version(api: Api) -> None:
    ended(api, requested(api, document=SPEC))
    answers = [
        api.call("POST", "/pipelines/digits/advice", "ann", {"Idempotency-Key": "k"}, json={"version": 1})
        for _ in range(2)
    ]
    assert [one.status_code for one in answers] == [201, 201]
    assert answers[0].json() == answers[1].json() and answers[1].headers["Idempotency-Replayed"] == "true"


def test_gpus_that_were_never_used_go_with_their_type(api: Api) -> None:
    used = USED | {"trainer": {"mem_in_tot_mib": 9000, "gpu_util": 0.0}}
    ended(api, requested(api, document=SPEC), used=used)
    found = advice(api)
    assert said(found, "trainer")["gpu_count"] == ("gpus_unused", 0)
    assert said(found, "trainer")["time"] == ("time_waits", None)
    apply(api, version=1)
    assert stored(api)["components"][1]["resources"] == {"gpu_count": 0, "memory": "11GB", "time": "2h"}
