"""The REST API as the command line sees it: requests in, answers or the broker's own errors out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from broker import __version__
from broker.cli import credentials
from broker.cli.renewal import Renewing
from broker.errors import (
    BrokerError,
    OutcomeUnknown,
    Problem,
    Unreachable,
    all_errors,
)

_TIMEOUT = httpx.Timeout(60, connect=10)
_PAGE = 200
_ERRORS = {cls.code: cls for cls in all_errors()}
_BY_STATUS = {cls.http_status: cls for cls in reversed(all_errors())}
_PAUSES_S = (0.5, 2.0, 5.0)

T = TypeVar("T")


class Api:
    """One server, one connection pool. Paths are below `/api/v1` unless they begin with `//`."""

    pauses_s: Sequence[float] = _PAUSES_S
    """Before each repetition of a request whose answer was lost."""

    def __init__(
        self,
        server: str,
        token: str | None,
        transport: httpx.BaseTransport | None = None,
        auth: httpx.Auth | None = None,
    ) -> None:
        self.server = server
        headers = {"Accept": "application/json", "User-Agent": f"broker-cli/{__version__}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=server, headers=headers, timeout=_TIMEOUT, transport=transport, auth=auth
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """Read something; parameters that are None are left out."""
        return self._answer(self._send("GET", path, params=params))

    def post(
        self, path: str, body: Any = None, *, content: bytes | None = None, key: str | None = None
    ) -> Any:
        """Ask for something to be done; with an idempotency key, again until the outcome is clear."""
        headers = {"Idempotency-Key": key} if key else {}
        return self._changed("POST", path, body, content, headers, repeatable=key is not None)

    def upload(self, path: str, chunks: Callable[[], Iterator[bytes]], *, size: int, key: str) -> Any:
        """Send a file of `size` bytes; `chunks` begins anew at each try."""
        headers = {
            "Idempotency-Key": key,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
        }

        def once() -> Any:
            return self._answer(self._send("POST", path, headers=headers, content=chunks()))

        return patiently(once, again=(Unreachable, OutcomeUnknown), pauses_s=self.pauses_s)

    def patch(self, path: str, body: Any, *, etag: str | None = None) -> Any:
        """Change something; with `etag` only if it is still what was read."""
        return self._changed("PATCH", path, body, None, {"If-Match": etag} if etag else {}, repeatable=False)

    def put(self, path: str, body: Any, *, etag: str | None = None) -> Any:
        """Put something in the place of what is there: asking twice is as good as once.

        With `etag` only if it is still what was read, and then asked once.
        """
        headers = {"If-Match": etag} if etag else {}
        return self._changed("PUT", path, body, None, headers, repeatable=etag is None)

    def delete(self, path: str, **params: Any) -> Any:
        """Delete something; parameters that are None are left out."""
        return self._answer(self._send("DELETE", path, params=params))

    def pages(self, path: str, limit: int | None = None, **params: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page; at most `limit` of them."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            page = self.get(path, limit=size, cursor=cursor, **params)
            yield from page["items"]
            cursor = page.get("next_cursor")
            if not cursor:
                return
            left = None if left is None else left - len(page["items"])

    def save(self, path: str, write: Callable[[bytes], object], **params: Any) -> int:
        """Hand an answer over chunk by chunk, however long it is; the number of bytes."""
        given = {name: value for name, value in params.items() if value is not None}
        count = 0
        with (
            _transport_errors(self.server),
            self._http.stream("GET", f"/api/v1{path}", params=given) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise error_of(answer)
            for chunk in answer.iter_bytes():
                write(chunk)
                count += len(chunk)
        return count

    def get_if_changed(self, path: str, etag: str | None) -> tuple[Any, str | None]:
        """What lies there now, or None when it still is what `etag` names."""
        response = self._send("GET", path, headers={"If-None-Match": etag} if etag else {})
        if response.status_code == httpx.codes.NOT_MODIFIED:
            return None, etag
        return self._answer(response), response.headers.get("ETag")

    def _changed(
        self,
        method: str,
        path: str,
        body: Any,
        content: bytes | None,
        headers: Mapping[str, str],
        *,
        repeatable: bool,
    ) -> Any:
        def once() -> Any:
            payload: dict[str, Any] = {"json": body} if content is None and body is not None else {}
            sent = dict(headers)
            if content is not None:
                payload, sent = {"content": content}, {**headers, "Content-Type": "application/json"}
            return self._answer(self._send(method, path, headers=sent, **payload))

        if not repeatable:
            return once()
        return patiently(once, again=(Unreachable, OutcomeUnknown), pauses_s=self.pauses_s)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        **payload: Any,
    ) -> httpx.Response:
        url = path[1:] if path.startswith("//") else f"/api/v1{path}"
        given = {name: value for name, value in (params or {}).items() if value is not None}
        with _transport_errors(self.server, harmless=method == "GET"):
            return self._http.request(method, url, params=given, headers=headers, **payload)

    def _answer(self, response: httpx.Response) -> Any:
        if response.is_success:
            return response.json() if response.content else None
        raise error_of(response)


@contextmanager
def _transport_errors(server: str, *, harmless: bool = True) -> Iterator[None]:
    """Broken connections as the broker's errors; a `harmless` request changes nothing when it is repeated."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Unreachable(f"No broker answers at {server} ({error}); is `broker up` running?") from None
    except httpx.TransportError as error:
        kind = Unreachable if harmless else OutcomeUnknown
        raise kind(f"The connection to {server} broke off: {error or type(error).__name__}") from None


def patiently(
    act: Callable[[], T],
    *,
    again: tuple[type[BrokerError], ...] = (Unreachable,),
    pauses_s: Sequence[float] = _PAUSES_S,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """Do it, and on errors that time mends do it again after a pause (the server's own wish comes first)."""
    for pause in pauses_s:
        try:
            return act()
        except again as error:
            sleep(error.retry_after_s or pause)
    return act()


def error_of(response: httpx.Response) -> BrokerError:
    """The answer of a server that said no, as the error it stands for.

    The server's `code` decides; where there is none (a proxy answered) the status does.
    """
    try:
        document = response.json()
        if not isinstance(document, dict):
            raise ValueError
    except ValueError:
        document = {"detail": f"{response.url.host} answered {response.status_code} {response.reason_phrase}"}
    cls = _ERRORS.get(str(document.get("code")))
    if cls is None or cls is BrokerError:
        cls = _BY_STATUS.get(
            response.status_code, Unreachable if response.status_code >= 502 else BrokerError
        )
    detail = str(document.get("detail") or document.get("title") or response.reason_phrase)
    if response.status_code >= 500 and (request_id := document.get("request_id")):
        detail += f" (request {request_id})"
    return cls(detail, problems=_problems(document), retry_after_s=_retry_after(response))


def _problems(document: Mapping[str, Any]) -> tuple[Problem, ...]:
    found = document.get("errors")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return tuple(
        Problem(str(entry.get("pointer", "")), str(entry.get("code", "")), str(entry.get("detail", "")))
        for entry in entries
    )


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def connect(server: str | None = None) -> Api:
    """A client of the server in question, with the stored token; raises `Unauthenticated` without one."""
    url = credentials.server_url(server)
    credential = credentials.find(url)
    if credential.refresh_token is None:
        return Api(url, credential.token)
    return Api(url, None, auth=Renewing(url, credential))
