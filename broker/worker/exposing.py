"""The worker's own `/metrics`, where it runs without an API beside it (`broker worker`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import start_http_server

from broker.errors import ConfigurationError
from broker.settings import Settings

log = structlog.get_logger("broker.worker")


@contextmanager
def exposed(settings: Settings) -> Iterator[int | None]:
    """Answer Prometheus on `worker_metrics_host`, `worker_metrics_port` meanwhile; the port (None: not set).

    There are no accounts here, so anybody who reaches the address reads it: loopback unless set otherwise.
    """
    host, wanted = settings.worker_metrics_host, settings.worker_metrics_port
    if wanted is None:
        yield None
        return
    try:
        server, thread = start_http_server(wanted, host)
    except OSError as error:
        raise ConfigurationError(
            f"Can't listen on {host} port {wanted} (worker_metrics_host, worker_metrics_port): "
            f"{error.strerror or error}. Choose another port (0: a free one), or end what uses this one"
        ) from None
    port = int(server.server_address[1])
    log.info("metrics_shown", url=f"http://{host}:{port}/metrics")
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
