"""Write an OCI image layout: layers in, a folder that `skopeo copy oci:DIR:NAME` reads out.

Follows the OCI image-layout and image specifications (image-spec v1.0). Nothing here reads a clock: the same
layers and configurations give the same bytes, hence the same digests.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CREATED = "2025-01-01T00:00:00Z"
EPOCH = 1735689600  # CREATED, in seconds: the time of every file that we put into a layer ourselves


@dataclass(frozen=True)
class Layer:
    """One compressed layer on disk. `diff_id` is the digest of the tar inside (for the configuration)."""

    path: Path
    digest: str
    diff_id: str
    size: int


@dataclass(frozen=True)
class Image:
    """What one name stands for: layers, bottom first, and how its program is started."""

    name: str  # "evaluator:1.5"
    layers: Sequence[Layer]
    entrypoint: Sequence[str]
    env: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)


class _Tee(io.RawIOBase):
    """Passes what is written on to a file and hashes it, so that a layer is read only once."""

    def __init__(self, file: Any) -> None:
        self._file, self.hash, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)


def compress(tar: Iterable[bytes], target: Path) -> Layer:
    """Compress the tar that arrives in chunks into `target`; the digests go beside it (`NAME.json`)."""
    inside = hashlib.sha256()
    with target.open("wb") as file:
        outside = _Tee(file)
        with gzip.GzipFile(filename="", mode="wb", fileobj=outside, compresslevel=6, mtime=0) as packed:
            for chunk in tar:
                inside.update(chunk)
                packed.write(chunk)
    layer = Layer(target, f"sha256:{outside.hash.hexdigest()}", f"sha256:{inside.hexdigest()}", outside.size)
    note = {"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size}
    target.with_suffix(".json").write_text(json.dumps(note), encoding="utf-8")
    return layer


def stored_layer(path: Path) -> Layer | None:
    """The layer that an earlier `compress` left at `path`, or None."""
    note = path.with_suffix(".json")
    if not (path.exists() and note.exists()):
        return None
    return Layer(path=path, **json.loads(note.read_text(encoding="utf-8")))


def tar_of(files: Mapping[str, bytes], links: Mapping[str, str], folders: Sequence[str] = ()) -> bytes:
    """A tar of small files (0755 when they start with `#!` or lie in a `bin`), links and empty folders."""

    def entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime, info.uname, info.gname = kind, mode, EPOCH, "root", "root"
        return info

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        parents = {str(parent) for name in (*files, *links, *folders) for parent in Path(name).parents} - {
            "."
        }
        for name in sorted(parents | set(folders)):
            archive.addfile(entry(name, tarfile.DIRTYPE, 0o1777 if Path(name).name == "tmp" else 0o755))
        for name, data in sorted(files.items()):
            runs = data.startswith(b"#!") or Path(name).parent.name == "bin"
            info = entry(name, tarfile.REGTYPE, 0o755 if runs else 0o644)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in sorted(links.items()):
            info = entry(name, tarfile.SYMTYPE, 0o777)
            info.linkname = target
            archive.addfile(info)
    return buffer.getvalue()


def _json_blob(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _layer_blob(folder: Path, layer: Layer) -> dict[str, Any]:
    target = folder / layer.digest.removeprefix("sha256:")
    if not target.exists():
        try:
            os.link(layer.path, target)
        except OSError:  # another file system
            shutil.copyfile(layer.path, target)
    return {"mediaType": LAYER, "digest": layer.digest, "size": layer.size}


def write_layout(folder: Path, images: Iterable[Image], architecture: str) -> None:
    """Write `images` as one layout into the empty `folder`; layers that they share are stored once.

    `architecture` is Go's name for it, as Debian's: `amd64`, `arm64`.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    manifests = []
    for image in images:
        config = {
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": list(image.entrypoint),
                "Env": [f"{name}={value}" for name, value in image.env.items()],
                "Labels": dict(image.labels),
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
            "history": [{"created": CREATED, "created_by": "slurm-dev/images/build"} for _ in image.layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **_json_blob(blobs, config)},
            "layers": [_layer_blob(blobs, layer) for layer in image.layers],
        }
        manifests.append(
            {
                "mediaType": MANIFEST,
                **_json_blob(blobs, manifest),
                "platform": {"os": "linux", "architecture": architecture},
                "annotations": {"org.opencontainers.image.ref.name": image.name},
            }
        )
    (folder / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": manifests}, indent=1), encoding="utf-8"
    )
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
