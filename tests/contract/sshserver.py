"""An SSH server in this process whose failures are ours to command; what it runs is run for real.

sshd itself is met in `tests/cluster/`. What it does not do when asked, this does: break off before or after
it was told a command, answer late, refuse sessions.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.common import MSG_CHANNEL_SUCCESS

from broker.hosts import SshConfig


@dataclass
class Behaviour:
    """What goes wrong next. Counted down or waited for by the server's threads."""

    drop_before_exec: int = 0
    drop_after_exec: int = 0
    refuse_exec: int = 0
    cut_before_reply: int = 0
    cut_before_eof: int = 0
    close_before_reply: int = 0
    max_sessions: int = 10
    hang_accept: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    executed: list[str] = field(default_factory=list)
    most_sessions: int = 0


class _Transport(paramiko.Transport):
    """A command begins when its acceptance is on its way, as in sshd: one that ends at once would else close
    its channel before the answer.
    """

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.accepted: deque[threading.Thread] = deque()

    def _send_user_message(self, data: paramiko.Message) -> None:
        super()._send_user_message(data)  # type: ignore[misc]
        if data.asbytes()[0] == MSG_CHANNEL_SUCCESS and self.accepted:
            self.accepted.popleft().start()


class _Server(paramiko.ServerInterface):
    def __init__(self, server: SshServer, transport: _Transport) -> None:
        self._server, self._transport = server, transport
        self.sessions = 0
        self._lock = threading.Lock()

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = key.get_base64() == self._server.user_key.get_base64()
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        behaviour = self._server.behaviour
        if behaviour.drop_before_exec:
            behaviour.drop_before_exec -= 1
            self._transport.close()
        with self._lock:
            if self.sessions >= behaviour.max_sessions:
                return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
            self.sessions += 1
            behaviour.most_sessions = max(behaviour.most_sessions, self.sessions)
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        behaviour = self._server.behaviour
        if behaviour.refuse_exec:
            behaviour.refuse_exec -= 1
            return False
        behaviour.executed.append(command.decode(errors="surrogateescape"))
        if behaviour.cut_before_reply:
            behaviour.cut_before_reply -= 1
            self._transport.sock.shutdown(socket.SHUT_RDWR)
            return True
        runner = threading.Thread(target=self._run, args=(channel, command), daemon=True)
        if behaviour.close_before_reply:
            behaviour.close_before_reply -= 1
            runner.start()
            runner.join()
        else:
            self._transport.accepted.append(runner)
        return True

    def _run(self, channel: paramiko.Channel, command: bytes) -> None:
        child = subprocess.Popen(
            ["/bin/bash", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._server.children.append(child)
        assert child.stdin and child.stdout and child.stderr
        if self._server.behaviour.drop_after_exec:
            self._server.behaviour.drop_after_exec -= 1
            self._transport.close()
        pumps = [
            threading.Thread(target=_copy, args=(child.stdout.fileno(), channel.sendall), daemon=True),
            threading.Thread(target=_copy, args=(child.stderr.fileno(), channel.sendall_stderr), daemon=True),
        ]
        feeder = threading.Thread(target=_feed, args=(channel, child), daemon=True)
        for thread in (*pumps, feeder):
            thread.start()
        for thread in pumps:
            thread.join()
        status = child.wait()
        with suppress(Exception):
            if status >= 0:
                channel.send_exit_status(status)
        if self._server.behaviour.cut_before_eof:
            self._server.behaviour.cut_before_eof -= 1
            self._transport.sock.shutdown(socket.SHUT_RDWR)
        with self._lock:  # before it is told: whoever hears of the end may open the next one at once
            self.sessions -= 1
        with suppress(Exception):
            channel.close()


def _copy(source: int, send: object) -> None:
    with suppress(Exception):
        while data := os.read(source, 65536):
            send(data)  # type: ignore[operator]


def _feed(channel: paramiko.Channel, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin
    with suppress(Exception):
        while data := channel.recv(65536):
            child.stdin.write(data)
    with suppress(Exception):
        child.stdin.close()


class SshServer:
    """Listens on a free loopback port; `config()` is how to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behaviour = Behaviour()
        self.children: list[subprocess.Popen[bytes]] = []
        self.transports: list[paramiko.Transport] = []
        self.host_key = paramiko.ECDSAKey.generate()
        self.user_key = paramiko.ECDSAKey.generate()
        self.key_file = folder / "id"
        self.user_key.write_private_key_file(str(self.key_file))
        self.known_hosts = folder / "known_hosts"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.trust(self.host_key)
        threading.Thread(target=self._accept, daemon=True).start()

    def trust(self, key: paramiko.PKey) -> None:
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key.get_name()} {key.get_base64()}\n")

    def config(self, **options: object) -> SshConfig:
        quick = {"backoff_min": 0.05, "backoff_max": 0.2, "connect_timeout": 5.0}
        return SshConfig(
            "127.0.0.1",
            self.port,
            "me",
            self.key_file,
            self.known_hosts,
            **{**quick, **options},  # type: ignore[arg-type]
        )

    def cut(self) -> None:
        """Every connection ends now, as when a network does."""
        for transport in self.transports:
            transport.sock.close()
            transport.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.behaviour.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        while self.behaviour.hang_accept.is_set():
            threading.Event().wait(0.05)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = _Transport(sock)
        self.transports.append(transport)
        transport.add_server_key(self.host_key)
        with suppress(Exception):
            transport.start_server(server=_Server(self, transport))

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept that waits
        self._listener.close()
        self.cut()
        for child in self.children:
            if child.poll() is None:
                os.killpg(child.pid, 9)
            child.wait()


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """A server for the length of a test."""
    server = SshServer(folder)
    try:
        yield server
    finally:
        server.close()
