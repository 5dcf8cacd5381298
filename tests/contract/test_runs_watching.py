"""Watching a run: real files on this machine as the cluster's, a real database, the whole HTTP stack.

Slurm alone is not there: what it says is written into the rows, as the tracker does.
"""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from broker.api.streams import OpenStreams
from broker.audit.tables import AuditRow
from broker.compiler.names import LogPaths, control_dir, log_paths
from broker.context import Context
from broker.db import leases, utcnow
from broker.identity import Principal, Role
from broker.identity.tables import UserRow
from broker.objects import EmbeddedObjectStore, ObjectStore
from broker.runs import logs, streams
from broker.runs.events import events_after
from broker.runs.heartbeat import Watcher
from broker.runs.log_lines import Level, Wanted
from broker.runs.observation import Sighting
from broker.runs.settling import settle
from broker.runs.states import NO_HEARTBEAT, JobState, Phase, RunState
from broker.runs.tables import JobRow, RunRow
from broker.runs.tracking import write_sighting
from broker.runs.views import newest_jobs
from tests.api_support import Api, context
from tests.asgi import ask
from tests.harness.processes import until
from tests.serving import served
from tests.tenants import store_results

HOUR = timedelta(hours=1)


@dataclass
class Desk:
    """A run whose trainer runs, and the files that it writes."""

    api: Api
    ann: Principal
    run_id: str
    paths: LogPaths
    watcher: Watcher

    @property
    def ctx(self) -> Context:
        return self.api.ctx

    def job(self) -> JobRow:
        with self.ctx.db.read() as session:
            return session.scalars(
                select(JobRow)
                .where(JobRow.run_id == self.run_id, JobRow.component == "trainer")
                .order_by(JobRow.attempt)
            ).all()[-1]

    def change(self, what: Callable[[RunRow, JobRow], object]) -> None:
        with self.ctx.db.write() as session:
            jobs = {job.component: job for job in newest_jobs(session, self.run_id)}
            what(session.get_one(RunRow, self.run_id), jobs["trainer"])

    def say(self, text: str) -> None:
        with Path(self.paths.training).open("a", encoding="utf-8", newline="") as file:
            file.write(text)

    def report(self, **values: float) -> None:
        Path(self.paths.progress).write_text(json.dumps(values))

    def view(self) -> Any:
        jobs = self.api.call("GET", f"/runs/{self.run_id}", "ann").json()["jobs"]
        return next(job for job in jobs if job["component"] == "trainer")

    def events(self) -> list[str]:
        with self.ctx.db.read() as session:
            return [event.type for event in events_after(session, self.run_id, 0)]

    def silent_for(self, silent: timedelta, flagged: timedelta | None = None) -> None:
        """What is stored after so long a silence: no test waits an hour."""

        def age(_run: RunRow, job: JobRow) -> None:
            job.heartbeat_at = utcnow() - silent
            job.stalled_since = utcnow() - flagged if flagged is not None else job.stalled_since

        self.change(age)

    def end(self) -> None:
        """Slurm shows that the job was cancelled, and its results are stored."""
        with self.ctx.db.write() as session:
            run = session.get_one(RunRow, self.run_id)
            for job in newest_jobs(session, self.run_id):
                if job.component == "trainer":
                    seen = Sighting(JobState.CANCELLED, reason=None, ended_at=utcnow())
                    write_sighting(session, run, job, seen, utcnow())
                    job.reap, job.storing = False, "stored"
            settle(self.ctx, session, run)


def make_desk(tmp_path: Path, **cluster: Any) -> Iterator[Desk]:
    settings = {"transport": "local", "base_path": str(tmp_path / "jobs"), "default_cpus": 1} | cluster
    with context(tmp_path / "data", clusters={"main": settings}) as ctx:
        api = Api(ctx)
        user_id = api.add("ann")
        api.add("bob")
        assert api.store("ann").status_code == 201
        run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
        lease = leases.acquire(ctx.db, "worker:main", "test", 600)
        assert lease is not None
        paths = log_paths(ctx.profile("main"), run_id, "trainer", 1, 0)
        ann = Principal(user_id, "ann", Role.RESEARCHER, "default")
        desk = Desk(api, ann, run_id, paths, Watcher(ctx, "main", lease))
        with ctx.db.write() as session:
            run = session.get_one(RunRow, run_id)
            run.phase, run.state = Phase.ACTIVE, RunState.RUNNING
            for number, job in enumerate(newest_jobs(session, run_id), 7):
                job.slurm_job_id, job.submitted_at, job.started_at = number, utcnow(), utcnow()
                job.state = JobState.RUNNING if job.component == "trainer" else JobState.COMPLETED
                job.storing = "none" if job.component == "trainer" else "stored"
        Path(paths.training).parent.mkdir(parents=True)
        Path(control_dir(ctx.profile("main"), run_id, "trainer", 1)).mkdir(parents=True)
        desk.say("start\n")
        with api.http:
            yield desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield from make_desk(tmp_path)


# ---- progress -------------------------------------------------------------------------------------------


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
    assert desk.view()["expected_end"] is None


