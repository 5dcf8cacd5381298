"""The outbox against real receivers and real databases: at least once, under one id, whatever happens."""

import json
import os
import socket
import ssl
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import func, select, update

from broker.db import leases, utcnow
from broker.db.leases import LeaseLost
from broker.identity import Role
from broker.notifications import courier as courier_module
from broker.notifications import notify, outbox
from broker.notifications.courier import LEASE, Courier
from broker.notifications.outbox import distribute, purge
from broker.notifications.tables import AttemptRow, DeliveryRow, NotificationRow, WebhookRow
from tests.api_support import Api, context
from tests.harness.processes import Process
from tests.harness.product import BROKER
from tests.postgres import fresh_database
from tests.receivers import mail_server, web_server

NUMBER = iter(range(1000))
FAST = {
    "allowed_networks": ["127.0.0.0/8"],
    "first_pause_s": 0.01,
    "longest_pause_s": 0.01,
    "max_tries": 3,
    "timeout_s": 5,
}


@pytest.fixture
def receiver():
    with web_server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    if request.param == "sqlite":
        return None
    return fresh_database(request.getfixturevalue("postgres_url"), f"notify{next(NUMBER)}")


@contextmanager
def running(ctx):
    """A worker's courier, until the block ends."""
    stop = threading.Event()
    courier = Courier(ctx, f"courier-{next(NUMBER)}", stop)
    thread = threading.Thread(target=courier.run)
    thread.start()
    try:
        yield courier
    finally:
        stop.set()
        courier.wake()
        thread.join(30)
        assert not thread.is_alive()


def tell(ctx, kind="run_failed", tenant="default", **more):
    with ctx.db.write() as session:
        notify(session, kind, tenant, subject="digits #7", data={"run_id": "run-7"}, **more)


def add_hook(api, receiver, **body):
    answer = api.call("POST", "/webhooks", "root", json={"url": receiver.url, **body})
    assert answer.status_code == 201, answer.text
    receiver.secrets = [answer.json()["secret"]]
    return answer.json()["id"]


def ended(ctx, count=1):
    """The deliveries once `count` of them have ended; the worker writes the end after the receiver saw it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with ctx.db.read() as session:
            rows = session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)).all()
        if sum(row.ended_at is not None for row in rows) >= count:
            return rows
        time.sleep(0.02)
    raise AssertionError([(row.state, row.last_error) for row in rows])


@contextmanager
def service(tmp_path, url=None, **more):
    with context(tmp_path / "data", url, notifications={**FAST, **more}) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        with api.http:
            yield api


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
    with web_server() as quick, service(tmp_path) as api:
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


def test_redirects_are_not_followed(tmp_path, receiver):
    with web_server() as target, service(tmp_path, max_tries=1) as api:
        receiver.answers = [(302, {"Location": target.url})]
        add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            receiver.next()
            (row,) = ended(api.ctx)
        assert row.state == "dead" and "redirects" in row.last_error and target.requests.empty()


def test_a_name_that_leads_inside_is_refused_before_any_connection(tmp_path, receiver):
    """`localhost` passes as a name when the webhook is made; what it leads to is judged at each sending."""
    with service(tmp_path, allowed_networks=[], max_tries=1) as api:
        name = receiver.url.replace("http://127.0.0.1", "https://localhost")
        assert api.call("POST", "/webhooks", "root", json={"url": name}).status_code == 201
        with running(api.ctx):
            tell(api.ctx)
            (row,) = ended(api.ctx)
        assert row.state == "dead" and "one that is not public" in row.last_error
        assert receiver.requests.empty()


def test_the_connection_goes_to_the_address_that_was_judged(tmp_path, receiver, monkeypatch):
    """A name that answers otherwise at its second look ("DNS rebinding") is looked at only once."""
    port = int(receiver.url.rsplit(":", 1)[1].split("/")[0])
    looks = []
    real = socket.getaddrinfo

    def answers(host, *rest, **more):
        if host != "rebinding.example":
            return real(host, *rest, **more)
        looks.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", answers)  # no such name can be had offline
    with service(tmp_path) as api:
        hook = {"url": f"http://rebinding.example:{port}/hook"}
        receiver.secrets = [api.call("POST", "/webhooks", "root", json=hook).json()["secret"]]
        with running(api.ctx):
            tell(api.ctx)
            assert receiver.next().headers["host"] == f"rebinding.example:{port}"
            ended(api.ctx)
        assert looks == ["rebinding.example"]


def test_a_receiver_that_answers_byte_by_byte_is_cut_off(tmp_path):
    """Every read is quick, the whole is not: the time is counted over all."""
    with socket.create_server(("127.0.0.1", 0)) as listener, service(tmp_path, timeout_s=0.5) as api:
        over = threading.Event()

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                try:
                    while not over.wait(0.05):
                        connection.sendall(b"H")
                except OSError:
                    pass

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        hook = api.call("POST", "/webhooks", "root", json={"url": url}).json()["id"]
        began = time.monotonic()
        with running(api.ctx):
            api.call("POST", f"/webhooks/{hook}/test", "root")
            (row,) = ended(api.ctx)
        over.set()
        thread.join(5)
        assert row.state == "dead" and row.last_error == "No answer within 0.5 s"
        assert time.monotonic() - began < 10


def certificate(folder, *names):
    """A self-signed certificate (and key) for these names; its file is the authority as well."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in names]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, form, serialization.NoEncryption()))
    return path


