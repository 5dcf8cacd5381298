"""PID 1 of a cluster: starts the daemons in order, reaps orphans, obeys the control socket, stops in order.

The loop never waits for anything but events, so that orphans are reaped and signals answered at once; what
takes time (is the node back? has the daemon ended?) the clients in ``control`` poll for.

Nothing is restarted by itself: a daemon that dies stays dead, visibly, until someone asks for it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slurmdev import daemons, layout, processes, setup
from slurmdev.layout import Settings

CONTROL = f"{layout.RUN}/control"
READY = Path(layout.RUN) / "ready"
STOP_DEADLINE_S = 10.0

# slurmctld goes first: it must not watch its nodes fail. The database goes when nobody writes any more.
_STOP_LAST = ("slurmdbd", "mariadb", "munge")


class Supervisor:
    """The daemons of one cluster and what is known about each."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.daemons = {daemon.name: daemon for daemon in daemons.all_daemons(settings)}
        self.pids: dict[str, int] = {}
        self.launched: dict[str, float] = {}
        self.ended: dict[str, str] = {}
        self.paused: set[str] = set()
        self.stopping = False

    # -- life

    def run(self) -> int:
        """Live as PID 1 until SIGTERM; returns the exit status."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        try:
            self._start_all()
            self._serve(wake_read)
        except _Stop:
            pass
        except (RuntimeError, OSError, subprocess.SubprocessError) as failure:
            say(f"failed: {failure}")
            self._stop_all()
            return 1
        self._stop_all()
        return 0

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD and not self.stopping:
            self.stopping = True
            raise _Stop

    def _start_all(self) -> None:
        setup.prepare(self.settings)
        self._start("munge")
        setup.create_database_files()
        for name in ("mariadb", "sshd", "registry"):
            if name in self.daemons:
                self._start(name, wait=False)
        self._await("munge")
        self._await("mariadb")
        setup.create_database()
        self._start("slurmdbd")
        setup.create_accounts()
        setup.create_classes()
        self._start("slurmctld")
        for name in layout.NODES:
            self._start(name, wait=False)
        for name in self.daemons:
            self._await(name)
        READY.touch()
        say("ready")

    def _start(self, name: str, *, wait: bool = True) -> None:
        say(f"starting {name}")
        self.ended.pop(name, None)
        self.launched[name] = time.time()
        self.pids[name] = daemons.launch(self.daemons[name])
        if wait:
            self._await(name)

    def _await(self, name: str) -> None:
        daemon = self.daemons[name]
        trouble = daemons.wait_ready(daemon, self.launched[name], alive=lambda: self._alive(name))
        if trouble:
            tail = "".join(daemon.log.read_text(errors="replace").splitlines(keepends=True)[-25:])
            raise RuntimeError(f"{name} did not start: {trouble}. The end of its log:\n{tail}")

    def _alive(self, name: str) -> bool:
        """During start-up nobody else reaps, so ask the kernel about this one child."""
        pid = self.pids[name]
        process = processes.read(pid)
        return process is not None and process.state != "Z"

    def _serve(self, wake: int) -> None:
        with socket.socket(socket.AF_UNIX) as control, selectors.DefaultSelector() as selector:
            Path(CONTROL).unlink(missing_ok=True)
            control.bind(CONTROL)
            Path(CONTROL).chmod(0o600)
            control.listen(16)
            selector.register(control, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while True:
                for key, _events in selector.select():
                    if key.fd == wake:
                        os.read(wake, 4096)
                    else:
                        self._answer(control)
                self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, known in list(self.pids.items()):
                if known == pid:
                    del self.pids[name]
                    self.paused.discard(name)
                    code = os.waitstatus_to_exitcode(status)
                    self.ended[name] = (
                        f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                    )
                    say(f"{name} ended: {self.ended[name]}")

    def _stop_all(self) -> None:
        self.stopping = True
        READY.unlink(missing_ok=True)
        late = [name for name in _STOP_LAST if name in self.daemons]
        first = ["slurmctld", *(name for name in self.daemons if name not in late and name != "slurmctld")]
        for group in ([first[0]], first[1:], *([name] for name in late)):
            for name in group:
                self._resume(name)
                self._signal(name, signal.SIGTERM)
            deadline = time.monotonic() + STOP_DEADLINE_S
            while any(name in self.pids for name in group) and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.02)
            for name in group:
                self._signal(name, signal.SIGKILL)
        say("stopped")

    # -- commands

    def _answer(self, control: socket.socket) -> None:
        connection, _address = control.accept()
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            connection.settimeout(2)
            try:
                reply = self._command(json.loads(stream.readline()))
                stream.write(json.dumps(reply) + "\n")
                stream.flush()
            except (OSError, ValueError) as error:
                say(f"control: {error}")

    def _command(self, request: dict[str, Any]) -> dict[str, Any]:
        operations: dict[str, Callable[[str], None]] = {
            "start": self._start_again,
            "stop": lambda name: self._signal(name, signal.SIGTERM),
            "kill": self._kill,
            "pause": self._pause,
            "resume": self._resume,
        }
        operation, name = request.get("op", ""), request.get("name", "")
        if operation in operations:
            if name not in self.daemons:
                return {"error": f"no daemon {name!r}; there are: {', '.join(self.daemons)}"}
            operations[operation](name)
        elif operation != "status":
            return {"error": f"no operation {operation!r}"}
        return {"daemons": {name: self._state(name) for name in self.daemons}}

    def _state(self, name: str) -> dict[str, Any]:
        if name in self.pids:
            state = "paused" if name in self.paused else "running"
            return {"state": state, "pid": self.pids[name], "launched": self.launched[name]}
        return {"state": "ended", "reason": self.ended.get(name, "never started")}

    def _start_again(self, name: str) -> None:
        if name not in self.pids:
            self._start(name, wait=False)

    def _signal(self, name: str, number: signal.Signals) -> None:
        if name in self.pids:
            for pid in daemons.heart(self.daemons[name], self.pids[name]):
                processes.send(pid, number)

    def _kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)
        # A frozen node's `unshare`, outside the namespace that dies, must be able to tell us.
        self._resume(name)

    def _pause(self, name: str) -> None:
        if name in self.pids:
            for pid in daemons.members(self.daemons[name], self.pids[name]):
                processes.send(pid, signal.SIGSTOP)
            self.paused.add(name)

    def _resume(self, name: str) -> None:
        if name in self.paused:
            for pid in daemons.members(self.daemons[name], self.pids[name]):
                processes.send(pid, signal.SIGCONT)
            self.paused.discard(name)


class _Stop(Exception):
    """SIGTERM or SIGINT arrived."""


def say(text: str) -> None:
    """One line of progress on standard output, where the host (or the container engine) keeps it."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Entry point of ``init`` without arguments."""
    settings = Settings.from_json((Path(layout.DATA) / "settings.json").read_text(encoding="utf-8"))
    if not daemons_possible():
        say("init starts a cluster only as PID 1 of its own namespace (`cluster up`, or a container)")
        return 2
    return Supervisor(settings).run()


def daemons_possible() -> bool:
    """Whether we are PID 1, so that orphans come to us and our end is everyone's end."""
    return os.getpid() == 1


if __name__ == "__main__":
    sys.exit(main())
