"""One SSH connection: who may answer, how it is made, and when it is made again.

The host key is checked against a `known_hosts` file and nothing else: an unknown or changed key is refused
with the remedy, never learned. Attempts are single-flight: threads that wait for the connection share the
result of the attempt in progress instead of queueing one time-out each behind the other.
"""

from __future__ import annotations

import binascii
import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from paramiko.hostkeys import InvalidHostKey
from paramiko.pkey import UnknownKeyType
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    NoValidConnectionsError,
    PasswordRequiredException,
    SSHException,
)
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
)

from broker.errors import ConfigurationError, Unreachable

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""First choice: authenticated encryption in one pass, twice as fast as paramiko's default (CTR and HMAC)."""


_LOG = "broker.ssh"
# paramiko logs as errors what is raised, handled and told here.
logging.getLogger(_LOG).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class SshConfig:
    """Where a login node is and how patient to be with it (DD-12). Times are in seconds.

    `attempts` connections are tried, `backoff_min`..`backoff_max` apart, but never beyond the `timeout` of
    the call that needs one: a poller with 5 s waits 5 s.
    """

    host: str
    port: int
    user: str
    key_file: Path
    known_hosts: Path
    connect_timeout: float = 30.0
    max_channels: int = 8
    keepalive: int = 15
    attempts: int = 3
    backoff_min: float = 4.0
    backoff_max: float = 10.0

    @property
    def known_as(self) -> str:
        """The host's name in a known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


class _Transport(paramiko.Transport):
    """paramiko's, without two dead ends.

    Every 512 MiB paramiko asks for new keys and lets nobody send until they are there. If the server closes a
    channel in between, the thread that answers the close is the one that would receive the keys: it waits for
    itself, for 30 s, and the connection is lost. Here its answers are put off until the keys are there.

    The other is a message that follows its channel's CLOSE: see `_Gate`.

    A refused request is marked as such: paramiko alone tells it and a CLOSE that came instead of an answer
    by the same exception.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        handlers = vars(paramiko.Transport)["_channel_handler_table"]
        self._channel_handler_table = {**handlers, MSG_CHANNEL_FAILURE: _mark_refused}
        self._put_off: list[paramiko.Message] = []
        self._in_order = threading.Lock()
        security = self.get_security_options()
        security.ciphers = (*_CIPHERS, *(name for name in security.ciphers if name not in _CIPHERS))

    # Private methods of a release that is pinned; contract tests renew keys under load and churn channels.

    def _send_user_message(self, data: paramiko.Message) -> None:
        if threading.current_thread() is self and not self.clear_to_send.is_set():
            self._put_off.append(data)
        else:
            super()._send_user_message(data)  # type: ignore[misc]

    def _send_message(self, data: paramiko.Message) -> None:
        """Write it now. The lock is held while writing only, never while waiting for keys."""
        gate: _Gate | None = getattr(data, "gate", None)
        if gate is None:
            super()._send_message(data)  # type: ignore[misc]
            return
        with self._in_order:
            if gate.admits(data):
                super()._send_message(data)  # type: ignore[misc]

    def _parse_newkeys(self, m: paramiko.Message) -> None:
        super()._parse_newkeys(m)  # type: ignore[misc]
        put_off, self._put_off = self._put_off, []
        for message in put_off:
            self._send_message(message)


class _Gate:
    """A transport as one channel sees it: nothing follows the channel's CLOSE.

    paramiko makes a message under the channel's lock and sends it after: the end of input (or data) of a
    command that has just ended can follow the answer to sshd's CLOSE. sshd then knows no such channel and
    ends the whole connection, with every other command on it.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport
        self._over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send_user_message(self, message: paramiko.Message) -> None:
        message.gate = self  # type: ignore[attr-defined]
        self._transport._send_user_message(message)  # type: ignore[attr-defined]

    def admits(self, message: paramiko.Message) -> bool:
        """May it be sent yet? Called by the transport, one message at a time."""
        kind = message.asbytes()[0]
        if self._over and kind in {MSG_CHANNEL_DATA, MSG_CHANNEL_EOF, MSG_CHANNEL_WINDOW_ADJUST}:
            return False
        self._over = self._over or kind == MSG_CHANNEL_CLOSE
        return True


def _mark_refused(channel: paramiko.Channel, message: paramiko.Message) -> None:
    channel.refused = True  # type: ignore[attr-defined]
    channel._request_failed(message)  # type: ignore[attr-defined]


def was_refused(channel: paramiko.Channel) -> bool:
    """Did the server answer a request on this channel with SSH_MSG_CHANNEL_FAILURE (RFC 4254, 5.4)?

    Only then it certainly did nothing. A server that closes the channel without an answer may have run the
    command before.
    """
    return getattr(channel, "refused", False)


def open_channel(transport: paramiko.Transport, timeout: float) -> paramiko.Channel:
    """A session on a connection that is shared; raises paramiko's errors, and then nothing was started."""
    channel = transport.open_session(timeout=timeout)
    channel._set_transport(_Gate(transport))  # type: ignore[attr-defined]
    return channel


