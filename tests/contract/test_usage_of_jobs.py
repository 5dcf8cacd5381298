"""What jobs use, on a real database and through the whole HTTP stack.

Slurm is not here (`tests.usage`); the samplers' files are real files on this machine.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import func, insert, select

from broker.cli import main
from broker.db import leases, utcnow
from broker.db.leases import LeaseLost
from broker.hosts import LocalHost
from broker.hosts.files import tail_all
from broker.resources import dcgm, job_usage, nvidia_smi
from broker.resources.job_usage import HOUR, forget_usage, over_time
from broker.resources.keeper import ResourceKeeper
from broker.runs.measured import JobUsageRow, JobUsageSampleRow, measured_gpus
from broker.runs.tables import JobRow, RunRow
from tests.api_support import Api, context
from tests.postgres import database_of
from tests.serving import served
from tests.timing import fastest
from tests.usage import MINUTE, Login, World, line

BOTH = pytest.mark.parametrize("world", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    url = database_of(request)
    clusters = {"main": {"transport": "local", "base_path": str(tmp_path / "jobs")}}
    with context(tmp_path / "data", url, clusters=clusters) as ctx:
        made = Api(ctx)
        with made.http:
            yield World(made)


@BOTH
def test_a_running_job_shows_what_it_uses_of_what_it_has_and_who_says_so(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.host.rows[42] = "00:40:00", 4 << 30
    world.sample(run_id, line(0, 90, 30000), line(1, 50, 10000))
    world.tick()
    job = world.usage(run_id)
    assert job["live"]
    cpu, memory = job["cpu_cores"], job["memory_mib"]
    assert (round(cpu["used"], 1), cpu["allocated"], cpu["source"]) == (4.0, 8, "slurm")
    assert (memory["used"], memory["allocated"], memory["source"]) == (4096, 16384, "slurm")
    assert (job["gpu_util"]["used"], job["gpu_util"]["source"], job["gpus_allocated"]) == (70, "sampler", 2)
    assert (job["gpu_memory_mib"]["used"], job["gpu_memory_mib"]["allocated"]) == (40000, 81920)
    assert [(gpu["node"], gpu["index"], gpu["util"]) for gpu in job["gpus"]] == [
        ("n1", "0", 90),
        ("n1", "1", 50),
    ]
    assert job["memory_peak_mib"] == 4096
    assert cpu["age_s"] < 30
    [point] = job["history"]
    assert (point["gpu_util"], point["memory_mib"]) == (70, 4096)


@BOTH
def test_what_nobody_measured_is_null_never_0(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.tick()
    job = world.usage(run_id)
    names = ("cpu_cores", "memory_mib", "gpu_util", "gpu_memory_mib", "taken_at", "memory_peak_mib")
    assert {job[name] for name in names} == {None}
    assert (job["live"], job["gpus"], job["history"]) == (False, [], [])
    world.host.rows[42] = "00:40:00", 4 << 30
    world.tick()
    job = world.usage(run_id)
    assert job["memory_mib"] is not None
    assert (job["gpu_util"], job["gpus_allocated"], job["gpu_util_mean"]) == (None, 2, None)
    with world.ctx.db.read() as session:
        assert measured_gpus(session, "main", [42]) == {}


def test_every_node_of_a_job_has_its_sampler_and_an_old_file_tells_nothing(world: World) -> None:
    run_id = world.run_of("ann", 42, gpus=4, nodes=("n1", "n2"))
    world.sample(run_id, line(0, 100), line(1, 80))
    world.sample(run_id, line(0, 20), line(1, 0), node=1)
    world.tick()
    job = world.usage(run_id)
    assert [(gpu["node"], gpu["util"]) for gpu in job["gpus"]] == [
        ("n1", 100),
        ("n1", 80),
        ("n2", 20),
        ("n2", 0),
    ]
    assert job["gpu_util"]["used"] == 50
    assert world.gauge.nodes(utcnow()) == {"n1": (1.8, 2), "n2": (0.2, 2)}
    assert world.gauge.nodes(utcnow() + timedelta(hours=1)) == {}
    assert job["gpus_measured"] == job["gpus_allocated"] == 4
    old = utcnow() - 30 * MINUTE
    world.sample(run_id, line(0, 100, at=old), line(1, 80, at=old))
    world.sample(run_id, line(0, 100, at=old), node=1)
    world.host.rows[42] = "00:40:00", 4 << 30
    world.tick()
    assert world.usage(run_id)["gpu_util"] is None


def test_figures_of_a_part_of_a_jobs_gpus_say_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = world.run_of("ann", 42, gpus=4, nodes=("n1", "n2"))
    world.sample(run_id, line(0, 100, 30000), line(1, 80, 10000))  # the other node's sampler is silent
    world.tick()
    job = world.usage(run_id)
    assert (job["gpus_measured"], job["gpus_allocated"], job["gpu_util"]["used"]) == (2, 4, 90)
    with served(world.api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", world.api.tokens["ann"])
        monkeypatch.setenv("COLUMNS", "250")
        assert main(["run", "usage", run_id]) == 0
    assert "90 % (mean 90 %) (of 2 of 4 GPUs)" in capsys.readouterr().out


def test_slices_are_read_with_their_memory(world: World) -> None:
    run_id = world.run_of("ann", 42)
    folder = Path(__file__).parents[1] / "samples/nvidia-smi"
    csv = (folder / "slices.csv").read_text().partition(",")[2]
    world.sample(run_id, f"{line(0, 0).partition(',')[0]},{csv.rstrip()}")
    world.sample(run_id, (folder / "slices.mig").read_text(), suffix="mig")
    world.tick()
    job = world.usage(run_id)
    assert [(gpu["slice"], gpu["util"], gpu["memory_total"]) for gpu in job["gpus"]] == [
        (True, None, 20000)
    ] * 2
    assert (job["gpu_util"], job["gpu_memory_mib"]["used"]) == (None, 30)


def test_samples_that_a_defect_keeps_from_being_read_hide_nobody_elses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = world.run_of("ann", 42), world.run_of("ann", 43)
    world.sample(broken, line(0, 7))
    world.sample(sound, line(0, 90), line(1, 90))
    real = nvidia_smi.parse_samples

    def parse(text: str) -> list[nvidia_smi.Sample]:
        if ", 7, " in text:
            raise RuntimeError("a defect")
        return real(text)

    monkeypatch.setattr(nvidia_smi, "parse_samples", parse)
    world.tick()
    assert world.usage(sound)["gpu_util"]["used"] == 90
    assert world.usage(broken)["gpu_util"] is None


@BOTH
@pytest.mark.parametrize("where", ["kept", "stored"])
def test_use_that_cannot_be_stored_keeps_nobody_elses_from_being_so(
    world: World, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A defect of ours in making the row, and a value that the database does not take."""
    broken, sound = world.run_of("ann", 42), world.run_of("ann", 43)
    world.host.rows |= {42: ("00:40:00", 4 << 30), 43: ("00:40:00", 4 << 30)}
    for run_id in (broken, sound):
        world.sample(run_id, line(0, 90), line(1, 50))
    renew = job_usage._renew

    def renewed(row: JobUsageRow, cluster: str, now: datetime, one: job_usage.Taken) -> None:
        renew(row, cluster, now, one)
        if one.job.run_id == broken and where == "kept":
            raise ValueError("a defect")
        if one.job.run_id == broken:
            row.use = {"a set": {1}}

    monkeypatch.setattr(job_usage, "_renew", renewed)
    before = REGISTRY.get_sample_value("broker_worker_defects_total") or 0.0
    world.tick()
    assert REGISTRY.get_sample_value("broker_worker_defects_total") == before + 1
    assert world.usage(sound)["memory_mib"]["used"] == 4096 and len(world.usage(sound)["history"]) == 1
    assert world.usage(broken)["taken_at"] is None and world.usage(broken)["history"] == []
    with world.ctx.db.read() as session:
        looks = session.scalars(select(JobUsageSampleRow.memory_n).where(JobUsageSampleRow.step_s == HOUR))
        assert looks.all() == [1], "what was undone counts once"


