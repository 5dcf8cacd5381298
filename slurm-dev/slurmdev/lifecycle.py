"""Bringing a cluster up and down, and telling how it is."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from slurmdev import compose, images, layout, processes
from slurmdev.compose import Compose
from slurmdev.layout import Settings
from slurmdev.namespaces import Namespaces
from slurmdev.state import ClusterError, State

_READY = f"{layout.RUN}/ready"
_UP_DEADLINE_S = 240.0


class Cluster:
    """A development cluster by name."""

    def __init__(self, name: str) -> None:
        self.state = State(name)
        self.way = self._way(self._chosen_before() or Namespaces.name)

    # -- up and down

    def up(
        self,
        suite: str | None,
        *,
        via: str | None = None,
        with_images: bool = True,
        with_parent: bool = False,
    ) -> None:
        """Bring the cluster up and wait until every node is idle and accounting answers. Safe to repeat.

        ``via`` is ``compose`` or ``namespaces``; unset: as last time, else compose where a Docker engine
        answers and can do what is asked. ``with_parent``: stays in the foreground, and whatever ends it or
        its caller ends the cluster.
        """
        self._choose_way(via, only_namespaces=with_parent or suite not in (None, "trixie"))
        if with_parent:
            processes.die_with_parent(signal.SIGTERM)
        began = time.monotonic()
        waiter: subprocess.Popen[bytes] | None = None
        with self.state.lock():
            if self.is_ready():
                self.state.suite(suite)
                if with_parent:
                    raise ClusterError(f"cluster {self.state.name!r} is up already, and outlives its parent")
                say(f"cluster {self.state.name} is up already")
            else:
                waiter = self._start(suite, with_parent=with_parent)
            settings = self.state.settings()
            if with_images and settings.containers:
                self.publish_images()
        took = time.monotonic() - began
        say(f"cluster {self.state.name} is ready after {took:.1f} s: {self.state.info_file}")
        if with_parent and waiter is not None:
            self._stay(waiter)

    def _choose_way(self, via: str | None, *, only_namespaces: bool) -> None:
        before = self._chosen_before()
        if via is None:
            via = before or (Namespaces.name if only_namespaces or compose.trouble() else Compose.name)
        if before not in (None, via) and self.way.alive():
            raise ClusterError(f"cluster {self.state.name!r} is up via {before}; end it first: cluster down")
        self.way = self._way(via)
        self.way.check()
        self.state.folder.mkdir(parents=True, exist_ok=True)
        self.state.via_file.write_text(via + "\n", encoding="ascii")

    def _chosen_before(self) -> str | None:
        try:
            return self.state.via_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def _way(self, name: str) -> Namespaces | Compose:
        return Compose(self.state) if name == Compose.name else Namespaces(self.state)

    def _start(self, suite: str | None, *, with_parent: bool) -> subprocess.Popen[bytes]:
        if self.way.alive():
            say("ending what an interrupted start has left")
            self.way.stop()
        self.state.info_file.unlink(missing_ok=True)
        suite = self.state.suite(suite)
        self.way.prepare(suite)
        # Ports are chosen last: what takes minutes is done, so nobody takes them meanwhile.
        settings = self.state.settle(suite)
        waiter = self.way.start(settings.suite, with_parent=with_parent)
        try:
            self._wait_until_ready()
        except BaseException:
            # Whatever cut this short, a failure or Ctrl-C: no half a cluster stays behind.
            self.way.stop()
            raise
        self._write_info(settings)
        return waiter

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _UP_DEADLINE_S
        shown = 0
        while True:
            alive, ready = self.way.alive(), self.is_ready()
            text = self.state.init_log.read_text(encoding="utf-8", errors="replace")
            complete = text.rfind("\n") + 1
            if complete > shown and alive:
                print(text[shown:complete], end="", flush=True)
                shown = complete
            if ready:
                return
            if not alive:
                why = text[max(text.find(" failed: "), 0) :].strip()
                raise ClusterError(f"the cluster did not start: {why.removeprefix('failed: ')}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the cluster was not ready within {_UP_DEADLINE_S:.0f} s; see {self.state.folder}"
                )
            time.sleep(0.1)

    def _stay(self, waiter: subprocess.Popen[bytes]) -> None:
        """Wait in the foreground until the cluster ends, or end it when we are told to."""

        def stop(_number: int, _frame: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, stop)
        try:
            waiter.wait()
        except KeyboardInterrupt:
            self.down()

    def down(self, *, purge: bool = False) -> None:
        """End the cluster; what it stored stays for the next ``up``, unless ``purge``."""
        self.way.check()
        if not self.state.folder.exists():
            return
        with self.state.lock():
            self.way.stop()
            self.state.info_file.unlink(missing_ok=True)
            if purge:
                self.way.hand_back()
                self.state.wipe(keep_identity=False)

    def reset(self, suite: str | None) -> None:
        """Forget every job, account and file; ports and keys stay. May change the suite."""
        self.down()
        if self.state.exists:
            with self.state.lock():
                old = self.state.settings()
                self.way.hand_back()
                self.state.wipe(keep_identity=True)
                if suite and suite != old.suite:
                    changed = Settings(old.name, suite, old.ports, old.listen, old.owner)
                    self.state.settings_file.write_text(changed.to_json(), encoding="utf-8")

    # -- questions

    def is_ready(self) -> bool:
        """Whether the cluster is up and had finished starting."""
        return self.way.ready(_READY)

    def status(self) -> dict[str, Any]:
        """``cluster.json`` with the state of this moment: ``state`` is ``up``, ``starting`` or ``down``."""
        settings = self.state.settings()
        info = self._info(settings)
        info["state"] = "up" if self.is_ready() else "starting" if self.way.alive() else "down"
        if info["state"] == "up":
            live = self.control("status")
            info |= {key: live[key] for key in ("daemons", "scheduler", "accounting", "slurm_version")}
            info["node_states"] = live["nodes"]
        return info

    def _write_info(self, settings: Settings) -> None:
        info = self._info(settings) | {"slurm_version": self.control("status")["slurm_version"]}
        temporary = self.state.info_file.with_suffix(".new")
        temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        temporary.rename(self.state.info_file)

    def _info(self, settings: Settings) -> dict[str, Any]:
        keys = self.state.data / "keys"
        version = None
        with contextlib.suppress(OSError, ValueError):
            version = json.loads(self.state.info_file.read_text(encoding="utf-8"))["slurm_version"]
        return {
            "name": settings.name,
            "via": self.way.name,
            "suite": settings.suite,
            "slurm_version": version,
            "ssh": {
                "host": "127.0.0.1",
                "port": settings.ports["ssh"],
                "user": layout.SERVICE_USER,
                "key": str(keys / layout.SERVICE_USER),
                "known_hosts": str(keys / "known_hosts"),
            },
            "registry": images.address(settings),
            "shared": layout.SHARED,
            "host_shared": str(self.state.data / "shared"),
            "nodes": list(layout.NODES),
            "pid": self.way.pid(),
            "users": [
                {"name": user, "uid": uid, "key": str(keys / user), "accounts": _accounts_of(user)}
                for user, uid in layout.USERS.items()
            ],
        }

    def publish_images(self) -> None:
        """Put the sample images into the registry."""
        registry = self._info(self.state.settings())["registry"]
        if registry is None:
            raise ClusterError(f"cluster {self.state.name!r} only schedules: its suite has no containers")
        images.publish(registry, self.run, build_inside=self.way.builds_images_inside)

    # -- inside

    def run(
        self, command: Sequence[str], user: str = "root", **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command inside; ``options`` go to ``subprocess.run``."""
        return subprocess.run(self.way.argv(command, user), check=False, **options)

    def control(self, *arguments: str) -> dict[str, Any]:
        """Run one of ``slurmdev.control``'s commands inside."""
        done = self.run(["/opt/slurm-dev/init", "ctl", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise ClusterError(done.stderr.strip() or f"{' '.join(arguments)} failed")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _accounts_of(user: str) -> list[str]:
    return [account for account, people in layout.ACCOUNTS.items() if user in people]


def say(text: str) -> None:
    """A line of progress for the person who waits."""
    print(text, file=sys.stdout, flush=True)
