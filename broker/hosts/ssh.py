"""A login node over SSH: one connection, a bounded number of channels.

sshd allows 10 sessions per connection (`MaxSessions`, sshd_config(5)); we keep below it, and whoever comes
when all are taken waits. Of `max_channels` two stay free for commands, so that transfers never starve the
poll.

What a failure means depends on the moment it comes:

    before the command was handed over     Unreachable; tried again while there is time
    afterwards, without an exit status     OutcomeUnknown (a `readonly` command: Unreachable, tried once more)
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress

import paramiko
from paramiko.ssh_exception import SSHException

from broker.errors import OutcomeUnknown, TransferInterrupted, Unreachable
from broker.hosts.base import Completed, Stdin, checked_argv, chunks_of, gather, logged, program
from broker.hosts.files import HostFiles, failure
from broker.hosts.link import Link, SshConfig, open_channel, was_refused
from broker.hosts.turns import Turns

_STDERR_CAP = 2**20
_READ = 256 * 1024
_FOR_COMMANDS = 2
"""Channels that transfers leave alone."""
_REFUSED_LONG_S = 2.0
"""Seconds for which a live sshd may refuse sessions before the connection is given up."""


class _Lost(Exception):
    """A command was handed over and no exit status came back; the text says what happened."""


class _Silent(_Lost):
    """… within its time."""


class SshHost(HostFiles):
    """`Host` over one SSH connection; see the module."""

    def __init__(self, config: SshConfig, name: str = "") -> None:
        self.config = config
        self._name = name or config.host
        self._link = Link(config)
        self._slots = Turns(config.max_channels)
        self._transfers = Turns(max(1, config.max_channels - _FOR_COMMANDS))
        self._count = threading.Lock()
        self._open_channels = 0
        self._opened_at = 0.0

    @property
    def name(self) -> str:
        """See `Host.name`."""
        return self._name

    @property
    def open_channels(self) -> int:
        """Channels in use now (`cluster_connections_active`)."""
        return self._open_channels

    @property
    def waiting(self) -> int:
        """Callers that wait for a channel now."""
        return self._slots.waiting + self._transfers.waiting

    @property
    def connected(self) -> bool:
        """Is there a live connection now?"""
        return self._link.connected

    def run(
        self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        """See `Host.run`."""
        with logged(self.name, argv, readonly=readonly) as note:
            return note(self._run(argv, stdin, timeout, readonly))

    def _run(self, argv: Sequence[str], stdin: Stdin, timeout: float, readonly: bool) -> Completed:
        command, deadline = _command(argv), time.monotonic() + timeout
        again = readonly and isinstance(stdin, bytes)
        while True:
            with self._channel(deadline) as channel:
                try:
                    self._hand_over(channel, command, deadline - time.monotonic())
                    return gather(_pump(channel, stdin, deadline=deadline, silence=None))
                except _Lost as lost:
                    detail = f"{self.name}: {program(argv)} {lost}"
                    if not readonly:
                        raise OutcomeUnknown(detail) from lost
                    if isinstance(lost, _Silent) or not again:
                        raise Unreachable(detail) from lost
            again = False

    def stream(self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float) -> Iterator[bytes]:
        """See `Host.stream`."""
        command, deadline = _command(argv), time.monotonic() + timeout
        with self._channel(deadline, transfer=True) as channel:
            try:
                self._hand_over(channel, command, deadline - time.monotonic())
                rc, complaint = yield from _pump(channel, stdin, deadline=None, silence=timeout)
            except _Lost as lost:
                raise TransferInterrupted(f"{self.name}: {program(argv)} {lost}") from lost
        if rc:
            raise failure(self.name, f"run {program(argv)}", Completed(rc, b"", complaint))

    def close(self) -> None:
        """See `Host.close`."""
        self._link.close()

    @contextmanager
    def _channel(self, deadline: float, *, transfer: bool = False) -> Iterator[paramiko.Channel]:
        """A free channel before `deadline`, or `Unreachable`."""
        with self._slot(self._transfers, deadline, needed=transfer), self._slot(self._slots, deadline):
            channel = self._opened(deadline)
            with self._count:
                self._open_channels += 1
            try:
                yield channel
            finally:
                with self._count:
                    self._open_channels -= 1
                with suppress(SSHException, EOFError, OSError):
                    channel.close()

    @contextmanager
    def _slot(self, turns: Turns, deadline: float, *, needed: bool = True) -> Iterator[None]:
        if not needed:
            yield
            return
        if not turns.acquire(deadline - time.monotonic()):
            raise Unreachable(f"{self.name}: all {self.config.max_channels} channels stayed busy")
        try:
            yield
        finally:
            turns.release()

    def _opened(self, deadline: float) -> paramiko.Channel:
        """Open a session on the live connection; whatever fails here, nothing was started."""
        began, pause = time.monotonic(), 0.05
        while True:
            transport = self._link.transport(deadline)
            left = deadline - time.monotonic()
            try:
                channel = open_channel(transport, max(0.1, left))
                self._opened_at = time.monotonic()
                return channel
            except (SSHException, EOFError, OSError) as error:
                if time.monotonic() + pause >= deadline:
                    if not self._open_channels:
                        self._link.drop(transport)  # nobody is served by it: it hangs
                    raise Unreachable(f"{self.name}: no channel could be opened: {error}") from error
                # Refused by a live sshd: its sessions are taken. For a moment that is usual: sshd frees them
                # a little after the channel's end. When it lasts and nobody is served, they are taken by
                # commands that were given up but still run there; a new connection starts with none.
                refused_for = time.monotonic() - max(began, self._opened_at)
                if transport.is_active() and not self._open_channels and refused_for > _REFUSED_LONG_S:
                    self._link.drop(transport)
            time.sleep(pause)
            pause = min(1.0, pause * 2)

    def _hand_over(self, channel: paramiko.Channel, command: bytes, seconds: float) -> None:
        """Send the exec request and wait for its acceptance, `seconds` at most.

        `exec_command` has no time-out of its own; closing the channel ends its wait.
        """
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            with suppress(SSHException, EOFError, OSError):
                channel.close()

        alarm = threading.Timer(max(0.0, seconds), give_up)
        alarm.daemon = True
        alarm.start()
        try:
            channel.exec_command(command)  # bytes go as they are
        except (SSHException, EOFError, OSError) as error:
            if expired.is_set():
                raise _Silent("was not accepted in time") from error
            if was_refused(channel):
                raise Unreachable(f"{self.name}: sshd refused to run a command") from error
            raise _Lost(f"was cut off before it was accepted: {error}") from error
        finally:
            alarm.cancel()


def _command(argv: Sequence[str]) -> bytes:
    """The command line for the account's login shell, every word quoted."""
    return shlex.join(checked_argv(argv)).encode(errors="surrogateescape")


