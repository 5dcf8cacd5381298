"""Resources on a real database: one question to Slurm per tick, whoever reads, and what is shown to whom.

Slurm is not here: a host answers `scontrol show node` with a recording of a real one, its nodes multiplied.
Prometheus is an HTTP server of ours that gives the form of its documentation.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import func, insert, select

from broker.cli import main
from broker.db import leases, utcnow
from broker.db.leases import LeaseLost
from broker.errors import Unreachable
from broker.hosts import Completed, LocalHost
from broker.identity import Role
from broker.resources import dcgm, samples
from broker.resources.keeper import ResourceKeeper
from broker.resources.samples import (
    DAY,
    HOUR,
    forget_samples,
    history,
    keep_samples,
    samples_of,
    step_for,
    tenants_amounts,
)
from broker.resources.snapshot import Amount, Amounts, Look
from broker.resources.tables import ResourceRow, SampleRow
from broker.runs.tables import JobRow, RunRow
from broker.settings import ResourceSettings
from broker.slurm import QueueJob, QueueSnapshot, SlurmClient, SlurmState, parse_tres
from tests.api_support import Api, context, spec
from tests.postgres import fresh_database
from tests.serving import served

RECORDED = json.loads((Path(__file__).parent / "recordings/26.05.5/nodes.json").read_text(encoding="utf-8"))[
    "stdout"
].splitlines()
START = datetime(2026, 3, 1, tzinfo=UTC)
BOTH = pytest.mark.parametrize("world", ["sqlite", "postgres"], indirect=True)


def emulated(count: int) -> bytes:
    """The recorded nodes again and again under other names."""
    lines = (RECORDED[n % len(RECORDED)] for n in range(count))
    named = (re.sub(r"NodeName=\S+", f"NodeName=n{n}", line, count=1) for n, line in enumerate(lines))
    return ("\n".join(named) + "\n").encode()


class Login(LocalHost):
    """A login node that answers `scontrol show node`, counts what it was asked, and runs nothing else."""

    def __init__(self, nodes: bytes) -> None:
        super().__init__()
        self.nodes, self.asked, self.silent = nodes, [], False

    asked: list[list[str]]

    def run(
        self, argv: Sequence[str], *, stdin: Any = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        self.asked.append(list(argv))
        if self.silent:
            raise Unreachable("no route")
        assert argv[-4:] == ["-o", "-d", "show", "node"], argv
        return Completed(0, self.nodes, b"")


class World:
    """One cluster with emulated nodes, a keeper, and the API on the same database."""

    def __init__(self, api: Api, nodes: int) -> None:
        self.api, self.ctx = api, api.ctx
        self.host = Login(emulated(nodes))
        self.ctx._hosts["main"] = self.host
        self.ctx._slurm["main"] = SlurmClient(self.host)
        lease = leases.acquire(self.ctx.db, "worker:main", "test", 3600)
        assert lease is not None
        self.lease = lease
        self.keeper = ResourceKeeper(self.ctx, "main", lease)
        for name, role, tenant in (
            ("root", Role.ADMIN, "default"),
            ("ann", Role.RESEARCHER, "red"),
            ("amy", Role.RESEARCHER, "red"),
            ("eye", Role.VIEWER, "red"),
            ("bob", Role.RESEARCHER, "blue"),
        ):
            api.add(name, role, tenant)

    def run_of(self, who: str, number: int) -> str:
        """A run whose trainer Slurm runs under `number`."""
        pipeline = self.api.store(who, spec(pipeline_id=f"{who}-digits", name=who)).json()["pipeline"]["id"]
        run_id: str = self.api.call("POST", "/runs", who, json={"pipeline": pipeline}).json()["id"]
        with self.ctx.db.write() as session:
            job = session.scalars(
                select(JobRow).where(JobRow.run_id == run_id, JobRow.component == "trainer")
            ).one()
            job.slurm_job_id, job.state = number, "RUNNING"
        return run_id

    def queue_job(self, number: int, node: str, name: str = "strange", gpus: int = 2) -> QueueJob:
        with self.ctx.db.read() as session:
            ours = session.scalar(select(JobRow.name).where(JobRow.slurm_job_id == number))
        return QueueJob(
            job_id=number,
            name=ours or name,
            state=SlurmState.RUNNING,
            reason="None",
            user="broker",
            account="red",
            qos="training",
            partition="gpu",
            submit=START,
            start=START,
            end=None,
            time_limit_s=3600,
            nodes=(node,),
            node_count=1,
            cpus=4,
            tres=parse_tres(f"cpu=4,mem=8G,node=1,gres/gpu={gpus},gres/gpu:a100={gpus}"),
            priority=1,
            nice=0,
            dependency="",
            restart_count=0,
        )

    def tick(self, *jobs: QueueJob) -> None:
        self.keeper.see(QueueSnapshot(utcnow(), jobs))
        self.keeper.tick()

    def get(self, path: str, who: str = "root", **query: Any) -> Any:
        answer = self.api.call("GET", path, who, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


NUMBER = itertools.count()


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    url = None
    if getattr(request, "param", "sqlite") == "postgres":
        url = fresh_database(request.getfixturevalue("postgres_url"), f"resources{next(NUMBER)}")
    with context(tmp_path / "data", url) as ctx:
        made = Api(ctx)
        with made.http:
            yield World(made, 12)


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


@BOTH
def test_a_tenants_part_is_a_mean_over_all_looks_and_its_own_people_see_it(world: World) -> None:
    world.run_of("ann", 1)
    look = Look(amounts(8, 4), {}, ())
    with world.ctx.db.write() as session:
        for minute in range(4):
            have = [("red", 8, 4, 1024)] if minute % 2 else []
            at = START + timedelta(minutes=minute)
            keep_samples(session, list(samples_of("main", at, look, tenants_amounts(have))))
    span = {"since": START.isoformat(), "until": (START + timedelta(hours=1)).isoformat(), "step": "hour"}
    (series,) = world.get("/resources/history", "ann", by="tenant", **span)["series"]
    assert series["name"] == "red" and series["points"][0]["allocated"] == 4
    assert world.get("/resources/history", "bob", by="tenant", **span)["series"] == []
    assert world.get("/resources/history", "root", by="tenant", name="red", **span)["series"] == [series]
    assert (
        world.api.call("GET", "/resources/history", "bob", params={"by": "tenant", "name": "red"}).status_code
        == 404
    )


def amounts(total: int, allocated: int, used: float | None = None, measured: int = 0) -> Amounts:
    gpu = Amount(total=total, allocated=allocated, idle=total - allocated)
    gpu.measure(used, measured or total, "dcgm")
    return Amounts(gpus={"a100": gpu})


@BOTH
def test_hours_are_the_means_of_their_looks_and_unknown_use_does_not_lower_the_mean(world: World) -> None:
    with world.ctx.db.write() as session:
        for minute, used in enumerate([2.0, None, 4.0]):
            look = Look(amounts(8, minute * 4, used), {}, ())
            keep_samples(session, list(samples_of("main", START + timedelta(minutes=minute), look, {})))
    until = START + timedelta(days=1)
    with world.ctx.db.read() as session:
        raw = history(session, "main", "gpu_type", "gpu", START, until, 0)
        (hour,) = history(session, "main", "gpu_type", "gpu", START, until, HOUR)
        (day,) = history(session, "main", "cluster", "gpu", START, until, DAY)
        cpu = history(session, "main", "cluster", "cpu", START, until, HOUR)
    assert [point.used for point in raw] == [2.0, None, 4.0]
    assert (hour.name, hour.at, hour.total, hour.allocated, hour.used) == ("a100", START, 8, 4, 3.0)
    assert (day.at, day.allocated) == (START, 4)
    assert cpu[0].used is None


@BOTH
def test_use_over_time_says_on_how_much_it_was_measured(world: World) -> None:
    """Jobs' samplers on one node of many: 2 of the 4 GPUs that were looked at, not of 80."""
    with world.ctx.db.write() as session:
        for minute, (used, measured) in enumerate([(2.0, 4), (None, 0), (3.0, 6)]):
            look = Look(amounts(80, 40, used, measured), {}, ())
            keep_samples(session, list(samples_of("main", START + timedelta(minutes=minute), look, {})))
    span = {"since": START.isoformat(), "until": (START + timedelta(hours=1)).isoformat()}
    (raw,) = world.get("/resources/history", "ann", by="gpu_type", step="raw", **span)["series"]
    assert [(point["used"], point["measured"]) for point in raw["points"]] == [(2, 4), (None, 0), (3, 6)]
    (series,) = world.get("/resources/history", "ann", step="hour", **span)["series"]
    (point,) = series["points"]
    assert (point["used"], point["measured"], point["total"]) == (2.5, 5, 80)


