"""The dashboards of deploy/: a real Prometheus scrapes a real broker, and every query finds something there.

There is no cluster here: what a worker would count is counted by the functions it calls (`runs.telemetry`).
There is no GPU either: DCGM's series are shown as dcgm-exporter writes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from broker import metrics
from broker.db import new_id, utcnow
from broker.errors import OutcomeUnknown, Unreachable
from broker.hosts import SshConfig, SshHost
from broker.identity import Role
from broker.notifications import Kind, notify
from broker.notifications.tables import DeliveryRow, NotificationRow
from broker.runs import telemetry
from broker.runs.states import JobState, RunState
from broker.runs.tables import JobRow, RunRow
from tests.api_support import Api, context
from tests.harness.processes import until
from tests.http_server import serving
from tests.prometheus import Prometheus, running
from tests.promql import exposed, metrics_of

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
}
QUERIES = [
    pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    for target in panel.get("targets", ())
]
VARIABLES = [
    pytest.param(item["query"]["query"], id=f"{name}: {item['name']}")
    for name, board in BOARDS.items()
    for item in board["templating"]["list"]
    if item["type"] == "query"
]
FIELDS = [
    line.split(",")[0]
    for line in (DEPLOY / "dcgm-exporter/counters.csv").read_text().splitlines()
    if not line.startswith("#")
]
LABELS = 'gpu="0",UUID="GPU-1",device="nvidia0",modelName="A100",Hostname="node1",hpc_job="42"'
DCGM = "".join(f"# TYPE {field} gauge\n{field}{{{LABELS}}} 50\n" for field in FIELDS)
CONFIG = """
global: {{ scrape_interval: 300ms, scrape_timeout: 300ms }}
scrape_configs:
  - {{ job_name: broker, static_configs: [{{ targets: ["{broker}"] }}] }}
  - {{ job_name: dcgm, static_configs: [{{ targets: ["{dcgm}"] }}] }}
