"""Where a message may go: the judged address, checked certificates, no redirects; and for how long."""

import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker.db import leases
from broker.notifications.courier import LEASE
from broker.notifications.outbox import distribute
from tests.receivers import web_server
from tests.telling import add_hook, ended, running, service, tell


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
        lease = leases.acquire(api.ctx.db, LEASE, "first", 3600)
        assert distribute(api.ctx.db, lease, api.ctx.settings.notifications) == 1
        leases.release(api.ctx.db, lease)
        assert api.call("DELETE", f"/webhooks/{hook}", "root").status_code == 204
        with running(api.ctx):
            (row,) = ended(api.ctx)
        assert row.state == "skipped" and receiver.requests.empty()
