"""Webhooks, choices and the live stream over HTTP: who may see what, and that nothing is missed."""

import asyncio
import json
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from fastapi.routing import APIWebSocketRoute, iter_route_contexts
from sqlalchemy import select, update
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from broker.api.app import make_app
from broker.api.sockets import _Gone, _pump
from broker.db import leases
from broker.identity import Role
from broker.notifications import feed, notify
from broker.notifications.courier import LEASE
from broker.notifications.outbox import distribute
from broker.notifications.schemas import NoticeView
from broker.notifications.signing import KEY_FILE
from broker.notifications.tables import NotificationRow, WebhookRow
from tests.api_support import Api, codes, context
from tests.serving import served

LOG_SOCKET = "/api/v1/runs/{run_id}/components/{component}/logs/ws"
HOOK = {"url": "https://hooks.example.org/broker"}
PEOPLE = {
    "root": (Role.ADMIN, "default"),
    "lead": (Role.TENANT_ADMIN, "vision"),
    "ann": (Role.RESEARCHER, "vision"),
    "bob": (Role.RESEARCHER, "vision"),
    "other": (Role.TENANT_ADMIN, "speech"),
}


@pytest.fixture
def api(tmp_path):
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.ids = {name: made.add(name, role, tenant) for name, (role, tenant) in PEOPLE.items()}
        with made.http:
            yield made


def tell(api, kind="run_failed", tenant="vision", who="ann", **more):
    """A notice, numbered as the worker does it; its number."""
    with api.ctx.db.write() as session:
        notify(session, kind, tenant, subject="digits #7", data={}, user_id=api.ids.get(who), **more)
    lease = leases.acquire(api.ctx.db, LEASE, "test", 300)
    distribute(api.ctx.db, lease, api.ctx.settings.notifications)
    with api.ctx.db.read() as session:
        return session.scalar(select(NotificationRow.seq).order_by(NotificationRow.seq.desc()).limit(1))


def told(api, who):
    return [item["seq"] for item in api.call("GET", "/notifications", who).json()["items"]][::-1]


# ---- webhooks ----------------------------------------------------------------------------------------------


def test_the_secret_is_in_the_answer_that_makes_it_and_nowhere_else(api):
    made = api.call("POST", "/webhooks", "lead", json=HOOK | {"kinds": ["run_failed", "run_failed"]})
    secret = made.json()["secret"]
    assert made.status_code == 201 and secret.startswith("whsec_")
    assert made.json()["tenant"] == "vision" and made.json()["kinds"] == ["run_failed"]
    hook = made.json()["id"]
    assert made.headers["Location"].endswith(hook)
    answers = [api.call("GET", path, "lead").text for path in ("/webhooks", f"/webhooks/{hook}")]
    answers.append(api.call("GET", "/audit", "root").text)
    assert not any("whsec" in text or secret[6:20] in text for text in answers)
    raw = b"".join(path.read_bytes() for path in api.ctx.settings.data_dir.glob("broker.sqlite3*"))
    assert hook.encode() in raw and secret[6:20].encode() not in raw
    assert (api.ctx.settings.data_dir / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_webhook_is_its_tenants_alone(api):
    hook = api.call("POST", "/webhooks", "lead", json=HOOK).json()["id"]
    everything = api.call("POST", "/webhooks", "root", json=HOOK).json()
    assert everything["tenant"] is None
    for who, sees in (("lead", {hook}), ("other", set()), ("root", {hook, everything["id"]})):
        found = {item["id"] for item in api.call("GET", "/webhooks", who).json()["items"]}
        assert found == sees, who
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/rotate"),
        ("POST", "/test"),
        ("GET", "/deliveries"),
    ):
        body = {"json": {}} if method in {"PATCH", "POST"} else {}
        assert api.call(method, f"/webhooks/{hook}{path}", "other", **body).status_code == 404
        assert api.call(method, f"/webhooks/{hook}{path}", "ann", **body).status_code == 403


def test_nobody_makes_a_webhook_for_a_tenant_of_others(api):
    refused = api.call("POST", "/webhooks", "lead", json=HOOK | {"tenant": "speech"})
    assert refused.status_code == 422 and codes(refused) == {"unknown_tenant"}
    assert api.call("POST", "/webhooks", "root", json=HOOK | {"tenant": "speech"}).status_code == 201


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": "http://hooks.example.org/"}, "/url"),
        ({"url": "https://169.254.169.254/latest"}, "/url"),
        ({"kinds": ["run_exploded"]}, "/kinds/0"),
        ({"description": "two\nlines"}, "/description"),
        ({"secret": "mine"}, "/secret"),
    ],
)
def test_a_bad_webhook_is_refused_by_field(api, body, pointer):
    refused = api.call("POST", "/webhooks", "lead", json=HOOK | body)
    assert refused.status_code == 422, refused.text
    assert [item["pointer"] for item in refused.json()["errors"]] == [pointer]


