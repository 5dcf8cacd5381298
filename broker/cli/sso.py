"""`broker login --sso`: signing on in a browser, this machine's own or any other one.

With a browser here the answer comes to a port of this machine (RFC 8252, 7.3). Without one, on a login node
for instance, the address is opened anywhere and the code that it ends with is typed in. The code alone is
worth nothing: tokens are given only to whoever has the verifier of this sign-on's challenge (RFC 7636).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from broker.cli.client import Api
from broker.cli.output import message
from broker.errors import Denied, InvalidRequest, Unreachable

PATIENCE_S: Final = 600.0
"""How long somebody may take in the browser; the broker itself waits no longer."""
_DONE: Final = "You are signed on; you may close this window. 로그인되었습니다. 이 창을 닫아도 됩니다."
_NOT: Final = "You are not signed on; the command says why. 로그인되지 않았습니다."


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the browser brought: a code, or why there is none."""

    code: str | None
    error: str | None


def sign_on(url: str, *, here: bool, ask: Callable[[str], str]) -> dict[str, Any]:
    """Tokens of a broker by single sign-on; `ask` reads a line from the person, `here` opens a browser.

    Raises `Denied` in the words of the broker or its provider.
    """
    with Api(url, token=None) as client:
        if not client.get("/auth/oidc")["enabled"]:
            raise InvalidRequest(f"{url} has no single sign-on; log in with: broker login --username NAME")
        verifier = secrets.token_urlsafe(48)
        code = _by_port(url, verifier) if here and _has_browser() else _by_hand(url, verifier, ask)
        answer: dict[str, Any] = client.post("/auth/oidc/token", {"code": code, "code_verifier": verifier})
    return answer


def challenge_of(verifier: str) -> str:
    """S256 (RFC 7636, 4.2).

    >>> challenge_of("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM'
    """
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _address(url: str, verifier: str, **more: str) -> str:
    return f"{url}/api/v1/auth/oidc/login?{urlencode({'code_challenge': challenge_of(verifier), **more})}"


def _has_browser() -> bool:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _by_hand(url: str, verifier: str, ask: Callable[[str], str]) -> str:
    message(f"Open this address in a browser, on whatever machine:\n\n  {_address(url, verifier)}\n")
    return ask("The code that it shows").strip()


def _by_port(url: str, verifier: str) -> str:
    state = secrets.token_urlsafe(16)
    with _Listener(state) as listener:
        place = f"http://127.0.0.1:{listener.server_port}/"
        address = _address(url, verifier, redirect_uri=place, state=state)
        message(f"A browser opens at:\n\n  {address}\n\nIf it does not, open it yourself on this machine.")
        webbrowser.open(address)
        answer = listener.wait(PATIENCE_S)
    if answer is None:
        raise Unreachable(f"Nobody signed on within {PATIENCE_S / 60:.0f} minutes; nothing was done")
    if answer.code is None:
        raise Denied(answer.error or "The provider did not let you in")
    return answer.code


class _Listener(HTTPServer):
    """A port of this machine, for one answer with our state; whatever else comes is refused."""

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.answer: _Answer | None = None

    def wait(self, seconds: float) -> _Answer | None:
        """The answer, or None when none came in time."""
        until = time.monotonic() + seconds
        while self.answer is None and (left := until - time.monotonic()) > 0:
            self.timeout = left
            self.handle_request()
        return self.answer


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = 10  # a browser may open a connection and never ask anything

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        ours = secrets.compare_digest(query.get("state", "").encode(), self.server.state.encode())
        if ours:
            self.server.answer = _Answer(
                query.get("code"), query.get("error_description") or query.get("error")
            )
        body = (_DONE if ours and "code" in query else _NOT).encode()
        self.send_response(200 if ours else 400)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the code would stand in it."""