@BOTH
def test_looks_are_kept_at_the_interval_and_forgotten_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.tick()
    world.tick()  # within the interval
    with world.ctx.db.write() as session:
        kept = select(func.count(func.distinct(SampleRow.at))).where(SampleRow.step_s == 0)
        assert session.scalar(kept) == 1
        row = session.get_one(ResourceRow, "main")
        row.sampled_at = utcnow() - timedelta(seconds=301)
    later = utcnow() + timedelta(seconds=1)  # the key of a look is its second
    monkeypatch.setattr("broker.resources.keeper.utcnow", lambda: later)
    world.tick()
    with world.ctx.db.write() as session:
        assert session.scalar(kept) == 2
        forget_samples(session, "main", ResourceSettings(), utcnow() + timedelta(days=8))
        assert session.scalar(kept) == 0
        hours = select(func.count()).select_from(SampleRow).where(SampleRow.step_s == HOUR)
        assert session.scalar(hours)
        forget_samples(session, "main", ResourceSettings(), utcnow() + timedelta(days=367))
        assert session.scalar(hours) == 0


def test_the_step_follows_the_period() -> None:
    now = START
    for days, step in ((1, 0), (7, HOUR), (31, HOUR), (366, DAY)):
        assert step_for(now - timedelta(days=days), now, now, 7) == step
    long_ago = now - timedelta(days=30)
    assert step_for(long_ago, long_ago + timedelta(days=1), now, 7) == HOUR