def _pump(
    channel: paramiko.Channel, stdin: Stdin, *, deadline: float | None, silence: float | None
) -> Generator[bytes, None, tuple[int, bytes]]:
    """Yield standard output, feed standard input beside it, return (exit status, standard error's head).

    Both outputs share the channel's window, so both are drained; one event tells of either, without polling.
    """
    news = threading.Event()
    channel.in_buffer.set_event(news)
    channel.in_stderr_buffer.set_event(news)
    feeder = _Feeder(channel, stdin)
    feeder.begin()
    complaint = bytearray()
    moved, since = 0, time.monotonic()
    try:
        while True:
            ended = channel.eof_received or channel.closed  # looked at first: what came before is read yet
            busy = False
            if channel.in_buffer.read_ready():
                busy = True
                yield channel.recv(_READ)
            if channel.in_stderr_buffer.read_ready():
                busy = True
                part = channel.recv_stderr(_READ)
                complaint += part[: max(0, _STDERR_CAP - len(complaint))]
            if ended and not busy:
                break
            now = time.monotonic()
            if busy or feeder.moved != moved:
                moved, since = feeder.moved, now
            limit = deadline if deadline is not None else since + (silence or 0.0)
            if now >= limit:
                raise _Silent("did not answer in time")
            if not busy:  # while a long input is fed, `moved` is looked at once a second
                news.wait(min(limit - now, 1.0 if feeder.is_alive() else limit - now))
        left = deadline - time.monotonic() if deadline is not None else silence
        if not channel.status_event.wait(max(0.0, left or 0.0)):
            raise _Silent("did not end in time")
    except (SSHException, EOFError, OSError) as error:
        raise _Lost(f"was cut off: {error}") from error
    finally:
        with suppress(SSHException, EOFError, OSError):
            channel.close()
    if feeder.error is not None:
        raise feeder.error
    if not channel.eof_received:  # sshd may tell the exit status before it has sent all output
        raise _Lost("was cut off before the end of its output")
    if channel.exit_status < 0:
        raise _Lost("was cut off or killed: it left no exit status")
    return channel.exit_status, bytes(complaint)


class _Feeder(threading.Thread):
    """Writes standard input beside the reading of the output, in a thread when it may have to wait."""

    def __init__(self, channel: paramiko.Channel, stdin: Stdin) -> None:
        super().__init__(name="stdin", daemon=True)
        self._channel, self._stdin = channel, stdin
        self.moved = 0
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Feed at once what the server's window takes without anyone reading; else beside."""
        if isinstance(self._stdin, bytes) and len(self._stdin) <= self._channel.out_window_size:
            self.run()
        else:
            self.start()

    def run(self) -> None:
        try:
            for chunk in chunks_of(self._stdin):
                self._channel.sendall(chunk)
                self.moved += len(chunk)
            self._channel.shutdown_write()
        except (SSHException, EOFError, OSError):
            pass  # the channel is gone: the exit status, or its absence, tells the rest
        except BaseException as error:
            self.error = error  # the source failed: the command must not take what it got for all
            with suppress(SSHException, EOFError, OSError):
                self._channel.close()
