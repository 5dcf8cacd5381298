"""What an SSH host promises when the other side fails: certain and uncertain are never confused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import paramiko
import pytest

from broker.errors import ConfigurationError, OutcomeUnknown, TransferInterrupted, Unreachable
from broker.hosts import SshHost, link
from tests.contract.sshserver import SshServer, ssh_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with ssh_server(tmp_path) as found:
        yield found


@pytest.fixture
def host(server: SshServer) -> Iterator[SshHost]:
    with closing(SshHost(server.config())) as found:
        yield found


def test_a_connection_lost_before_the_command_was_handed_over_is_made_again(
    server: SshServer, host: SshHost
) -> None:
    server.behaviour.drop_before_exec = 2
    assert host.run(["echo", "once"], timeout=10).stdout == b"once\n"
    assert server.behaviour.executed == ["echo once"]
    assert server.behaviour.connections == 3


def test_a_connection_lost_afterwards_leaves_the_outcome_unknown_and_nothing_is_repeated(
    server: SshServer, host: SshHost
) -> None:
    server.behaviour.drop_after_exec = 1
    with pytest.raises(OutcomeUnknown):
        host.run(["echo", "once"], timeout=10)
    assert server.behaviour.executed == ["echo once"]


def test_a_connection_lost_while_the_command_is_taken_in_is_never_called_a_refusal(
    server: SshServer, host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko wakes the waiter before it marks the connection as lost; that moment is made longer here."""
    unlink = paramiko.Channel._unlink  # type: ignore[attr-defined]

    def slowly(channel: paramiko.Channel) -> None:
        unlink(channel)
        time.sleep(0.2)

    monkeypatch.setattr(paramiko.Channel, "_unlink", slowly)
    server.behaviour.cut_before_reply = 1
    with pytest.raises(OutcomeUnknown):
        host.run(["true"], timeout=10)
    assert server.behaviour.executed == ["true"]


def test_a_readonly_command_is_tried_once_more_on_a_fresh_connection(
    server: SshServer, host: SshHost
) -> None:
    server.behaviour.drop_after_exec = 1
    assert host.run(["echo", "twice"], timeout=10, readonly=True).stdout == b"twice\n"
    assert server.behaviour.connections == 2
    server.behaviour.drop_after_exec = 2
    with pytest.raises(Unreachable):
        host.run(["echo", "twice"], timeout=10, readonly=True)
    assert len(server.behaviour.executed) == 4


def test_a_refused_exec_is_certain_not_to_have_run(server: SshServer, host: SshHost) -> None:
    server.behaviour.refuse_exec = 1
    with pytest.raises(Unreachable):
        host.run(["touch", str(server.folder / "touched")], timeout=5)
    assert not (server.folder / "touched").exists()
    assert host.run(["true"], timeout=5).rc == 0


def test_a_channel_closed_without_an_answer_is_no_refusal(server: SshServer, host: SshHost) -> None:
    """The command may have run to its end by then: here it has."""
    server.behaviour.close_before_reply = 1
    with pytest.raises(OutcomeUnknown):
        host.run(["touch", str(server.folder / "touched")], timeout=5)
    assert (server.folder / "touched").exists()
    assert host.run(["true"], timeout=5).rc == 0


def test_a_command_that_outlives_its_time_is_unknown_or_unreachable_if_it_only_reads(host: SshHost) -> None:
    assert host.run(["true"], timeout=20).rc == 0  # connected: the time below is the command's alone
    with pytest.raises(OutcomeUnknown):
        host.run(["sleep", "30"], timeout=1)
    with pytest.raises(Unreachable):
        host.run(["sleep", "30"], timeout=1, readonly=True)
    assert host.run(["true"], timeout=5).rc == 0


def test_a_poller_gives_up_when_its_time_is_over_however_patient_the_host_is(server: SshServer) -> None:
    server.behaviour.hang_accept.set()
    with closing(SshHost(server.config(attempts=10, connect_timeout=60.0))) as host:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            host.run(["true"], timeout=0.5)
        assert time.monotonic() - began < 20  # not the 60 s of a connection, nor ten times these
        server.behaviour.hang_accept.clear()
        assert host.run(["true"], timeout=10).rc == 0


