"""The sample images: made by ``slurm-dev/images/build`` in the cache, pushed to the cluster's registry.

The contract with the builder: ``build --cache FOLDER`` prints, as its last line, the path of an OCI layout
below FOLDER whose ``index.json`` names each image (``org.opencontainers.image.ref.name``) as
``repository:tag``; what is there already it finds and keeps.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slurmdev import rootfs, state
from slurmdev.layout import Settings
from slurmdev.state import SOURCE, ClusterError

Run = Callable[..., "subprocess.CompletedProcess[Any]"]
"""Runs a command inside the cluster, with the options of ``subprocess.run``."""

_BUILDER = SOURCE / "images" / "build"
_INSIDE = "/var/cache/slurm-dev"
"""Where the cluster sees this machine's cache folder."""
_REF_NAME = "org.opencontainers.image.ref.name"
_MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


def address(settings: Settings) -> str | None:
    """The registry's ``host:port``, the same inside and on this machine; None when there is none."""
    return f"127.0.0.1:{settings.ports['registry']}" if settings.containers else None


def publish(registry: str, run_inside: Run, *, build_inside: bool) -> None:
    """Have the sample images built if they are missing, here or inside, and push what the registry lacks."""
    if not _BUILDER.exists():
        return
    with state.locked(state.cache() / "push.lock"):
        layout = _build_inside(run_inside) if build_inside else _build()
        index: dict[str, Any] = json.loads((layout / "index.json").read_text(encoding="utf-8"))
        for manifest in index["manifests"]:
            name = manifest["annotations"][_REF_NAME]
            if _digest_in_registry(registry, name) != manifest["digest"]:
                _push(run_inside, registry, layout, name)


def _build() -> Path:
    rootfs.ensure_tool("mmdebstrap")
    argv = [str(_BUILDER), "--cache", str(state.cache())]
    built = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0 or not built.stdout.strip():
        raise ClusterError(f"{_BUILDER} failed with status {built.returncode}")
    return Path(built.stdout.splitlines()[-1])


def _build_inside(run_inside: Run) -> Path:
    """Have the container build them: its host may be no Debian, and the caller not root."""
    argv = ["/opt/slurm-dev/images/build", "--cache", _INSIDE]
    built = run_inside(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0 or not built.stdout.strip():
        raise ClusterError(f"the images can't be built inside the container (status {built.returncode})")
    return state.cache() / Path(built.stdout.splitlines()[-1]).relative_to(_INSIDE)


def _push(run_inside: Run, registry: str, layout: Path, name: str) -> None:
    print(f"pushing {name} to the registry at {registry}", flush=True)
    source = f"oci:{_INSIDE}/{layout.relative_to(state.cache())}:{name}"
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    done = run_inside([*copy, source, f"docker://{registry}/{name}"], capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"can't push {name}: {done.stderr.strip()}")


def _digest_in_registry(registry: str, name: str) -> str | None:
    repository, _, tag = name.rpartition(":")
    url = f"http://{registry}/v2/{repository}/manifests/{tag}"
    asked = urllib.request.Request(url, method="HEAD", headers={"Accept": _MANIFESTS})
    try:
        with urllib.request.urlopen(asked, timeout=10) as response:
            return str(response.headers["Docker-Content-Digest"])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise ClusterError(f"the registry answers {error.code} for {name}") from None
