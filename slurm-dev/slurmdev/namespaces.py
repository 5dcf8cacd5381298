"""A cluster in mount, PID, UTS and IPC namespaces of this machine: how it is started, entered and ended.

PID 1 of the PID namespace is ``init``; when it ends, the kernel ends everything in the cluster and drops its
mounts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from slurmdev import processes, rootfs, state
from slurmdev.inside import as_person
from slurmdev.layout import DATA
from slurmdev.state import SOURCE, ClusterError, State

_STOP_DEADLINE_S = 60.0


def _die_with_parent() -> None:
    processes.die_with_parent(signal.SIGKILL)


class Namespaces:
    """One cluster run by Linux namespaces. Needs root, ``unshare`` and ``nsenter`` (util-linux)."""

    name = "namespaces"
    builds_images_inside = False

    def __init__(self, cluster: State) -> None:
        self.cluster = cluster

    @staticmethod
    def check() -> None:
        """Raise :class:`ClusterError` when this machine can't do it."""
        if os.geteuid() != 0:
            raise ClusterError("namespaces need root: run it with sudo")
        missing = [
            tool for tool in ("unshare", "nsenter", "mount", "pivot_root") if shutil.which(tool) is None
        ]
        if missing:
            raise ClusterError(
                f"not installed: {', '.join(missing)} (Debian: apt-get install util-linux mount)"
            )

    def prepare(self, suite: str) -> None:
        """Do what takes long: build the root file system unless the cache has it."""
        rootfs.ensure(suite)

    def start(self, suite: str, *, with_parent: bool = False) -> subprocess.Popen[bytes]:
        """Start the cluster; returns the process that waits for it. ``with_parent`` ties its life to ours."""
        tree = rootfs.ensure(suite)
        cache = state.cache()
        (cache / "registry").mkdir(parents=True, exist_ok=True)
        self.cluster.pid_file.unlink(missing_ok=True)
        argv = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork"]
        argv += ["--kill-child"] if with_parent else []
        argv += ["--", str(SOURCE / "enter"), str(tree), str(self.cluster.folder), str(cache), str(SOURCE)]
        with self.cluster.alive_lock.open("a") as alive, self.cluster.init_log.open("wb") as log:
            # PID 1 inherits this lock: it is held exactly while the cluster lives.
            fcntl.flock(alive, fcntl.LOCK_EX)
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(alive.fileno(),),
                start_new_session=True,
                preexec_fn=_die_with_parent if with_parent else None,  # noqa: PLW1509 - there is one thread
            )

    def alive(self) -> bool:
        """Whether the cluster's PID 1 (or what is about to become it) lives."""
        try:
            with self.cluster.alive_lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def pid(self) -> int | None:
        """PID 1 of the cluster as this machine knows it; None when it is not (yet, or any more) there."""
        try:
            pid = int(self.cluster.pid_file.read_text(encoding="ascii"))
            same = Path(f"/proc/{pid}/root{DATA}/settings.json").samefile(self.cluster.settings_file)
        except (OSError, ValueError):
            return None
        return pid if same else None

    def ready(self, marker: str) -> bool:
        """Whether ``init`` has finished starting: it leaves ``marker`` then."""
        pid = self.pid()
        return pid is not None and Path(f"/proc/{pid}/root{marker}").exists()

    def argv(self, command: Sequence[str], user: str = "root") -> list[str]:
        """The command line that runs a command inside, as somebody, in their home folder."""
        pid = self.pid()
        if pid is None:
            raise ClusterError(
                f"cluster {self.cluster.name!r} is not up; start it: cluster up --name {self.cluster.name}"
            )
        enter = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--pid", "--"]
        return [*enter, *as_person(user), *command]

    def stop(self) -> None:
        """End the cluster in good order, by force when that takes too long; nothing lives afterwards."""
        deadline = time.monotonic() + _STOP_DEADLINE_S
        asked: set[int] = set()
        while self.alive():
            pid = self.pid()
            if pid is not None:
                late = time.monotonic() > deadline - 10
                if pid not in asked or late:
                    processes.send(pid, signal.SIGKILL if late else signal.SIGTERM)
                    asked.add(pid)
            if time.monotonic() > deadline:
                raise ClusterError(f"cluster {self.cluster.name!r} does not end; see {self.cluster.init_log}")
            time.sleep(0.05)
        for name in ("upper", "work", "root"):
            shutil.rmtree(self.cluster.folder / name, ignore_errors=True)
        self.cluster.pid_file.unlink(missing_ok=True)

    def hand_back(self) -> None:
        """Nothing to hand back: whoever runs this is root."""

    def log_folder(self) -> Path:
        """The daemons' logs, readable whether the cluster is up or down."""
        return self.cluster.data / "log"
