"""Where the token lies, and which server is meant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.cli import credentials
from broker.cli.credentials import Credential
from broker.errors import ConfigurationError, InvalidRequest, Unauthenticated

SERVER = "https://broker.example.org"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in (credentials.SERVER_VARIABLE, credentials.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def _token(hours: float = 1) -> Credential:
    return Credential("secret", "kim", datetime.now(UTC) + timedelta(hours=hours))


def test_a_token_is_kept_for_its_owner_alone() -> None:
    credentials.store(SERVER, _token())
    assert credentials.path().stat().st_mode & 0o777 == 0o600
    assert credentials.path().parent.stat().st_mode & 0o777 == 0o700
    assert credentials.find(SERVER).token == "secret"


def test_the_last_login_names_the_server() -> None:
    assert credentials.server_url() == credentials.DEFAULT_SERVER
    credentials.store(SERVER, _token())
    assert credentials.server_url() == SERVER
    assert credentials.server_url("http://other:1/") == "http://other:1"


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.store(SERVER, _token())
    monkeypatch.setenv(credentials.SERVER_VARIABLE, "http://env:2")
    monkeypatch.setenv(credentials.TOKEN_VARIABLE, "from-env")
    assert credentials.server_url() == "http://env:2"
    assert credentials.find("http://env:2").token == "from-env"


def test_an_expired_token_asks_for_a_login() -> None:
    credentials.store(SERVER, _token(hours=-1))
    with pytest.raises(Unauthenticated, match="ended"):
        credentials.find(SERVER)


def test_tokens_of_two_servers_do_not_mix() -> None:
    credentials.store(SERVER, _token())
    credentials.store("http://b:1", Credential("other", "lee"))
    assert credentials.find(SERVER).token == "secret" and credentials.find("http://b:1").token == "other"
    assert credentials.forget(SERVER) and not credentials.forget(SERVER)
    with pytest.raises(Unauthenticated):
        credentials.find(SERVER)
    assert credentials.find("http://b:1").token == "other"


def test_a_file_that_others_can_read_is_refused() -> None:
    credentials.store(SERVER, _token())
    credentials.path().chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        credentials.find(SERVER)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_says_so(text: str) -> None:
    credentials.store(SERVER, _token())
    credentials.path().write_text(text)
    with pytest.raises(ConfigurationError, match="damaged"):
        credentials.server_url()


@pytest.mark.parametrize("url", ["broker.example.org", "ftp://x", "http://", "http://kim:pw@host"])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        credentials.checked_url(url)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("https://far.example", False),
        ("http://127.0.0.1:8080", False),
        ("http://[::1]:8080", False),
        ("http://localhost", False),
        ("http://far.example", True),
        ("http://10.0.0.7", True),
    ],
)
def test_a_password_over_plain_http_is_warned_about(url: str, exposed: bool) -> None:
    assert credentials.is_exposed(url) is exposed