@BOTH
def test_a_year_by_hour_and_by_day_is_read_fast(world: World) -> None:
    names = {"gpu_type": 4, "partition": 6, "tenant": 10}
    begin = int(START.timestamp())
    plain = {
        "samples": 12,
        "total": 96,
        "allocated": 48,
        "idle": 36,
        "unavailable": 12,
        "measured": 0,
        "used": 0.0,
    }
    with world.ctx.db.write() as session:
        for scope, name in (
            ("cluster", ""),
            *((scope, f"{scope}-{n}") for scope, count in names.items() for n in range(count)),
        ):
            key = {"cluster": "main", "step_s": HOUR, "scope": scope, "resource": "gpu", "name": name}
            rows = [key | plain | {"at": begin + hour * HOUR} for hour in range(365 * 24)]
            session.execute(insert(SampleRow), rows)
    took = {}
    for scope, name in (("cluster", None), ("gpu_type", None), ("tenant", "tenant-7"), ("partition", None)):
        with world.ctx.db.read() as session:
            start = time.perf_counter()
            found = history(session, "main", scope, "gpu", START, START + timedelta(days=365), DAY, name)
            took[scope] = time.perf_counter() - start
        assert len(found) == 365 * (names.get(scope, 1) if name is None else 1)
        assert found[0].allocated == 4
    print("a year by day:", {scope: f"{seconds * 1000:.0f} ms" for scope, seconds in took.items()})
    assert max(took.values()) < 1.0


@pytest.mark.parametrize(
    ("query", "status", "pointer"),
    [
        ({"since": "2026-03-02T00:00:00Z", "until": "2026-03-01T00:00:00Z"}, 422, "/until"),
        ({"by": "gpu_type", "resource": "cpu"}, 422, "/resource"),
        ({"since": "2026-03-02"}, 422, "since"),
        ({"cluster": "nowhere"}, 404, ""),
    ],
)
def test_a_wrong_question_names_its_field(
    world: World, query: dict[str, str], status: int, pointer: str
) -> None:
    answer = world.api.call("GET", "/resources/history", "ann", params=query)
    assert answer.status_code == status
    assert pointer in answer.text


def test_nobody_gets_more_points_than_fit_into_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_POINTS", 3)
    with world.ctx.db.write() as session:
        for minute in range(4):
            at = utcnow() - timedelta(minutes=1 + minute)
            keep_samples(session, list(samples_of("main", at, Look(amounts(8, 4), {}, ()), {})))
    raw = {"by": "cluster", "step": "raw"}
    answer = world.api.call("GET", "/resources/history", "ann", params=raw)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/since")
    assert "a longer step" in answer.json()["detail"]
    until = {"until": (utcnow() - timedelta(seconds=90)).isoformat()}
    (series,) = world.get("/resources/history", "ann", **raw, **until)["series"]
    assert len(series["points"]) == 3


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
