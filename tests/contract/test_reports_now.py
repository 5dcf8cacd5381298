"""The reports on how things stand: quotas with the day they run out, and what waits longest and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, select

from broker.accounting.archive import Owner, People
from broker.accounting.waiting import Waited, keep, pending, waited
from broker.identity import Role
from broker.identity.tables import UserRow
from broker.quotas.tables import ChargeRow, QuotaRow, ReservationRow, UseRow
from broker.reports import quota_report, waiting_report
from broker.runs.states import JobState, Phase
from broker.runs.tables import ClusterRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.settings import QuotaSettings
from broker.slurm import QueueJob
from broker.slurm.states import SlurmState
from tests.accounting import at, job
from tests.accounting import keep as archive
from tests.api_support import Api, context
from tests.postgres import database_of
from tests.queue_jobs import queue_job

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    url = database_of(request)
    for module in (quota_report, waiting_report):
        monkeypatch.setattr(module, "utcnow", lambda: NOW)
    quotas = QuotaSettings(gpu_hours_per_month=100, upload_gb_per_month=50, api_calls_per_day=1000)
    with context(tmp_path / "data", url, quotas=quotas) as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        made.add("eve", tenant="team-b")
        yield made


def charge(number: int, began: datetime, hours: float, month: str = "2026-11", **more: Any) -> ChargeRow:
    """One attempt on one GPU."""
    row: dict[str, Any] = {
        "cluster": "main",
        "slurm_job_id": number,
        "submitted_at": began,
        "month": month,
        "tenant": "team-a",
        "user_id": "u",
        "run_id": f"run-{number}",
        "job_id": f"job-{number}",
        "gpus": 1,
        "elapsed_s": int(hours * 3600),
        "gpu_seconds": int(hours * 3600),
        "started_at": began,
        "ended_at": began + timedelta(hours=hours),
        "source": "sacct",
        "charged_at": began + timedelta(hours=hours),
    }
    return ChargeRow(**(row | more))


def ask(api: Api, who: str, report: str, **params: Any) -> dict[str, Any]:
    answer = api.call("GET", f"/reports/{report}", who, params=params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def standing(view: dict[str, Any], tenant: str, resource: str) -> dict[str, Any]:
    key = {"tenant": tenant, "resource": resource}
    return next(line["values"] for line in view["lines"] if line["key"] == key)


def test_a_quota_is_used_up_on_the_day_that_the_rates_say(api: Api) -> None:
    with api.ctx.db.write() as session:
        session.add_all(charge(n, NOW - n * DAY, 4) for n in range(1, 8))  # 4 h a day for a week
        session.add_all(charge(20 + n, NOW - (10 + n) * DAY, 2) for n in range(10))
        session.add(charge(50, NOW - 40 * DAY, 12, month="2026-10"))  # of another month, before both means
        session.add(
            ReservationRow(
                job_id="r1", run_id="run", tenant="team-a", user_id="u", cluster="main", gpus=2,
                limit_s=7200, reserved_at=NOW - DAY,
            )
        )  # fmt: skip
    found = standing(ask(api, "root", "quotas"), "team-a", "gpu_hours")
    assert (found["limit"], found["used"], found["reserved"], found["taken"]) == (100, 48, 4, 0.52)
    assert found["rate_recent"] == pytest.approx(4)
    assert found["rate_longer"] == pytest.approx(48 / 28, rel=1e-5)
    assert found["runs_out"] == "not before 2026-12-01", "48 h are left for nine days and a half"
    with api.ctx.db.write() as session:
        session.add(QuotaRow(tenant="team-a", gpu_hours_per_month=66, updated_at=NOW))
    found = standing(ask(api, "root", "quotas"), "team-a", "gpu_hours")
    assert found["runs_out"] == "2026-11-25", "14 h at 4 a day from the 21st, 12:00"
    assert found["runs_out_latest"] == "2026-11-29", "… and at 1.71 a day"
    with api.ctx.db.write() as session:
        session.get_one(QuotaRow, "team-a").gpu_hours_per_month = 50
    found = standing(ask(api, "root", "quotas"), "team-a", "gpu_hours")
    assert found["runs_out"] == found["runs_out_latest"] == "2026-11-21"


def test_what_runs_counts_up_to_now_and_no_more_than_was_set_aside(api: Api) -> None:
    def runs(number: str, gpus: int, limit_s: int, hours: int) -> ReservationRow:
        return ReservationRow(
            job_id=number, run_id="run", tenant="team-a", user_id="u", cluster="main", gpus=gpus,
            limit_s=limit_s, reserved_at=NOW - DAY, started_at=NOW - timedelta(hours=hours),
        )  # fmt: skip

    with api.ctx.db.write() as session:
        session.add_all([runs("r1", 2, 36_000, 5), runs("r2", 1, 3600, 4)])
    found = standing(ask(api, "root", "quotas"), "team-a", "gpu_hours")
    assert found["rate_recent"] == pytest.approx(2 * 5 + 1)
    assert (found["used"], found["reserved"]) == (0, 21)


def test_where_nothing_was_used_nobody_knows_and_nothing_is_guessed(api: Api) -> None:
    found = standing(ask(api, "root", "quotas"), "team-b", "gpu_hours")
    assert (found["used"], found["rate_recent"], found["runs_out"]) == (0, None, None)


def test_calls_are_forecast_within_the_day_and_uploads_within_the_month(api: Api) -> None:
    def counted(resource: str, period: str, amount: int) -> UseRow:
        return UseRow(tenant="team-a", resource=resource, period=period, amount=amount)

    with api.ctx.db.write() as session:
        session.add_all(counted("api_calls", f"2026-11-{day}", 900) for day in range(14, 21))
        session.add(counted("api_calls", "2026-11-21", 600))
        session.add_all(counted("upload_gb", month, 41 << 30) for month in ("2026-10", "2026-11"))
        session.add(ClusterRow(name="main", polled_at=NOW, trouble="sshd is away"))
    view = ask(api, "root", "quotas", tenant="team-a")
    assert view["sources"][0]["trouble"] and view["sources"][0]["read_until"] == "2026-11-21T12:00:00Z"
    calls, uploads = (standing(view, "team-a", name) for name in ("api_calls", "upload_gb"))
    assert (calls["rate_recent"], calls["runs_out"]) == (900, "2026-11-21")
    assert uploads["rate_recent"] == pytest.approx(2)
    assert uploads["rate_longer"] == pytest.approx(82 / 51.5)
    assert (uploads["runs_out"], uploads["runs_out_latest"]) == ("2026-11-26", "2026-11-27")
    assert view["total"]["values"]["used"] is None, "hours, GiB and calls are not added up"
    assert view["report"]["now"]


def test_everybody_sees_the_own_tenants_quota_alone(api: Api) -> None:
    seen = {line["key"]["tenant"] for line in ask(api, "ann", "quotas")["lines"]}
    assert seen == {"team-a"}
    assert ask(api, "ann", "quotas", tenant="team-b")["lines"] == []


def queued(number: int, submitted: datetime, **more: Any) -> QueueJob:
    """A job of kim's that asks for two GPUs."""
    asked = "cpu=4,mem=64G,node=1,billing=4,gres/gpu=2,gres/gpu:a100=2"
    kims = {"user": "kim", "account": "team-a", "time_limit_s": 7200, "cpus": 4, "priority": 1000}
    return queue_job(number, **{"name": f"job-{number}", "tres": asked, "submit": submitted} | kims | more)


