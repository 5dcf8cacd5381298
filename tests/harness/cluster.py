"""A development cluster as the tests see it: what Slurm itself says, and the faults it can be given."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.processes import children

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "slurm-dev" / "cluster"
REGISTRY_IN_SPECS = "registry.avatar.io"
_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,RS,RV,S,TO"


_ROW = re.compile(r"(\d+)\|([A-Z_]+[^|]*)\|(.*)")


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job as Slurm knows it. `states` holds every state that squeue or sacct shows of it."""

    job_id: int
    name: str
    states: frozenset[str]

    @property
    def live(self) -> bool:
        """Whether Slurm may still run it."""
        return bool(self.states & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"})


class Cluster:
    """One cluster of `slurm-dev`, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        home = os.environ.get("SLURM_DEV_HOME") or (
            Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "slurm-dev"
        )
        self._file = Path(home) / name / "cluster.json"

    def control(self, *words: str, timeout: float = 300) -> str:
        """`slurm-dev/cluster WORDS --name NAME`; its output."""
        done = subprocess.run(
            [str(PROGRAM), words[0], "--name", self.name, *words[1:]],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"cluster {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def up(self) -> Cluster:
        """Start it unless it runs; ready when this returns."""
        self.control("up", timeout=900)
        return self

    @property
    def info(self) -> dict[str, Any]:
        """What `cluster.json` says."""
        found: dict[str, Any] = json.loads(self._file.read_text())
        return found

    @property
    def shared(self) -> Path:
        """The cluster's shared file system as this machine sees it."""
        return Path(self.info["host_shared"])

    def run_dir(self, run_id: str) -> Path:
        """A run's directory on the shared file system."""
        return self.shared / "ml-jobs" / run_id

    def settings(self, *, poll_interval_s: float = 0.5, **more: Any) -> dict[str, Any]:
        """The `[clusters.NAME]` section of a broker's settings."""
        info = self.info
        ssh = info["ssh"]
        return {
            "ssh_host": ssh["host"],
            "ssh_port": ssh["port"],
            "ssh_user": ssh["user"],
            "ssh_key_file": ssh["key"],
            "ssh_known_hosts": ssh["known_hosts"],
            "base_path": f"{info['shared']}/ml-jobs",
            "image_dir": f"{info['shared']}/images",
            "registry_mirrors": {REGISTRY_IN_SPECS: info["registry"]},
            "insecure_registries": [info["registry"]],
            "poll_interval_s": poll_interval_s,
            **more,
        }

    def ssh_argv(self, *, terminal: bool) -> list[str]:
        """The plain `ssh` command line of a person with the service account."""
        ssh = self.info["ssh"]
        return [
            *("ssh", "-tt" if terminal else "-T", "-p", str(ssh["port"]), "-i", ssh["key"]),
            *("-o", f"UserKnownHostsFile={ssh['known_hosts']}", "-o", "BatchMode=yes"),
            *("-o", "ControlPath=none", f"{ssh['user']}@{ssh['host']}"),
        ]

    # ---- what Slurm says ----------------------------------------------------------------------------

    def exec(self, *argv: str, user: str = "root", timeout: float = 60) -> str:
        """Run a command inside; its standard output. Fails the test if the command fails."""
        done = subprocess.run(
            [str(PROGRAM), "exec", "--name", self.name, "--user", user, "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{argv[0]} inside {self.name}: {done.stderr.strip()}")
        return done.stdout

    def jobs(self, prefix: str, since: str = "now-1day") -> list[SlurmJob]:
        """Every job whose name begins with `prefix`, from squeue and sacct together; each id once.

        `sacct -D` shows each start of a requeued job as a row of its own: those are one job. A job that was
        cancelled while held appears only because `-s` and `-E now` are given.
        """
        fields = ("-a", "-n", "-P", "-X", "-D", "-S", since, "-E", "now", "-s", _STATES)
        accounting = self.exec("sacct", *fields, "-o", "JobIDRaw,State,JobName")
        queue = self.exec("squeue", "-h", "-a", "-t", "all", "-o", "%A|%T|%j")
        states: dict[tuple[int, str], set[str]] = defaultdict(set)
        current: dict[tuple[int, str], str] = {}
        for source, text in (("sacct", accounting), ("squeue", queue)):
            for line in text.splitlines():
                row = _ROW.fullmatch(line)
                if row is None:  # the rest of somebody's job name with a newline in it
                    continue
                number, state, name = row.groups()
                if name.startswith(prefix):
                    states[int(number), name].add(state.split()[0])
                    if source == "squeue":
                        current[int(number), name] = state
        # squeue is newer than sacct: a row of sacct that still says RUNNING is not believed against it.
        return [
            SlurmJob(number, name, frozenset({current[number, name]} if (number, name) in current else found))
            for (number, name), found in sorted(states.items())
        ]

    def ids_by_name(self, prefix: str) -> dict[str, list[int]]:
        """Slurm job ids by job name; more than one id of a name is a job submitted twice."""
        found: dict[str, list[int]] = defaultdict(list)
        for job in self.jobs(prefix):
            found[job.name].append(job.job_id)
        return dict(found)

    def show_jobs(self) -> dict[int, dict[str, str]]:
        """`scontrol show job`: fields by job id."""
        shown: dict[int, dict[str, str]] = {}
        for line in self.exec("scontrol", "-o", "show", "job", timeout=120).splitlines():
            fields = dict(word.partition("=")[::2] for word in line.split(" ") if "=" in word)
            if "JobId" in fields:
                shown[int(fields["JobId"])] = fields
        return shown

    def cancel_by_prefix(self, prefix: str) -> None:
        """End whatever is left of a broker's jobs."""
        live = [str(job.job_id) for job in self.jobs(prefix) if job.live]
        if live:
            self.exec("scancel", *live)

    # ---- faults -------------------------------------------------------------------------------------

    @contextmanager
    def paused(self, daemon: str) -> Iterator[None]:
        """A daemon that is frozen for the time of the block: it keeps its sockets and answers nobody."""
        self.control("pause", daemon)
        try:
            yield
        finally:
            self.control("resume", daemon)

    @contextmanager
    def frozen(self, daemon: str) -> Iterator[None]:
        """Like `paused`, within microseconds: the signal goes straight to the processes."""
        inside = children(self.info["pid"])
        pids = [pid for pid, line in inside.items() if Path(line.split(" ")[0]).name == daemon]
        assert pids, f"no {daemon} in {self.name}"
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def restart(self, daemon: str) -> None:
        """Stop a daemon and start it again (sshd drops its connections)."""
        self.control("restart", daemon)

    @contextmanager
    def failed_node(self, node: str) -> Iterator[None]:
        """A node without power for the time of the block."""
        self.control("fail", "node", node)
        try:
            yield
        finally:
            self.control("recover", "node", node)


def afterok(dependency: str) -> set[int]:
    """The parents in a `Dependency=` field of `scontrol show job`: `afterok:7(unfulfilled),afterok:8(…)`."""
    return {int(number) for number in re.findall(r"afterok:(\d+)", dependency)}
