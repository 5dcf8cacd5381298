"""SshHost against a real sshd, at its default `MaxSessions 10`."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import paramiko
import pytest

from broker.errors import ConfigurationError, OutcomeUnknown, TransferInterrupted
from broker.hosts import SshConfig, SshHost

pytestmark = pytest.mark.cluster


def config(cluster: Any, **options: Any) -> SshConfig:
    ssh = cluster.ssh
    given = {"known_hosts": Path(ssh.known_hosts), "backoff_min": 0.2, "backoff_max": 1.0, **options}
    return SshConfig(ssh.host, ssh.port, ssh.user, Path(ssh.key), **given)


@pytest.fixture
def host(cluster: Any) -> Iterator[SshHost]:
    with closing(SshHost(config(cluster))) as found:
        yield found


@pytest.fixture
def folder(host: SshHost) -> Iterator[str]:
    name = host.run(["mktemp", "-d", "/shared/ml-jobs/test-ssh-XXXXXX"], timeout=10).stdout.decode().strip()
    yield name
    host.write(f"{name}/.broker-run", b"")
    host.remove_tree(name, ".broker-run")


def test_the_ninth_command_waits_and_does_not_fail(host: SshHost, folder: str) -> None:
    waiting = ["sh", "-c", 'until [ -e "$1" ]; do sleep 0.05; done', "sh", f"{folder}/gate"]
    with ThreadPoolExecutor(12) as pool:
        runs = [pool.submit(host.run, waiting, timeout=60) for _ in range(12)]
        await_true(lambda: (host.open_channels, host.waiting) == (8, 4))
        # The bound is ours, not sshd's: a host of its own opens the gate.
        with closing(SshHost(host.config)) as other:
            other.run(["touch", f"{folder}/gate"], timeout=20)
    assert [run.result().rc for run in runs] == [0] * 12


def test_commands_given_up_but_still_running_there_do_not_block_the_host(host: SshHost) -> None:
    """sshd counts a session until its command ends, though we closed it: ten of them and none is left."""
    assert host.run(["true"], timeout=30).rc == 0  # connected: the time below is the commands' alone
    for _ in range(2):
        with ThreadPoolExecutor(5) as pool:
            runs = [pool.submit(host.run, ["sleep", "20"], timeout=1.5) for _ in range(5)]
        assert all(isinstance(run.exception(), OutcomeUnknown) for run in runs)
    assert host.run(["echo", "here"], timeout=15).stdout == b"here\n"


def test_sshd_restarted_costs_at_most_what_was_under_way(cluster: Any, host: SshHost) -> None:
    assert host.run(["true"], timeout=10).rc == 0
    cluster.restart("sshd")
    assert host.run(["echo", "back"], timeout=30, readonly=True).stdout == b"back\n"


def test_a_connection_killed_in_the_middle_is_told_and_made_again(host: SshHost) -> None:
    stream = host.stream(["sh", "-c", "echo $PPID; exec sleep 60"], timeout=30)
    sshd = next(iter(stream)).decode().strip()
    # The session's own sshd, or its monitor's child: ending it ends the connection.
    killer = ["sh", "-c", f"kill $(ps -o ppid= -p {sshd}) {sshd}"]
    with pytest.raises(OutcomeUnknown):
        host.run(killer, timeout=10)
    with pytest.raises(TransferInterrupted):
        list(stream)
    assert host.run(["echo", "again"], timeout=20).stdout == b"again\n"


def test_a_command_killed_there_left_no_outcome(host: SshHost) -> None:
    with pytest.raises(OutcomeUnknown):
        host.run(["sh", "-c", "kill -9 $$"], timeout=10)
    assert host.connected


def test_a_host_key_that_differs_is_refused(cluster: Any, tmp_path: Path) -> None:
    other = paramiko.ECDSAKey.generate()
    ssh = cluster.ssh
    wrong = tmp_path / "known_hosts"
    wrong.write_text(f"[{ssh.host}]:{ssh.port} {other.get_name()} {other.get_base64()}\n")
    with closing(SshHost(config(cluster, known_hosts=wrong))) as host:
        with pytest.raises(ConfigurationError, match=r"CHANGED|not in") as refused:
            host.run(["true"], timeout=10)
        assert "ssh-keyscan" in refused.value.detail
        assert "SHA256:" in refused.value.detail


def test_keys_are_renewed_under_load_without_losing_the_connection(
    host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko alone locks itself up here: the thread that answers a channel's CLOSE waits for itself."""
    monkeypatch.setattr(paramiko.packet.Packetizer, "REKEY_BYTES", 2**20)
    assert host.run(["true"], timeout=10).rc == 0
    connection = host._link._transport
    stop = threading.Event()

    def poll() -> int:
        count = 0
        while not stop.is_set():
            assert host.run(["echo", "poll"], stdin=b"unread", timeout=20).stdout == b"poll\n"
            count += 1
        return count

    with ThreadPoolExecutor(5) as pool:
        polls = [pool.submit(poll) for _ in range(5)]
        try:
            moved = sum(map(len, host.stream(["head", "-c", str(64 * 2**20), "/dev/zero"], timeout=30)))
        finally:
            stop.set()
    assert moved == 64 * 2**20
    assert all(run.result() > 0 for run in polls)
    assert host._link._transport is connection


def test_a_large_file_goes_and_comes_in_bounded_memory(host: SshHost, folder: str) -> None:
    piece = bytes(range(256)) * 4096  # 1 MiB
    path = f"{folder}/large"
    tracemalloc.start()
    try:
        host.write(path, (piece for _ in range(128)))
        position = 0
        for chunk in host.read(path):
            at = position % len(piece)
            assert chunk == (piece + piece)[at : at + len(chunk)]
            position += len(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert position == 128 * 2**20
    assert peak < 32 * 2**20


def test_a_long_list_of_words_reaches_sshd_whole(host: SshHost) -> None:
    words = [f"{n:05d}" for n in range(10_000)]  # one exec request of 60 kB
    assert host.run(["printf", "%s", *words], timeout=20).stdout == "".join(words).encode()


def await_true(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