def see(api: Api, *jobs: QueueJob, looked: datetime = NOW) -> None:
    with api.ctx.db.write() as session:
        keep(session, People("main", "default"), jobs, int(looked.timestamp()))


def test_the_longest_waiting_come_first_and_say_why(api: Api) -> None:
    see(
        api,
        queued(1, NOW - 2 * DAY, reason="Resources", start=NOW + timedelta(hours=3)),
        queued(2, NOW - 5 * DAY, reason="JobHeldAdmin", priority=0, account="team-b"),
        queued(3, NOW - DAY, array_id=3, array_task="8-11", reason="QOSMaxGRESPerUser"),
        queued(4, NOW - 9 * DAY, state=SlurmState.RUNNING),
    )
    with api.ctx.db.write() as session:
        submitted = at("2026-11-19T12:00")
        archive(
            session,
            job(1, submitted, state="PENDING", eligible_at=submitted + 3600, start_at=None, end_at=None),
        )
    view = ask(api, "root", "waiting")
    assert [line["key"]["job"] for line in view["lines"]] == ["2", "1", "3_[8-11]"]
    held, first, array = (line["values"] for line in view["lines"])
    assert held["waited"] == held["to_eligible"] == 5 * 86_400 and held["since_eligible"] == 0
    assert "holds it in Slurm" in held["why"] and "보류" in held["why_ko"]
    assert (first["waited"], first["to_eligible"], first["since_eligible"]) == (172_800, 3600, 169_200)
    assert first["expected_start"] == "2026-11-21T15:00:00+00:00"
    assert first["asks_for"] == "a100 x 2, 64GB, 2h"
    assert array["to_eligible"] is None, "accounting has not the job: unknown, never 0"
    assert (array["gpus"], array["asks_for"]) == (8, "4 tasks of a100 x 2, 64GB, 2h")
    assert view["total"]["values"]["jobs"] == 3 and view["total"]["values"]["gpus"] == 12
    assert view["total"]["coverage"]["to_eligible"] == {"with_data": 2, "of": 3, "counted": "jobs"}
    assert view["sources"][0]["read_until"] == "2026-11-21T12:00:00Z"


