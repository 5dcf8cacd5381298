"""Processes that live and die together: real ones, small ones."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.supervisor import FIRST_PAUSE_S, LONGEST_PAUSE_S, pause_after

PATIENCE_S = 30.0

CHILD = """
import os, signal, sys
from broker.supervisor import die_with
die_with(int(sys.argv[2]))
what = sys.argv[1]
if what == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "gentle":
    def end(*_):
        print("gentle says goodbye", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
if what == "misconfigured":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(78))
print("hello from", what, os.getpid(), flush=True)  # from now on it may be sent a signal
if what == "crashing":
    print("unfinished line", end="", flush=True)
    os._exit(3)
while True:
    signal.pause()
"""

LEADER = """
import os, sys
from broker.supervisor import Child, Supervisor
program, grace_s, *names = sys.argv[1:]
children = [
    Child(name, [sys.executable, program, name, str(os.getpid())], grace_s=float(grace_s)) for name in names
]
supervisor = Supervisor(children, on_ready=lambda: print("ready", flush=True), output=sys.stdout.buffer)
print("leader ended with", supervisor.run(), flush=True)
"""


class Leader:
    """A supervisor in a process of its own, and what it has said."""

    def __init__(self, folder: Path, *names: str, grace_s: float) -> None:
        (folder / "child.py").write_text(textwrap.dedent(CHILD))
        (folder / "leader.py").write_text(textwrap.dedent(LEADER))
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "leader.py"), str(folder / "child.py"), str(grace_s), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout
        self.said = ""

    def hears(self, pattern: str) -> re.Match[str]:
        """Wait until something was said."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if found := re.search(pattern, self.said):
                return found
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._out], [], [], left)[0], f"{pattern!r} not in {self.said}"
            data = os.read(self._out.fileno(), 65536)
            assert data, f"it ended without saying {pattern!r}: {self.said}"
            self.said += data.decode()

    def pid_of(self, name: str) -> int:
        """The newest process of a child."""
        self.hears(f"hello from {name} ")
        return int(re.findall(rf"hello from {name} (\d+)", self.said)[-1])

    def ends(self) -> int:
        """Wait for the leader's end."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        self.said += out.decode()
        return self.process.returncode


@pytest.fixture
def lead(tmp_path: Path) -> Iterator[Callable[..., Leader]]:
    leaders: list[Leader] = []

    def start(*names: str, grace_s: float = 0.5) -> Leader:
        leaders.append(Leader(tmp_path, *names, grace_s=grace_s))
        return leaders[-1]

    yield start
    for leader in leaders:
        leader.process.kill()
        leader.process.wait()
        leader._out.close()


def gone(pid: int) -> bool:
    """Whether a process has ended (it may wait to be reaped by init)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def await_gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert gone(pid) or select.select([handle], [], [], PATIENCE_S)[0]
    finally:
        os.close(handle)
    assert gone(pid)


def test_every_line_carries_its_childs_name(lead: Callable[..., Leader]) -> None:
    leader = lead("a", "longer")
    leader.hears(r"a      \| hello from a \d+\n")
    leader.hears(r"longer \| hello from longer \d+\n")


def test_sigterm_ends_all_in_reverse_order_and_is_no_failure(lead: Callable[..., Leader]) -> None:
    leader = lead("first", "gentle", grace_s=PATIENCE_S)  # time to say goodbye on a busy machine
    pids = [leader.pid_of("first"), leader.pid_of("gentle")]
    leader.hears("ready")
    leader.process.send_signal(signal.SIGTERM)
    assert leader.ends() == 0
    assert "gentle says goodbye" in leader.said and "leader ended with 0" in leader.said
    assert all(map(gone, pids))


def test_a_child_that_does_not_listen_is_killed_after_its_grace(lead: Callable[..., Leader]) -> None:
    leader = lead("stubborn")
    pid = leader.pid_of("stubborn")
    leader.hears("ready")
    leader.process.send_signal(signal.SIGTERM)
    assert leader.ends() == 0
    assert "stubborn did not end in time; killing it" in leader.said and gone(pid)


def test_sigkill_of_the_leader_leaves_nothing(lead: Callable[..., Leader]) -> None:
    leader = lead("plain", "stubborn")
    pids = [leader.pid_of("plain"), leader.pid_of("stubborn")]
    leader.process.kill()
    leader.process.wait()
    for pid in pids:
        await_gone(pid)


def test_a_child_that_dies_is_started_again_and_the_others_live_on(lead: Callable[..., Leader]) -> None:
    leader = lead("victim", "other")
    victim, other = leader.pid_of("victim"), leader.pid_of("other")
    os.kill(victim, signal.SIGKILL)
    leader.hears(r"victim was killed by signal 9 after .* starting it again in 0\.25 s")
    leader.hears(rf"hello from victim (?!{victim}\b)\d+")
    assert not gone(other) and leader.pid_of("other") == other


def test_a_child_that_keeps_dying_is_started_ever_more_slowly(lead: Callable[..., Leader]) -> None:
    leader = lead("crashing")
    leader.hears(r"ended with status 3 .* in 0\.25 s")
    leader.hears(r"ended with status 3 .* in 0\.5 s")
    assert "crashing | unfinished line\n" in leader.said


def test_a_child_that_can_not_work_ends_everything_with_its_status(lead: Callable[..., Leader]) -> None:
    leader = lead("plain", "misconfigured")
    plain = leader.pid_of("plain")
    os.kill(leader.pid_of("misconfigured"), signal.SIGUSR1)
    leader.ends()
    assert "leader ended with 78" in leader.said
    assert gone(plain)


def test_a_second_signal_kills_at_once(lead: Callable[..., Leader]) -> None:
    leader = lead("stubborn", grace_s=3600)
    pid = leader.pid_of("stubborn")
    leader.hears("ready")
    leader.process.send_signal(signal.SIGTERM)
    leader.process.send_signal(signal.SIGINT)
    assert leader.ends() == 0 and gone(pid)


def test_pauses_double_up_to_a_limit_and_a_steady_life_forgives() -> None:
    pause, seen = 0.0, []
    for _ in range(10):
        pause = pause_after(1.0, pause)
        seen.append(pause)
    assert seen[0] == FIRST_PAUSE_S and seen[-1] == LONGEST_PAUSE_S and seen == sorted(seen)
    assert pause_after(3600.0, LONGEST_PAUSE_S) == FIRST_PAUSE_S
