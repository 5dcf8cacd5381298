"""What a cluster keeps on this machine: its folder, settings, ports and locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from slurmdev import layout
from slurmdev.layout import Settings

SOURCE = Path(__file__).resolve().parent.parent
"""The ``slurm-dev`` folder itself."""

_FIRST_PORT, _LAST_PORT = 21000, 29999


class ClusterError(Exception):
    """Something the caller can mend; the text says what and how."""


def home() -> Path:
    """Where clusters live: ``$SLURM_DEV_HOME``, or ``slurm-dev`` in the XDG state folder."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(os.environ.get("SLURM_DEV_HOME") or Path(base, "slurm-dev")).absolute()


def cache() -> Path:
    """What clusters share and anyone may delete while none is up: root file systems, images, registry."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "slurm-dev").absolute()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file for the block; waits for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class State:
    """The folder of one cluster."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
            raise ClusterError(f"--name {name!r}: use up to 31 lower-case letters, digits and hyphens")
        self.name = name
        self.folder = home() / name
        self.data = self.folder / "data"
        self.pid_file = self.folder / "pid"
        self.alive_lock = self.folder / "alive"
        self.init_log = self.folder / "init.log"
        self.via_file = self.folder / "via"
        self.info_file = self.folder / "cluster.json"
        self.settings_file = self.data / "settings.json"

    @property
    def exists(self) -> bool:
        """Whether a cluster of this name was ever started (and not wiped since)."""
        return self.settings_file.exists()

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One ``up``, ``down`` or ``reset`` at a time."""
        return locked(self.folder / "lock")

    def settings(self) -> Settings:
        """The settings as stored."""
        try:
            return Settings.from_json(self.settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ClusterError(
                f"there is no cluster {self.name!r}; start one: cluster up --name {self.name}"
            ) from None
        except (ValueError, KeyError) as error:
            raise ClusterError(f"{self.settings_file}: {error}") from None

    def suite(self, wanted: str | None) -> str:
        """The suite to start: the wanted one, the one as last time, or trixie. Changing it takes a reset."""
        old = self.settings().suite if self.exists else None
        if old and wanted not in (None, old):
            remedy = f"cluster reset --name {self.name} --suite {wanted}"
            raise ClusterError(f"cluster {self.name!r} runs {old}, not {wanted}; to begin anew: {remedy}")
        return wanted or old or "trixie"

    def settle(self, suite: str) -> Settings:
        """Settings to start with: the stored ones, but other ports where somebody has taken ours."""
        old = self.settings() if self.exists else None
        with locked(home() / "ports.lock"):
            ports = _choose_ports(dict(old.ports) if old else {}, self._ports_of_others())
            settings = Settings(self.name, suite, ports, owner=_owner())
            self.data.mkdir(parents=True, exist_ok=True)
            temporary = self.settings_file.with_suffix(".new")
            temporary.write_text(settings.to_json(), encoding="utf-8")
            temporary.rename(self.settings_file)
        return settings

    def _ports_of_others(self) -> set[int]:
        names = [path.name for path in home().iterdir() if (path / "data/settings.json").exists()]
        taken: set[int] = set()
        for name in names:
            if name != self.name:
                with contextlib.suppress(ClusterError):
                    taken |= set(State(name).settings().ports.values())
        return taken

    def wipe(self, *, keep_identity: bool) -> None:
        """Delete what the cluster did (jobs, accounts, files); ``keep_identity`` spares ports and keys."""
        if keep_identity:
            for path in self.data.iterdir():
                if path.name == "keys" or path == self.settings_file:
                    continue
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        else:
            shutil.rmtree(self.folder)


def _owner() -> tuple[int, int]:
    """Who gets to read the private keys: the person behind sudo, or whoever runs this."""
    return int(os.environ.get("SUDO_UID", os.getuid())), int(os.environ.get("SUDO_GID", os.getgid()))


def port_is_free(port: int) -> bool:
    """Whether a daemon could bind this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _choose_ports(old: dict[str, int], avoid: set[int]) -> dict[str, int]:
    ports: dict[str, int] = {}
    candidates = iter(range(_FIRST_PORT, _LAST_PORT))
    for name in layout.PORT_NAMES:
        port = old.get(name)
        if port is not None and not port_is_free(port):
            print(f"port {port} ({name}) is taken by another program; choosing another one", flush=True)
            port = None
        while port is None:
            candidate = next(candidates, None)
            if candidate is None:
                raise ClusterError(f"no free port for {name} between {_FIRST_PORT} and {_LAST_PORT}")
            if candidate not in avoid and candidate not in old.values() and port_is_free(candidate):
                port = candidate
        ports[name] = port
    return ports
