"""Keeps a login going: access tokens live for minutes, so they are renewed when they are about to end."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from broker.cli import credentials
from broker.cli.credentials import Credential
from broker.errors import Unauthenticated

_MARGIN = timedelta(seconds=20)


def credential_of(username: str, answer: dict[str, Any]) -> Credential:
    """What `/auth/login`, `/auth/refresh` and `/auth/password` answer, as it is kept."""
    now = datetime.now(UTC)
    return Credential(
        answer["access_token"],
        username,
        now + timedelta(seconds=float(answer["expires_in"])),
        answer["refresh_token"],
        now + timedelta(seconds=float(answer["refresh_expires_in"])),
    )


class Renewing(httpx.Auth):
    """Sends the stored token, and renews it before its end or when the server refuses it.

    A refresh token may be used once, and two commands in two terminals share it: so it is used under a lock,
    and whoever comes second takes what the first one stored.
    """

    def __init__(self, server: str, credential: Credential) -> None:
        self._server, self._credential = server, credential

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Httpx's form: requests out, responses in."""
        ends = self._credential.expires_at
        if ends is not None and ends - datetime.now(UTC) < _MARGIN:
            yield from self._renew()
        request.headers["Authorization"] = f"Bearer {self._credential.token}"
        response = yield request
        repeatable = isinstance(request.stream, httpx.ByteStream)  # a stream was sent and is gone
        if response.status_code == httpx.codes.UNAUTHORIZED and self._credential.refresh_token and repeatable:
            yield from self._renew()
            request.headers["Authorization"] = f"Bearer {self._credential.token}"
            yield request

    def _renew(self) -> Generator[httpx.Request, httpx.Response, None]:
        with credentials.locked():
            stored = credentials.find(self._server)
            if stored.token != self._credential.token:
                self._credential = stored  # another command was first
                return
            body = {"refresh_token": stored.refresh_token}
            response = yield httpx.Request("POST", f"{self._server}/api/v1/auth/refresh", json=body)
            response.read()
            if response.status_code == httpx.codes.UNAUTHORIZED:
                raise Unauthenticated(f"The login at {self._server} has ended")
            if not response.is_success:
                return  # the request itself will be answered alike
            self._credential = credential_of(stored.username, response.json())
            credentials.store(self._server, self._credential)
