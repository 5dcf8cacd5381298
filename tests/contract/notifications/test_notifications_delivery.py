"""The outbox against real receivers and real databases: at least once, under one id, whatever happens."""

import json
import os
import threading
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select, update

from broker.db import leases, utcnow
from broker.db.leases import LeaseLost
from broker.notifications import courier as courier_module
from broker.notifications import notify
from broker.notifications.courier import LEASE, Courier
from broker.notifications.outbox import distribute
from broker.notifications.tables import AttemptRow, DeliveryRow, WebhookRow
from tests.harness.processes import Process
from tests.harness.product import BROKER
from tests.receivers import web_server
from tests.telling import FAST, add_hook, ended, running, service, tell


def test_a_message_is_signed_typed_and_taken_once(tmp_path, url, receiver):
    with service(tmp_path, url) as api:
        hook = add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            got = receiver.next()
            (row,) = ended(api.ctx)
        assert got.verified and got.headers["webhook-id"] == row.notification_id
        assert got.json["type"] == "run.failed"
        assert datetime.fromisoformat(got.json["timestamp"]).tzinfo
        assert got.json["data"]["run_id"] == "run-7" and got.json["data"]["tenant"] == "default"
        assert got.json["data"]["text"]["ko"] == "실행 실패: digits #7"
        assert (row.state, row.target, row.last_status, row.tries) == ("delivered", hook, 204, 1)
        assert receiver.requests.empty()


def test_what_is_rolled_back_is_never_told(tmp_path, url, receiver):
    with service(tmp_path, url) as api:
        add_hook(api, receiver)
        with pytest.raises(ZeroDivisionError), api.ctx.db.write() as session:
            notify(session, "run_failed", "default", subject="never", data={})
            raise ZeroDivisionError
        with running(api.ctx):
            tell(api.ctx)
            assert receiver.next().json["data"]["subject"] == "digits #7"
            ended(api.ctx)
        assert receiver.requests.empty()