@BOTH
def test_all_looks_are_one_transaction_while_nothing_is_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (42, 43, 44):
        world.run_of("ann", number)
        world.host.rows[number] = "00:40:00", 4 << 30
    world.tick()
    writers, write = [], world.ctx.db.write

    def noted() -> Any:
        writers.append(threading.current_thread())
        return write()

    monkeypatch.setattr(world.ctx.db, "write", noted)
    world.tick()
    assert writers.count(threading.current_thread()) == 1  # the server's own threads count its calls


def test_one_sstat_and_one_command_for_the_samples_whatever_the_number_of_jobs(world: World) -> None:
    runs = [world.run_of("ann", 100 + n) for n in range(8)]
    for number, run_id in enumerate(runs, 100):
        world.host.rows[number] = "00:10:00", 1 << 30
        world.sample(run_id, line(0, 50), line(1, 50))
    world.host.commands = 0
    world.tick()
    assert (len(world.host.asked), world.host.commands) == (1, 2)
    assert sorted(world.host.asked[0]) == list(range(100, 108))
    assert {world.usage(run_id)["gpu_util"]["used"] for run_id in runs} == {50}


def test_a_job_of_another_cluster_with_the_same_id_lends_no_figures(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One Prometheus for two clusters. What it says is written here: DCGM needs GPUs to say anything."""
    run_id = world.run_of("ann", 42, gpus=1)

    def series(node: str, util: int) -> dict[str, Any]:
        labels = {"Hostname": node, "gpu": "0", "UUID": f"GPU-{node}", "hpc_job": "42"}
        return {"metric": {"__name__": dcgm.UTIL, **labels}, "value": [0, str(util)]}

    document = {"data": {"result": [series("n1", 30), series("elsewhere", 90)]}}
    found = dcgm.Gpus({}, dcgm.parse_jobs(document, utcnow()))
    monkeypatch.setattr(
        world.gauge, "_settings", world.gauge._settings.model_copy(update={"prometheus_url": "http://x"})
    )
    monkeypatch.setattr(dcgm, "ask", lambda _url, _now: found)
    world.tick()
    job = world.usage(run_id)
    assert (job["gpu_util"]["used"], [gpu["node"] for gpu in job["gpus"]]) == (30, ["n1"])


def test_when_sstat_is_silent_the_gpus_are_still_known(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.sample(run_id, line(0, 90), line(1, 50))
    world.host.silent = True
    world.tick()
    job = world.usage(run_id)
    assert (job["memory_mib"], job["gpu_util"]["used"]) == (None, 70)


def test_a_job_that_sstat_is_silent_about_comes_last_and_what_was_known_stays_a_while(world: World) -> None:
    runs = {number: world.run_of("ann", number) for number in (41, 42, 43)}
    for number in runs:
        world.host.rows[number] = "00:40:00", 4 << 30
        world.sample(runs[number], line(0, 90), line(1, 50))
    world.tick()
    del world.host.rows[41]
    world.tick()
    world.tick()
    assert world.host.asked[2] == [42, 43, 41]
    job = world.usage(runs[41])
    assert (job["memory_mib"]["used"], job["gpu_util"]["used"]) == (4096, 70)
    assert job["memory_mib"]["sampled_at"] < world.usage(runs[42])["memory_mib"]["sampled_at"]


def test_each_unix_accounts_jobs_are_asked_about_as_that_account(world: World) -> None:
    mine, kims = world.run_of("ann", 41), world.run_of("ann", 42)
    kim = Login()
    world.ctx._people["main", "kim"] = kim
    for host, number in ((world.host, 41), (kim, 42)):
        host.rows[number] = "00:40:00", number << 30
    with world.ctx.db.write() as session:
        session.get_one(RunRow, kims).unix_account = "kim"
    world.tick()
    assert (world.host.asked, kim.asked) == ([[41]], [[42]])
    assert [world.usage(run)["memory_mib"]["used"] / 1024 for run in (mine, kims)] == [41, 42]


def test_a_job_that_only_carries_our_number_is_not_asked_about(world: World) -> None:
    world.run_of("ann", 42)
    world.queue[42] = replace(world.queue[42], name="somebody else's")
    world.tick()
    assert world.host.asked == []


def test_who_may_not_see_a_run_does_not_see_its_use(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.host.rows[42] = "00:40:00", 4 << 30
    world.tick()
    assert world.usage(run_id, "eye")["memory_mib"]["used"] == 4096
    assert world.api.call("GET", f"/runs/{run_id}/usage", "bob").status_code == 404
    later = {"since": "2026-03-02T00:00:00Z", "until": "2026-03-01T00:00:00Z"}
    wrong = world.api.call("GET", f"/runs/{run_id}/usage", "ann", params=later)
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/until")


@BOTH
def test_a_start_anew_has_sums_of_its_own_and_the_warehouse_gets_the_mean(world: World) -> None:
    run_id = world.run_of("ann", 42)
    for util in (100, 50):
        world.sample(run_id, line(0, util), line(1, util))
        world.tick()
    with world.ctx.db.read() as session:
        mean = measured_gpus(session, "main", [42, 43])[42]
        assert mean.percent == 75.0
        assert measured_gpus(session, "elsewhere", [42]) == {}
    with world.ctx.db.write() as session:
        job = session.scalars(select(JobRow).where(JobRow.slurm_job_id == 42)).one()
        job.restarts = 1
    world.sample(run_id, line(0, 10), line(1, 30), restart=1)
    world.tick()
    with world.ctx.db.read() as session:
        assert measured_gpus(session, "main", [42])[42].percent == 20.0


def test_a_worker_that_lost_its_lease_writes_nothing(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.host.rows[42] = "00:40:00", 4 << 30
    leases.release(world.ctx.db, world.lease)
    with pytest.raises(LeaseLost):
        world.tick()
    assert world.usage(run_id)["taken_at"] is None


@BOTH
def test_a_year_of_hours_is_read_fast_in_few_points_and_old_looks_are_forgotten(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.host.rows[42] = "00:40:00", 4 << 30
    world.tick()
    now = utcnow()
    with world.ctx.db.write() as session:
        job_id = session.scalars(select(JobUsageRow.job_id)).one()
        base = int(now.timestamp()) // 3600 * 3600
        whole = {"cpu_n": 60, "cpu_cores": 120.0, "memory_n": 60, "memory_mib": 6e4, "gpu_util_n": 30}
        whole |= {"gpu_util": 1500.0, "gpu_memory_n": 0, "gpu_memory_mib": 0.0, "job_id": job_id}
        hours = [whole | {"step_s": 3600, "at": base - 3600 * n} for n in range(1, 8760)]
        looks = [whole | {"step_s": 0, "at": base - 60 * n} for n in range(1, 5000)]
        session.execute(insert(JobUsageSampleRow), hours + looks)
    since = (now - timedelta(days=365)).isoformat()
    took, job = fastest(lambda: world.usage(run_id, since=since, points=300))
    print(f"\na year of one job in {len(job['history'])} points: {1000 * took:.0f} ms")
    assert took < 1
    assert 250 <= len(job["history"]) <= 301
    point = job["history"][5]
    assert (point["cpu_cores"], point["memory_mib"], point["gpu_util"]) == (2, 1000, 50)
    assert point["gpu_memory_mib"] is None, "nobody measured it: not 0"
    for ago in (timedelta(days=300), timedelta(days=3), timedelta(hours=3)):
        query = {"since": (now - ago).isoformat(), "points": 100}
        shown = world.api.call("GET", f"/runs/{run_id}/usage", "ann", params=query).json()
        [starts] = [[p["at"] for p in job["history"]] for job in shown["jobs"] if job["history"]]
        seconds = [datetime.fromisoformat(at).timestamp() for at in starts]
        assert min(b - a for a, b in itertools.pairwise(seconds)) == shown["span_s"], ago
    with world.ctx.db.write() as session:
        forget_usage(session, world.ctx.settings.resources, now)
        kept = session.scalar(
            select(func.count()).where(JobUsageSampleRow.step_s == 0, JobUsageSampleRow.job_id == job_id)
        )
        assert 2 * 24 * 60 - 120 <= (kept or 0) <= 2 * 24 * 60 + 1
        raw = over_time(session, job_id, now - timedelta(hours=2), now, 60, now - timedelta(days=2))
        assert len(raw) >= 60


def test_the_commands_show_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = world.run_of("ann", 42)
    world.host.rows[42] = "00:40:00", 4 << 30
    world.sample(run_id, line(0, 90, 30000), line(1, 50, 10000))
    world.tick()
    with served(world.api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", world.api.tokens["ann"])
        monkeypatch.setenv("COLUMNS", "250")
        for command in ("usage", "show"):
            assert main(["run", command, run_id]) == 0
            shown = capsys.readouterr().out
            assert "70 % (mean 70 %)" in shown
            assert "4.0 of 8" in shown
            assert "4.0 GiB of 16.0 GiB" in shown
            assert "sampler, slurm" in shown


def test_the_snapshot_takes_what_the_jobs_measured_where_nobody_else_does(world: World) -> None:
    run_id = world.run_of("ann", 42)
    world.sample(run_id, line(0, 90), line(1, 50))
    world.tick()
    keeper = ResourceKeeper(world.ctx, "main", world.lease, world.gauge)
    assert keeper._gauge is world.gauge
    assert world.gauge.nodes(utcnow()) == {"n1": (1.4, 2)}


def test_the_ends_of_many_files_are_read_in_one_command_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("x" * 50 + "end\n")
    (tmp_path / "nul").write_bytes(b"one\0two\n")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "folder").mkdir()
    names = [str(tmp_path / name) for name in ("a b", "nul", "link", "folder", "missing")]
    found = tail_all(LocalHost(), names, 10)
    assert found == {names[0]: "xxxxxxend\n", names[1]: "onetwo\n"}
