"""The two processes that do the work: the API and the worker."""

from __future__ import annotations

import gc
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from sqlalchemy.exc import OperationalError

from broker import schema
from broker.api.app import create_app
from broker.cli.server import database_trouble
from broker.context import Context, build_context
from broker.errors import ConfigurationError
from broker.logging import configure_logging
from broker.settings import Settings
from broker.worker import run
from broker.worker.exposing import exposed

BACKLOG = 1024
_DRAIN_S = 8
"""How long requests in progress may go on after SIGTERM; streams of events are cut then."""


def serve_api(settings: Settings, *, host: str, port: int, fd: int | None, supervised: bool) -> None:
    """Serve until SIGTERM (or SIGINT, when nobody supervises us)."""
    configure_logging(settings.log_format, settings.log_level)
    listener = socket.socket(fileno=fd) if fd is not None else listen(host, port)
    with _context(settings) as ctx, listener:
        config = uvicorn.Config(
            create_app(ctx),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_DRAIN_S,
            ws="websockets-sansio",
            ws_max_size=64 * 1024,
            server_header=False,
            # uvicorn trusts loopback unless told: a local client could choose the address it is slowed by
            proxy_headers=bool(settings.api.trusted_proxies),
            forwarded_allow_ips=list(settings.api.trusted_proxies),
        )
        if not supervised:
            print_ready(url_of(listener))
        _Server(config, supervised).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn's, ending quietly at a signal; under a supervisor SIGINT is the supervisor's."""

    def __init__(self, config: uvicorn.Config, supervised: bool) -> None:
        super().__init__(config)
        self._numbers = (signal.SIGTERM,) if supervised else (signal.SIGTERM, signal.SIGINT)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See `uvicorn.Server`, which would raise the signal anew when it has ended."""
        for number in self._numbers:
            signal.signal(number, self.handle_exit)
        yield


def work(settings: Settings, *, supervised: bool) -> None:
    """Run the worker until SIGTERM (or SIGINT, when nobody supervises us)."""
    configure_logging(settings.log_format, settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM,) if supervised else (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    alone = settings.model_copy(update={"worker_metrics_port": None}) if supervised else settings
    with _context(settings) as ctx, exposed(alone):
        keep_loaded()
        run(ctx, stop)


def keep_loaded() -> None:
    """Leave all that is loaded by now out of garbage collection: 300,000 objects that live as long as the
    process would be looked through again and again while jobs are read from accounting.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _context(settings: Settings) -> Iterator[Context]:
    """Connections of a process that needs current tables; raises `ConfigurationError` without them."""
    ctx = build_context(settings)
    try:
        try:
            behind = schema.pending(ctx.db)
        except OperationalError as error:
            raise database_trouble(error) from None
        if behind:
            raise ConfigurationError("The database's tables are not current: run `broker db upgrade`")
        yield ctx
    finally:
        ctx.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `ConfigurationError` that names the setting when there is none to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"Can't listen on {host} port {port} (api.host, api.port): {error.strerror or error}. "
            "Choose another port (0: a free one), or end what uses this one"
        ) from None
    # Accepted connections inherit it. asyncio sets it only on sockets that name IPPROTO_TCP, which
    # `create_server` does not, and without it an answer's body waits 40 ms for a delayed ACK (tcp(7)).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """The address at which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def print_ready(url: str) -> None:
    """The one line on standard output that programs wait for."""
    sys.stdout.write(f"ready {url}\n")
    sys.stdout.flush()