def test_threads_that_wait_share_one_attempt_to_connect(server: SshServer) -> None:
    server.behaviour.hang_accept.set()
    with closing(SshHost(server.config(attempts=1, connect_timeout=1.5))) as host:
        with ThreadPoolExecutor(8) as pool:
            errors = [pool.submit(host.run, ["true"], timeout=20) for _ in range(8)]
        assert all(isinstance(error.exception(), Unreachable) for error in errors)
        assert server.behaviour.connections == 1
        server.behaviour.hang_accept.clear()


def test_the_ninth_command_waits_and_does_not_fail(server: SshServer, host: SshHost) -> None:
    gate = server.folder / "gate"
    waiting = ["sh", "-c", 'until [ -e "$1" ]; do sleep 0.02; done', "sh", str(gate)]
    with ThreadPoolExecutor(11) as pool:
        runs = [pool.submit(host.run, waiting, timeout=30) for _ in range(11)]
        _await(lambda: host.open_channels == 8 and host.waiting == 3)
        gate.touch()
    assert [run.result().rc for run in runs] == [0] * 11
    assert server.behaviour.most_sessions <= 8
    assert (host.open_channels, host.waiting) == (0, 0)


def test_sessions_refused_by_the_server_are_waited_for(server: SshServer, host: SshHost) -> None:
    server.behaviour.max_sessions = 2
    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(host.run, ["sh", "-c", "sleep 0.1; echo ok"], timeout=30) for _ in range(6)]
    assert [run.result().stdout for run in runs] == [b"ok\n"] * 6
    assert server.behaviour.most_sessions <= 2


def test_transfers_leave_channels_to_commands(server: SshServer, host: SshHost) -> None:
    streams = [host.stream(["sh", "-c", "echo begun; exec sleep 60"], timeout=60) for _ in range(6)]
    assert [next(stream) for stream in streams] == [b"begun\n"] * 6
    with pytest.raises(Unreachable, match="busy"):
        next(iter(host.stream(["true"], timeout=0.3)))
    assert host.run(["echo", "poll"], timeout=10).stdout == b"poll\n"
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    assert host.open_channels == 0


def test_input_and_output_larger_than_every_window_flow_at_once(host: SshHost) -> None:
    data = bytes(range(256)) * 2**15  # 8 MiB
    assert host.run(["cat"], stdin=data, timeout=60).stdout == data
    chunks = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    assert b"".join(host.stream(["cat"], stdin=chunks, timeout=60)) == data


def test_a_flood_on_standard_error_blocks_nothing_and_is_cut(host: SshHost) -> None:
    done = host.run(["sh", "-c", "head -c 8M /dev/zero >&2; echo end"], timeout=60)
    assert done.stdout == b"end\n"
    assert 0 < len(done.stderr) <= 2**20