def _ran_before(desk: Desk, took: timedelta) -> None:
    run_id = desk.api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    with desk.ctx.db.write() as session:
        for job in newest_jobs(session, run_id):
            job.state, job.started_at, job.ended_at = JobState.COMPLETED, utcnow() - took, utcnow()
            if job.component == "trainer":
                job.ended_at = job.started_at + took


# ---- heartbeat ------------------------------------------------------------------------------------------


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
        run = session.get_one(RunRow, desk.run_id)
        first = session.scalars(
            select(JobRow).where(JobRow.run_id == run.id, JobRow.component == "trainer", JobRow.attempt == 1)
        ).one()
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


# ---- logs -----------------------------------------------------------------------------------------------


LOGS = "/runs/{}/components/trainer/logs"


def lines_of(desk: Desk, **query: Any) -> Any:
    answer = desk.api.call("GET", LOGS.format(desk.run_id) + "/lines", "ann", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def finished(desk: Desk) -> None:
    def over(_run: RunRow, job: JobRow) -> None:
        job.state, job.storing, job.ended_at = JobState.COMPLETED, "failed", utcnow()

    desk.change(over)


def test_a_running_log_is_searched_by_level_and_text(desk: Desk) -> None:
    desk.say("INFO a\nWARNING b 가나\nERROR c\nERROR half")
    found = lines_of(desk, level="warning")
    assert [(line["level"], line["text"]) for line in found["lines"]] == [
        ("warning", "WARNING b 가나"),
        ("error", "ERROR c"),
    ]
    assert not found["complete"] and found["next_offset"] < found["size"]  # half a line waits
    assert [line["text"] for line in lines_of(desk, q="가나")["lines"]] == ["WARNING b 가나"]
    desk.say(" now whole\n")
    more = lines_of(desk, level="error", offset=found["next_offset"])
    assert [line["text"] for line in more["lines"]] == ["ERROR half now whole"]
    first = lines_of(desk, limit=1)
    again = lines_of(desk, limit=1, offset=first["next_offset"])
    assert (first["lines"][0]["text"], again["lines"][0]["text"]) == ("start", "INFO a")


def test_a_stream_ends_with_the_log_and_resumes_where_it_was(desk: Desk) -> None:
    desk.say("INFO a\nERROR b\nERROR c")
    finished(desk)
    url, headers = f"/api/v1{LOGS.format(desk.run_id)}/stream?level=error", desk.api.headers("ann")
    answer = ask(desk.api.app, "GET", url, headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [line["text"] for piece in data for line in piece["lines"]] == ["ERROR b", "ERROR c"]
    assert data[-1]["complete"] and "event: end" in answer.text
    place = str(data[0]["lines"][1]["offset"])
    rest = ask(desk.api.app, "GET", url, headers | {"Last-Event-ID": place})
    assert "ERROR c" in rest.text and "ERROR b" not in rest.text


def test_a_socket_brings_lines_as_they_are_written(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LOG_LOOK_S", 0.05)
    with served(desk.api) as port:
        url = f"ws://127.0.0.1:{port}/api/v1{LOGS.format(desk.run_id)}/ws?level=warning"
        with connect(url, additional_headers=desk.api.headers("ann"), open_timeout=20) as socket:
            assert json.loads(socket.recv(20))["lines"] == []
            desk.say("INFO a\nERROR b\n")
            piece = json.loads(socket.recv(20))
            assert [line["text"] for line in piece["lines"]] == ["ERROR b"]
            finished(desk)
            assert json.loads(socket.recv(20))["complete"]
        with connect(url, open_timeout=20) as socket:  # a browser: the token comes in the first message
            token = desk.api.tokens["ann"]
            socket.send(json.dumps({"token": token, "offset": piece["next_offset"]}))
            assert json.loads(socket.recv(20))["lines"] == []


def test_what_is_indented_has_its_level_wherever_reading_goes_on(desk: Desk) -> None:
    """A traceback is written in pieces: a follower's look may come between any two of its lines."""
    desk.say("ERROR no\nTraceback (most recent call last):\n")
    found = lines_of(desk, level="error")
    desk.say("  File x, line 1\n    f()\n")
    more = lines_of(desk, level="error", offset=found["next_offset"])
    assert [line["text"] for line in more["lines"]] == ["  File x, line 1", "    f()"]
    again = lines_of(desk, level="error", offset=more["lines"][1]["offset"])
    assert [(line["text"], line["level"]) for line in again["lines"]] == [("    f()", "error")]


def test_a_log_that_grows_all_the_time_is_looked_at_once_in_a_while(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is two commands on the login node: no line of a busy log may cost one of its own."""
    monkeypatch.setattr(streams, "LOG_LOOK_S", 0.01)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        await sleep(seconds)

    async def ann() -> Principal:
        desk.say("another line\n")  # before every look
        return desk.ann

    async def follow() -> None:
        following = streams.follow_log(desk.ctx, ann, streams.LogChoice(desk.run_id, "trainer"))
        for _ in range(5):
            found = await anext(following)
            assert found is not None and found.lines

    monkeypatch.setattr(asyncio, "sleep", wait)
    asyncio.run(follow())
    assert waits.count(0.01) == 4


@pytest.mark.parametrize(
    ("who", "query", "code"),
    [("bob", "", 4404), ("ann", "?level=loud", 4422), ("ann", "?offset=x", 4422), (None, "", 4401)],
)
def test_a_socket_is_closed_with_what_is_wrong(desk: Desk, who: str | None, query: str, code: int) -> None:
    url = f"/api/v1{LOGS.format(desk.run_id)}/ws{query}"
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        desk.api.http.websocket_connect(url, headers=desk.api.headers(who)) as socket,
    ):
        if who is None:
            socket.send_text("{}")
        socket.receive_text()
    assert closed.value.code == code


def test_a_long_log_is_searched_in_little_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 MiB, most of them a hole: one line without an end. (5 GB take the same, twenty times as long.)"""
    size = 256 << 20
    with Path(desk.paths.training).open("ab") as file:
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(b"\nERROR the needle\n")
    place, found = 0, []
    tracemalloc.start()
    try:
        for _ in range(2 * size // logs.SCAN):
            piece = logs.read_lines(
                desk.ctx, desk.ann, desk.run_id, "trainer", offset=place, wanted=Wanted(Level.DEBUG, "needle")
            )
            found += piece.lines
            if piece.next_offset == place:
                break
            place = piece.next_offset
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [line.text for line in found] == ["ERROR the needle"]
    assert place == size + 18 and most < 16 << 20


def test_a_stored_log_is_read_the_same_way(tmp_path: Path) -> None:
    with EmbeddedObjectStore(tmp_path / "s3") as endpoint:
        store = ObjectStore(endpoint.config("models"))
        store.ensure_bucket(())
        with context(tmp_path / "data", objects=store) as ctx:
            api = Api(ctx)
            api.add("ann")
            assert api.store("ann").status_code == 201
            run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
            store_results(ctx, run_id, "default")
            answer = api.call("GET", LOGS.format(run_id) + "/lines", "ann", params={"limit": 1})
            found = answer.json()
            assert (found["source"], len(found["lines"])) == ("store", 1), answer.text
            word = found["lines"][0]["text"].split()[0]
            again = api.call("GET", LOGS.format(run_id) + "/lines", "ann", params={"q": word.upper()}).json()
            assert again["lines"][0] == found["lines"][0]
            stream = ask(api.app, "GET", f"/api/v1{LOGS.format(run_id)}/stream", api.headers("ann"))
            assert word in stream.text and "event: end" in stream.text


@pytest.mark.parametrize("path", ["events/stream", "components/trainer/logs/stream"])
def test_a_stream_ends_with_the_readers_right(desk: Desk, path: str) -> None:
    """A run takes days: who was shut out meanwhile must not read on."""
    with served(desk.api) as port:
        url = f"http://127.0.0.1:{port}/api/v1/runs/{desk.run_id}/{path}"
        with httpx.stream("GET", url, headers=desk.api.headers("ann"), timeout=8) as answer:
            lines = answer.iter_lines()
            assert next(line for line in lines if line.startswith("data:"))
            with desk.ctx.db.write() as session:
                session.get_one(UserRow, desk.ann.user_id).token_version += 1  # signed out everywhere
            assert not any(line.startswith(": still here") for line in lines)
    assert desk.job().state == JobState.RUNNING


def test_an_account_has_only_so_many_streams_open_and_gets_a_place_back(desk: Desk) -> None:
    desk.api.app.state.streams = OpenStreams(2)
    base = f"127.0.0.1:{{}}/api/v1/runs/{desk.run_id}"
    ann, bob = desk.api.headers("ann"), desk.api.headers("bob")
    with served(desk.api) as port:
        logs = f"http://{base.format(port)}/components/trainer/logs/stream"
        sockets = f"ws://{base.format(port)}/components/trainer/logs/ws"
        with (
            httpx.stream("GET", logs, headers=ann, timeout=20) as first,
            connect(sockets, additional_headers=ann, open_timeout=20) as second,
        ):
            assert first.status_code == 200 and json.loads(second.recv(20))["lines"]
            for path in (logs, logs.replace("components/trainer/logs", "events"), _notices(logs)):
                refused = httpx.get(path, headers=ann, timeout=20)
                assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5"), refused.text
                assert "streams_per_account" in refused.json()["detail"]
            with connect(sockets, additional_headers=ann, open_timeout=20) as third:
                with pytest.raises(ConnectionClosed) as closed:
                    third.recv(20)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 4429
            with httpx.stream("GET", _notices(logs), headers=bob, timeout=20) as other:
                assert other.status_code == 200  # another account's places are its own
        until(lambda: _opens(logs, ann) == 200, 20, "a place is free again", 0.1)


def _notices(logs: str) -> str:
    return logs.split("/runs/")[0] + "/notifications/stream"


def _opens(url: str, headers: dict[str, str]) -> int:
    with httpx.stream("GET", url, headers=headers, timeout=20) as answer:
        return answer.status_code
