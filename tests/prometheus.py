"""Prometheus as Debian packages it, unpacked into a cache folder and never installed; a server for a test.

`python -m tests.prometheus` fetches them (`make system` does); a test that finds none fetches them itself.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from tests.harness.processes import Process, free_port, until

PACKAGE = "prometheus"


@cache
def program(name: str) -> str:
    """The path of `prometheus` or `promtool`: on PATH, else in the cache (which is filled if empty)."""
    return shutil.which(name) or str(_unpacked() / "usr/bin" / name)


def _unpacked() -> Path:
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache_home / "slurm-job-broker" / PACKAGE
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    """Download and unpack; the folder appears when it is whole. Needs the package lists (apt-get update)."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as building:
        try:
            subprocess.run(
                ["apt-get", "download", "-qq", PACKAGE],
                cwd=building,
                check=True,
                capture_output=True,
                text=True,
                timeout=300,
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(
                f"Debian's {PACKAGE} can't be downloaded; `make system`:\n{error.stderr}"
            ) from None
        (archive,) = Path(building).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, Path(building, "root")], check=True)
        Path(building, "root").rename(folder)


class Prometheus:
    """A server on loopback, asked over its HTTP API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **params: str) -> Any:
        """`data` of an answer of its API; what it does not understand fails the test with its words."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=10, trust_env=False).json()
        assert answer["status"] == "success", f"{params}: {answer.get('error')}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant vector (or scalar) now."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: list[dict[str, Any]] = data["result"]
        return found

    def await_scrapes(self, more: int) -> None:
        """Wait until every target has been read `more` times from now on."""
        before = {s["metric"]["job"]: float(s["value"][1]) for s in self.query("count_over_time(up[1h])")}

        def read() -> bool:
            now = {s["metric"]["job"]: float(s["value"][1]) for s in self.query("count_over_time(up[1h])")}
            return bool(now) and all(count >= before.get(job, 0) + more for job, count in now.items())

        until(read, 30, f"Prometheus has scraped {more} times", 0.1)


@contextmanager
def running(folder: Path, config: str) -> Iterator[Prometheus]:
    """A server with this configuration; its data lie in `folder` and go with it."""
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    port = free_port()
    words = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    process = Process("prometheus", words, os.environ, folder / "prometheus.log")
    try:
        until(lambda: not process.alive or _ready(port), 30, "Prometheus is ready", 0.1)
        assert process.alive, process.tail()
        yield Prometheus(port)
    finally:
        process.stop()


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    print(
        subprocess.run([program("promtool"), "--version"], check=True, capture_output=True, text=True).stdout
    )
