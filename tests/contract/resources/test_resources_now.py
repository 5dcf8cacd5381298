"""What the clusters have now: seen once per poll, read by anybody, asked of no Slurm."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import func, select

from broker.accounting.tables import AccountingCursorRow
from broker.cli import main
from broker.db import utcnow
from broker.db.leases import LeaseLost
from broker.errors import Unreachable
from broker.hosts import Completed
from broker.resources import dcgm
from broker.resources.snapshot import Amounts
from broker.resources.tables import ResourceRow
from broker.runs.tables import ClusterRow, RunRow
from broker.slurm.cluster import Capabilities, ReadConfig
from broker.slurm.versions import Version
from tests.api_support import Api, context
from tests.resources import World, emulated
from tests.serving import served


def test_a_thousand_nodes_are_one_question_per_tick_whatever_the_number_of_readers(world: World) -> None:
    world.host.nodes = emulated(1000)
    began = time.process_time()
    world.tick()
    took = time.process_time() - began
    assert len(world.host.asked) == 1

    def read(who: str) -> float:
        start = time.perf_counter()
        shown = world.get("/resources", who)["items"][0]
        seconds = time.perf_counter() - start
        assert sum(gpu["total"] for gpu in shown["gpus"]) == 4000
        world.get("/resources/history", who, by="partition")
        return seconds

    with ThreadPoolExecutor(50) as readers:
        together = list(readers.map(read, ("root", "ann", "eye", "bob", "amy") * 10))
    assert world.get("/resources/nodes", "root", limit=5000)["total"] == 1000
    assert len(world.host.asked) == 1, "fifty people read, nobody asked"
    world.tick()
    assert len(world.host.asked) == 2
    alone = read("root")
    print(f"\n1000 nodes: a look costs {took * 1000:.0f} ms of CPU; GET /resources {alone * 1000:.1f} ms,")
    print(f"with 50 readers at once {max(together) * 1000:.0f} ms at most")


def test_the_list_of_clusters_says_its_slurm_its_gpus_and_the_age_of_its_accounting(
    world: World,
) -> None:
    with world.ctx.db.write() as session:
        session.add(ClusterRow(name="main", polled_at=utcnow()))
        read = {"settled_to": 1_800_000_000, "read_to": 1_800_000_000, "window_s": 3600, "jobs": 0}
        session.add(AccountingCursorRow(cluster="main", bad_rows=0, updated_at=utcnow(), **read))
    world.tick()
    (unasked,) = world.get("/clusters", "ann")["items"]
    assert unasked["slurm_version"] is None, "nobody needed to know, and nobody asked for this"
    assert unasked["gpu_types"] == ["a100", "v100"] and unasked["accounting_at"] == "2027-01-15T08:00:00Z"
    config = ReadConfig().parse(Completed(0, b"ClusterName = dev\n", b""))
    world.ctx.slurm("main")._capabilities = Capabilities(Version(24, 11, 5), config, (), "broker")
    world.tick()
    (asked,) = world.get("/clusters", "ann")["items"]
    assert asked["slurm_version"] == "24.11.5" and len(world.host.asked) == 2


def test_a_cluster_whose_queue_was_not_seen_is_not_asked_for_its_nodes(world: World) -> None:
    world.keeper.tick()
    assert world.host.asked == []
    assert world.get("/resources") == {"items": [], "unseen": ["main"]}
    assert world.api.call("GET", "/resources/nodes", "ann").status_code == 404


def test_what_was_seen_stays_and_grows_old_when_slurm_is_silent(world: World) -> None:
    world.tick()
    before = world.get("/resources")["items"][0]
    world.host.silent = True
    with pytest.raises(Unreachable):
        world.tick()
    after = world.get("/resources")["items"][0]
    assert after["taken_at"] == before["taken_at"] and after["age_s"] >= before["age_s"]


def test_a_worker_that_lost_its_lease_changes_nothing(world: World) -> None:
    world.tick()
    before = world.get("/resources")["items"][0]["taken_at"]
    world.lease.lost.set()
    with pytest.raises(LeaseLost):
        world.tick()
    assert world.get("/resources")["items"][0]["taken_at"] == before


def test_nodes_show_the_runs_one_may_see_and_count_the_others(world: World) -> None:
    mine, hers, theirs = (world.run_of(who, number) for who, number in (("ann", 1), ("amy", 2), ("bob", 3)))
    world.tick(*(world.queue_job(number, "n0") for number in (1, 2, 3, 4)))
    for who, runs, others in (
        ("ann", [mine], 3),
        ("eye", [mine, hers], 2),
        ("bob", [theirs], 3),
        ("root", [mine, hers, theirs, None], 0),
    ):
        node = world.get("/resources/nodes", who)["items"][0]
        assert ([job["run_id"] for job in node["jobs"]], node["other_jobs"]) == (runs, others), who
    assert mine not in world.api.call("GET", "/resources/nodes", "bob").text


def test_a_job_that_only_carries_our_number_is_not_ours(world: World) -> None:
    run_id = world.run_of("ann", 1)
    stranger = world.queue_job(99, "n0", name="strange")
    world.tick(stranger)
    assert run_id not in world.api.call("GET", "/resources/nodes", "root").text


def test_nodes_are_found_by_state_and_partition_with_slurms_reason(world: World) -> None:
    world.tick()
    drained = world.get("/resources/nodes", state="Drain", partition="a100")
    assert {node["state"] for node in drained["items"]} == {"Drain"} and drained["total"] == 2
    assert drained["items"][0]["slurm_state"] == "IDLE+DRAIN"
    assert drained["items"][0]["reason"].startswith("bad fan")
    assert world.get("/resources/nodes", limit=5, offset=10)["total"] == 12


class Prometheus(BaseHTTPRequestHandler):
    """Answers one query. A stand-in: the real one needs GPUs to scrape."""

    asked: list[str]
    status = 200

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        series = {"metric": {"Hostname": "n0", "UUID": "GPU-a", "gpu": "0"}, "value": [1.0, "50"]}
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": [series]}})
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_gpus_are_measured_by_prometheus_and_unknown_when_it_is_silent(tmp_path: Path) -> None:
    Prometheus.asked, Prometheus.status = [], 200
    with HTTPServer(("127.0.0.1", 0), Prometheus) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with context(tmp_path, clusters={"main": {"transport": "local", "prometheus_url": url}}) as ctx:
                world = World(Api(ctx), 12)
                world.tick()
                a100 = world.get("/resources")["items"][0]["gpus"][0]
                assert (a100["used"], a100["measured"], a100["source"]) == (0.5, 1, "dcgm"), "not of all 4"
                Prometheus.status = 500
                world.tick()
                world.tick()  # left alone for a while
                a100 = world.get("/resources")["items"][0]["gpus"][0]
                assert (a100["used"], a100["source"]) == (None, None)
        finally:
            server.shutdown()
            thread.join()
    queries = [parse_qs(urlsplit(path).query)["query"] for path in Prometheus.asked]
    assert queries == [[dcgm.QUERY]] * 2


def test_the_command_shows_amounts_nodes_and_use(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = world.run_of("ann", 1)
    world.tick(world.queue_job(1, "n0"))
    with served(world.api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", world.api.tokens["ann"])

        def call(*words: str) -> str:
            assert main(["resources", *words]) == 0
            return capsys.readouterr().out

        for words in ("a100", "v100", "memory, GiB", "drained", "unknown", "█"):
            assert words in call()
        assert run_id in call("--nodes") and "bad fan" in call("--state", "Drain")
        assert "a100" in call("--days", "1", "--by", "gpu_type")
        memory = call("--days", "1", "--by", "partition", "--resource", "memory")
        assert "ALLOCATED GiB" in memory and "1024.0" in memory, "amounts of memory are GiB in every table"
        assert json.loads(call("--days", "1", "--by", "tenant", "--json"))["series"][0]["name"] == "red"
        assert json.loads(call("--json"))["items"][0]["cluster"] == "main"
        for words in (("--by", "tenant"), ("--resource", "cpu"), ("--nodes", "--days", "1")):
            assert main(["resources", *words]) == 2, "an option that would be passed over is refused"
            assert "--days" in capsys.readouterr().err


def test_what_is_stored_is_what_was_seen(world: World) -> None:
    world.tick()
    with world.ctx.db.read() as session:
        row = session.get_one(ResourceRow, "main")
        assert set(row.summary["cluster"]) == set(asdict(Amounts()))
        assert session.scalar(select(func.count()).select_from(RunRow)) == 0