def test_one_key_is_told_once_however_many_say_it(tmp_path, url, receiver):
    with service(tmp_path, url) as api:
        add_hook(api, receiver)
        threads = [threading.Thread(target=tell, args=(api.ctx,), kwargs={"once": "x"}) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with running(api.ctx):
            tell(api.ctx, once="y")
            first, second = receiver.next(), receiver.next()
            assert len(ended(api.ctx, 2)) == 2
        assert first.headers["webhook-id"] != second.headers["webhook-id"]


def test_a_failure_is_tried_again_under_the_same_id(tmp_path, url, receiver):
    receiver.answers = [(500, {}), (503, {}), (200, {})]
    with service(tmp_path, url) as api:
        add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            tries = [receiver.next() for _ in range(3)]
            (row,) = ended(api.ctx)
        assert len({one.headers["webhook-id"] for one in tries}) == 1
        assert len({one.body for one in tries}) == 1 and all(one.verified for one in tries)
        shown = api.call("GET", f"/notifications/deliveries/{row.id}", "root").json()
        assert [(one["number"], one["status"]) for one in shown["attempts"]] == [(1, 500), (2, 503), (3, 200)]
        assert shown["state"] == "delivered"


def test_what_is_never_taken_is_given_up_shown_and_may_be_sent_again(tmp_path, receiver):
    receiver.answers = [(500, {})]
    with service(tmp_path) as api:
        hook = add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            message = {receiver.next().headers["webhook-id"] for _ in range(3)}
            ended(api.ctx)
            (dead,) = api.call("GET", "/notifications/deliveries?state=dead", "root").json()["items"]
            assert dead["error"] == "It answered 500" and dead["tries"] == 3
            assert api.call("GET", f"/webhooks/{hook}", "root").json()["dead"] == 1
            receiver.answers = [(500, {}), (200, {})]
            again = api.call("POST", f"/notifications/deliveries/{dead['id']}/retry", "root")
            assert again.status_code == 202 and again.json()["state"] == "pending"
            message |= {receiver.next().headers["webhook-id"] for _ in range(2)}
            (row,) = ended(api.ctx)
        assert len(message) == 1 and (row.state, row.tries) == ("delivered", 5)


def test_a_crash_between_sending_and_noting_repeats_the_message_under_its_id(tmp_path, url, receiver):
    """The worker dies while the receiver holds its answer back; the next one can't know and sends again."""
    receiver.hold = threading.Event()
    with service(tmp_path, url) as api:
        add_hook(api, receiver)
        tell(api.ctx)
        dead = leases.acquire(api.ctx.db, LEASE, "dead", 3600)
        distribute(api.ctx.db, dead, api.ctx.settings.notifications)
        courier = Courier(api.ctx, "dead", threading.Event())
        ((delivery, _, _),) = courier.due()
        failures = []

        def until_it_loses_the_lease():
            try:
                courier.deliver(dead, delivery)
            except LeaseLost as error:
                failures.append(error)

        thread = threading.Thread(target=until_it_loses_the_lease)
        thread.start()
        first = receiver.next()
        with api.ctx.db.write() as session:  # its time is up: as after a crash
            session.execute(update(leases.LeaseRow).values(expires_at=utcnow() - timedelta(hours=1)))
        receiver.hold, held = None, receiver.hold
        with running(api.ctx):
            second = receiver.next()
            (row,) = ended(api.ctx)
        held.set()
        thread.join(20)
        assert failures, "the worker that lost its lease must change nothing"
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == row.notification_id
        with api.ctx.db.read() as session:
            tries = session.scalars(select(AttemptRow).order_by(AttemptRow.number)).all()
        assert [one.ended_at is None for one in tries] == [True, False]
        assert row.state == "delivered" and row.tries == 2


def no_store(folder):
    """Settings of an object store that is never asked: a worker without a cluster needs none."""
    key = folder / "s3.key"
    key.write_text("unused")
    key.chmod(0o600)
    return {
        "endpoint_url": "http://127.0.0.1:9",
        "access_key_file": str(key),
        "secret_key_file": str(key),
    }


def test_a_worker_process_killed_while_sending_loses_nothing(tmp_path, receiver):
    """SIGKILL between the sending and its noting: the next process sends the same message again."""
    data = tmp_path / "data"
    receiver.hold = threading.Event()
    with service(tmp_path) as api:
        add_hook(api, receiver)
        for number in range(3):
            with api.ctx.db.write() as session:
                notify(session, "run_failed", "default", subject=str(number), data={})
        env = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        env |= {
            "BROKER_DATA_DIR": str(data),
            "BROKER_LEASE_S": "3",
            "BROKER_NOTIFICATIONS": json.dumps(FAST),
            "BROKER_S3": json.dumps(no_store(tmp_path)),
        }
        first = Process("first", [str(BROKER), "worker"], env, tmp_path / "first.log")
        try:
            began = receiver.next(30)
        finally:
            first.kill()
        receiver.hold.set()
        receiver.hold = None
        second = Process("second", [str(BROKER), "worker"], env, tmp_path / "second.log")
        try:
            got = [receiver.next(60) for _ in range(3)]
            rows = ended(api.ctx, 3)
        finally:
            second.stop()
        assert got[0].headers["webhook-id"] == began.headers["webhook-id"]
        assert all(one.verified for one in [began, *got])
        assert [one.json["data"]["subject"] for one in got] == ["0", "1", "2"]
        assert [(row.state, row.tries) for row in rows] == [("delivered", 2)] + [("delivered", 1)] * 2


def test_a_receiver_that_hangs_holds_up_nobody_else(tmp_path, receiver):
    receiver.hold = threading.Event()
    with web_server() as quick, service(tmp_path, timeout_s=20) as api:  # none ends while it hangs
        add_hook(api, receiver, kinds=["run_failed"])
        add_hook(api, quick)
        with running(api.ctx):
            for _ in range(20):
                tell(api.ctx)
            receiver.next()
            assert len({quick.next().headers["webhook-id"] for _ in range(20)}) == 20
            assert receiver.requests.empty()  # to one receiver goes one at a time
            receiver.hold.set()
            ended(api.ctx, 40)


def test_a_receiver_that_only_fails_holds_its_thread_for_one_try(tmp_path, receiver):
    """It has a backlog and there is one thread: after a single failure it is the others' turn."""
    receiver.answers = [(500, {})]
    with web_server() as quick, service(tmp_path, concurrency=1, longest_pause_s=3600) as api:
        add_hook(api, receiver)
        add_hook(api, quick)
        for _ in range(3):
            tell(api.ctx)
        with running(api.ctx):
            ended(api.ctx, 3)
        with api.ctx.db.read() as session:
            tries = session.scalars(select(AttemptRow).order_by(AttemptRow.began_at)).all()
        assert [one.error is not None for one in tries][:4] == [True, False, False, False]


def test_a_try_that_was_cut_off_long_ago_cuts_no_later_pause_short(tmp_path, url, receiver):
    with service(tmp_path, url) as api:
        add_hook(api, receiver)
        tell(api.ctx)
        lease = leases.acquire(api.ctx.db, LEASE, "next", 3600)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)
        later = utcnow() + timedelta(hours=6)
        with api.ctx.db.write() as session:
            row = session.scalars(select(DeliveryRow)).one()
            row.tries, row.next_try_at = 2, later
            session.add(AttemptRow(delivery_id=row.id, number=1, began_at=utcnow()))
            session.add(AttemptRow(delivery_id=row.id, number=2, began_at=utcnow(), ended_at=utcnow()))
        courier = Courier(api.ctx, "next", threading.Event())
        courier.recover(lease)
        assert courier.due() == []
        with api.ctx.db.write() as session:
            session.get_one(AttemptRow, (row.id, 2)).ended_at = None
        courier.recover(lease)
        assert [found for found, _, _ in courier.due()] == [row.id]


