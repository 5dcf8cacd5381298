"""Four Swift servers in one eventlet hub: the S3 front on the given socket, three back ends behind it.

The back ends trust whoever reaches them, so they listen on loopback ports chosen anew at every start and
answer only requests that carry a token which lives in this process alone: other users of the machine can't
go round the S3 authentication. Importing this module patches the process; nothing else may do so first.
"""

# ruff: noqa: E402 (the patch comes before everything that opens a socket)

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

warnings.filterwarnings("ignore", category=DeprecationWarning)

import swift.common.utils as swift_utils

swift_utils.eventlet_monkey_patch()

import eventlet
import eventlet.wsgi
from swift.common import bufferedhttp, constraints
from swift.common.http_protocol import SwiftHttpProtocol
from swift.common.ring import RingBuilder
from swift.common.storage_policy import reload_storage_policies
from swift.common.utils import NullLogger
from swift.common.utils import logs as swift_logs
from swift.common.wsgi import loadapp
from swift.obj.updater import ObjectUpdater

from broker.objects.server.config import BACKENDS, Backend, backend_conf, proxy_conf, swift_conf
from broker.objects.server.filters import App, Environ, StartResponse
from broker.objects.server.layout import DEVICE, Layout, salt

_TOKEN_HEADER = "X-Backend-Broker-Token"  # noqa: S105 (a header's name)
_LISTING_SWEEP_S = 60.0


def serve(
    layout: Layout, front: socket.socket, cors_origins: Sequence[str], ready: Callable[[], None]
) -> None:
    """Serve until the process is ended; `ready` is called once every server listens."""
    _log_to_stderr()
    _configure(layout, cors_origins)
    token = secrets.token_hex(32)
    _send_token(token)
    listeners = {kind: eventlet.listen(("127.0.0.1", 0), backlog=1024) for kind in BACKENDS}
    for kind, listener in listeners.items():
        _write_ring(layout, kind, listener.getsockname()[1])
    servers = [
        eventlet.spawn(_run, listener, _guarded(_load(layout, kind), token))
        for kind, listener in listeners.items()
    ]
    green_front = eventlet.greenio.GreenSocket(front)
    servers.append(eventlet.spawn(_run, green_front, _load(layout, "proxy")))
    servers.append(eventlet.spawn(_sweep_listings, layout))
    ready()
    for server in servers:
        server.wait()


def _log_to_stderr() -> None:
    """Swift knows syslog only, and without one it sends datagrams to port 514."""

    def handler(*_args: object, **_options: object) -> logging.Handler:
        return logging.StreamHandler(sys.stderr)

    swift_logs.ThreadSafeSysLogHandler = handler


def _configure(layout: Layout, cors_origins: Sequence[str]) -> None:
    os.environ["TZ"] = "UTC+0"  # Swift's servers insist (swift.common.daemon)
    time.tzset()
    files = {
        "swift.conf": swift_conf(salt(layout)),
        "proxy-server.conf": proxy_conf(cors_origins),
        **{f"{kind}-server.conf": backend_conf(kind) for kind in BACKENDS},
    }
    for name, text in files.items():
        (layout.conf / name).write_text(text)
    swift_utils.SWIFT_CONF_FILE = constraints.SWIFT_CONF_FILE = str(layout.conf / "swift.conf")
    os.chdir(layout.root)  # the configuration is relative to it
    constraints.reload_constraints()
    reload_storage_policies()
    swift_utils.validate_configuration()


def _write_ring(layout: Layout, kind: Backend, port: int) -> None:
    """The map from object to server: here everything lies on one device of one server."""
    builder = RingBuilder(4, 1, 1)
    place = {"ip": "127.0.0.1", "port": port}
    builder.add_dev(
        {"id": 0, "region": 1, "zone": 1, "device": DEVICE, "weight": 1.0, "meta": ""}
        | place
        | {f"replication_{name}": value for name, value in place.items()}
    )
    builder.rebalance()
    builder.get_ring().save(str(layout.conf / f"{kind}.ring.gz"))


def _load(layout: Layout, name: str) -> App:
    app: App = loadapp(str(layout.conf / f"{name}-server.conf"), global_conf={"log_name": name})
    return app


def _send_token(token: str) -> None:
    """Every back-end request of Swift goes through this one function."""
    plain = bufferedhttp.http_connect_raw
    positional = 4  # ipaddr, port, method, path; then the headers

    def connect(*args: Any, **options: Any) -> Any:
        given = args[positional] if len(args) > positional else options.pop("headers", None)
        headers = {**(given or {}), _TOKEN_HEADER: token}
        return plain(*args[:positional], headers, *args[positional + 1 :], **options)

    bufferedhttp.http_connect_raw = connect


def _guarded(app: App, token: str) -> App:
    name = "HTTP_" + _TOKEN_HEADER.upper().replace("-", "_")

    def serve_known(env: Environ, start: StartResponse) -> Iterable[bytes]:
        if not hmac.compare_digest(str(env.get(name, "")).encode(), token.encode()):
            start("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return app(env, start)

    return serve_known


def _run(listener: object, app: App) -> None:
    eventlet.wsgi.server(
        listener,
        app,
        NullLogger(),
        custom_pool=eventlet.GreenPool(1024),
        protocol=SwiftHttpProtocol,
        socket_timeout=60,
        capitalize_response_headers=False,
        log_output=False,
        url_length_limit=16384,  # a presigned URL carries its key percent-encoded
    )


def _sweep_listings(layout: Layout) -> None:
    """Put into the listings what could not be put there when it was stored (Swift's object updater).

    An object whose container did not answer in time is stored, but listed only after this.
    """
    conf = {
        "devices": str(layout.data),
        "swift_dir": str(layout.conf),
        "mount_check": "false",
        "recon_cache_path": str(layout.conf),
        "log_level": "WARNING",
    }
    updater = ObjectUpdater(conf)
    while True:
        updater.begin = time.time()
        updater.object_sweep(str(layout.device))
        eventlet.sleep(_LISTING_SWEEP_S)
