"""Telling people, the pure part: who is told, in which words, how often it is tried, and where never."""

import base64
import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import get_args

import pytest
from standardwebhooks import Webhook

from broker.errors import Denied, InvalidRequest
from broker.identity.permissions import Principal, Role
from broker.notifications.channels import wished
from broker.notifications.checks import check_notifications
from broker.notifications.delivery import DeliveryState, Outcome, Patience, decide
from broker.notifications.guard import Rules, checked_url, resolve
from broker.notifications.kinds import AUDIENCE, NEWS, Audience, Channel, Kind, concerns, wanted
from broker.notifications.outbox import Book, receivers
from broker.notifications.schemas import Email
from broker.notifications.signing import Keyring, headers, valid_versions
from broker.notifications.tables import PreferenceRow, WebhookRow
from broker.notifications.texts import DETAILS, TITLES, Message, plain, write
from broker.settings import ChatSettings, News, NotificationSettings

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PATIENCE = Patience(max_tries=4, first_pause_s=5, longest_pause_s=60)
ANN = Principal("us-ann", "ann", Role.RESEARCHER, "vision")
LEAD = Principal("us-lead", "lead", Role.TENANT_ADMIN, "vision")
OTHER_LEAD = Principal("us-other", "other", Role.TENANT_ADMIN, "speech")
ROOT = Principal("us-root", "root", Role.ADMIN, "default")


def test_names_in_settings_and_api_are_the_kinds():
    assert get_args(News) == tuple(NEWS)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_an_audience_and_words_in_both_languages(kind):
    assert kind in AUDIENCE
    for language in ("en", "ko"):
        message = write(kind, "digits #7", {"decision": "approved"}, language)
        assert "digits #7" in message.title and "{" not in message.title
    assert re.search("[가-힣]", TITLES[kind]["ko"])


def test_every_detail_has_words_in_both_languages():
    assert all(set(label) == {"en", "ko"} for label in DETAILS.values())


@pytest.mark.parametrize("kind", list(Kind))
def test_the_type_of_a_message_is_hierarchical(kind):
    assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", kind.event_type)


# ---- who ---------------------------------------------------------------------------------------------------


def test_the_end_of_a_run_concerns_its_owner_alone():
    told = [who for who in (ANN, LEAD, ROOT) if concerns(who, Kind.RUN_FAILED, "vision", "us-ann")]
    assert told == [ANN]


def test_a_request_for_approval_concerns_the_admins():
    everybody = (ANN, LEAD, OTHER_LEAD, ROOT)
    kind = Kind.RUN_APPROVAL_REQUESTED
    assert [who for who in everybody if concerns(who, kind, "vision", "us-ann")] == [ROOT]


def test_a_quota_concerns_the_admin_of_that_tenant_and_no_other():
    everybody = (ANN, LEAD, OTHER_LEAD, ROOT)
    assert [who for who in everybody if concerns(who, Kind.QUOTA_80, "vision", None)] == [LEAD, ROOT]


def hook(name, tenant, kinds=()):
    return WebhookRow(id=name, tenant=tenant, kinds=list(kinds), active=True)


def choice(owner, channels=None):
    return PreferenceRow(owner=owner, email="a@example.org", language="en", channels=channels or {})


def test_each_receiver_gets_what_it_asked_for():
    book = Book(
        webhooks=[
            hook("wh-own", "vision"),
            hook("wh-other", "speech"),
            hook("wh-all", None),
            hook("wh-picky", "vision", [Kind.RUN_COMPLETED]),
        ],
        people=[(ANN, choice("user:us-ann")), (LEAD, choice("user:us-lead"))],
        tenants=[choice("tenant:vision", {"run_failed": ["email"]}), choice("tenant:speech")],
        rooms={
            "ops": ChatSettings(url_file="x"),
            "everything": ChatSettings(url_file="x", kinds=()),
            "speech": ChatSettings(url_file="x", kinds=(), tenants=("speech",)),
        },
    )
    assert set(receivers(book, Kind.RUN_FAILED, "vision", "us-ann")) == {
        (Channel.WEBHOOK, "wh-own"),
        (Channel.WEBHOOK, "wh-all"),
        (Channel.EMAIL, "user:us-ann"),
        (Channel.EMAIL, "tenant:vision"),
        (Channel.CHAT, "everything"),
    }
    assert set(receivers(book, Kind.CLUSTER_UNREACHABLE, None, None)) == {
        (Channel.WEBHOOK, "wh-all"),
        (Channel.CHAT, "ops"),
        (Channel.CHAT, "everything"),
    }