def test_a_long_queue_is_looked_up_in_statements_of_few_parameters(api: Api) -> None:
    """PostgreSQL takes 65,535, SQLite 32,766 unless built otherwise."""
    most = 0

    def count(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        nonlocal most
        most = max(most, len(parameters)) if statement.startswith("SELECT") else most

    event.listen(api.ctx.db.engine, "before_cursor_execute", count)
    try:
        see(api, *(queued(n, NOW - timedelta(seconds=n)) for n in range(2500)))
    finally:
        event.remove(api.ctx.db.engine, "before_cursor_execute", count)
    assert 0 < most < 2500
    view = ask(api, "root", "waiting", limit=2)
    assert view["total"]["values"]["jobs"] == 2500
    assert [line["key"]["job"] for line in view["lines"]] == ["2499", "2498"]


def test_they_are_added_up_by_what_they_share(api: Api) -> None:
    see(api, *(queued(n, NOW - n * DAY, partition="cpu" if n > 2 else "gpu") for n in range(1, 5)))
    by = {
        line["key"]["partition"]: line["values"]
        for line in ask(api, "root", "waiting", by="partition")["lines"]
    }
    assert {name: (one["jobs"], one["waited"]) for name, one in by.items()} == {
        "cpu": (2, 3.5 * 86_400),
        "gpu": (2, 1.5 * 86_400),
    }
    reasons = ask(api, "root", "waiting", by="reason")["lines"]
    assert [line["key"]["reason"] for line in reasons] == ["priority"]
    assert "higher priority" in reasons[0]["values"]["why"], "what all of them say is said"
    for filters, jobs in (({"reason": "priority", "partition": "cpu"}, 2), ({"reason": "held"}, 0)):
        assert len(ask(api, "root", "waiting", **filters)["lines"]) == jobs


def test_everybody_sees_what_the_role_allows(api: Api) -> None:
    with api.ctx.db.write() as session:
        session.scalars(select(UserRow).where(UserRow.username == "ann")).one().unix_account = "kim"
    see(api, queued(1, NOW - DAY), queued(2, NOW - DAY, user="lee", account="team-b"))
    assert [line["key"]["job"] for line in ask(api, "ann", "waiting")["lines"]] == ["1"]
    assert ask(api, "eve", "waiting")["lines"] == []
    assert ask(api, "ann", "waiting", tenant="team-b")["lines"] == []


def test_of_the_brokers_own_jobs_it_says_what_the_queue_says(api: Api) -> None:
    assert api.store("ann").status_code in {200, 201}
    run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        run.phase = Phase.ACTIVE
        jobs = attempt_jobs(session, run_id, run.attempt)
        for number, row in enumerate(jobs, 71):
            row.slurm_job_id, row.state, row.submitted_at = number, JobState.PENDING, NOW - DAY
        session.execute(delete(RunHoldRow).where(RunHoldRow.run_id == run_id))
        session.add(RunHoldRow(run_id=run_id, kind="approval", reason="4 GPUs", since=NOW))
        names = [row.name for row in jobs]
    see(
        api,
        *(
            queued(n, NOW - DAY, name=name, reason="JobHeldAdmin", priority=0, user="broker")
            for n, name in enumerate(names, 71)
        ),
        queued(90, NOW - DAY, name=names[0]),
    )
    lines = {line["key"]["job"]: line for line in ask(api, "root", "waiting")["lines"]}
    assert lines["71"]["key"]["user"] == "ann"
    assert "approval" in lines["71"]["values"]["why"] and "승인" in lines["71"]["values"]["why_ko"]
    assert lines["90"]["key"]["user"] == "main:kim", "anyone may use the name of another's job"
    assert [line["key"]["job"] for line in ask(api, "ann", "waiting")["lines"]] == ["71", "72"]


def test_waiting_is_split_at_the_moment_a_job_could_start() -> None:
    now = int(NOW.timestamp())
    one = pending(queued(1, NOW - DAY), Owner(None, "team-a", "ann"))
    assert waited(one, now - 3600, now) == Waited(86_400, 82_800, 3600)
    assert waited(one, now + 60, now) == Waited(86_400, 86_400, 0), "its time has not come"
    assert waited(one, now - 90_000, now) == Waited(86_400, None, None), "an older job's: ids are recycled"
    assert waited(one, None, now) == Waited(86_400, None, None)
    for change in ({"held": True}, {"reason": "Dependency"}, {"reason": "(BeginTime)"}):
        assert waited(replace(one, **change), now - 3600, now) == Waited(86_400, 86_400, 0)
