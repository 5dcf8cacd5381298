"""The application behind a real server, for what a test client can not show: streams, sockets, commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tests.api_support import Api


@contextmanager
def served(api: Api) -> Iterator[int]:
    """uvicorn on a free port, as `broker serve` runs it; the port."""
    config = uvicorn.Config(
        api.app, port=0, log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