def test_a_test_message_goes_to_nobody_else():
    book = Book([hook("wh-all", None)], [], [], {"all": ChatSettings(url_file="x", kinds=())})
    assert list(receivers(book, Kind.WEBHOOK_TEST, "vision", "us-ann")) == []


@pytest.mark.parametrize("kind", NEWS)
def test_an_empty_choice_silences_a_kind_on_every_way(kind):
    assert not any(wanted({kind: []}, kind, channel) for channel in Channel)
    assert wanted({}, kind, Channel.STREAM)


def test_some_audience_hears_of_every_kind():
    assert all(AUDIENCE[kind] & set(Audience) for kind in NEWS)


# ---- words -------------------------------------------------------------------------------------------------


def test_users_text_begins_no_new_line_and_no_template():
    message = write(Kind.RUN_FAILED, "a\r\nBcc: x@y {decision}", {"error": "x\ny\x00z", "n": 1}, "en")
    assert message.title == "a Bcc: x@y {decision} has failed"
    assert message.body == "Reason: x y z"


def test_chat_rooms_are_not_called_by_users_text():
    chat = Message("<!channel> @here", "<http://x|click>").for_chat()
    assert not set("<>@") & set(chat.title + chat.body)


@pytest.mark.parametrize("text", ["a\u202eb", "a\u2028b", "a\tb", "a\x1b[2Jb"])
def test_text_that_does_not_print_is_taken_out(text):
    assert plain(text).isprintable()


def test_details_are_in_the_readers_language():
    data = {"resource": "gpu_hours", "used": 80, "limit": 100}
    assert write(Kind.QUOTA_80, "vision", data, "ko").body == "할당량: GPU 시간\n사용량: 80\n한도: 100"
    assert write(Kind.QUOTA_80, "vision", data, "en").body == "Quota: GPU hours\nUsed: 80\nLimit: 100"


# ---- how often ---------------------------------------------------------------------------------------------


def test_what_was_taken_is_delivered():
    assert decide(Outcome(status=204), 1, PATIENCE, NOW, 0.5).state is DeliveryState.DELIVERED


def test_a_failure_is_tried_again_with_growing_pauses_and_then_given_up():
    verdicts = [decide(Outcome(error="no"), tries, PATIENCE, NOW, 0.0) for tries in (1, 2, 3, 4)]
    pauses = [(one.next_try_at - NOW).total_seconds() for one in verdicts[:3]]
    assert pauses == [5, 20, 60]
    assert [one.state for one in verdicts] == [DeliveryState.PENDING] * 3 + [DeliveryState.DEAD]
    assert verdicts[-1].next_try_at is None and verdicts[-1].error == "no"


def test_the_receivers_own_wish_lengthens_a_pause_but_not_beyond_a_day():
    wish = decide(Outcome(error="busy", retry_after_s=600), 1, PATIENCE, NOW, 0.0)
    assert wish.next_try_at == NOW + timedelta(minutes=10)
    never = decide(Outcome(error="busy", retry_after_s=1e9), 1, PATIENCE, NOW, 0.0)
    assert never.next_try_at == NOW + timedelta(days=1)


def test_gone_is_given_up_at_once_and_unwanted_is_no_failure():
    assert decide(Outcome(error="410", gone=True), 1, PATIENCE, NOW, 0).state is DeliveryState.DEAD
    assert decide(Outcome(error="-", unwanted=True), 1, PATIENCE, NOW, 0).state is DeliveryState.SKIPPED


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("17", 17),
        ("-3", None),
        ("soon", None),
        ("²", None),
        ("Sat, 21 Nov 2026 12:01:00 GMT", 60),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value, seconds):
    assert wished(value, NOW) == seconds


# ---- signatures --------------------------------------------------------------------------------------------


def test_each_valid_secret_verifies_and_no_other():
    ring = Keyring(b"k" * 32)
    now = datetime.now(UTC)
    keys = [ring.secret("wh-1", number) for number in (3, 2)]
    sent = headers(keys, "msg-1", now, '{"a":1}')
    for number in (2, 3):
        assert Webhook(ring.shown("wh-1", number)).verify('{"a":1}', sent) == {"a": 1}
    for secret in (ring.shown("wh-1", 1), ring.shown("wh-2", 3), Keyring(b"x" * 32).shown("wh-1", 3)):
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(secret).verify('{"a":1}', sent)


