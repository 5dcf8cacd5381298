"""A real server of an application, in a thread of the test: for clients that open connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from broker.cli.serving import listen, url_of


class _Server(uvicorn.Server):
    """uvicorn's, saying when it listens; signals are the test's."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def serving(app: Any, opened: socket.socket | None = None) -> Iterator[str]:
    """Serve `app` on a listening socket, else on a free port of 127.0.0.1; its address."""
    with opened or listen("127.0.0.1", 0) as listener:
        server = _Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        thread.start()
        try:
            assert server.ready.wait(20), "the server did not begin to listen"
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join(20)
