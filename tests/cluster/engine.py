"""A Docker engine of our own: Debian's dockerd on its own socket, its base image made without a registry.

What is downloaded and built lies in the cache (`slurm-dev/test-engine`), so a second run takes seconds. The
engine touches neither iptables nor the machine's own engine, and ends with the process that started it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness.processes import Process

BASE = "debian:trixie-slim"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
# Without iptables a build step reaches the package mirror only through the machine's own network.
BUILD_ON_HOST_NETWORK = """\
services:
  slurm: {build: {network: host}}
  images: {build: {network: host}}
  objects: {build: {network: host}}
  database: {build: {network: host}}
  prepare: {build: {network: host}}
  serve: {build: {network: host}}
  worker: {build: {network: host}}
"""
# A company's certificate authorities belong into its base image, so that pip trusts its proxy in there too.
OWN_AUTHORITIES = """\
if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then \
mkdir -p "$1/usr/local/share/ca-certificates" && \
cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/" && \
chroot "$1" update-ca-certificates; fi"""


@dataclass(frozen=True)
class Engine:
    """A running engine: the environment in which `docker` and `docker compose` talk to it."""

    env: Mapping[str, str]
    override: Path

    def docker(self, *arguments: str) -> str:
        """Run `docker …`; its output, stripped. Fails with what it said."""
        done = subprocess.run(
            ["docker", *arguments],
            env=dict(self.env),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done.stdout.strip()


def cache() -> Path:
    """The cache folder of `slurm-dev/cluster`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "slurm-dev")


def _install(**packages: str) -> None:
    """Install the Debian packages of the programs that are missing here (`program=package`)."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "-qq", "update"], check=True, env=quiet)
        subprocess.run(
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing], check=True, env=quiet
        )


def _compose_plugin(kept: Path) -> Path:
    """A folder for `DOCKER_CONFIG` with compose v2 of trixie: older releases of Debian have v1 alone."""
    config = kept / "config"
    plugin = config / "cli-plugins" / "docker-compose"
    if not plugin.exists():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "lists" / "partial").mkdir(parents=True)
            (folder / "archives" / "partial").mkdir(parents=True)
            (folder / "sources.list").write_text(
                f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {MIRROR} trixie main\n"
            )
            options = (
                f"Dir::Etc::SourceList={folder}/sources.list", "Dir::Etc::SourceParts=/dev/null",
                f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}", "APT::Sandbox::User=root",
                "Acquire::Languages=none",
            )  # fmt: skip
            apt = ["apt-get", "-qq", *(f"-o{option}" for option in options)]
            subprocess.run([*apt, "update"], check=True, cwd=folder)
            subprocess.run([*apt, "download", "docker-compose"], check=True, cwd=folder)
            package = next(folder.glob("docker-compose_*.deb"))
            subprocess.run(["dpkg-deb", "--extract", package, folder / "x"], check=True)
            plugin.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "x/usr/libexec/docker/cli-plugins/docker-compose", plugin)
    return config


def _base_image(kept: Path) -> Path:
    """A Debian trixie as small as the registry's `trixie-slim`, as a tar."""
    target = kept / "trixie-slim.tar"
    if not target.exists():
        partial = target.with_suffix(".part")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates"]
        hook = f"--customize-hook={OWN_AUTHORITIES}"
        subprocess.run([*command, "--format=tar", hook, "trixie", partial, MIRROR], check=True)
        partial.rename(target)
    return target


@contextmanager
def engine() -> Iterator[Engine]:
    """Start the engine for the block; at its end nothing of it runs and no network interface is left."""
    _install(dockerd="docker.io", docker="docker.io", mmdebstrap="mmdebstrap")
    kept = cache() / "test-engine"
    kept.mkdir(parents=True, exist_ok=True)
    # A socket's path has to be short, and no folder of a test's is.
    with (
        (kept / "lock").open("w") as lock,
        tempfile.TemporaryDirectory(prefix="engine-", dir="/tmp") as name,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = Path(name)
        env = {
            **os.environ,
            "DOCKER_HOST": f"unix://{run}/socket",
            "DOCKER_CONFIG": str(_compose_plugin(kept)),
            "PATH": f"/usr/bin:{os.environ['PATH']}",
        }
        argv = ["dockerd", f"--data-root={kept}/data", f"--exec-root={run}/exec", f"--pidfile={run}/pid"]
        argv += [f"--host={env['DOCKER_HOST']}", "--group=root", "--iptables=false", "--ip6tables=false"]
        argv += ["--bridge=none"]
        daemon = Process("dockerd", argv, env, run / "log")
        override = run / "build.yml"
        override.write_text(BUILD_ON_HOST_NETWORK)
        try:
            found = Engine(env, override)
            _await(daemon, run / "socket")
            if not found.docker("images", "--quiet", BASE):
                found.docker("import", str(_base_image(kept)), BASE)
            yield found
            found.docker("image", "prune", "--force")
        finally:
            daemon.stop(patience_s=60)


def _await(daemon: Process, socket: Path) -> None:
    """The socket appears when the engine answers."""
    deadline = time.monotonic() + 60
    while not socket.exists():
        assert daemon.alive, f"dockerd ended:\n{daemon.tail()}"
        assert time.monotonic() < deadline, f"dockerd is not ready after 60 s:\n{daemon.tail()}"
        time.sleep(0.1)
