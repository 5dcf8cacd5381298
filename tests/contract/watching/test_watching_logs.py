"""Logs by line: searched, streamed, resumed; running and stored."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from broker.api.streams import OpenStreams
from broker.db import utcnow
from broker.identity import Principal
from broker.identity.tables import UserRow
from broker.objects import EmbeddedObjectStore, ObjectStore
from broker.runs import logs, streams
from broker.runs.log_lines import Level, Wanted
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from tests.api_support import Api, context
from tests.asgi import ask
from tests.harness.processes import until
from tests.serving import served
from tests.tenants import store_results
from tests.watching import Desk

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
        following = streams.follow_log(desk.ctx, ann, logs.LogChoice(desk.run_id, "trainer"))
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
            needle = Wanted(Level.DEBUG, "needle")
            choice = logs.LogChoice(desk.run_id, "trainer", offset=place, wanted=needle)
            piece = logs.read_lines(desk.ctx, desk.ann, choice)
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
        with httpx.stream("GET", url, headers=desk.api.headers("ann"), timeout=20) as answer:
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
