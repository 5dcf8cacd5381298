"""The real Slurm cluster of `slurm-dev/` for every test in this folder."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests.harness.processes import until

PROGRAM = Path(__file__).resolve().parents[2] / "slurm-dev" / "cluster"


@dataclass(frozen=True)
class Ssh:
    """How to reach the cluster's login node over SSH."""

    host: str
    port: int
    user: str
    key: str
    known_hosts: str


class DevCluster:
    """A running development cluster. `info` is its `cluster.json`."""

    def __init__(self, name: str, info: Mapping[str, Any]) -> None:
        self.name = name
        self.info = dict(info)
        self.ssh = Ssh(**info["ssh"])
        self.registry: str = info["registry"]

    def control(self, command: str, *words: str) -> str:
        """`cluster COMMAND --name NAME WORDS…`; fails the test when it fails."""
        return control(command, "--name", self.name, *words)

    def exec(self, argv: Sequence[str], user: str | None = None) -> tuple[int, str, str]:
        """Run a command inside, as root or as one of the people: exit status, standard output and error."""
        command = [str(PROGRAM), "exec", "--name", self.name, "--user", user or "root", "--", *argv]
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def ok(self, *argv: str, user: str | None = None) -> str:
        """Run a command inside that must succeed; its standard output, stripped."""
        status, out, err = self.exec(argv, user)
        assert status == 0, f"{' '.join(argv)}: {err or out}"
        return out.strip()

    def await_state(self, job: str, *states: str, seconds: float = 60) -> None:
        """Wait until a job is in one of these states, as squeue calls them."""
        until(
            lambda: self.ok("squeue", "-h", "-t", "all", "-j", job, "-o", "%T") in states,
            seconds,
            f"job {job} in {'/'.join(states)}",
            0.1,
        )

    def log_in(self, user: str, key: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command over SSH, as somebody with this key."""
        options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes")
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-p", str(self.ssh.port), "-i", key),
                *(word for option in options for word in ("-o", option)),
                *("-o", f"UserKnownHostsFile={self.ssh.known_hosts}", f"{user}@{self.ssh.host}", *command),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def pause(self, daemon: str) -> None:
        self.control("pause", daemon)

    def resume(self, daemon: str) -> None:
        self.control("resume", daemon)

    def restart(self, daemon: str) -> None:
        self.control("restart", daemon)

    def fail_node(self, node: str) -> None:
        self.control("fail", "node", node)

    def recover_node(self, node: str) -> None:
        self.control("recover", "node", node)

    def status(self) -> dict[str, Any]:
        """`cluster status --json`."""
        found: dict[str, Any] = json.loads(self.control("status", "--json"))
        return found


def control(*words: str, timeout: float = 900) -> str:
    """Run the `cluster` program; its standard output. An error fails the test with what it said."""
    done = subprocess.run(
        [str(PROGRAM), *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"cluster {' '.join(words)}: {done.stderr}{done.stdout[-2000:]}"
    return done.stdout


def state_home() -> Path:
    """Where `slurm-dev/cluster` keeps its clusters."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(os.environ.get("SLURM_DEV_HOME") or Path(base, "slurm-dev"))


def load(name: str) -> DevCluster:
    """The running cluster of this name."""
    return DevCluster(name, json.loads((state_home() / name / "cluster.json").read_text()))


@contextmanager
def running(name: str, *options: str) -> Iterator[DevCluster]:
    """A cluster that ends with this process, whatever ends it; its state on disk stays."""
    control("down", "--name", name)
    process = subprocess.Popen(
        [str(PROGRAM), "up", "--name", name, "--die-with-parent", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        await_ready(process)
        yield load(name)
    finally:
        process.terminate()
        process.wait(timeout=90)


def await_ready(process: subprocess.Popen[str]) -> None:
    """Read a starting cluster's progress until it says that it is ready."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        if " is ready after " in line:
            return
    pytest.fail("the cluster did not start:\n" + "".join(seen[-40:]))


def _claim_name() -> tuple[str, IO[str]]:
    """`test`, or `test-2`, … when another test run has it: two runs never share a cluster."""
    home = state_home()
    home.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        name = "test" if number == 1 else f"test-{number}"
        claim = (home / f"{name}.session").open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
        else:
            return name, claim
    raise AssertionError("unreachable")


@pytest.fixture(scope="session")
def cluster() -> Iterator[DevCluster]:
    """One cluster for the whole session; with `SLURM_DEV_KEEP=1` it is found running and left running."""
    name, claim = _claim_name()
    with claim:
        if os.environ.get("SLURM_DEV_KEEP") == "1":
            control("up", "--name", name)
            yield load(name)
        else:
            with running(name) as found:
                yield found