@pytest.mark.parametrize(
    ("names", "trusted", "state"),
    [
        (["127.0.0.1"], True, "delivered"),
        (["elsewhere.example"], True, "dead"),
        (["127.0.0.1"], False, "dead"),
    ],
)
def test_tls_checks_the_name_in_the_url_though_the_address_is_pinned(tmp_path, names, trusted, state):
    pem = certificate(tmp_path, *names)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    more = {"ca_file": pem} if trusted else {}
    with web_server(tls) as receiver, service(tmp_path, max_tries=1, **more) as api:
        add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            (row,) = ended(api.ctx)
        assert row.state == state, row.last_error
        assert state == "delivered" or "certificate verify failed" in row.last_error


def test_the_test_button_goes_the_way_of_all_messages_to_this_receiver_alone(tmp_path, receiver):
    with web_server() as other, service(tmp_path) as api:
        hook = add_hook(api, receiver, description="our portal")
        add_hook(api, other)
        with running(api.ctx):
            asked = api.call("POST", f"/webhooks/{hook}/test", "root")
            got = receiver.next()
            ended(api.ctx)
        assert asked.status_code == 202 and got.headers["webhook-id"] == asked.json()["message_id"]
        assert got.json["type"] == "webhook.test" and "our portal" in got.json["data"]["text"]["en"]
        assert other.requests.empty()
        log = api.call("GET", f"/webhooks/{hook}/deliveries", "root").json()["items"]
        assert [one["state"] for one in log] == ["delivered"]


def test_a_deleted_webhook_gets_nothing_more(tmp_path, receiver):
    with service(tmp_path) as api:
        hook = add_hook(api, receiver)
        tell(api.ctx)
        lease = leases.acquire(api.ctx.db, LEASE, "first", 30)
        assert distribute(api.ctx.db, lease, api.ctx.settings.notifications) == 1
        leases.release(api.ctx.db, lease)
        assert api.call("DELETE", f"/webhooks/{hook}", "root").status_code == 204
        with running(api.ctx):
            (row,) = ended(api.ctx)
        assert row.state == "skipped" and receiver.requests.empty()


# ---- e-mail and chat -----------------------------------------------------------------------------------


@contextmanager
def with_mail(tmp_path, url_of=lambda port: f"mailto://127.0.0.1:{port}?from=broker@example.org", **more):
    with mail_server() as server:
        secret = tmp_path / "mail.url"
        secret.write_text(url_of(server.port))
        secret.chmod(0o600)
        with service(tmp_path, email_url_file=secret, **more) as api:
            yield server, api


def test_the_owner_of_a_run_is_mailed_in_the_language_of_choice(tmp_path):
    with with_mail(tmp_path) as (server, api):
        ann = api.add("ann")
        api.add("bob")
        for who in ("ann", "bob", "root"):
            wish = {"email": f"{who}@example.org", "language": "ko"}
            assert api.call("PUT", "/notifications/preferences", who, json=wish).status_code == 200
        with running(api.ctx):
            tell(api.ctx, user_id=ann)
            recipients, mail = server.next()
            (row,) = ended(api.ctx)
        assert recipients == ["ann@example.org"] and server.mails.empty()
        assert mail["Subject"] == "실행 실패: digits #7"
        assert mail["X-Broker-Message-Id"] == row.notification_id
        body = mail.get_body(("plain", "html")).get_content()
        assert "run-7" in body


