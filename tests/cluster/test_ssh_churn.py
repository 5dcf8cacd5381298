"""One connection serves many short commands at once, for as long as there are any."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import BrokerError
from broker.hosts import SshConfig, SshHost

THREADS, EACH = 24, 60


@pytest.fixture
def host(cluster) -> Iterator[SshHost]:  # type: ignore[no-untyped-def]
    ssh = cluster.ssh
    config = SshConfig(ssh.host, ssh.port, ssh.user, Path(ssh.key), Path(ssh.known_hosts))
    host = SshHost(config)
    yield host
    host.close()


@pytest.mark.cluster
def test_commands_that_end_at_once_do_not_cost_the_connection(host: SshHost) -> None:
    """sshd ends a connection on which anything follows a channel's CLOSE: the end of input of a command
    that has just ended used to.
    """
    host.run(["true"], timeout=30)
    connection = host._link._transport
    failures: Counter[str] = Counter()

    def churn() -> None:
        for _ in range(EACH):
            try:
                host.run(["true"], stdin=b"nobody reads this", timeout=60)
            except BrokerError as error:
                failures[f"{type(error).__name__}: {error}"] += 1

    threads = [threading.Thread(target=churn) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert host._link._transport is connection
    assert host.open_channels == 0
    assert host.waiting == 0