def test_a_source_that_fails_never_looks_like_its_end(host: SshHost, tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield b"half" * 2**20
        raise RuntimeError("the source broke")

    with pytest.raises((RuntimeError, TransferInterrupted)):
        host.write(str(tmp_path / "whole"), source())
    assert not (tmp_path / "whole").exists()


def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    server: SshServer, host: SshHost, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 2**16  # 16 MiB
    target, seen = tmp_path / "model.bin", []

    def cut(done: int, total: int | None) -> None:
        seen.append(done)
        if done >= 8 * 2**20 and len(server.transports) == 1:
            _await(lambda: any(part.stat().st_size > 2**20 for part in tmp_path.glob(".model.bin.*.part")))
            server.cut()

    with pytest.raises(TransferInterrupted):
        host.write(str(target), data, on_progress=cut)
    assert not target.exists()
    (part,) = tmp_path.glob(".model.bin.*.part")
    held = part.stat().st_size
    seen.clear()
    host.write(str(target), data, on_progress=cut)
    assert target.read_bytes() == data
    assert seen[0] > held > 0
    assert seen[-1] == len(data)
    assert [entry.name for entry in tmp_path.glob(".*")] == []


def test_a_stream_that_breaks_off_is_no_end_of_file(server: SshServer, host: SshHost) -> None:
    stream = iter(host.stream(["sh", "-c", "echo begun; exec sleep 60"], timeout=30))
    assert next(stream) == b"begun\n"
    server.cut()
    with pytest.raises(TransferInterrupted):
        next(stream)


def test_an_exit_status_without_the_end_of_the_output_is_half_an_answer(
    server: SshServer, host: SshHost
) -> None:
    server.behaviour.cut_before_eof = 2
    with pytest.raises(OutcomeUnknown):
        host.run(["echo", "perhaps not all"], timeout=10)
    with pytest.raises(TransferInterrupted):
        list(host.stream(["echo", "perhaps not all"], timeout=10))
    assert host.run(["echo", "all"], timeout=10).stdout == b"all\n"


def test_a_command_killed_on_the_host_left_no_outcome(host: SshHost) -> None:
    with pytest.raises(OutcomeUnknown):
        host.run(["sh", "-c", "kill -9 $$"], timeout=5)


def test_an_unknown_host_key_is_refused_with_the_remedy(server: SshServer) -> None:
    server.known_hosts.write_text("")
    with closing(SshHost(server.config())) as host, pytest.raises(ConfigurationError) as refused:
        host.run(["true"], timeout=5)
    for part in ("127.0.0.1", server.host_key.fingerprint, "ssh-keyscan", str(server.port)):
        assert part in refused.value.detail
    assert server.behaviour.executed == []


def test_a_changed_host_key_is_refused_and_both_fingerprints_are_named(server: SshServer) -> None:
    other = paramiko.ECDSAKey.generate()
    server.trust(other)
    with closing(SshHost(server.config())) as host, pytest.raises(ConfigurationError) as refused:
        host.run(["true"], timeout=5)
    for part in ("CHANGED", server.host_key.fingerprint, other.fingerprint, "ssh-keygen"):
        assert part in refused.value.detail
    assert server.behaviour.executed == []


def test_a_key_that_others_can_read_is_refused(server: SshServer) -> None:
    server.key_file.chmod(0o640)
    with closing(SshHost(server.config())) as host, pytest.raises(ConfigurationError, match="chmod 0600"):
        host.run(["true"], timeout=5)


@pytest.mark.parametrize(
    ("name", "content"),
    [("key_file", None), ("key_file", "not a key"), ("known_hosts", None), ("known_hosts", "\0\0 a b c")],
)
def test_a_bad_file_is_named(server: SshServer, name: str, content: str | None) -> None:
    path: Path = getattr(server, name)
    path.unlink()
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with closing(SshHost(server.config())) as host, pytest.raises(ConfigurationError) as refused:
        host.run(["true"], timeout=5)
    assert str(path) in refused.value.detail


def test_a_key_that_is_not_authorised_is_a_matter_of_configuration(server: SshServer) -> None:
    server.key_file.unlink()
    paramiko.ECDSAKey.generate().write_private_key_file(str(server.key_file))
    with (
        closing(SshHost(server.config())) as host,
        pytest.raises(ConfigurationError, match="authorized_keys"),
    ):
        host.run(["true"], timeout=5)


def test_nobody_listening_is_unreachable(server: SshServer) -> None:
    server.close()
    with closing(SshHost(server.config(attempts=2))) as host, pytest.raises(Unreachable, match="refused"):
        host.run(["true"], timeout=5)


def test_a_closed_host_stays_closed(host: SshHost) -> None:
    assert host.run(["true"], timeout=5).rc == 0
    assert host.connected
    host.close()
    assert not host.connected
    with pytest.raises(ConfigurationError, match="closed"):
        host.run(["true"], timeout=5)


def test_the_socket_answers_at_once_and_notices_a_dead_peer(server: SshServer, host: SshHost) -> None:
    import socket

    host.run(["true"], timeout=5)
    transport = host._link._transport
    assert transport is not None
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    assert transport.remote_cipher in link._CIPHERS


def _await(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