def test_users_text_is_no_markup_in_a_mail(tmp_path):
    with with_mail(tmp_path) as (server, api):
        ann = api.add("ann")
        api.call("PUT", "/notifications/preferences", "ann", json={"email": "ann@example.org"})
        evil = "<img src=x onerror=alert(1)>"
        with running(api.ctx):
            with api.ctx.db.write() as session:
                about = {"error": f"{evil}\r\nBcc: all@example.org"}
                notify(session, "run_failed", "default", subject=evil, data=about, user_id=ann)
            recipients, mail = server.next()
            ended(api.ctx)
        assert recipients == ["ann@example.org"] and mail["Bcc"] is None
        assert mail["Subject"] == f"{evil} has failed"
        for part in mail.walk():
            if part.get_content_type() == "text/html":
                assert "<img" not in part.get_content() and "&lt;img" in part.get_content()


def test_a_mail_that_is_refused_is_tried_again_and_says_why(tmp_path):
    with with_mail(tmp_path) as (server, api):
        server.refusals = ["451 try later", "451 try later"]
        ann = api.add("ann")
        api.call("PUT", "/notifications/preferences", "ann", json={"email": "ann@example.org"})
        with running(api.ctx):
            tell(api.ctx, user_id=ann)
            server.next()
            (row,) = ended(api.ctx)
        shown = api.call("GET", f"/notifications/deliveries/{row.id}", "root").json()
        assert row.state == "delivered" and row.tries == 3
        assert "451" in shown["attempts"][0]["error"], shown


def test_no_log_or_answer_shows_the_mail_servers_password(tmp_path, caplog):
    """The server knows no log-in, so each try fails; the reason must not carry what was tried."""
    caplog.set_level("DEBUG")
    url = "mailto://robot:hunter2-secret@127.0.0.1:{}?from=broker@example.org"
    with with_mail(tmp_path, url.format, max_tries=1) as (_, api):
        ann = api.add("ann")
        api.call("PUT", "/notifications/preferences", "ann", json={"email": "ann@example.org"})
        with running(api.ctx):
            tell(api.ctx, user_id=ann)
            (row,) = ended(api.ctx)
        assert row.state == "dead" and row.last_error
        shown = api.call("GET", f"/notifications/deliveries/{row.id}", "root").text
        assert "hunter2" not in shown + row.last_error + caplog.text


def test_a_secret_file_that_others_can_read_is_refused_and_said_so(tmp_path):
    with with_mail(tmp_path, max_tries=1) as (server, api):
        (tmp_path / "mail.url").chmod(0o644)
        ann = api.add("ann")
        api.call("PUT", "/notifications/preferences", "ann", json={"email": "ann@example.org"})
        with running(api.ctx):
            tell(api.ctx, user_id=ann)
            (row,) = ended(api.ctx)
        assert row.state == "dead" and "chmod 600" in row.last_error and server.mails.empty()


def test_the_tenants_admin_and_its_shared_address_hear_of_a_quota(tmp_path):
    with with_mail(tmp_path) as (server, api):
        api.add("lead", Role.TENANT_ADMIN, tenant="vision")
        api.add("stranger", Role.TENANT_ADMIN, tenant="speech")
        for who in ("lead", "stranger"):
            api.call("PUT", "/notifications/preferences", who, json={"email": f"{who}@example.org"})
        shared = api.call(
            "PUT", "/notifications/preferences/vision", "lead", json={"email": "all@example.org"}
        )
        assert shared.status_code == 200
        with running(api.ctx):
            tell(api.ctx, "quota_80", "vision")
            got = {server.next()[0][0] for _ in range(2)}
            ended(api.ctx, 2)
        assert got == {"lead@example.org", "all@example.org"} and server.mails.empty()


def test_a_deactivated_account_is_mailed_nothing(tmp_path):
    with with_mail(tmp_path) as (server, api):
        ann, bob = api.add("ann"), api.add("bob")
        for who in ("ann", "bob"):
            api.call("PUT", "/notifications/preferences", who, json={"email": f"{who}@example.org"})
        assert api.call("PATCH", f"/users/{ann}", "root", json={"active": False}).status_code == 200
        with running(api.ctx):
            tell(api.ctx, user_id=ann)
            tell(api.ctx, user_id=bob)
            assert server.next()[0] == ["bob@example.org"]
            ended(api.ctx)
        assert server.mails.empty()


