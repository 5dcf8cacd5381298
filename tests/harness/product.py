"""A whole broker on free ports: object store, API and worker as processes, killed and started at will."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

from broker.objects import EmbeddedObjectStore, ObjectStore
from tests.harness.client import Client
from tests.harness.cluster import Cluster
from tests.harness.processes import Process, free_port, until

BROKER = Path(sys.executable).with_name("broker")
PASSWORD = "correct horse battery staple 42"
Part = Literal["api", "worker", "up"]


class Broker:
    """One installation, its data below `home`. `together`: one `broker up`, else `serve` and `worker`.

    `environment` is random, so every Slurm job of this broker is found by the beginning of its name.
    """

    def __init__(
        self,
        home: Path,
        cluster: Cluster,
        *,
        together: bool = False,
        database_url: str | None = None,
        lease_s: float = 3.0,
        cluster_settings: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.home, self.cluster, self.together = home, cluster, together
        self.environment = "t" + secrets.token_hex(4)
        self.port = free_port()
        self.parts: dict[Part, Process] = {}
        self._spare: Process | None = None
        self._database_url = database_url
        self._settings = {
            "environment": self.environment,
            "data_dir": str(home / "data"),
            "log_level": "info",
            "metrics_public": True,
            "lease_s": lease_s,
            **({"database_url": database_url} if database_url else {}),
            "quotas": UNLIMITED,
            **settings,
            "api": {"port": self.port, "access_token_minutes": 24 * 60},
            "clusters": {cluster.name: cluster.settings(**(cluster_settings or {}))},
        }
        self.store = None if together else EmbeddedObjectStore(home / "objects")
        self.client = Client(self.url)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    @property
    def job_prefix(self) -> str:
        """What every Slurm job's name of this broker begins with."""
        return f"{self.environment}-"

    @property
    def database_url(self) -> str:
        """Its database, for looking past the API."""
        return self._database_url or f"sqlite:///{self.data_dir / 'broker.sqlite3'}"

    @property
    def mortal(self) -> tuple[Part, ...]:
        """The parts that may be killed; with `up`, its leader: everything dies with it."""
        return ("up",) if self.together else ("worker", "worker", "api")

    # ---- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> Broker:
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            if self.store is not None:
                endpoint = self.store.start()
                self._settings["s3"] = {
                    "endpoint_url": endpoint.url,
                    "access_key_file": str(endpoint.access_key_file),
                    "secret_key_file": str(endpoint.secret_key_file),
                }
                ObjectStore(endpoint.config("models")).ensure_bucket()
            self.config_file.write_text(to_toml(self._settings))
            if self.together:
                self.start("up")
            else:
                self.command("db", "upgrade")
                self.command("db", "reset-admin")
                self.start("api")
                self.start("worker")
            self._first_login()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for part in self.parts.values():
                print(f"---- {part.name} ----\n{part.tail()}", file=sys.stderr)
        self.close()

    def close(self) -> None:
        """End every process and whatever Slurm still has of ours."""
        self.client.close()
        for part in (*self.parts.values(), self._spare):
            if part is not None:
                part.stop()
        if self.store is not None:
            self.store.stop()
        self.cluster.cancel_by_prefix(self.job_prefix)

    @property
    def config_file(self) -> Path:
        return self.home / "broker.toml"

    @property
    def env(self) -> dict[str, str]:
        """The environment of its processes: nothing of a developer's own broker gets in."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        return {**kept, "BROKER_CONFIG_FILE": str(self.config_file), "NO_COLOR": "1"}

    def start(self, part: Part, *, wait: bool = True) -> Process:
        """Start one part; an API has answered when this returns."""
        words = {"api": ["serve"], "worker": ["worker"], "up": ["up"]}[part]
        self.parts[part] = Process(part, [str(BROKER), *words], self.env, self.home / f"{part}.log")
        if wait and part != "worker":
            self.await_api()
        return self.parts[part]

    def start_spare_worker(self) -> Process:
        """A second worker beside the first; it works when the first one's lease is gone."""
        self._spare = Process("spare", [str(BROKER), "worker"], self.env, self.home / "spare.log")
        return self._spare

    def kill(self, part: Part) -> None:
        """SIGKILL."""
        self.parts[part].kill()

    def await_api(self, seconds: float = 60) -> None:
        """Wait until the API answers."""
        process = self.parts.get("api") or self.parts["up"]

        def answers() -> bool:
            if not process.alive:
                raise AssertionError(f"{process.name} has ended:\n{process.tail()}")
            try:
                return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        until(answers, seconds, "the API answers")

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `broker WORDS` with this broker's settings."""
        return subprocess.run(
            [str(BROKER), *words], env=self.env, capture_output=True, text=True, timeout=120, check=check
        )

    def _first_login(self) -> None:
        once = self.data_dir / "first-admin-password"
        until(once.exists, 30, "the first admin's password is written")
        first = once.read_text().strip()
        self.client.login("admin", first)
        self.client.change_password(first, PASSWORD)

    def another_client(self) -> Client:
        """A second session of the same person."""
        client = Client(self.url)
        client.login("admin", PASSWORD)
        return client

    # ---- the gates of components --------------------------------------------------------------------

    def open_gate(self, run_id: str, component: str) -> None:
        """Let a component that waits (`specs.WAIT`) go on."""
        folder = self.cluster.run_dir(run_id) / component / "checkpoints"
        until(folder.is_dir, 60, f"{component} of {run_id} has begun")
        (folder / "go").touch()


UNLIMITED = {
    "api_calls_per_day": 10**9,
    "gpu_hours_per_month": 10**6,
    "upload_gb_per_month": 10**6,
    "active_runs_per_user": 10**6,
    "runs_per_hour": 10**6,
    "runs_per_day": 10**6,
    "internal_runs_per_day": 10**6,
}
"""`quotas` that no test reaches by chance; the tests of limits set their own."""


def to_toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML (JSON's strings and numbers are TOML's, too)."""
    tables: list[str] = []

    def table(values: Mapping[str, Any], path: str) -> None:
        if path:
            tables.append(f"[{path}]")
        for name, value in values.items():
            if not isinstance(value, Mapping):
                tables.append(f"{json.dumps(name)} = {json.dumps(value)}")
        for name, value in values.items():
            if isinstance(value, Mapping):
                table(value, f"{path}.{json.dumps(name)}" if path else json.dumps(name))

    table(settings, "")
    return "\n".join(tables) + "\n"
