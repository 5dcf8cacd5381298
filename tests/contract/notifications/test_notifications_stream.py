"""News as they come, by stream and by socket: nothing is missed, and nobody listens who may not.

A real server is asked where a test client would keep the answer back until its end.
"""

import asyncio
import json
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from sqlalchemy import update
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from broker.api.sockets import _Gone, _pump
from broker.notifications import feed
from broker.notifications.schemas import NoticeView
from broker.notifications.tables import NotificationRow
from tests.api_support import Api, context
from tests.serving import served
from tests.telling import announce


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(feed, "LOOK_S", 0.02)


@contextmanager
def events(port, api, who, last=None):
    """Server-sent events as (id, event, data); the first comment has come when the block begins."""
    more = {"Last-Event-ID": str(last)} if last is not None else {}
    url = f"http://127.0.0.1:{port}/api/v1/notifications/stream"
    with httpx.stream("GET", url, headers=api.headers(who) | more, timeout=20) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(line for line in lines if line.startswith(":"))
        yield parsed(lines)


def parsed(lines):
    entry = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            entry[name] = value
        elif not line and "data" in entry:
            yield int(entry["id"]), entry["event"], json.loads(entry["data"])
            entry = {}


def test_the_stream_brings_what_comes_and_only_what_concerns_the_reader(api, quick):
    announce(api)  # before: not part of a stream that begins now
    with served(api) as port, events(port, api, "ann") as news:
        announce(api, who="bob")
        mine = announce(api, "run_completed")
        number, event, data = next(news)
        assert (number, event) == (mine, "run_completed") and data["text"]["en"]["title"]


def test_a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice(api, quick):
    with served(api) as port:
        with events(port, api, "ann") as news:
            announce(api)
            last, _, _ = next(news)
        missed = [announce(api) for _ in range(3)]
        with events(port, api, "ann", last) as news:
            missed.append(announce(api))
            assert [next(news)[0] for _ in range(4)] == missed


def test_what_one_does_not_want_does_not_come(api, quick):
    api.call("PUT", "/notifications/preferences", "ann", json={"channels": {"run_failed": ["email"]}})
    with served(api) as port, events(port, api, "ann") as news:
        announce(api)
        other = announce(api, "run_completed")
        assert next(news)[0] == other


def test_a_stream_ends_when_the_account_does(api, quick, monkeypatch):
    monkeypatch.setattr(api.app.state.authenticator, "_max_age_s", 0.0)
    with served(api) as port, events(port, api, "ann") as news:
        ended = threading.Event()
        threading.Thread(target=lambda: (list(news), ended.set())).start()
        gone = api.call("PATCH", f"/users/{api.ids['ann']}", "root", json={"active": False})
        assert gone.status_code == 200
        assert ended.wait(20)


@pytest.mark.parametrize("by_header", [True, False])
def test_the_socket_brings_the_same_with_the_token_in_header_or_first_message(api, quick, by_header):
    first = announce(api)
    with served(api) as port:
        url = f"ws://127.0.0.1:{port}/api/v1/notifications/ws?after=0"
        headers = api.headers("ann") if by_header else {}
        with connect(url, additional_headers=headers, open_timeout=20) as socket:
            if not by_header:
                socket.send(json.dumps({"token": api.tokens["ann"]}))
            assert json.loads(socket.recv(20))["seq"] == first
            announce(api, who="bob")
            second = announce(api, "run_completed")
            assert json.loads(socket.recv(20))["seq"] == second


@pytest.mark.parametrize(
    "said",
    ['{"token": "x.y.z"}', "{}", "not json", "[1]", '{"token": 1}', b"{}", "[" * 60_000],
    ids=["bad-token", "no-token", "no-json", "list", "number", "bytes", "deep"],
)
def test_the_socket_closes_on_whoever_is_nobody(api, said):
    with (
        served(api) as port,
        connect(f"ws://127.0.0.1:{port}/api/v1/notifications/ws", open_timeout=20) as socket,
    ):
        socket.send(said)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(20)
        assert closed.value.rcvd.code == 4401


def test_the_socket_closes_when_the_account_does(api, quick, monkeypatch):
    monkeypatch.setattr(api.app.state.authenticator, "_max_age_s", 0.0)
    with (
        served(api) as port,
        connect(
            f"ws://127.0.0.1:{port}/api/v1/notifications/ws",
            additional_headers=api.headers("ann"),
            open_timeout=20,
        ) as socket,
    ):
        api.call("PATCH", f"/users/{api.ids['ann']}", "root", json={"active": False})
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(20)
        assert closed.value.rcvd.code == 4401


def test_a_reader_that_goes_while_it_is_sent_something_is_no_error(api):
    """A socket whose other side is gone, as Starlette tells it; nothing else here is made up."""
    number = announce(api)
    (notice,) = api.call("GET", "/notifications", "ann").json()["items"]
    assert notice["seq"] == number

    class Gone:
        async def receive(self):
            await asyncio.Event().wait()

        async def send_text(self, text):
            assert json.loads(text)["seq"] == number
            raise WebSocketDisconnect(1006)

    async def news():
        yield NoticeView.model_validate(notice).model_dump_json()

    with pytest.raises(_Gone):  # what `serve_socket` takes for an end like any other
        asyncio.run(_pump(Gone(), news()))


def test_a_one_time_password_opens_no_stream(api):
    api.add("fresh", fresh=True)
    with (
        api.http.websocket_connect("/api/v1/notifications/ws", headers=api.headers("fresh")) as socket,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        socket.receive_text()
    assert closed.value.code == 4403
    assert api.call("GET", "/notifications/stream", "fresh").status_code == 403


def test_a_socket_is_an_api_call_of_the_tenant(tmp_path):
    with context(tmp_path, quotas={"api_calls_per_day": 1}) as ctx:
        api = Api(ctx)
        api.add("ann")
        with api.http:
            assert api.call("GET", "/notifications", "ann").status_code == 200
            assert api.call("GET", "/notifications/stream", "ann").status_code == 429
            path = "/api/v1/notifications/ws"
            with (
                api.http.websocket_connect(path, headers=api.headers("ann")) as socket,
                pytest.raises(WebSocketDisconnect) as closed,
            ):
                socket.receive_text()
    assert closed.value.code == 4429


def test_many_readers_cost_one_look_at_the_database(api, quick, monkeypatch):
    looks = []
    real = feed.Feed.read
    monkeypatch.setattr(feed.Feed, "read", lambda self: looks.append(1) or real(self))
    monkeypatch.setattr(feed, "LOOK_S", 0.2)
    with served(api) as port, ExitStack() as open_:
        url, headers = f"ws://127.0.0.1:{port}/api/v1/notifications/ws", api.headers("ann")
        sockets = [
            open_.enter_context(connect(url, additional_headers=headers, open_timeout=20)) for _ in range(20)
        ]
        began = time.monotonic()
        looks.clear()
        for _ in range(5):
            announce(api)
            for socket in sockets:
                socket.recv(20)
        most = (time.monotonic() - began) / 0.2 + 2
        count = len(looks)
    assert 0 < count <= most


def test_old_numbers_of_another_database_do_not_silence_a_stream(api, quick):
    """A reader whose last number is above ours (a restored backup) begins where we are."""
    announce(api)
    with served(api) as port, events(port, api, "ann", last=10_000) as news:
        with api.ctx.db.write() as session:
            session.execute(update(NotificationRow).values(subject="old"))
        new = announce(api)
        assert next(news)[0] == new