def test_a_chat_room_is_told_of_an_outage_through_apprise(tmp_path, receiver):
    """Apprise's own `json://` service stands for a room: Slack and Teams can't be had offline."""
    room = tmp_path / "room.url"
    room.write_text(receiver.url.replace("http://", "json://"))
    room.chmod(0o600)
    with service(tmp_path, chat={"ops": {"url_file": room, "language": "ko"}}) as api:
        with running(api.ctx):
            tell(api.ctx, "cluster_unreachable", None)
            tell(api.ctx)  # not what this room is told of
            got = receiver.next()
            (row,) = ended(api.ctx)
        assert got.json["title"] == "클러스터 응답 없음: digits #7"
        assert (row.channel, row.target, row.state) == ("chat", "ops", "delivered")


# ---- the outbox itself -----------------------------------------------------------------------------------


def test_notices_are_numbered_without_gap_in_the_order_of_commits(tmp_path, url):
    with service(tmp_path, url) as api:
        lease = leases.acquire(api.ctx.db, LEASE, "only", 300)

        def write(_):
            for _ in range(10):
                tell(api.ctx)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        seen = []
        while any(thread.is_alive() for thread in threads) or len(seen) < 40:
            distribute(api.ctx.db, lease, api.ctx.settings.notifications)
            with api.ctx.db.read() as session:
                above = NotificationRow.seq > (seen[-1] if seen else 0)
                seen += session.scalars(
                    select(NotificationRow.seq).where(above).order_by(NotificationRow.seq)
                ).all()
        assert seen == list(range(1, 41))


def test_a_worker_that_lost_its_lease_numbers_nothing(tmp_path, url):
    with service(tmp_path, url) as api:
        stale = leases.acquire(api.ctx.db, LEASE, "stale", 0.001)
        time.sleep(0.01)
        assert leases.acquire(api.ctx.db, LEASE, "fresh", 30)
        tell(api.ctx)
        with pytest.raises(LeaseLost):
            distribute(api.ctx.db, stale, api.ctx.settings.notifications)
        with api.ctx.db.read() as session:
            assert session.scalar(select(NotificationRow.seq)) is None


def test_old_notices_go_with_their_log_but_nothing_that_is_still_to_be_sent(tmp_path, url, receiver):
    with service(tmp_path, url) as api:
        hook = add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            tell(api.ctx)
            ended(api.ctx, 2)
        lease = leases.acquire(api.ctx.db, LEASE, "cleaner", 30)
        tell(api.ctx)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)
        tell(api.ctx)
        with api.ctx.db.write() as session:
            session.execute(update(NotificationRow).values(created_at=utcnow() - timedelta(days=60)))
        assert purge(api.ctx.db, lease, 30) == 2
        with api.ctx.db.read() as session:
            assert session.scalar(select(func.count()).select_from(NotificationRow)) == 2
            rows = session.scalars(select(DeliveryRow)).all()
            assert [(row.state, row.target) for row in rows] == [("pending", hook)]
            assert session.scalar(select(func.count()).select_from(AttemptRow)) == 0


def test_a_quota_is_told_of_once_in_a_month_though_notices_are_kept_a_week(tmp_path, url):
    with service(tmp_path, url) as api:
        tell(api.ctx, "quota_80", once="quota 80 of November")
        tell(api.ctx)
        tell(api.ctx)
        lease = leases.acquire(api.ctx.db, LEASE, "cleaner", 300)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)

        def kinds_after(days):
            with api.ctx.db.write() as session:
                session.execute(update(NotificationRow).values(created_at=utcnow() - timedelta(days=days)))
            purge(api.ctx.db, lease, 7)
            with api.ctx.db.read() as session:
                return sorted(session.scalars(select(NotificationRow.kind)))

        assert kinds_after(30) == ["quota_80", "run_failed"]  # the newest stays
        tell(api.ctx, "quota_80", once="quota 80 of November")
        assert kinds_after(32) == ["run_failed"]


def test_more_old_notices_than_go_at_once_go_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "PURGED_AT_ONCE", 1)
    monkeypatch.setattr(courier_module, "PURGED_AT_ONCE", 1)
    with service(tmp_path) as api:
        for _ in range(4):
            tell(api.ctx)
        lease = leases.acquire(api.ctx.db, LEASE, "first", 30)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)
        leases.release(api.ctx.db, lease)
        with api.ctx.db.write() as session:
            session.execute(update(NotificationRow).values(created_at=utcnow() - timedelta(days=60)))
        deadline = time.monotonic() + 20
        left = 4
        with running(api.ctx) as courier:
            while left > 1 and time.monotonic() < deadline:
                courier.wake()
                with api.ctx.db.read() as session:
                    left = session.scalar(select(func.count()).select_from(NotificationRow))
                time.sleep(0.02)
        assert left == 1  # the newest: the next number is made from it
