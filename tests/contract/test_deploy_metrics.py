"""The metrics that alarms depend on: a worker's own page, what waits, whose fault a failed submission is."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from broker.db import leases, utcnow
from broker.errors import ConfigurationError, Unreachable
from broker.identity import Role
from broker.notifications import Kind, notify
from broker.runs.states import Phase
from broker.runs.submission import Submitter
from broker.runs.tables import JobRow, RunRow
from broker.runs.tracking import Tracker
from broker.settings import Settings
from broker.worker.exposing import exposed
from tests.api_support import Api, context, worker_lease
from tests.harness.processes import Process, free_port, until
from tests.harness.product import BROKER
from tests.postgres import database_of

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path, url, metrics_public=True) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        assert api.store("ann").status_code == 201
        yield api


def read(text: str) -> Samples:
    """What Prometheus would take from a page."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def ask(api: Api, gpus: int = 1) -> str:
    wish = {"pipeline": "digits", "overrides": {"components": {"trainer": {"gpu_count": gpus}}}}
    answer = api.call("POST", "/runs", "ann", json=wish)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def login_node(folder: Path) -> dict[str, object]:
    """A cluster whose login node nobody answers for, and whose key lets nobody in."""
    for name in ("key", "known_hosts"):
        (folder / name).write_text("")
        (folder / name).chmod(0o600)
    return {
        "ssh_host": "127.0.0.1",
        "ssh_port": 1,
        "ssh_key_file": str(folder / "key"),
        "ssh_known_hosts": str(folder / "known_hosts"),
    }


def test_what_waits_has_its_time_and_what_does_not_wait_has_none(api: Api) -> None:
    before = read(api.call("GET", "/metrics").text)
    assert value(before, "broker_database_up") == 1 and value(before, "broker_approvals_pending") == 0
    assert not [name for name, _ in before if "_oldest_" in name]

    began = utcnow().timestamp()
    ask(api)
    ask(api, gpus=8)
    with api.ctx.db.write() as session:
        job = session.query(JobRow).first()
        assert job is not None
        job.storing, job.ended_at = "pending", utcnow() - timedelta(hours=2)
        notify(session, Kind.CLUSTER_UNREACHABLE, None, subject="main", data={})
        running = session.query(JobRow).filter(JobRow.id != job.id).first()
        assert running is not None
        running.state, running.stalled_since = "RUNNING", utcnow()
    after = read(api.call("GET", "/metrics").text)
    assert value(after, "broker_runs_open", cluster="main", phase="preparing") == 2
    assert value(after, "broker_approvals_pending") == 1
    assert value(after, "broker_jobs_stalled", cluster="main") == 1
    assert value(after, "broker_results_pending", cluster="main") == 1
    stored = value(after, "broker_results_oldest_timestamp_seconds", cluster="main")
    assert stored is not None and stored == pytest.approx(began - 7200, abs=60)
    for name, labels in (
        ("broker_submission_oldest_timestamp_seconds", {"cluster": "main"}),
        ("broker_approvals_oldest_timestamp_seconds", {}),
        ("broker_outbox_oldest_timestamp_seconds", {"stage": "new"}),
    ):
        assert value(after, name, **labels) == pytest.approx(began, abs=60)


def test_a_decision_counts_how_long_it_took(api: Api) -> None:
    run_id = ask(api, gpus=8)
    with api.ctx.db.write() as session:
        session.get_one(RunRow, run_id).approval_requested_at = utcnow() - timedelta(hours=1)
    labels = {"decision": "rejected"}
    before = REGISTRY.get_sample_value("broker_approval_wait_seconds_sum", labels) or 0.0
    assert api.call("POST", f"/approvals/{run_id}/reject", "root", json={"comment": "no"}).is_success
    after = REGISTRY.get_sample_value("broker_approval_wait_seconds_sum", labels)
    assert after is not None and after - before == pytest.approx(3600, abs=60)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_submission_that_fails_is_counted_by_who_can_mend_it_unless_it_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    labels = {"cluster": "main", "code": "unreachable", "mender": "time"}
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("ann")
        api.store("ann")
        run_id = ask(api)
        with ctx.db.write() as session:
            session.get_one(RunRow, run_id).cancel_requested_at = utcnow() if cancelled else None
        lease = worker_lease(ctx)
        submitter = Submitter(ctx, "main", lease)

        def nobody(*_: object, **__: object) -> None:  # the one thing that a cluster would do
            raise Unreachable("no answer")

        monkeypatch.setattr(ctx, "host_for", nobody)
        monkeypatch.setattr(ctx, "slurm", nobody)
        monkeypatch.setattr(ctx, "host", nobody)
        before = REGISTRY.get_sample_value("broker_submission_failures_total", labels) or 0.0
        submitter.advance(run_id)
        after = REGISTRY.get_sample_value("broker_submission_failures_total", labels) or 0.0
        assert after - before == (0 if cancelled else 1)
        with ctx.db.read() as session:
            assert session.get_one(RunRow, run_id).phase in {Phase.PREPARING, Phase.ACTIVE, Phase.DONE}


def test_a_look_that_fails_still_says_how_long_the_queue_for_the_connection_is(tmp_path: Path) -> None:
    """With a private name: gauges of one process are shared by its tests."""
    with context(tmp_path, clusters={"dark": login_node(tmp_path)}) as ctx:
        lease = leases.acquire(ctx.db, "worker:dark", "test", 3600)
        assert lease is not None
        Tracker(ctx, "dark", lease).tick()
    assert REGISTRY.get_sample_value("broker_poll_failures_total", {"cluster": "dark"}) == 1
    assert REGISTRY.get_sample_value("broker_ssh_waiting", {"cluster": "dark"}) == 0
    assert REGISTRY.get_sample_value("cluster_connections_active", {"cluster": "dark"}) == 0
    assert REGISTRY.get_sample_value("broker_poll_timestamp_seconds", {"cluster": "dark"}) is None


def test_a_worker_by_itself_shows_its_metrics_from_the_first_one_on(tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "data"
    with context(data):  # a database with its tables
        pass
    env = {name: text for name, text in os.environ.items() if not name.startswith(("BROKER_", "PROMETHEUS_"))}
    node = login_node(tmp_path)
    store = {"access_key_file": node["ssh_key_file"], "secret_key_file": node["ssh_key_file"]}
    env |= {
        "BROKER_DATA_DIR": str(data),
        "BROKER_WORKER_METRICS_PORT": str(port),
        "BROKER_CLUSTERS": json.dumps({"main": node}),
        "BROKER_S3": json.dumps(store | {"endpoint_url": "http://127.0.0.1:9"}),
    }
    worker = Process("worker", [str(BROKER), "worker"], env, tmp_path / "worker.log")

    def failed_looks() -> float:
        assert worker.alive, worker.tail()
        try:
            page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False)
        except httpx.TransportError:
            return 0.0
        seen.update(read(page.text))
        return value(seen, "broker_poll_failures_total", cluster="main") or 0.0

    seen: Samples = {}
    try:
        until(lambda: failed_looks() >= 1, 60, "a look has failed", 0.2)
    finally:
        worker.stop()
    assert (
        value(seen, "broker_submission_failures_total", cluster="main", code="configuration", mender="admin")
        == 0
    )
    assert value(seen, "gpu_jobs_submitted_total", cluster="main") == 0


def test_a_port_that_is_taken_is_named_with_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(worker_metrics_port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="worker_metrics_port"), exposed(settings):
            pass


def test_without_a_port_a_worker_listens_nowhere() -> None:
    with exposed(Settings()) as port:
        assert port is None