def test_a_secret_has_the_form_and_length_of_the_convention():
    secret = Keyring(b"k" * 32).shown("wh-1", 1)
    assert secret.startswith("whsec_")
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"))) <= 64


def test_the_old_secret_is_valid_until_its_end_and_not_after():
    assert valid_versions(2, NOW + timedelta(seconds=1), NOW) == [2, 1]
    assert valid_versions(2, NOW, NOW) == [2]
    assert valid_versions(1, None, NOW) == [1]


# ---- where never -------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::1",
    "2002:a00:1::",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_of_an_own_network_is_allowed_in_any_dress(address):
    assert Rules().refusal(ip_address(address), plain=False)


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"])
def test_a_public_address_is_allowed_with_tls_only(address):
    assert Rules().refusal(ip_address(address), plain=False) is None
    assert "https" in Rules().refusal(ip_address(address), plain=True)


def test_a_listed_network_is_allowed_and_nothing_beside_it():
    rules = Rules.of(["10.1.0.0/16", "fd00::/64"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::9"):
        assert rules.refusal(ip_address(address), plain=True) is None
    assert rules.refusal(ip_address("10.2.0.1"), plain=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://user:pass@example.org/",
        "https://example.org/#x",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://example.org/\r\nX: y",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/latest/meta-data",
        "http://example.org/",
        "http://8.8.8.8/",
        "https://[::1",
        "https://example.org/" + "x" * 2000,
    ],
)
def test_a_url_that_leads_nowhere_good_is_refused_by_name(url):
    with pytest.raises(InvalidRequest) as caught:
        checked_url(url, Rules())
    assert [problem.pointer for problem in caught.value.problems] == ["/url"]


def test_a_good_url_is_taken_as_it_is():
    assert checked_url("https://example.org:8443/a?b=c", Rules()) == "https://example.org:8443/a?b=c"


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f.1"])
def test_names_and_odd_spellings_are_judged_by_what_they_resolve_to(host):
    with pytest.raises(Denied, match="one that is not public") as refused:
        resolve(host, 443, Rules(), plain=False)
    assert not re.search(r"127\.0\.0\.1|::1", refused.value.detail.removeprefix(host))


def test_one_private_address_among_public_ones_refuses_the_name_and_is_not_told(monkeypatch):
    answers = [(2, 1, 6, "", (address, 443)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answers)  # no such name can be had offline
    with pytest.raises(Denied, match="allowed_networks") as refused:
        resolve("both.example", 443, Rules(), plain=False)
    assert "10.0.0.1" not in refused.value.detail  # a map of the broker's network is nobody's business


@pytest.mark.parametrize(
    ("address", "good"),
    [("a.b+c@example.org", True), ("a@b", False), ("a@b.c\nBcc: d@e.f", False), ("a b@c.de", False)],
)
def test_an_address_is_one_address(address, good):
    pattern = next(item.pattern for item in Email.__metadata__ if getattr(item, "pattern", None))
    assert bool(re.fullmatch(pattern, address)) is good


# ---- what doctor says --------------------------------------------------------------------------------------


def secret(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_doctor_says_which_way_can_not_be_used_and_shows_no_secret(tmp_path):
    good = secret(tmp_path / "good", "mailtos://robot:hunter2@smtp.example.org?from=a@example.org")
    slack = secret(tmp_path / "slack", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/")
    rooms = {
        "ops": {"url_file": slack},
        "open": {"url_file": secret(tmp_path / "open", "json://localhost/", 0o644)},
        "odd": {"url_file": secret(tmp_path / "odd", "no-such-service://hunter2")},
        "gone": {"url_file": tmp_path / "gone"},
    }
    settings = NotificationSettings(email_url_file=good, chat=rooms, ca_file=tmp_path / "no.pem")
    checks = {check.name: check for check in check_notifications(settings)}
    assert [name for name, check in checks.items() if check.status == "ok"] == ["mail server", "chat ops"]
    assert "chmod 600" in checks["chat open"].detail and checks["certificates"].status == "fail"
    assert all(check.remedy for check in checks.values() if check.status == "fail")
    assert "hunter2" not in str(checks)


def test_doctor_says_nothing_of_what_is_not_configured():
    assert list(check_notifications(NotificationSettings())) == []


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"chat": {"ops": {"url_file": "x", "kinds": ["run_exploded"]}}}, "kinds"),
        ({"allowed_networks": ["10.0.0.1/8"]}, "allowed_networks"),
        ({"max_tries": 0}, "max_tries"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, place):
    with pytest.raises(ValueError, match=place):
        NotificationSettings.model_validate(settings)
