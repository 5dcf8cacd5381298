"""Child processes that end with this one, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)  # loaded before any fork: the child only calls into it


class Process:
    """One program, its output in a file. A group of its own, so that a terminal's ^C is ours to pass on."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call; nothing is locked or allocated
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """SIGKILL: no chance to write anything down."""
        self._popen.kill()
        self._popen.wait()

    def stop(self, patience_s: float = 20.0) -> None:
        """SIGTERM, and SIGKILL for what does not obey."""
        if not self.alive:
            return
        self._popen.terminate()
        try:
            self._popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 12) -> str:
        """The end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _end_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_PORTS = range(11_000, 21_000)


def free_port() -> int:
    """A TCP port that nobody has on loopback now, nor is likely to take before its program does.

    The kernel gives connections and port 0 theirs from above (ip(7), ip_local_port_range), and clusters of
    `slurm-dev/` take theirs from 21000 on.
    """
    while True:
        port = secrets.choice(_PORTS)  # Hypothesis seeds `random`: two processes would choose the same
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], object], seconds: float, what: str, step_s: float = 0.02) -> None:
    """Wait for what sends no event (a file, a process, a daemon); `AssertionError` at the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(step_s)


def children(pid: int) -> dict[int, str]:
    """The living descendants of a process: pid → command line."""
    found: dict[int, str] = {}
    try:
        direct = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return found
    for child in direct:
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found[child] = b" ".join(words).decode(errors="replace").strip()
        found |= children(child)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def rss_mib(pid: int) -> float:
    """Resident memory of a process now, MiB (proc(5), VmRSS)."""
    return _status_kib(pid, "VmRSS") / 1024


def peak_rss_mib(pid: int) -> float:
    """The most resident memory since the start or since `reset_peak`, MiB (VmHWM)."""
    return _status_kib(pid, "VmHWM") / 1024


def reset_peak(pid: int) -> None:
    """Begin to measure the peak anew (proc(5), clear_refs: 5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has no {field}")


def kill_pid(pid: int) -> None:
    """SIGKILL one process by its id, if it is still there."""
    if not gone(pid):
        os.kill(pid, signal.SIGKILL)
