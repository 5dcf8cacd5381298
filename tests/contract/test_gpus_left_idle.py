"""Runs that leave GPUs idle: from the samplers' files to the run's page, its journal, and who is told.

The gauge looks once a minute; its clock is the test's, so that no test waits for minutes. Slurm is not here
(`tests.usage`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select

from broker.cli import main
from broker.db import utcnow
from broker.notifications.tables import NotificationRow
from broker.resources import gauge, idling
from broker.resources.gauge import Gauge
from broker.runs.events import events_after
from broker.runs.measured import JobUsageRow
from broker.runs.tables import JobRow
from tests.api_support import Api, context
from tests.postgres import database_of
from tests.serving import served
from tests.usage import MINUTE, World, line

BOTH = pytest.mark.parametrize("world", ["sqlite", "postgres"], indirect=True)


class Desk(World):
    """Looked at once a minute by the test's clock."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(api)
        self.now = utcnow() - timedelta(hours=12)
        monkeypatch.setattr(gauge, "utcnow", lambda: self.now)

    def look(self, minutes: int, **runs: list[int | str] | None) -> None:
        """So many minutes in which the GPUs of these runs are that busy; None: the sampler says nothing."""
        for _ in range(minutes):
            self.now += MINUTE
            for run_id, utils in runs.items():
                if utils is not None:
                    self.sample(run_id, *(line(n, util, at=self.now) for n, util in enumerate(utils)))
            self.tick()

    def job(self, run_id: str) -> Any:
        jobs = self.api.call("GET", f"/runs/{run_id}", "ann").json()["jobs"]
        return next(job for job in jobs if job["component"] == "trainer")

    def told(self, run_id: str) -> list[tuple[str, dict[str, Any]]]:
        with self.ctx.db.read() as session:
            found = events_after(session, run_id, 0)
            return [(event.type, event.data) for event in found if event.type.startswith("gpu_")]

    def notices(self) -> list[tuple[str, str | None]]:
        query = select(NotificationRow).where(NotificationRow.kind.in_(["run_gpu_idle", "run_gpu_busy"]))
        with self.ctx.db.read() as session:
            rows = session.scalars(query.order_by(NotificationRow.created_at))
            return [(row.kind, row.data["run_id"]) for row in rows]

    def change(self, **values: Any) -> None:
        with self.ctx.db.write() as session:
            job = session.scalars(select(JobRow).where(JobRow.slurm_job_id == 42)).one()
            for name, value in values.items():
                setattr(job, name, value)


def metric(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"cluster": "main"})


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    url = database_of(request)
    clusters = {"main": {"transport": "local", "base_path": str(tmp_path / "jobs")}}
    resources = {"gpu_idle_after_s": 600}
    with context(tmp_path / "data", url, clusters=clusters, resources=resources) as ctx:
        made = Api(ctx)
        with made.http:
            yield Desk(made, monkeypatch)


@BOTH
def test_idle_gpus_are_told_with_the_numbers_once_and_once_more_when_they_work(world: Desk) -> None:
    lazy, busy = world.run_of("ann", 42, gpus=4), world.run_of("ann", 43)
    both = {lazy: [95, 0, 1, 0], busy: [80, 80]}
    world.look(10, **both)
    assert world.told(lazy) == [] and world.job(lazy)["gpu_idle"] is None
    world.look(4, **both)
    [(event, said)] = world.told(lazy)
    assert event == "gpu_idle"
    assert (said["component"], said["job_id"], said["gpus_idle"], said["gpus"]) == ("trainer", 42, 3, 4)
    assert (said["gpu_util"], said["below"], said["measured"]) == (pytest.approx(0.33, abs=0.01), 5, 4)
    shown = world.job(lazy)["gpu_idle"]
    assert (shown["gpus"], shown["measured"], shown["of"], shown["gpu_util"]) == (3, 4, 4, said["gpu_util"])
    assert (metric("broker_runs_gpu_idle"), metric("broker_gpus_held_idle")) == (1, 3)
    assert world.notices() == [("run_gpu_idle", lazy)]

    world.look(4, **{lazy: [95, 90, 90, 90], busy: [80, 80]})
    assert world.job(lazy)["gpu_idle"] is None and world.told(busy) == []
    assert [event for event, _ in world.told(lazy)] == ["gpu_idle", "gpu_busy"]
    again = world.told(lazy)[1][1]
    assert again["since"] == said["since"] and again["idle_s"] == 14 * 60 and again["gpu_util"] > 7.5
    assert (metric("broker_runs_gpu_idle"), metric("broker_gpus_held_idle")) == (0, 0)
    assert world.notices() == [("run_gpu_idle", lazy), ("run_gpu_busy", lazy)]


