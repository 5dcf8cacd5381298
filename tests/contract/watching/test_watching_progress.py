"""How far a run has come, and when it is likely to end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from broker.compiler import ResolvedImage
from broker.compiler.names import log_paths, spent_path
from broker.db import utcnow
from broker.runs.observation import Sighting
from broker.runs.planning import Resolved
from broker.runs.progress import Report, advance
from broker.runs.sightings import write_sighting
from broker.runs.states import JobState
from broker.runs.submission import Submitter
from broker.runs.tables import JobRow, RunRow
from broker.runs.views import newest_jobs
from tests.api_support import worker_lease
from tests.watching import Desk, make_desk


def test_progress_comes_from_the_programs_own_file_and_is_shown_with_the_run(desk: Desk) -> None:
    desk.watcher.tick()
    assert desk.view()["progress"] is None and desk.view()["heartbeat_at"] is not None
    desk.report(step=3, total=30, loss=0.5)
    desk.watcher.tick()
    shown = desk.view()["progress"]
    assert (shown["step"], shown["total"], shown["fraction"], shown["source"]) == (3, 30, 0.1, "file")
    assert shown["values"] == {"loss": 0.5} and shown["expected_end"] is None
    desk.report(step=6, total=30, loss=0.4)
    desk.watcher.tick()
    end = datetime.fromisoformat(desk.view()["progress"]["expected_end"])
    assert timedelta(0) < end - utcnow() < timedelta(minutes=5)  # a tenth took moments


def test_without_a_file_the_log_shows_it(desk: Desk) -> None:
    desk.say("Epoch 2/4\nstep 5/10\n")
    desk.watcher.tick()
    shown = desk.view()["progress"]
    assert (shown["fraction"], shown["unit"], shown["source"]) == (0.375, "epoch", "log")


def test_a_new_progress_is_a_new_version_of_the_run(desk: Desk) -> None:
    before = desk.api.call("GET", f"/runs/{desk.run_id}", "ann").headers["ETag"]
    desk.report(step=1, total=2)
    desk.watcher.tick()
    after = desk.api.call("GET", f"/runs/{desk.run_id}", "ann").headers["ETag"]
    assert before != after
    desk.watcher.tick()  # nothing new: nothing is written
    assert desk.api.call("GET", f"/runs/{desk.run_id}", "ann").headers["ETag"] == after


def test_one_command_looks_at_all_jobs_and_what_did_not_change_is_not_read(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.report(step=1, total=2)
    desk.watcher.tick()
    host = desk.ctx.host("main")
    asked: list[str] = []
    real_run, real_stream = host.run, host.stream
    monkeypatch.setattr(host, "run", lambda argv, **more: asked.append("run") or real_run(argv, **more))
    monkeypatch.setattr(
        host, "stream", lambda argv, **more: asked.append("read") or real_stream(argv, **more)
    )
    desk.watcher.tick()
    assert asked == ["run"]


def test_a_component_that_reports_nothing_ends_when_its_earlier_runs_did(desk: Desk) -> None:
    """The same pipeline again: what its trainer took before is known when it starts, and says of how many."""
    started = utcnow() - timedelta(minutes=5)

    def began(when: datetime) -> Callable[[RunRow, JobRow], None]:
        def change(_run: RunRow, job: JobRow) -> None:
            job.started_at, job.state = when, JobState.RUNNING

        return change

    desk.change(began(started))
    alone = desk.view()["expected_end"]
    assert (alone["source"], alone["runs"]) == ("time_limit", None) and alone["at"] == alone["limit"]

    for minutes in (20, 30, 900):
        _ran_before(desk, timedelta(minutes=minutes))
    with desk.ctx.db.write() as session:
        run = session.get_one(RunRow, desk.run_id)
        job = next(job for job in newest_jobs(session, run.id) if job.component == "trainer")
        job.state = JobState.PENDING
        write_sighting(
            session, run, job, Sighting(JobState.RUNNING, reason=None, started_at=started), utcnow()
        )
    known = desk.view()["expected_end"]
    assert (known["source"], known["runs"]) == ("history", 3)
    assert datetime.fromisoformat(known["at"]) == started + timedelta(minutes=30)
    desk.change(began(utcnow() - timedelta(minutes=31)))
    assert desk.view()["expected_end"]["source"] == "time_limit"  # it is late: that was wrong
    desk.change(lambda _run, job: setattr(job, "state", JobState.COMPLETED))
    assert desk.view()["expected_end"] is None and desk.run_end() is None


def _ran_before(desk: Desk, took: timedelta, **fields: object) -> None:
    run_id = desk.api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    with desk.ctx.db.write() as session:
        for job in newest_jobs(session, run_id):
            job.state, job.started_at, job.ended_at = JobState.COMPLETED, utcnow() - took, utcnow()
            if job.component == "trainer":
                job.ended_at = job.started_at + took
                for name, value in fields.items():
                    setattr(job, name, value)


def test_the_limit_is_that_of_one_start_where_the_class_gives_no_more(tmp_path: Path) -> None:
    for desk in make_desk(tmp_path, classes={"training": {"max_wall_s": 600}}):
        job = desk.view()
        assert job["resources"]["start_s"] == 600 < (job["resources"]["time_s"] or 3600)
        end = job["expected_end"]
        took = datetime.fromisoformat(end["limit"]) - datetime.fromisoformat(job["started_at"])
        assert (took, end["another_start"], end["source"]) == (timedelta(seconds=600), True, "time_limit")
        assert (end["kind"], end["more_starts"], end["enough_time"]) == ("this_start_at_latest", None, None)


def _begins_again(desk: Desk, restarts: int, spent: str | None) -> None:
    """Slurm has requeued the trainer and started it; its script has counted what earlier starts took."""
    profile = desk.ctx.profile("main")
    path = Path(spent_path(profile, desk.run_id, "trainer", 1))
    if spent is not None:
        path.write_text(f"{spent}\n")
    desk.paths = log_paths(profile, desk.run_id, "trainer", 1, restarts)
    Path(desk.paths.training).parent.mkdir(parents=True)
    with desk.ctx.db.write() as session:
        run = session.get_one(RunRow, desk.run_id)
        job = next(job for job in newest_jobs(session, run.id) if job.component == "trainer")
        began = utcnow() - timedelta(seconds=100)
        write_sighting(session, run, job, Sighting(JobState.PENDING, restarts=restarts), utcnow())
        seen = Sighting(JobState.RUNNING, restarts=restarts, started_at=began)
        write_sighting(session, run, job, seen, utcnow())
        job.progress = None


def test_a_later_start_knows_what_earlier_ones_took_of_the_time_asked_for(tmp_path: Path) -> None:
    """Two hours, ten minutes at a time."""
    for desk in make_desk(tmp_path, classes={"training": {"max_wall_s": 600}}):
        _begins_again(desk, 1, None)  # its node died: that start counts for nothing
        assert desk.view()["expected_end"]["enough_time"] is None
        desk.watcher.tick()
        assert desk.job().spent_s == 0

        _begins_again(desk, 2, "700")
        assert desk.job().spent_s is None  # the first start's count is not this one's
        desk.watcher.tick()
        assert desk.job().spent_s == 700
        desk.report(step=0, total=30)
        desk.watcher.tick()
        desk.change(lambda _run, job: _reported(job, fraction=0.1, after=timedelta(seconds=80)))
        end, job = desk.view()["expected_end"], desk.job()
        assert (end["kind"], end["source"], end["more_starts"]) == ("not_before", "progress", 1)
        assert end["enough_time"] is True and "1 at least" in end["text"] and "적어도 1번" in end["text_ko"]
        assert datetime.fromisoformat(end["at"]) == job.started_at + timedelta(seconds=800)

        _begins_again(desk, 3, "6900")
        desk.watcher.tick()
        end = desk.view()["expected_end"]
        took = datetime.fromisoformat(end["limit"]) - datetime.fromisoformat(desk.view()["started_at"])
        assert (took, end["another_start"], end["kind"]) == (timedelta(seconds=300), False, "at_latest")

        _begins_again(desk, 4, "no number")
        desk.watcher.tick()
        assert desk.job().spent_s is None and desk.view()["expected_end"]["another_start"] is True


def _reported(job: JobRow, fraction: float, after: timedelta) -> None:
    """The progress of a start that came so far in that time: no test waits for it."""
    assert job.started_at is not None
    first = advance(None, Report(0, 100, "step", 0.0), "file", job.started_at, job.restarts)
    report = Report(100 * fraction, 100, "step", fraction)
    job.progress = advance(first, report, "file", job.started_at + after, job.restarts).model_dump(
        mode="json"
    )


def test_the_usual_time_of_what_took_several_starts_is_that_of_all_of_them(tmp_path: Path) -> None:
    for desk in make_desk(tmp_path, classes={"training": {"max_wall_s": 600}}):
        _ran_before(desk, timedelta(seconds=300), restarts=2, spent_s=1200)
        _ran_before(desk, timedelta(seconds=300), restarts=2)  # what it took before is not known
        _begins_again(desk, 1, "600")
        desk.watcher.tick()
        end, job = desk.view()["expected_end"], desk.job()
        assert (end["kind"], end["source"], end["runs"], end["more_starts"]) == (
            "not_before",
            "history",
            1,
            1,
        )
        assert datetime.fromisoformat(end["at"]) == job.started_at + timedelta(seconds=900)


def _is_requeued(desk: Desk, restarts: int) -> None:
    """The trainer waits for its next start."""
    with desk.ctx.db.write() as session:
        run = session.get_one(RunRow, desk.run_id)
        job = next(job for job in newest_jobs(session, run.id) if job.component == "trainer")
        write_sighting(session, run, job, Sighting(JobState.PENDING, restarts=restarts), utcnow())


def test_between_two_starts_a_component_ends_its_time_after_the_next_one(desk: Desk) -> None:
    _ran_before(desk, timedelta(minutes=30))
    _begins_again(desk, 1, None)
    _is_requeued(desk, 2)

    waits, run = desk.view()["expected_end"], desk.run_end()
    assert (waits["kind"], waits["source"], waits["runs"], waits["limit"]) == (
        "not_before",
        "history",
        1,
        None,
    )
    soon = datetime.fromisoformat(waits["at"]) - utcnow()
    assert timedelta(minutes=29) < soon <= timedelta(minutes=30)
    assert (run["kind"], run["path"], run["latest"]) == ("not_before", ["trainer"], None)
    assert [(gap["code"], gap["components"]) for gap in run["gaps"]] == [("queue", ["trainer"])]

    start = utcnow().replace(microsecond=0) + timedelta(hours=2)
    desk.queue_shows(start, restarts=1)  # a look before the requeue
    assert desk.run_end()["kind"] == "not_before"
    desk.queue_shows(start, restarts=2, reason="BeginTime")  # it may not start earlier; it may later
    run = desk.run_end()
    assert (run["kind"], datetime.fromisoformat(run["at"])) == ("not_before", start + timedelta(minutes=30))
    assert desk.view()["expected_end"]["start_source"] == "retry"
    desk.queue_shows(start, restarts=2)
    run = desk.run_end()
    assert (run["kind"], datetime.fromisoformat(run["at"])) == ("likely", start + timedelta(minutes=30))
    assert datetime.fromisoformat(desk.view()["expected_end"]["starts_at"]) == start

    desk.change(lambda run, _job: setattr(run, "cancel_requested_at", utcnow()))
    assert desk.run_end() is None and desk.view()["expected_end"] is None


def test_what_a_checkpoint_has_saved_counts_between_two_starts(tmp_path: Path) -> None:
    """Half of it was done in the first start: that goes on; without a checkpoint it would begin anew."""
    for desk in make_desk(tmp_path, classes={"training": {"max_wall_s": 600}}):
        _ran_before(desk, timedelta(seconds=900))
        desk.change(lambda _run, job: _reported(job, fraction=0.5, after=timedelta(seconds=400)))
        _is_requeued(desk, 1)
        end = desk.view()["expected_end"]
        assert (end["kind"], end["source"], end["more_starts"]) == ("not_before", "progress", 0)
        left = datetime.fromisoformat(end["at"]) - utcnow()
        assert timedelta(seconds=370) < left <= timedelta(seconds=400)
        desk.change(lambda _run, job: setattr(job, "progress", None))
        end = desk.view()["expected_end"]
        assert (end["kind"], end["at"], desk.run_end()["kind"]) == ("unknown", None, "unknown")
        assert "earlier starts" in end["text"] and "이전 실행" in end["text_ko"]


def test_what_runs_take_is_known_from_when_they_are_planned(desk: Desk) -> None:
    """A waiting run's end follows from its graph: the trainer begins when the loader has ended."""
    _ran_before(desk, timedelta(minutes=30))
    run_id = desk.api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    fresh = desk.run_end(run_id)
    assert (fresh["kind"], fresh["at"]) == ("unknown", None)
    assert [gap["code"] for gap in fresh["gaps"]] == ["not_submitted", "no_history"]

    images = {
        f"registry.example.org/{name}:1.0": ResolvedImage(f"/images/{name}.sif", "sha256:1")
        for name in ("loader", "trainer")
    }
    with desk.ctx.db.write() as session:
        session.get_one(RunRow, run_id).resolved = Resolved(images, {}).document()
    Submitter(desk.ctx, "main", worker_lease(desk.ctx)).advance(run_id)  # there is no sbatch here
    planned = desk.run_end(run_id)
    assert (planned["kind"], planned["path"]) == ("not_before", ["loader", "trainer"])
    assert [gap["code"] for gap in planned["gaps"]] == ["not_submitted"]
    took = datetime.fromisoformat(planned["at"]) - utcnow()
    assert timedelta(minutes=59) < took < timedelta(minutes=61)  # both took half an hour
