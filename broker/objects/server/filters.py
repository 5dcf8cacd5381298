"""Two WSGI filters for Swift's proxy (PasteDeploy factories): access keys, and a cache.

`Keys` maps every S3 request that carries a valid signature (version 2 or 4, header or presigned) of a key
in `keys.json` to one Swift account, and refuses all else. Swift's own `tempauth` would also offer its
token API and keep the secrets in the configuration.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

Environ = MutableMapping[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

ACCOUNT = "AUTH_s3"
_REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


class Keys:
    """Lets through what is signed by a known key. Its place is right after `s3api`."""

    def __init__(self, app: App, keys: dict[str, str]) -> None:
        self._app = app
        self._keys = keys

    def __call__(self, env: Environ, start: StartResponse) -> Iterable[bytes]:
        """Serve one request (PEP 3333)."""
        if env.get("swift.authorize_override"):  # Swift's own look-ups for a request already let through
            return self._app(env, start)
        details = env.get("s3api.auth_details")
        if details is None:  # no S3 request at all: the Swift API is not offered
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [_REFUSED]
        secret = self._keys.get(details["access_key"])
        if secret is not None and details["check_signature"](secret):
            # s3api addresses the account by the access key, and once answered by its name:
            # "/v1/ACCESS/bucket/object"
            _, version, _, *rest = env["PATH_INFO"].split("/", 3)
            env["PATH_INFO"] = "/".join(["", version, ACCOUNT, *rest])
            env["swift_owner"] = True
            env["REMOTE_USER"] = ACCOUNT
            env["swift.authorize"] = lambda _request: None
        else:
            env["swift.authorize"] = _forbid
        return self._app(env, start)


def _forbid(request: Any) -> Any:
    from swift.common.swob import HTTPForbidden  # not before eventlet has patched the process

    return HTTPForbidden(request=request)


class Cache:
    """The part of memcached's interface that the proxy uses for what it knows of containers.

    Values go through JSON, as they would with memcached, so nobody changes what another one reads.
    """

    _LIFETIME_S = 60.0
    _MAX_ENTRIES = 10_000

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, float]] = {}

    def set(self, key: str, value: Any, time: float = 0, **_options: Any) -> None:
        """Keep `value` for `time` seconds (0: a minute)."""
        if len(self._entries) >= self._MAX_ENTRIES:
            self._entries.clear()
        self._entries[key] = (json.dumps(value), _now() + (time or self._LIFETIME_S))

    def get(self, key: str, **_options: Any) -> Any:
        """The value, or None."""
        text, until = self._entries.get(key, ("", 0.0))
        return json.loads(text) if until > _now() else None

    def delete(self, key: str, **_options: Any) -> None:
        """Forget it."""
        self._entries.pop(key, None)


def _now() -> float:
    return time.monotonic()


def keys_factory(_global_conf: dict[str, str], *, keys: str, **_own: str) -> Callable[[App], App]:
    """PasteDeploy: `keys` is the path of keys.json."""
    known: dict[str, str] = json.loads(Path(keys).read_text())
    return lambda app: Keys(app, known)


def cache_factory(_global_conf: dict[str, str], **_own: str) -> Callable[[App], App]:
    """PasteDeploy: one cache for all requests."""
    cache = Cache()

    def filtered(app: App) -> App:
        def serve(env: Environ, start: StartResponse) -> Iterable[bytes]:
            env["swift.cache"] = cache
            return app(env, start)

        return serve

    return filtered
