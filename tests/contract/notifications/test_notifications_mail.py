"""E-mail by a real SMTP server, and chat rooms."""

from contextlib import contextmanager

from broker.identity import Role
from broker.notifications import notify
from tests.receivers import mail_server
from tests.telling import ended, running, service, tell


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
