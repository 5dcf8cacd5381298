"""A few processes that live and die together.

The leader starts its children, puts their output onto its own with each one's name before every line, starts
one that died again with growing pauses, and ends them in order. A child that ends with status 78 (EX_CONFIG,
sysexits.h) will not get better by being started again: everything is ended then. When the leader itself is
killed, SIGKILL included, the kernel ends the children (PR_SET_PDEATHSIG, prctl(2); see `die_with`).

One thread and one `select`: signals, ends of children and their output are all events of it. The children
must be started from the leader's main thread: the kernel's rule is about the *thread* that forked.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

EX_CONFIG = 78
FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S = 0.25, 30.0, 60.0
_PROBE_EVERY_S = 0.2
_PR_SET_PDEATHSIG = 1
_READ = 65536
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Child:
    """One program to keep running. `grace_s`: how long it may take to end before it is killed."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] | None = None
    pass_fds: Sequence[int] = ()
    grace_s: float = 10.0


@dataclass
class _Running:
    """The present life of a child."""

    child: Child
    process: subprocess.Popen[bytes]
    since: float
    rest: bytearray = field(default_factory=bytearray)


def pause_after(lived_s: float, last_pause_s: float) -> float:
    """How long to wait before a child that died is started again: doubling, from new after a steady life.

    >>> pause_after(0.1, 0.0), pause_after(0.1, 0.25), pause_after(0.1, 30.0), pause_after(600, 30.0)
    (0.25, 0.5, 30.0, 0.25)
    """
    if lived_s >= STEADY_S or not last_pause_s:
        return FIRST_PAUSE_S
    return min(last_pause_s * 2, LONGEST_PAUSE_S)


def die_with(parent_pid: int, end: signal.Signals = signal.SIGKILL) -> None:
    """Called by a child as its first act: be ended with the process that started it.

    The parent may be gone before the call; then this process ends at once. SIGINT is ignored: a terminal
    sends it to the whole group, and the leader says when to end.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(end), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Supervisor:
    """Runs children until a signal, or until one of them says that it can't work at all.

    Children are started in the given order and ended in the order `stop_order` (default: the reverse).
    `probe` is asked until it says yes; then `on_ready` is called, once.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        probe: Callable[[], bool] = lambda: True,
        on_ready: Callable[[], None] = lambda: None,
        stop_order: Sequence[str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        self._children = {child.name: child for child in children}
        self._stop_order = list(stop_order or reversed(self._children))
        self._probe, self._on_ready = probe, on_ready
        self._output = output or sys.stderr.buffer
        self._selector = selectors.DefaultSelector()
        self._running: dict[str, _Running] = {}
        self._start_at: dict[str, float] = dict.fromkeys(self._children, 0.0)
        self._pauses: dict[str, float] = dict.fromkeys(self._children, 0.0)
        self._width = max(map(len, self._children), default=0)
        self._signals = 0
        self._fatal: int | None = None
        self._ready = False

    def run(self) -> int:
        """Start everything and watch it; the exit status (0 after a signal). Only in the main thread."""
        wake, alarm = socket.socketpair()
        wake.setblocking(False)
        alarm.setblocking(False)
        old_fd = signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
        ends = (signal.SIGTERM, signal.SIGINT)
        old = {number: signal.signal(number, self._on_signal) for number in ends}
        self._selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(_READ))
        try:
            while not self._signals and self._fatal is None:
                self._turn()
        finally:
            self._stop_all()
            for number, handler in old.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_fd)
            self._selector.close()
            wake.close()
            alarm.close()
        return self._fatal or 0

    def pid(self, name: str) -> int | None:
        """The process id of a child while it runs."""
        running = self._running.get(name)
        return running.process.pid if running else None

    def say(self, text: str, name: str = "broker") -> None:
        """A line of the leader's own among those of its children."""
        self._write(name, text.encode())

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1

    def _turn(self) -> None:
        """Start what is due, wait for the next event, handle it."""
        now = time.monotonic()
        for name, due in list(self._start_at.items()):
            if due <= now:
                del self._start_at[name]
                self._start(self._children[name])
        waits = [due - now for due in self._start_at.values()]
        if not self._ready:
            waits.append(_PROBE_EVERY_S)
        self._pump(max(0.0, min(waits)) if waits else None)
        if not self._ready and not self._signals and self._fatal is None and self._probe():
            self._ready = True
            self._on_ready()

    def _pump(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            key.data()

    def _start(self, child: Child) -> None:
        process = subprocess.Popen(
            child.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=child.environment,
            pass_fds=child.pass_fds,
        )
        running = _Running(child, process, time.monotonic())
        self._running[child.name] = running
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, lambda: self._read(running))
        pidfd = os.pidfd_open(process.pid)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._ended(running, pidfd))

    def _read(self, running: _Running) -> bool:
        """Pass on what a child wrote; whether there may be more."""
        stdout = running.process.stdout
        assert stdout is not None
        if stdout.closed:  # its end was an event of the same `select`
            return False
        try:
            data = os.read(stdout.fileno(), _READ)
        except BlockingIOError:
            return False
        running.rest += data
        *lines, rest = running.rest.split(b"\n")
        running.rest = rest
        if len(rest) > _LONGEST_LINE or (not data and rest):
            lines, running.rest = [*lines, rest], bytearray()
        for line in lines:
            self._write(running.child.name, bytes(line))
        if not data:
            self._selector.unregister(stdout)
            stdout.close()
        return bool(data)

    def _write(self, name: str, line: bytes) -> None:
        self._output.write(f"{name:<{self._width}} | ".encode() + line + b"\n")
        self._output.flush()

    def _ended(self, running: _Running, pidfd: int) -> None:
        """A child has ended: say how, and decide whether and when it is started again."""
        self._selector.unregister(pidfd)
        os.close(pidfd)
        status = running.process.wait()
        self._drain(running)
        name = running.child.name
        del self._running[name]
        if self._signals or self._fatal is not None:
            return
        if status == EX_CONFIG:
            self._fatal = EX_CONFIG
            self.say(f"{name} can't work as things are set up; ending everything")
            return
        lived = time.monotonic() - running.since
        pause = self._pauses[name] = pause_after(lived, self._pauses[name])
        self._start_at[name] = time.monotonic() + pause
        self.say(f"{name} {_how(status)} after {lived:.1f} s; starting it again in {pause:g} s")

    def _drain(self, running: _Running) -> None:
        """Read what is left in the pipe; a grandchild that keeps it open is not waited for."""
        stdout = running.process.stdout
        assert stdout is not None
        while not stdout.closed and self._read(running):
            pass
        if not stdout.closed:
            self._selector.unregister(stdout)
            stdout.close()

    def _stop_all(self) -> None:
        """End the children one after the other; a second signal kills what is left."""
        for name in self._stop_order:
            running = self._running.get(name)
            if running is None:
                continue
            running.process.terminate()
            deadline = time.monotonic() + running.child.grace_s
            while name in self._running and self._signals < 2 and time.monotonic() < deadline:
                self._pump(max(0.0, deadline - time.monotonic()))
            if name in self._running:
                self.say(f"{name} did not end in time; killing it")
                running.process.kill()
            while name in self._running:
                self._pump(1.0)


def _how(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
