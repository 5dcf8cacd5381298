"""The commands against a real server, worker and receiver."""

import json
import threading

import pytest

from broker.cli import main
from broker.identity import Role
from broker.notifications import notify
from broker.notifications.courier import Courier
from tests.api_support import Api, context
from tests.receivers import web_server
from tests.serving import caller, signed_on


@pytest.fixture
def receiver():
    with web_server() as made:
        yield made


@pytest.fixture
def api(tmp_path, monkeypatch):
    """A server and a courier; commands run as the tenant's admin."""
    settings = {"allowed_networks": ["127.0.0.0/8"], "first_pause_s": 0.01, "max_tries": 2}
    with context(tmp_path / "data", notifications=settings) as ctx:
        made = Api(ctx)
        made.add("lead", Role.TENANT_ADMIN, tenant="vision")
        stop = threading.Event()
        courier = Courier(ctx, "courier", stop)
        thread = threading.Thread(target=courier.run)
        thread.start()
        try:
            with signed_on(made, "lead", monkeypatch):
                yield made
        finally:
            stop.set()
            courier.wake()
            thread.join(30)


@pytest.fixture
def run(capsys):
    call = caller(capsys)
    return lambda *words, status=0: call(*words, "--json", status=status)


def test_a_webhooks_whole_life(api, run, receiver, capsys):
    made = run("webhook", "create", receiver.url, "--kind", "run_failed", "--description", "portal")
    hook = made["id"]
    receiver.secrets = [made["secret"]]
    assert run("webhook", "test", hook)["status"] == 204
    assert receiver.next().verified
    receiver.secrets.append(run("webhook", "rotate", hook)["secret"])
    run("webhook", "test", hook)
    assert receiver.next().verified
    assert run("webhook", "change", hook, "--off")["active"] is False
    assert [one["active"] for one in run("webhook", "list")] == [False]
    assert "secret" not in run("webhook", "show", hook)
    states = [one["state"] for one in run("webhook", "deliveries", hook, "--state", "delivered")]
    assert states == ["delivered"] * 2
    assert main(["webhook", "deliveries", hook]) == 0 and "webhook_test" in capsys.readouterr().out
    assert run("webhook", "delete", hook) == {"deleted": hook}
    assert run("webhook", "list") == []


def test_a_test_that_is_not_taken_fails_with_the_reason(api, run, receiver):
    receiver.answers = [(503, {})]
    hook = run("webhook", "create", receiver.url)["id"]
    said = run("webhook", "test", hook, status=69)
    assert "503" in json.dumps(said)


def test_a_dead_delivery_is_sent_again(api, run, receiver):
    receiver.answers = [(500, {}), (500, {}), (200, {})]
    hook = run("webhook", "create", receiver.url)["id"]
    with api.ctx.db.write() as session:
        notify(session, "run_failed", "vision", subject="digits #7", data={})
    first = receiver.next().headers["webhook-id"]
    receiver.next()
    while not (dead := run("webhook", "deliveries", hook, "--state", "dead")):
        pass  # the receiver has seen the last try before its end is written down
    assert run("webhook", "retry", dead[0]["id"])["state"] == "pending"
    assert receiver.next().headers["webhook-id"] == first


def test_choices_are_shown_changed_one_by_one_and_kept(api, run):
    assert run("notification", "preferences")["email"] is None
    run("notification", "preferences", "--email", "lead@example.org", "--set", "quota_80=stream")
    shown = run("notification", "preferences", "--language", "ko", "--set", "run_failed=")
    assert shown["email"] == "lead@example.org" and shown["language"] == "ko"
    assert shown["channels"] == {"quota_80": ["stream"], "run_failed": []}
    tenant = run("notification", "preferences", "--tenant", "vision", "--email", "vision@example.org")
    assert tenant["email"] == "vision@example.org"
    assert run("notification", "preferences", "--email", "none")["email"] is None
    run("notification", "preferences", "--set", "run_failed", status=2)


def test_what_one_was_told_is_listed_in_both_languages(api, run, capsys):
    with api.ctx.db.write() as session:
        notify(session, "quota_80", "vision", subject="vision", data={"resource": "gpu_hours"})
    while not (told := run("notification", "list")):
        pass  # until the worker has numbered it
    assert told[0]["text"]["ko"]["title"] == "할당량 80 % 사용: vision"
    assert main(["notification", "list", "--korean"]) == 0
    assert "할당량 80 %" in capsys.readouterr().out