"""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("dashboards")
    exporter = Starlette(routes=[Route("/metrics", lambda request: PlainTextResponse(DCGM))])
    with context(folder, metrics_public=True) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        assert api.store("ann").status_code == 201
        metrics.begin("main")
        with serving(api.app) as broker, serving(exporter) as dcgm:
            config = CONFIG.format(broker=broker.removeprefix("http://"), dcgm=dcgm.removeprefix("http://"))
            with running(folder, config) as server:
                for _ in range(2):  # a rate needs a before and an after
                    _a_day(api, folder)
                    server.await_scrapes(2)
                yield server


def _a_day(api: Api, folder: Path) -> None:
    """Something of everything: what people ask for, what a worker sees, what waits afterwards."""
    large = {"pipeline": "digits", "overrides": {"components": {"trainer": {"gpu_count": 8}}}}
    wanted = [api.call("POST", "/runs", "ann", json=large).json()["id"] for _ in range(2)]
    answer = api.call("POST", f"/approvals/{wanted[0]}/reject", "root", json={"comment": "too large"})
    assert answer.is_success, answer.text
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, wanted[1])
        for job in session.query(JobRow).where(JobRow.run_id == run.id):
            job.state, job.storing, job.ended_at = JobState.COMPLETED, "pending", utcnow()
        notify(session, Kind.CLUSTER_UNREACHABLE, None, subject="main", data={})
        notice = NotificationRow(
            id=new_id("msg"), kind=Kind.CLUSTER_UNREACHABLE, subject="main", data={}, created_at=utcnow()
        )
        session.add(notice)
        session.flush()
        late = utcnow() - timedelta(minutes=1)
        session.add(
            DeliveryRow(
                id=new_id("dlv"),
                notification_id=notice.id,
                channel="chat",
                target="ops",
                state="pending",
                next_try_at=late,
                created_at=late,
            )
        )
    _work(api, wanted[1], folder)


def _work(api: Api, run_id: str, folder: Path) -> None:
    with api.ctx.db.read() as session:
        run = session.get_one(RunRow, run_id)
        jobs = list(session.query(JobRow).where(JobRow.run_id == run_id))
    login = SshHost(SshConfig("127.0.0.1", 1, "broker", folder / "key", folder / "known_hosts"))
    for error in (None, Unreachable("no answer"), OutcomeUnknown("cut off")):
        with (
            suppress(Unreachable, OutcomeUnknown),
            telemetry.slurm_call("main", "poll"),
            telemetry.connection("main", login),
        ):
            if error is not None:
                telemetry.submission_failed(run, error)
                raise error
    telemetry.polled("main", None)
    telemetry.polled("main", utcnow(), len(jobs))
    telemetry.submitted(run, len(jobs), 2.0)
    for job in jobs:
        for state, seconds in ((job.state, 90), (JobState.TIMEOUT, 600)):
            job.state, job.ended_at = state, utcnow()
            job.started_at = job.ended_at - timedelta(seconds=seconds)
            telemetry.job_ended(run, job, ran=True)
    with telemetry.collecting():
        telemetry.stored("main", 10**6)
    telemetry.store_failed("main")
    telemetry.gpus_idle("main", 1, 3)
    run.state = RunState.SUCCEEDED
    telemetry.run_ended(run)
    telemetry.model_stored("digits", {"accuracy": 0.97, "loss": 0.1})
    metrics.DELIVERIES.labels("chat", "delivered").inc()
    metrics.SIGN_ONS.labels("ok").inc()
    metrics.REPORT_EXPORTS.labels("monthly").inc()
    metrics.REPORT_EXPORT_FAILURES.labels("monthly", "unreachable").inc()
    metrics.ACCOUNTING_READ_TO.labels("main").set(utcnow().timestamp())
    metrics.ACCOUNTING_JOBS.labels("main").inc(100)
    metrics.ACCOUNTING_BAD_ROWS.labels("main").inc()
    metrics.ACCOUNTING_FAILURES.labels("main", "unreachable").inc()
    metrics.ACCOUNTING_RUNAWAYS.labels("main").set(0)


def _filled(expression: str) -> str:
    """As Grafana sends it, with everything chosen."""
    for name, value in (("__rate_interval", "1m"), ("__range", "1m"), ("cluster", ".*"), ("host", ".*")):
        expression = re.sub(rf"\${name}\b", value, expression)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("expression", QUERIES)
def test_a_panel_reads_metrics_that_exist_and_shows_a_number(prometheus: Prometheus, expression: str) -> None:
    assert metrics_of(_filled(expression)) <= exposed() | set(FIELDS) | {"up"}

    def shows() -> bool:
        return any(math.isfinite(float(one["value"][1])) for one in prometheus.query(_filled(expression)))

    until(shows, 30, f"{expression} has a number")  # a scrape that came too late leaves none for a moment


@pytest.mark.parametrize("query", VARIABLES)
def test_a_choice_offers_something(prometheus: Prometheus, query: str) -> None:
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
    assert found is not None
    series = prometheus.ask("series", **{"match[]": found[1]})
    assert {one[found[2]] for one in series} - {""}


def test_prometheus_reads_every_series_of_the_broker_and_of_its_backlog(prometheus: Prometheus) -> None:
    names = set(prometheus.ask("label/__name__/values"))
    assert {name for name in exposed() if "oldest" in name or name.endswith("_pending")} <= names
    required = {
        "gpu_jobs_submitted_total",
        "gpu_jobs_completed_total",
        "gpu_jobs_failed_total",
        "gpu_jobs_active",
    }
    required |= {
        "gpu_job_duration_seconds_bucket",
        "file_transfer_duration_seconds_bucket",
        "user_jobs_total",
    }
    required |= {
        "cluster_connections_active",
        "gpu_hours_total",
        "model_final_accuracy",
        "training_final_loss",
    }
    assert required <= names


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_a_dashboard_is_one_that_grafana_can_load(board: dict[str, Any]) -> None:
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels) and board["uid"] and board["schemaVersion"] >= 39
    offered = {item["name"] for item in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval", "__range", "__all"}
    assert used == offered
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken
        taken |= cells


def test_the_exposition_is_one_that_prometheus_parses_with_each_family_once(tmp_path: Path) -> None:
    with context(tmp_path, metrics_public=True) as ctx:
        text = Api(ctx).call("GET", "/metrics").text
    families = [family.name for family in text_string_to_metric_families(text)]
    assert len(families) == len(set(families))


def test_a_database_that_is_silent_is_said_and_nothing_is_made_up(tmp_path: Path) -> None:
    with context(tmp_path, metrics_public=True) as ctx:
        api = Api(ctx)
        with ctx.db.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE deliveries RENAME TO elsewhere")
        text = api.call("GET", "/metrics").text
    assert "\nbroker_database_up 0.0\n" in text
    assert "broker_outbox_pending" not in text and "broker_approvals_pending" not in text