def test_a_defect_in_sending_counts_as_a_try_and_ends(tmp_path, receiver, monkeypatch):
    def defect(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(courier_module, "post", defect)
    with service(tmp_path) as api:
        add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            (row,) = ended(api.ctx)
        assert (row.state, row.tries) == ("dead", 3) and "ZeroDivisionError" in row.last_error


def test_messages_to_one_receiver_come_in_order(tmp_path, receiver):
    with service(tmp_path) as api:
        add_hook(api, receiver)
        for number in range(12):
            with api.ctx.db.write() as session:
                notify(session, "run_failed", "default", subject=str(number), data={})
        with running(api.ctx):
            order = [receiver.next().json["data"]["subject"] for _ in range(12)]
            ended(api.ctx, 12)
    assert order == [str(number) for number in range(12)]


def test_after_a_rotation_both_secrets_verify_and_after_its_end_only_the_new_one(tmp_path, receiver):
    with service(tmp_path) as api:
        hook = add_hook(api, receiver)
        old = receiver.secrets[0]
        new = api.call("POST", f"/webhooks/{hook}/rotate", "root", json={"overlap_hours": 1}).json()["secret"]
        assert new != old
        receiver.secrets = [old, new]
        with running(api.ctx):
            tell(api.ctx)
            assert receiver.next().verified
            ended(api.ctx)
            with api.ctx.db.write() as session:
                session.execute(update(WebhookRow).values(previous_until=utcnow() - timedelta(seconds=1)))
            receiver.secrets = [old]
            tell(api.ctx)
            assert not receiver.next().verified
            receiver.secrets = [new]
            tell(api.ctx)
            assert receiver.next().verified
            ended(api.ctx, 3)


def test_gone_switches_a_webhook_off_with_its_reason(tmp_path, receiver):
    receiver.answers = [(410, {})]
    with service(tmp_path) as api:
        hook = add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            receiver.next()
            (row,) = ended(api.ctx)
            tell(api.ctx)
            shown = api.call("GET", f"/webhooks/{hook}", "root").json()
            assert row.state == "dead" and not shown["active"] and "410" in shown["disabled_reason"]
            audit = api.call("GET", "/audit?action=webhook.disable", "root").json()["items"]
            assert [one["actor_name"] for one in audit] == ["system"]
            on = api.call("PATCH", f"/webhooks/{hook}", "root", json={"active": True}).json()
            assert on["active"] and on["disabled_reason"] is None