def test_a_change_is_conditional_checked_and_audited(api):
    hook = api.call("POST", "/webhooks", "lead", json=HOOK).json()["id"]
    tag = api.call("GET", f"/webhooks/{hook}", "lead").headers["ETag"]
    bad = api.call("PATCH", f"/webhooks/{hook}", "lead", json={"url": "https://10.0.0.1/"})
    assert bad.status_code == 422 and codes(bad) == {"bad_url"}
    assert api.call("PATCH", f"/webhooks/{hook}", "lead", json={"kinds": None}).status_code == 422
    change = {"url": "https://hooks.example.org/new?token=very-secret", "active": False}
    good = api.call("PATCH", f"/webhooks/{hook}", "lead", {"If-Match": tag}, json=change)
    assert good.status_code == 200 and not good.json()["active"]
    assert api.call("PATCH", f"/webhooks/{hook}", "lead", {"If-Match": tag}, json={}).status_code == 412
    (row,) = api.call("GET", "/audit?action=webhook.change", "root").json()["items"]
    assert row["before"]["active"] is True and row["after"]["active"] is False
    assert row["after"]["url"] == "https://hooks.example.org/new?…"  # a query may be a secret


def test_a_tenants_admin_reads_what_an_admin_did_to_its_webhooks(api):
    made = api.call("POST", "/webhooks", "root", json=HOOK | {"tenant": "vision"}).json()["id"]
    api.call("POST", f"/webhooks/{made}/rotate", "root")
    api.call("PUT", "/notifications/preferences/vision", "root", json={"email": "v@example.org"})
    for who, sees in (("lead", 3), ("other", 0)):
        actions = ("webhook.create", "webhook.rotate", "notifications.choose")
        found = [api.call("GET", f"/audit?action={action}", who).json()["items"] for action in actions]
        assert sum(map(len, found)) == sees, who


def test_a_tenant_has_only_so_many_webhooks(api, monkeypatch):
    monkeypatch.setattr("broker.notifications.webhooks.MOST_PER_TENANT", 2)
    answers = [api.call("POST", "/webhooks", "lead", json=HOOK).status_code for _ in range(3)]
    assert answers == [201, 201, 409]
    assert api.call("POST", "/webhooks", "other", json=HOOK).status_code == 201


def test_a_rotation_leaves_two_secrets_valid_and_is_shown(api):
    made = api.call("POST", "/webhooks", "lead", json=HOOK).json()
    first = api.call("POST", f"/webhooks/{made['id']}/rotate", "lead").json()
    assert first["secret"] != made["secret"] and first["previous_secret_until"]
    at_once = api.call("POST", f"/webhooks/{made['id']}/rotate", "lead", json={"overlap_hours": 0}).json()
    assert at_once["previous_secret_until"] is None
    with api.ctx.db.read() as session:
        assert session.get(WebhookRow, made["id"]).secret_version == 3


def test_the_log_shows_a_tenant_only_what_is_its_own(api):
    for who in ("lead", "other", "root"):
        api.call("POST", "/webhooks", who, json=HOOK)
    tell(api)
    seen = {}
    for who in ("root", "lead", "other"):
        items = api.call("GET", "/notifications/deliveries", who).json()["items"]
        seen[who] = {item["id"] for item in items}
    assert len(seen["root"]) == 2 and len(seen["lead"]) == 1 and seen["other"] == set()
    assert seen["lead"] < seen["root"]
    (mine,), (global_,) = seen["lead"], seen["root"] - seen["lead"]
    for who, delivery in (("other", mine), ("lead", global_)):
        assert api.call("GET", f"/notifications/deliveries/{delivery}", who).status_code == 404
        assert api.call("POST", f"/notifications/deliveries/{delivery}/retry", who).status_code == 404
    assert api.call("POST", f"/notifications/deliveries/{mine}/retry", "lead").status_code == 409


# ---- what one is told --------------------------------------------------------------------------------------


def test_everybody_sees_what_concerns_them_and_nothing_else(api):
    failed = tell(api)
    quota = tell(api, "quota_80", who=None)
    asked = tell(api, "run_approval_requested")
    outage = tell(api, "cluster_unreachable", tenant=None, who=None)
    assert told(api, "ann") == [failed]
    assert told(api, "bob") == [] and told(api, "other") == []
    assert told(api, "lead") == [quota]
    assert told(api, "root") == [quota, asked, outage]


def test_a_notice_comes_in_both_languages(api):
    tell(api)
    (notice,) = api.call("GET", "/notifications?kind=run_failed", "ann").json()["items"]
    assert notice["text"]["en"]["title"] == "digits #7 has failed"
    assert notice["text"]["ko"]["title"] == "실행 실패: digits #7"
    assert notice["type"] == "run.failed" and notice["seq"] == 1


