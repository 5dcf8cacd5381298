"""Which server, and the token for it. One file, readable by its owner alone."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from broker.errors import ConfigurationError, InvalidRequest, Unauthenticated

DEFAULT_SERVER = "http://127.0.0.1:8080"
SERVER_VARIABLE = "BROKER_SERVER"
TOKEN_VARIABLE = "BROKER_TOKEN"  # noqa: S105 - a variable's name


@dataclass(frozen=True, slots=True)
class Credential:
    """A token of one server. Times are UTC, None where the server did not say."""

    token: str
    username: str
    expires_at: datetime | None = None
    refresh_token: str | None = None
    refresh_expires_at: datetime | None = None

    @property
    def ends_at(self) -> datetime | None:
        """When a new login is needed."""
        return self.refresh_expires_at if self.refresh_token else self.expires_at


def path() -> Path:
    """`~/.config/broker/credentials.json`, or below `XDG_CONFIG_HOME`."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "broker" / "credentials.json"


def server_url(wanted: str | None = None) -> str:
    """The server to talk to: named, else `BROKER_SERVER`, else the last login's, else this machine."""
    return checked_url(wanted or os.environ.get(SERVER_VARIABLE) or _read().get("current") or DEFAULT_SERVER)


def checked_url(url: str) -> str:
    """The URL without its last slash; anything but http(s) is refused."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{url!r} is not the address of a server; write for example {DEFAULT_SERVER}")
    if parts.username or parts.password:
        raise InvalidRequest("The address of a server carries no password; use: broker login --server URL")
    return url.rstrip("/")


def is_exposed(url: str) -> bool:
    """Whether a password sent there can be read on the way: plain HTTP to another machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return False
    try:
        return not ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True


def find(server: str) -> Credential:
    """The token for a server: `BROKER_TOKEN`, else what `broker login` stored; raises `Unauthenticated`."""
    if token := os.environ.get(TOKEN_VARIABLE):
        return Credential(token, username="")
    stored = _read().get("servers", {}).get(server)
    if not stored:
        raise Unauthenticated(f"There is no token for {server}")
    credential = Credential(
        stored["token"],
        stored.get("username", ""),
        _moment(stored.get("expires_at")),
        stored.get("refresh_token"),
        _moment(stored.get("refresh_expires_at")),
    )
    if credential.ends_at and credential.ends_at <= datetime.now(UTC):
        raise Unauthenticated(f"The login at {server} ended at {credential.ends_at:%Y-%m-%d %H:%M} UTC")
    return credential


@contextmanager
def locked() -> Iterator[None]:
    """One command at a time: for what reads the stored token, uses it up and stores the next one."""
    file = path().with_suffix(".lock")
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # released when the file is closed
        yield


def store(server: str, credential: Credential) -> None:
    """Keep a token and make its server the current one."""
    data = _read()
    data["current"] = server
    data.setdefault("servers", {})[server] = {
        "token": credential.token,
        "username": credential.username,
        "expires_at": _text(credential.expires_at),
        "refresh_token": credential.refresh_token,
        "refresh_expires_at": _text(credential.refresh_expires_at),
    }
    _write(data)


def forget(server: str) -> bool:
    """Delete the token of a server; False when there was none."""
    data = _read()
    found = data.get("servers", {}).pop(server, None) is not None
    if found:
        _write(data)
    return found


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _read() -> dict[str, Any]:
    file = path()
    with suppress(FileNotFoundError):
        if file.stat().st_mode & 0o077:
            raise ConfigurationError(f"{file} can be read by others: chmod 600 {file}")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{file} is damaged ({error}); delete it and log in again") from None
        if not isinstance(data, dict):
            raise ConfigurationError(f"{file} is damaged; delete it and log in again")
        return data
    return {}


def _write(data: dict[str, Any]) -> None:
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=2)
    temporary.replace(file)