class Link:
    """The connection to one host, made when first needed and again when it is lost."""

    def __init__(self, config: SshConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._failed: tuple[float, Unreachable] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Is there a live connection now?"""
        transport = self._transport
        return transport is not None and transport.is_active()

    def transport(self, deadline: float) -> paramiko.Transport:
        """The live connection; made with exponential back-off until `deadline` (monotonic seconds)."""
        retrying = Retrying(
            retry=retry_if_exception_type(Unreachable),
            stop=stop_after_attempt(self.config.attempts) | stop_before_delay(deadline - time.monotonic()),
            wait=wait_exponential(min=self.config.backoff_min, max=self.config.backoff_max),
            reraise=True,
        )
        return retrying(self._once, deadline)

    def drop(self, transport: paramiko.Transport) -> None:
        """Give up a connection that no longer serves; the next call makes a new one."""
        transport.close()

    def close(self) -> None:
        """Close for good."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def _once(self, deadline: float) -> paramiko.Transport:
        began = time.monotonic()
        if not self._lock.acquire(timeout=max(0.0, deadline - began)):
            raise Unreachable(f"{self.config.host}: still connecting")
        try:
            if self._closed:
                raise ConfigurationError(f"{self.config.host}: this connection was closed by the broker")
            if self._transport is not None and self._transport.is_active():
                return self._transport
            if self._failed and self._failed[0] >= began:
                raise Unreachable(self._failed[1].detail)
            try:
                left = max(0.1, min(self.config.connect_timeout, deadline - time.monotonic()))
                self._transport = connect(self.config, left)
            except Unreachable as error:
                self._failed = time.monotonic(), error
                raise
            return self._transport
        finally:
            self._lock.release()


def connect(config: SshConfig, timeout: float) -> paramiko.Transport:
    """A new authenticated connection within `timeout` seconds.

    `Unreachable` when nobody answers in time; `ConfigurationError` when the answer is wrong or an admin has
    to mend something: host key, key file, account.
    """
    key = load_key(config.key_file)
    client = paramiko.SSHClient()
    client.set_log_channel(_LOG)
    client.set_missing_host_key_policy(_Refuse(config))
    load_known_hosts(client, config)
    where = f"{config.user}@{config.host}:{config.port}"
    try:
        sock = socket.create_connection((config.host, config.port), timeout=timeout)
    except OSError as error:
        raise Unreachable(f"{where}: {error.strerror or error}") from error
    tune(sock, config.keepalive)
    try:
        client.connect(
            config.host,
            config.port,
            config.user,
            pkey=key,
            sock=sock,
            timeout=timeout,
            banner_timeout=timeout,
            auth_timeout=timeout,
            allow_agent=False,
            look_for_keys=False,
            transport_factory=_Transport,
        )
    except BaseException as error:
        with suppress(Exception):
            client.close()
        sock.close()
        raise _translated(error, config) from error
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(config.keepalive)
    return transport


def tune(sock: socket.socket, keepalive: int) -> None:
    """Answer at once and notice a dead peer.

    Without `TCP_NODELAY` each command waits for a delayed acknowledgement (96 ms instead of 11).
    `TCP_USER_TIMEOUT` (ms, tcp(7)) ends the connection when what was sent stays unacknowledged: a firewall
    that forgot us, a login node that lost power.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", keepalive), ("TCP_KEEPINTVL", 5), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, option):  # Linux has all; a developer's other system may not
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def load_key(path: Path) -> paramiko.PKey:
    """The private key, refused when others may read its file (as ssh(1) does)."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigurationError(
                f"SSH key file {path} has mode {mode:04o}, others can read it: chmod 0600 {path}"
            )
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise ConfigurationError(f"SSH key file {path}: {error.strerror}") from error
    except PasswordRequiredException as error:
        raise ConfigurationError(f"SSH key file {path} has a pass phrase; use one without") from error
    except (SSHException, UnknownKeyType, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"SSH key file {path} is no private key: {error or 'not understood'}"
        ) from error


def load_known_hosts(client: paramiko.SSHClient, config: SshConfig) -> None:
    """Read the known_hosts file (plain or hashed names; patterns and certificates are not understood)."""
    try:
        client.load_system_host_keys(str(config.known_hosts))
    except (OSError, UnicodeDecodeError, InvalidHostKey, binascii.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"known_hosts file {config.known_hosts}: {reason}. {_remedy(config)}"
        ) from error


class _Refuse(paramiko.MissingHostKeyPolicy):
    """An unknown host key is refused; its fingerprint is shown, to be compared by a person."""

    def __init__(self, config: SshConfig) -> None:
        self._config = config

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        config = self._config
        raise ConfigurationError(
            f"the host key of {config.known_as} is not in {config.known_hosts}; it answered with "
            f"{key.get_name()} {key.fingerprint}. {_remedy(config)}"
        )


def _remedy(config: SshConfig) -> str:
    return (
        f"Run `ssh-keyscan -p {config.port} {config.host} >> {config.known_hosts}` and compare "
        f"`ssh-keygen -lf {config.known_hosts}` with what the cluster's administrators publish"
    )


def _translated(error: BaseException, config: SshConfig) -> BaseException:
    """A connection's failure in the broker's words: who can mend it?"""
    where = f"{config.user}@{config.host}:{config.port}"
    match error:
        case BadHostKeyException():
            return ConfigurationError(
                f"the host key of {config.known_as} CHANGED: it answered with {error.key.get_name()} "
                f"{error.key.fingerprint}, {config.known_hosts} has {error.expected_key.get_name()} "
                f"{error.expected_key.fingerprint}. Someone may be in between. If the change is known to be "
                f"right: `ssh-keygen -f {config.known_hosts} -R '{config.known_as}'`, then: {_remedy(config)}"
            )
        case AuthenticationException() if "timeout" not in str(error).lower():
            return ConfigurationError(
                f"{where} does not accept the key {config.key_file}; put its public half into the account's "
                "authorized_keys"
            )
        case NoValidConnectionsError() | SSHException() | OSError() | EOFError():
            return Unreachable(f"{where}: {error or type(error).__name__}")
        case _:
            return error