def test_choices_are_ones_own_replaced_whole_and_audited(api):
    path = "/notifications/preferences"
    first = api.call("GET", path, "ann").json()
    assert first["email"] is None and first["effective"]["run_failed"] == ["stream", "email"]
    assert first["effective"]["run_started"] == ["stream"] and first["email_available"] is False
    wish = {"email": "ann@example.org", "language": "ko", "channels": {"run_failed": []}}
    assert api.call("PUT", path, "ann", json=wish).json()["effective"]["run_failed"] == []
    assert api.call("PUT", path, "ann", json={"language": "ko"}).json()["email"] is None
    assert api.call("GET", path, "bob").json()["language"] == "en"
    rows = api.call("GET", "/audit?action=notifications.choose", "root").json()["items"]
    assert [row["actor_name"] for row in rows] == ["ann", "ann"]


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"email": "ann"}, "/email"),
        ({"email": "a@example.org, b@example.org"}, "/email"),
        ({"email": "a@example.org\nBcc: b@example.org"}, "/email"),
        ({"language": "fr"}, "/language"),
        ({"channels": {"run_failed": ["pigeon"]}}, "/channels/run_failed/0"),
    ],
)
def test_a_bad_choice_is_refused_by_field(api, wish, pointer):
    refused = api.call("PUT", "/notifications/preferences", "ann", json=wish)
    assert refused.status_code == 422
    assert [item["pointer"] for item in refused.json()["errors"]] == [pointer]


def test_mail_goes_to_the_named_domains_only(tmp_path):
    with context(tmp_path, notifications={"email_domains": ["example.org"]}) as ctx:
        api = Api(ctx)
        api.add("ann")
        refused = api.call("PUT", "/notifications/preferences", "ann", json={"email": "a@evil.example"})
        assert refused.status_code == 422 and codes(refused) == {"bad_address"}
        good = api.call("PUT", "/notifications/preferences", "ann", json={"email": "a@Example.org"})
        assert good.status_code == 200


def test_a_tenants_choices_are_its_admins(api):
    path = "/notifications/preferences/vision"
    wish = {"email": "vision@example.org", "channels": {"run_failed": ["email"]}}
    shown = api.call("PUT", path, "lead", json=wish).json()
    assert shown["effective"]["run_failed"] == ["email"] and shown["effective"]["run_started"] == []
    assert api.call("GET", path, "root").json()["email"] == "vision@example.org"
    assert api.call("GET", path, "other").status_code == 404
    assert api.call("PUT", path, "other", json=wish).status_code == 404
    assert api.call("GET", path, "ann").status_code == 403


# ---- the stream: a real server, because a test client buffers ---------------------------------------------


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
    tell(api)  # before: not part of a stream that begins now
    with served(api) as port, events(port, api, "ann") as news:
        tell(api, who="bob")
        mine = tell(api, "run_completed")
        number, event, data = next(news)
        assert (number, event) == (mine, "run_completed") and data["text"]["en"]["title"]


def test_a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice(api, quick):
    with served(api) as port:
        with events(port, api, "ann") as news:
            tell(api)
            last, _, _ = next(news)
        missed = [tell(api) for _ in range(3)]
        with events(port, api, "ann", last) as news:
            missed.append(tell(api))
            assert [next(news)[0] for _ in range(4)] == missed


def test_what_one_does_not_want_does_not_come(api, quick):
    api.call("PUT", "/notifications/preferences", "ann", json={"channels": {"run_failed": ["email"]}})
    with served(api) as port, events(port, api, "ann") as news:
        tell(api)
        other = tell(api, "run_completed")
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
    first = tell(api)
    with served(api) as port:
        url = f"ws://127.0.0.1:{port}/api/v1/notifications/ws?after=0"
        headers = api.headers("ann") if by_header else {}
        with connect(url, additional_headers=headers, open_timeout=20) as socket:
            if not by_header:
                socket.send(json.dumps({"token": api.tokens["ann"]}))
            assert json.loads(socket.recv(20))["seq"] == first
            tell(api, who="bob")
            second = tell(api, "run_completed")
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


def test_a_rotation_tells_what_is_still_under_way(api):
    made = api.call("POST", "/webhooks", "lead", json=HOOK).json()
    tell(api)
    for answer in (
        api.call("POST", f"/webhooks/{made['id']}/rotate", "lead"),
        api.call("GET", f"/webhooks/{made['id']}", "lead"),
    ):
        assert answer.json()["pending"] == 1


def test_a_reader_that_goes_while_it_is_sent_something_is_no_error(api):
    """A socket whose other side is gone, as Starlette tells it; nothing else here is made up."""
    number = tell(api)
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


def test_there_is_no_other_socket():
    """The walk over all routes sees HTTP's only: a socket checks by itself, and its tests are these."""
    routes = iter_route_contexts(make_app().routes)
    sockets = [route.path for route in routes if isinstance(route.original_route, APIWebSocketRoute)]
    assert set(sockets) == {"/api/v1/notifications/ws", LOG_SOCKET}


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
            tell(api)
            for socket in sockets:
                socket.recv(20)
        most = (time.monotonic() - began) / 0.2 + 2
        count = len(looks)
    assert 0 < count <= most


def test_old_numbers_of_another_database_do_not_silence_a_stream(api, quick):
    """A reader whose last number is above ours (a restored backup) begins where we are."""
    tell(api)
    with served(api) as port, events(port, api, "ann", last=10_000) as news:
        with api.ctx.db.write() as session:
            session.execute(update(NotificationRow).values(subject="old"))
        new = tell(api)
        assert next(news)[0] == new
