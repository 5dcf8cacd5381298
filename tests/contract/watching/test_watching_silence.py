"""Runs without a sign of life: flagged, ended, tried again or failed."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select

from broker.audit.tables import AuditRow
from broker.compiler.names import log_paths
from broker.db import utcnow
from broker.notifications import Kind
from broker.notifications.tables import NotificationRow
from broker.runs import heartbeat
from broker.runs.states import NO_HEARTBEAT, JobState, RunState
from broker.runs.tables import JobRow, RunRow
from broker.runs.views import newest_jobs
from tests.watching import Desk, make_desk

HOUR = timedelta(hours=1)


def test_silence_is_flagged_then_ended_and_tried_again(desk: Desk) -> None:
    desk.watcher.tick()
    desk.silent_for(HOUR + timedelta(minutes=1))
    desk.watcher.tick()
    assert desk.view()["stalled_since"] is not None and desk.job().state == JobState.RUNNING
    assert not desk.job().reap
    desk.silent_for(HOUR + timedelta(minutes=12), flagged=timedelta(minutes=11))
    desk.watcher.tick()
    assert desk.job().reap  # the tracker's next tick cancels it
    with desk.ctx.db.read() as session:
        assert session.scalar(select(AuditRow.action).where(AuditRow.action == "run.ended_for_silence"))
    desk.end()
    assert [e for e in desk.events() if "stall" in e or "silence" in e] == [
        "job_stalled",
        "job_ended_for_silence",
    ]
    with desk.ctx.db.read() as session:
        told = session.scalars(select(NotificationRow).where(NotificationRow.kind == Kind.RUN_STALLED)).one()
        run = session.get_one(RunRow, desk.run_id)
        first = session.scalars(
            select(JobRow).where(JobRow.run_id == run.id, JobRow.component == "trainer", JobRow.attempt == 1)
        ).one()
    assert (told.user_id, told.data["run_id"], told.data["component"]) == (run.owner_id, run.id, "trainer")
    assert told.data["since"] and told.data["job_id"] == first.slurm_job_id
    assert (first.state, first.reason) == (JobState.FAILED, NO_HEARTBEAT)
    assert (run.attempt, run.auto_retries, run.state) == (2, 1, RunState.QUEUED)
    assert desk.job().heartbeat_at is None  # the new attempt begins without


def test_what_was_said_a_moment_ago_does_not_make_silence_begin_later(tmp_path: Path) -> None:
    """A sign of life is not written at every look; how much later silence is seen for that is a tenth."""
    for desk in make_desk(tmp_path, heartbeat_timeout_s=60):
        desk.watcher.tick()
        desk.silent_for(timedelta(seconds=7))
        desk.say("a moment later\n")
        desk.watcher.tick()
        assert utcnow() - (desk.job().heartbeat_at or utcnow() - HOUR) < timedelta(seconds=6)


@pytest.mark.parametrize("policy", ["fail", "flag"])
def test_the_setting_says_what_follows(tmp_path: Path, policy: str) -> None:
    for desk in make_desk(tmp_path, on_lost_heartbeat=policy):
        desk.watcher.tick()
        desk.silent_for(9 * HOUR, flagged=8 * HOUR)
        desk.watcher.tick()
        assert desk.job().reap is (policy == "fail")
        if policy == "fail":
            desk.end()
            run = desk.api.call("GET", f"/runs/{desk.run_id}", "ann").json()
            assert (run["state"], run["attempt"], run["error_code"]) == ("failed", 1, "job_temporary")
            assert NO_HEARTBEAT in run["error"] and "PROGRESS_FILE" in run["error"]


@pytest.mark.parametrize("sign", ["log", "progress", "output", "checkpoint"])
def test_every_kind_of_sign_lifts_the_flag(desk: Desk, sign: str) -> None:
    home = Path(desk.paths.training).parents[1]
    checkpoints = home.parent / "checkpoints"
    for folder in (home / "outputs", checkpoints):
        folder.mkdir(exist_ok=True)
    desk.watcher.tick()
    desk.silent_for(9 * HOUR, flagged=8 * HOUR)
    signs: dict[str, Callable[[], object]] = {
        "log": lambda: desk.say("alive\n"),
        "progress": lambda: desk.report(step=1, total=2),
        "output": (home / "outputs" / "x").touch,
        "checkpoint": (checkpoints / "x").touch,
    }
    signs[sign]()
    desk.watcher.tick()
    assert desk.job().stalled_since is None and not desk.job().reap
    assert desk.events()[-1] == "job_alive_again"


def test_what_cannot_be_looked_at_is_not_silent(desk: Desk) -> None:
    desk.watcher.tick()
    desk.silent_for(9 * HOUR, flagged=8 * HOUR)
    home = Path(desk.paths.training).parents[3]
    home.rename(home.with_name("gone"))  # the file system is not mounted
    desk.watcher.tick()
    assert not desk.job().reap
    home.with_name("gone").rename(home)
    desk.watcher.tick()
    assert desk.job().reap  # it was silent all the time


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_one_program_leaves_in_place_of_its_files_stops_nobody_elses_watch(
    desk: Desk, what: str
) -> None:
    """All runs of an account are looked at together; in service mode that is everybody's."""
    other = desk.api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    paths = log_paths(desk.ctx.profile("main"), other, "trainer", 1, 0)
    Path(paths.training).parent.mkdir(parents=True)
    Path(paths.training).write_text("step 1/4\n")
    with desk.ctx.db.write() as session:
        for job in newest_jobs(session, other):
            job.slurm_job_id, job.state, job.started_at = 99, JobState.RUNNING, utcnow()
    for path in (desk.paths.progress, desk.paths.training):
        Path(path).unlink(missing_ok=True)
        if what == "link":
            Path(path).symlink_to("/etc/hostname")
        else:
            os.mkfifo(path) if what == "pipe" else Path(path).mkdir()
    held = os.open(desk.paths.progress, os.O_RDWR) if what == "pipe" else None  # somebody may still write
    desk.watcher.tick()
    if held is not None:
        os.close(held)
    with desk.ctx.db.read() as session:
        seen = {job.component: job for job in newest_jobs(session, other)}["trainer"]
    assert seen.heartbeat_at is not None and (seen.progress or {})["fraction"] == 0.25
    assert desk.job().heartbeat_at is not None and desk.job().progress is None