def test_another_worker_goes_on_from_what_was_kept_and_tells_nothing_twice(world: Desk) -> None:
    run_id = world.run_of("ann", 42)
    for _ in range(4):
        world.look(4, **{run_id: [0, 0]})
        world.gauge = Gauge(world.ctx, "main", world.lease)
    assert [event for event, _ in world.told(run_id)] == ["gpu_idle"]


def test_what_is_unknown_is_not_idle(world: Desk) -> None:
    run_id = world.run_of("ann", 42)
    world.look(15, **{run_id: ["[N/A]", "[N/A]"]})  # the driver knows no figure
    world.look(15, **{run_id: None})  # the sampler has died
    assert world.told(run_id) == [] and world.job(run_id)["gpu_idle"] is None
    world.look(12, **{run_id: [0, 0]})
    assert world.job(run_id)["gpu_idle"] is not None
    world.look(16, **{run_id: None})
    assert world.job(run_id)["gpu_idle"] is None and len(world.told(run_id)) == 1
    assert metric("broker_runs_gpu_idle") == 0


def test_a_start_anew_is_given_its_time_again(world: Desk) -> None:
    run_id = world.run_of("ann", 42)
    world.look(12, **{run_id: [0, 0]})
    world.change(restarts=1)
    world.look(1)
    assert world.job(run_id)["gpu_idle"] is None
    for minute in range(12):
        world.now += MINUTE
        world.sample(run_id, line(0, 0, at=world.now), line(1, 0, at=world.now), restart=1)
        world.tick()
        assert (world.job(run_id)["gpu_idle"] is None) == (minute < 10), minute
    world.change(state="COMPLETED")
    assert world.job(run_id)["gpu_idle"] is None, "what has ended holds none"


def test_the_setting_ends_it_and_a_cluster_without_looks_is_not_asked(world: Desk) -> None:
    run_id = world.run_of("ann", 42)
    world.look(12, **{run_id: [0, 0]})
    resources = world.ctx.settings.resources.model_copy(update={"gpu_idle_after_s": 0})
    world.ctx.settings = world.ctx.settings.model_copy(update={"resources": resources})
    world.look(1, **{run_id: [0, 0]})
    assert world.job(run_id)["gpu_idle"] is None and len(world.told(run_id)) == 1
    assert idling.rule_of(world.ctx, "main") is None


def test_what_is_wrong_with_one_run_stops_nobody_elses_watch(
    world: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, lazy = world.run_of("ann", 42), world.run_of("ann", 43)
    world.look(3, **{broken: [0, 0], lazy: [0, 0]})
    with world.ctx.db.write() as session:
        row = session.scalars(select(JobUsageRow).where(JobUsageRow.run_id == broken)).one()
        row.gpu_spans = {"width_s": 120.0, "gpus": {"n1/GPU-0": "no track"}}
    world.look(10, **{broken: ["what is this", "\x00,,"], lazy: [0, 0]})
    assert [event for event, _ in world.told(lazy)] == ["gpu_idle"] and world.told(broken) == []


def test_people_see_it_where_they_look_at_a_run(
    world: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = world.run_of("ann", 42)
    world.look(12, **{run_id: [0, 90]})
    with served(world.api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", world.api.tokens["ann"])
        monkeypatch.setenv("COLUMNS", "250")
        assert main(["run", "show", run_id]) == 0
        assert "1 of 2 GPUs idle since" in capsys.readouterr().out
        assert main(["run", "events", run_id]) == 0
        assert "gpu_idle" in capsys.readouterr().out
