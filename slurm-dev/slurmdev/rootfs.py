"""The root file system: built once per suite and provisioning script, kept in the cache, never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurmdev import processes, state
from slurmdev.state import ClusterError

_PROVISION = state.SOURCE / "provision"
# A build in its own namespaces leaves no mount, and no process when it is cut off (`die_with_parent`).
_ISOLATED = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "--")
_PASSED_ON = (
    "PATH",
    "HOME",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)
_MIRROR = "http://deb.debian.org/debian"


def path(suite: str) -> Path:
    """Where the root file system of a suite lies, or would."""
    digest = hashlib.sha256(_PROVISION.read_bytes()).hexdigest()[:12]
    return state.cache() / f"rootfs-{suite}-{digest}"


def ensure(suite: str) -> Path:
    """The root file system of a suite; builds it (some minutes) when it is not in the cache."""
    target = path(suite)
    if target.exists():
        return target
    with state.locked(state.cache() / f"rootfs-{suite}.lock"):
        if not target.exists():
            _build(suite, target)
    return target


def _build(suite: str, target: Path) -> None:
    log = state.cache() / f"rootfs-{suite}.log"
    building = state.cache() / f"building-{suite}"
    if building.exists():
        # Left by a build that was cut off; its mounts went with its namespace.
        shutil.rmtree(building)
    mirror = os.environ.get("DEBIAN_MIRROR", _MIRROR)
    log.unlink(missing_ok=True)
    ensure_tool("debootstrap")
    print(f"building the {suite} root file system, once (log: {log})", flush=True)
    _run([*_ISOLATED, "debootstrap", "--variant=minbase", suite, str(building), mirror], log)
    print("installing Slurm and the rest into it", flush=True)
    shutil.copy(_PROVISION, building / "provision")
    if Path("/etc/resolv.conf").exists():
        (building / "etc/resolv.conf").unlink(missing_ok=True)
        shutil.copy("/etc/resolv.conf", building / "etc/resolv.conf")
    mounts = 'mount -t proc proc "$1/proc" && mount -t sysfs -o ro sysfs "$1/sys"'
    _run(
        [*_ISOLATED, "sh", "-c", mounts + ' && exec chroot "$1" /provision "$2"', "sh", str(building), suite],
        log,
        DEBIAN_MIRROR=mirror,
    )
    (building / "provision").unlink()
    building.rename(target)


def ensure_tool(name: str) -> None:
    """Install a program from this machine's own Debian when it is missing; the package bears its name."""
    if shutil.which(name) is not None:
        return
    if shutil.which("apt-get") is None:
        raise ClusterError(
            f"{name} is not installed, and this machine has no apt-get: install it and try again"
        )
    print(f"installing {name}", flush=True)
    log = state.cache() / f"install-{name}.log"
    _run(["apt-get", "-qq", "update"], log)
    _run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", name], log)


def _run(argv: Sequence[str], log: Path, **extra: str) -> None:
    """Run a step of the build; its output goes to the log, whose end is shown when it fails."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **extra}
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            preexec_fn=lambda: processes.die_with_parent(signal.SIGKILL),
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise ClusterError(f"{' '.join(argv)} failed (status {done.returncode}); the end of {log}:\n{tail}")