def test_a_report_that_a_defect_keeps_from_being_read_is_a_sign_of_life_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.report(step=1, total=4)
    desk.watcher.tick()
    desk.silent_for(9 * HOUR, flagged=8 * HOUR)
    desk.report(step=2, total=4)

    def fails(_data: bytes) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(heartbeat, "read_file", fails)
    before = REGISTRY.get_sample_value("broker_worker_defects_total") or 0.0
    desk.watcher.tick()
    job = desk.job()
    assert not job.reap and job.stalled_since is None
    assert (job.progress or {})["fraction"] == 0.25  # what was known
    assert REGISTRY.get_sample_value("broker_worker_defects_total") == before + 1


def test_a_suspended_job_is_not_silent(desk: Desk) -> None:
    desk.watcher.tick()
    desk.silent_for(9 * HOUR, flagged=8 * HOUR)
    desk.change(lambda _run, job: setattr(job, "state", JobState.SUSPENDED))
    desk.watcher.tick()
    desk.change(lambda _run, job: setattr(job, "state", JobState.RUNNING))
    desk.watcher.tick()
    assert desk.job().stalled_since is None and not desk.job().reap
    assert utcnow() - (desk.job().heartbeat_at or utcnow() - HOUR) < timedelta(minutes=1)


def test_an_end_that_somebody_wished_stays_a_cancellation(desk: Desk) -> None:
    desk.end()
    assert desk.job().state == JobState.CANCELLED
