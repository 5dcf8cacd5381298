"""A cluster in a container of a Docker engine: the service ``slurm`` of ``docker-compose.yml``, alone.

The state folder's ``data`` is bound into the container, so keys, logs and shared files lie where they lie for
namespaces. Every cluster is a compose project of its own.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurmdev import layout, state
from slurmdev.inside import as_person
from slurmdev.state import SOURCE, ClusterError, State

_FILE = SOURCE.parent / "docker-compose.yml"
_OVERRIDES = "SLURM_DEV_COMPOSE_FILES"
"""Further compose files, separated by ``:``, for an engine with needs of its own (a build network)."""
_SERVICE = "slurm"
_ANSWER_TIMEOUT_S = 10.0


@functools.cache
def trouble() -> str | None:
    """Why no Docker engine with compose answers, or None when one does."""
    docker = shutil.which("docker")
    if docker is None:
        return "docker is not installed"
    for argv in (["version", "--format", "{{.Server.Version}}"], ["compose", "version"]):
        try:
            asked = subprocess.run(
                [docker, *argv], capture_output=True, text=True, timeout=_ANSWER_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"`docker {argv[0]}` does not answer"
        if asked.returncode != 0:
            return (asked.stderr.strip().splitlines() or [f"`docker {argv[0]}` failed"])[-1]
    return None


class Compose:
    """One cluster run by ``docker compose``."""

    name = "compose"
    builds_images_inside = True

    def __init__(self, cluster: State) -> None:
        self.cluster = cluster
        files = [str(_FILE), *filter(None, os.environ.get(_OVERRIDES, "").split(":"))]
        self._compose = ["docker", "compose", "--project-name", f"slurm-dev-{cluster.name}"]
        self._compose += [f"--file={file}" for file in files]

    @staticmethod
    def check() -> None:
        """Raise :class:`ClusterError` when no engine answers."""
        if reason := trouble():
            raise ClusterError(f"no Docker engine with compose: {reason}")

    def prepare(self, suite: str) -> None:
        """Nothing: the engine builds at :meth:`start`, which needs the ports."""

    def start(self, suite: str, *, with_parent: bool = False) -> subprocess.Popen[bytes]:
        """Build the image and start the container; returns the process that copies its output to a log."""
        if suite != "trixie":
            raise ClusterError(f"the container runs trixie; {suite} needs --via namespaces --suite {suite}")
        if with_parent:
            raise ClusterError("a container doesn't end with its parent; use --via namespaces")
        state.cache().mkdir(parents=True, exist_ok=True)
        print("building the container's image (the first time takes some minutes)", flush=True)
        self._run("build", _SERVICE, failure="the image can't be built")
        self._run("up", "--detach", "--no-build", _SERVICE, failure="the container can't be started")
        with self.cluster.init_log.open("wb") as log:
            return subprocess.Popen(
                [*self._compose, "logs", "--follow", "--no-log-prefix", "--no-color", _SERVICE],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self, marker: str) -> bool:
        """Whether ``init`` has finished starting."""
        return self._quiet("exec", "-T", _SERVICE, "test", "-e", marker).returncode == 0

    def alive(self) -> bool:
        """Whether the container runs."""
        return bool(self._quiet("ps", "--quiet", "--status", "running", _SERVICE).stdout.strip())

    def pid(self) -> int | None:
        """The container's PID 1 as the engine's machine knows it."""
        container = self._quiet("ps", "--quiet", "--status", "running", _SERVICE).stdout.strip()
        if not container:
            return None
        asked = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=False)
        if asked.returncode != 0:
            return None
        found: list[dict[str, Any]] = json.loads(asked.stdout)
        return int(found[0]["State"]["Pid"]) or None

    def argv(self, command: Sequence[str], user: str = "root") -> list[str]:
        """The command line that runs a command inside, as somebody, in their home folder."""
        terminal = [] if sys.stdin.isatty() and sys.stdout.isatty() else ["-T"]
        return [*self._compose, "exec", *terminal, _SERVICE, *as_person(user), *command]

    def stop(self) -> None:
        """End the cluster in good order and remove its container, network and empty volumes."""
        self._run("down", "--volumes", "--timeout", "30", failure="the container can't be ended")

    def hand_back(self) -> None:
        """Make the caller the owner of what the container wrote, so that they can delete it."""
        if os.getuid() != 0:
            owner = f"{os.getuid()}:{os.getgid()}"
            argv = ("run", "--rm", "--no-deps", "--entrypoint", "chown", _SERVICE, "-R", owner, layout.DATA)
            self._run(*argv, failure=f"can't become the owner of {self.cluster.data}")

    def log_folder(self) -> Path:
        """The daemons' logs, readable whether the cluster is up or down."""
        return self.cluster.data / "log"

    def _environment(self) -> dict[str, str]:
        """What ``docker-compose.yml`` is told about this cluster."""
        told = {
            "CLUSTER_NAME": self.cluster.name,
            "CLUSTER_PROJECT": f"slurm-dev-{self.cluster.name}",
            "CLUSTER_DATA": str(self.cluster.data),
            "CLUSTER_CACHE": str(state.cache()),
        }
        if self.cluster.exists:
            settings = self.cluster.settings()
            told |= {
                "SSH_PORT": str(settings.ports["ssh"]),
                "REGISTRY_PORT": str(settings.ports["registry"]),
                "KEY_OWNER": "{}:{}".format(*settings.owner),
            }
        return os.environ | told

    def _run(self, *arguments: str, failure: str) -> None:
        done = subprocess.run(
            [*self._compose, *arguments], env=self._environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
            raise ClusterError(f"{failure}: docker compose {arguments[0]} says:\n{tail}")

    def _quiet(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._compose, *arguments], env=self._environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
