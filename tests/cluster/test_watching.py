"""Watching real runs: progress, live logs over a restart, silence, one id through every log, metrics.

One broker whose settings make an hour a few seconds; the runs of all tests go at the same time.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.cluster.conftest import DevCluster
from tests.harness.client import Client, Json, of
from tests.harness.cluster import Cluster
from tests.harness.processes import free_port, until
from tests.harness.product import Broker
from tests.harness.specs import component, model, pipeline
from tests.harness.truth import assert_each_job_once, history

pytestmark = pytest.mark.cluster

LINES = 60
WORKER_PORT = free_port()
REQUEST = "watching-a-real-run"
# Ten lines a second; at half of them it waits for the test, with progress as its only sign of life.
TALKER = f"""
say() {{ printf '{{"step": %d, "total": 1000, "loss": 0.5}}' "$1" > "$PROGRESS_FILE.new"
         mv "$PROGRESS_FILE.new" "$PROGRESS_FILE"; }}
i=0
while [ "$i" -lt {LINES} ]; do
    i=$((i + 1)); say "$i"
    if [ $((i % 20)) = 0 ]; then echo "ERROR line $i 잃음"; else echo "INFO line $i"; fi
    [ "$i" != {LINES // 2} ] || until [ -e "$CHECKPOINT_DIR/go" ]; do say "$i"; sleep 0.2; done
    sleep 0.1
done
"""
SAID = [f"ERROR line {i} 잃음" if i % 20 == 0 else f"INFO line {i}" for i in range(1, LINES + 1)]


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    quick = {
        "watch_interval_s": 0.4,
        "heartbeat_timeout_s": 4,
        "heartbeat_grace_s": 1,
        "max_auto_retries": 1,
    }
    home = tmp_path_factory.mktemp("broker")
    on = Cluster(cluster.name)
    with Broker(home, on, cluster_settings=quick, worker_metrics_port=WORKER_PORT) as started:
        yield started


@pytest.fixture(scope="module")
def client(broker: Broker) -> Client:
    return broker.client


@dataclass(frozen=True)
class Runs:
    """Started together; none depends on another."""

    talker: str
    silent_once: str
    always_silent: str


@pytest.fixture(scope="module", autouse=True)
def runs(client: Client) -> Runs:
    gpu = {"gpu_type": "V100", "gpu_count": 1, "time": "5m"}
    ends = model('{"accuracy": 0.9, "final_loss": 0.25}')
    talker = pipeline([component("talker", TALKER + ends, resources=gpu)])
    once = pipeline([component("sleeper", f'echo up; [ "$ATTEMPT" = 2 ] || exec sleep 600; {ends}')])
    always = pipeline([component("sleeper", "echo up; exec sleep 600")])
    client.store(talker)
    headers = {"X-Request-ID": REQUEST, "Idempotency-Key": REQUEST}
    asked = client.send("POST", "/runs", json={"pipeline": talker["pipeline_id"]}, headers=headers)
    assert asked.status_code == 201 and asked.headers["X-Request-ID"] == REQUEST, asked.text
    return Runs(asked.json()["id"], client.start(once), client.start(always))


@dataclass
class Follower:
    """Reads a log live until it is complete; comes again where it was whenever the connection breaks."""

    broker: Broker
    run_id: str
    by: str
    said: list[str] = field(default_factory=list)
    connections: int = 0
    place: int = 0
    complete: bool = False
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> Follower:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(30)

    def _read(self) -> None:
        for _ in range(1000):
            if self.complete:
                return
            with suppress(httpx.TransportError, WebSocketException, OSError, TimeoutError):
                (self._stream if self.by == "sse" else self._socket)()
            threading.Event().wait(0.05)  # the API is starting: there is nobody to wait for

    def _take(self, piece: Json) -> None:
        self.said += [line["text"] for line in piece["lines"]]
        self.place, self.complete = piece["next_offset"], piece["complete"]

    @property
    def _logs(self) -> str:
        return f"/api/v1/runs/{self.run_id}/components/talker/logs"

    @property
    def _token(self) -> dict[str, str]:
        return {"Authorization": self.broker.client.http.headers["Authorization"]}

    def _stream(self) -> None:
        headers = self._token | {"Last-Event-ID": str(self.place)}
        url = f"{self.broker.url}{self._logs}/stream"
        with httpx.stream("GET", url, headers=headers, timeout=httpx.Timeout(5, read=30)) as answer:
            if answer.status_code == 200:
                self.connections += 1
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        self._take(json.loads(line.removeprefix("data: ")))

    def _socket(self) -> None:
        url = f"{self.broker.url.replace('http', 'ws')}{self._logs}/ws?offset={self.place}"
        with connect(url, additional_headers=self._token, open_timeout=5, proxy=None) as socket:
            self.connections += 1
            while not self.complete:
                self._take(json.loads(socket.recv(30)))


def test_a_log_arrives_live_in_order_and_exactly_once_over_a_restart_of_the_server(
    broker: Broker, client: Client, runs: Runs
) -> None:
    half = SAID[: LINES // 2]
    client.wait_for(runs.talker, of("job_started", "talker"))
    with Follower(broker, runs.talker, "sse") as stream, Follower(broker, runs.talker, "ws") as socket:
        both = (stream, socket)
        until(lambda: all(one.said == half for one in both), 40, "half of the log has arrived", 0.1)
        _progress_is_shown(client, runs.talker)
        broker.kill("api")
        broker.start("api")
        until(lambda: all(one.connections > 1 for one in both), 30, "both readers have come again", 0.1)
        broker.open_gate(runs.talker, "talker")
        until(lambda: all(one.complete for one in both), 60, "the log is complete", 0.1)
    assert stream.said == SAID
    assert socket.said == SAID
    client.succeed(runs.talker)


def _progress_is_shown(client: Client, run_id: str) -> None:
    """While it waits: what it reports, and an end that follows from its speed until then."""

    def shown() -> Any:
        job = client.jobs(run_id)["talker"]
        return job if (job["progress"] or {}).get("step") == LINES // 2 else None

    until(lambda: shown() is not None, 20, "the progress is shown", 0.1)
    job = shown()
    progress, end = job["progress"], job["expected_end"]
    assert (progress["total"], progress["source"], progress["values"]) == (1000, "file", {"loss": 0.5})
    assert end["source"] == "progress" and end["at"] == progress["expected_end"]
    limit = datetime.fromisoformat(end["limit"]) - datetime.fromisoformat(job["started_at"])
    assert limit.total_seconds() == 300 and end["at"] < end["limit"]
    assert job["stalled_since"] is None


def test_a_stored_log_is_searched_by_level_and_text(client: Client, runs: Runs) -> None:
    client.succeed(runs.talker)
    path = f"/runs/{runs.talker}/components/talker/logs/lines"
    found = client.get(path, level="error")
    assert (found["source"], found["complete"]) == ("store", True)
    assert [line["text"] for line in found["lines"]] == [line for line in SAID if "ERROR" in line]
    assert [line["text"] for line in client.get(path, q="LINE 40 잃음")["lines"]] == ["ERROR line 40 잃음"]
    assert client.get(path, level="error", q="line 41")["lines"] == []


def test_silence_is_flagged_and_the_component_is_tried_again_exactly_once(
    broker: Broker, client: Client, runs: Runs
) -> None:
    run = client.succeed(runs.silent_once)
    assert run["attempt"] == 2
    first = client.jobs(runs.silent_once, attempt=1)["sleeper"]
    assert (first["state"], first["failure_class"]) == ("FAILED", "temporary")
    told = [event.type for event in history(broker, runs.silent_once)]
    order = [
        "job_started",
        "job_stalled",
        "job_ended_for_silence",
        "job_failed",
        "run_retried",
        "model_ready",
    ]
    assert [kind for kind in told if kind in order] == [*order[:5], "job_started", order[5]]


def test_what_is_silent_again_fails_and_says_what_to_do(broker: Broker, client: Client, runs: Runs) -> None:
    run = client.finish(runs.always_silent)
    assert (run["state"], run["attempt"], run["error_code"]) == ("failed", 2, "job_temporary")
    assert "PROGRESS_FILE" in run["error"]
    assert assert_each_job_once(broker, [runs.talker, runs.silent_once, runs.always_silent]) == 5


def _log(broker: Broker, part: str, **ids: str) -> dict[str, Json]:
    """The lines of a process's log with these ids, by event; of several the last."""
    lines = (broker.home / f"{part}.log").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return {row["event"]: row for row in rows if ids.items() <= row.items()}


def test_one_id_finds_a_run_in_every_log(broker: Broker, client: Client, runs: Runs) -> None:
    run = client.succeed(runs.talker)
    assert run["request_id"] == REQUEST
    api = _log(broker, "api", request_id=REQUEST)
    assert api["request"]["path"] == "/api/v1/runs" and api["run_requested"]["run_id"] == runs.talker
    worker = _log(broker, "worker", request_id=REQUEST)
    assert worker.keys() == _log(broker, "worker", run_id=runs.talker).keys()
    assert all(line["run_id"] == runs.talker for line in worker.values())
    assert {"run_prepared", "remote_command", "run_released", "run_finished", "model_ready"} <= worker.keys()
    job = run["jobs"][0]
    about = {"process_id": job["slurm_job_id"], "component": "talker", "attempt": 1}
    fields: dict[str, Json] = {
        "job_submitted": {"gpu_count": 1, "estimated_duration": 300},
        "job_started": {"cluster_path": f"{runs.talker}/talker", "nodes": job["nodes"]},
        "job_completed": {"final_metrics": {"accuracy": 0.9, "final_loss": 0.25}},
        "results_stored": {"files": job["stored_files"], "bytes": job["stored_bytes"]},
    }
    for event, more in fields.items():
        assert (about | more).items() <= worker[event].items(), worker[event]
    assert worker["job_submitted"]["user_id"] == api["run_requested"]["user_id"]
    assert worker["job_completed"]["duration"] >= LINES * 0.1
    assert len({worker[event]["job_id"] for event in fields}) == 1
    failed = _log(broker, "worker", run_id=runs.always_silent)["job_failed"]
    assert failed["state"] == "FAILED" and failed["duration"] >= 4


def _samples(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(httpx.get(url, timeout=10).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_required_metric_counted_what_really_happened(
    broker: Broker, client: Client, runs: Runs
) -> None:
    talker = client.succeed(runs.talker)
    for run_id in (runs.silent_once, runs.always_silent):
        client.finish(run_id)
    seen = _samples(f"http://127.0.0.1:{WORKER_PORT}/metrics")
    cluster = {"cluster": broker.cluster.name}
    user = _log(broker, "api", run_id=runs.talker)["run_requested"]["user_id"]
    hours = sum(value for labels, value in seen["gpu_hours_total"] if labels["gpu_type"] == "V100")
    assert (cluster, 5.0) in seen["gpu_jobs_submitted_total"]
    assert ({"user_id": user}, 5.0) in seen["user_jobs_total"]
    assert (cluster, 2.0) in seen["gpu_jobs_completed_total"]
    assert (cluster | {"state": "FAILED"}, 3.0) in seen["gpu_jobs_failed_total"]
    assert (cluster, 5.0) in seen["gpu_job_duration_seconds_count"]
    assert (cluster, 0.0) in seen["gpu_jobs_active"]
    assert [labels for labels, value in seen["cluster_connections_active"] if value >= 0] == [cluster]
    assert ({"direction": "collect"}, 5.0) in seen["file_transfer_duration_seconds_count"]
    assert 0.9 in [value for _labels, value in seen["model_final_accuracy"]]
    assert 0.25 in [value for _labels, value in seen["training_final_loss"]]
    began, ended = (datetime.fromisoformat(talker["jobs"][0][of]) for of in ("started_at", "ended_at"))
    assert hours == pytest.approx((ended - began).total_seconds() / 3600)
    own = _samples(f"{broker.url}/metrics")
    assert own["broker_database_up"] == [({}, 1.0)] and "broker_runs_open" not in own  # all have ended
    assert any(labels["route"].endswith("/logs/stream") for labels, _ in own["broker_http_requests_total"])
