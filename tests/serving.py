"""The application behind a real server, for what a test client can not show: streams, sockets, commands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from broker.cli import main
from tests.api_support import Api

Call = Callable[..., Any]
"""What `caller` makes: the words of a command and `status=`, what it should exit with."""


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


@contextmanager
def signed_on(api: Api, username: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server, and commands that talk to it as one of its people."""
    with served(api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", api.tokens[username])
        yield


def caller(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command; its JSON where the words ask for it, else all that it said."""

    def call(*words: str, status: int = 0) -> Any:
        capsys.readouterr()
        assert main([*words]) == status, capsys.readouterr()
        out = capsys.readouterr()
        return json.loads(out.out) if "--json" in words and out.out else out.out + out.err

    return call
