"""The outbox's last step: sending one message over one channel. Network only, no database.

Whatever goes wrong is an `Outcome` with a sentence, never an exception: the try counts and is shown.
"""

from __future__ import annotations

import json
import logging
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any

import apprise
import httpcore
from apprise.plugins import url_to_dict

from broker import __version__
from broker.errors import BrokerError, ConfigurationError
from broker.notifications.delivery import Outcome
from broker.notifications.guard import PinnedBackend, Rules
from broker.notifications.signing import headers
from broker.notifications.texts import Message
from broker.settings import read_secret

_TAKEN = range(200, 300)
_GONE = 410
_MOST_READ = 64 * 1024
"""Bytes of an answer that are read, so that the receiver is not cut off in the middle; nothing is kept."""
_APPRISE = logging.getLogger("apprise")


@dataclass(frozen=True, slots=True)
class Post:
    """A message for a webhook. `keys`: every secret that is valid now, the newest first."""

    url: str
    keys: Sequence[bytes]
    message_id: str
    payload: dict[str, Any]


def post(what: Post, rules: Rules, *, seconds: float, ca_file: Path | None, now: datetime) -> Outcome:
    """Send a signed message; 2xx means that it was taken, redirects are not followed."""
    body = json.dumps(what.payload, ensure_ascii=False, separators=(",", ":"))
    sent = [
        *headers(what.keys, what.message_id, now, body).items(),
        ("content-type", "application/json"),
        ("user-agent", f"broker-webhooks/{__version__}"),
    ]
    plain = what.url.startswith("http:")
    try:
        with (
            httpcore.ConnectionPool(
                ssl_context=_trust(ca_file),
                max_keepalive_connections=0,
                network_backend=PinnedBackend(rules, plain=plain, seconds=seconds),
            ) as pool,
            pool.stream("POST", what.url, headers=sent, content=body.encode()) as answer,
        ):
            outcome = _judged(answer, now)
            left = _MOST_READ
            for chunk in answer.iter_stream():
                left -= len(chunk)
                if left <= 0:
                    break
            return outcome
    except BrokerError as error:
        return Outcome(error=error.detail)
    except httpcore.TimeoutException:
        return Outcome(error=f"No answer within {seconds:g} s")
    except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
        return Outcome(error=f"The connection failed: {error or type(error).__name__}")


@cache
def _trust(ca_file: Path | None) -> ssl.SSLContext:
    """Made once: reading the system's certificates takes longer than a delivery."""
    return ssl.create_default_context(cafile=ca_file)


def _judged(answer: httpcore.Response, now: datetime) -> Outcome:
    status = answer.status
    if status in _TAKEN:
        return Outcome(status=status)
    error = f"It answered {status}"
    if 300 <= status < 400:
        error += ": redirects are not followed, give the address itself"
    if status == _GONE:
        error += " (gone): it wants nothing any more"
    wish = {name.lower(): value for name, value in answer.headers}.get(b"retry-after", b"")
    return Outcome(
        error=error, status=status, retry_after_s=wished(wish.decode("latin-1"), now), gone=status == _GONE
    )


def wished(value: str, now: datetime) -> float | None:
    """Seconds of a `Retry-After` (RFC 9110: a number or a date); None for none, or for nonsense.

    >>> wished("120", datetime(2026, 1, 1, tzinfo=UTC)), wished("soon", datetime(2026, 1, 1, tzinfo=UTC))
    (120.0, None)
    """
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())


def tell(url_file: Path, message: Message, message_id: str, to: str | None = None) -> Outcome:
    """Send a message through Apprise; `to`: the one recipient of an e-mail, instead of the URL's own."""
    try:
        service = service_of(url_file, message_id, to)
    except BrokerError as error:
        return Outcome(error=error.detail)
    with _Heard() as heard:
        sent = service.notify(body=message.body or message.title, title=message.title, body_format="text")
    return Outcome() if sent else Outcome(error=heard.sentence())


def service_of(url_file: Path, message_id: str, to: str | None) -> Any:
    """Apprise's service for a file's URL, a secret: `ConfigurationError` is raised without showing it."""
    parsed = url_to_dict(read_secret(url_file), secure_logging=True)  # type: ignore[no-untyped-call]
    if parsed is None:
        raise ConfigurationError(f"{url_file} holds no Apprise URL: mailtos://…, slack://…, msteams://…")
    if to is not None:
        parsed["targets"] = [to]
        parsed["headers"] = {**(parsed.get("headers") or {}), "X-Broker-Message-Id": message_id}
    asset = apprise.AppriseAsset(
        app_id="broker", async_mode=False, secure_logging=True, storage_mode="memory"
    )
    service = apprise.Apprise.instantiate(parsed, asset=asset)
    if service is None:
        raise ConfigurationError(f"Apprise can't use the URL in {url_file}: try it with its own command")
    return service


class _Heard(logging.Handler):
    """What Apprise says about one sending: it answers yes or no, and logs why.

    Only this thread's words, and only warnings and what a mail server said: other lines may carry secrets.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._thread = threading.get_ident()
        self._words: list[str] = []

    def __enter__(self) -> _Heard:
        _APPRISE.propagate = False
        _APPRISE.setLevel(logging.DEBUG)
        _APPRISE.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _APPRISE.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line that says why."""
        if record.thread != self._thread:
            return
        text = record.getMessage()
        if record.levelno >= logging.WARNING or text.startswith("Socket Exception: "):
            self._words.append(text)

    def sentence(self) -> str:
        """Why it failed."""
        return "; ".join(dict.fromkeys(self._words)) or "The service refused the message and did not say why"
