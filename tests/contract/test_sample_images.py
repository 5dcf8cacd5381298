"""What `slurm-dev/images` writes is a layout as the OCI specification asks, and the same bytes each time."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "slurm-dev" / "images" / "oci.py"


@pytest.fixture
def oci(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("oci", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "oci", module)
    spec.loader.exec_module(module)
    return module


def write(oci: ModuleType, folder: Path) -> Path:
    """Two images that share a layer."""
    folder.mkdir()

    def layer(name: str, data: bytes) -> object:
        tar = oci.tar_of({f"bin/{name}": data}, {f"bin/{name}-link": name}, ["tmp"])
        return oci.compress(iter([tar[:100], tar[100:]]), folder / f"{name}.tar.gz")

    shared, own = layer("shared", b"#!/bin/sh\n"), layer("own", b"data")
    images = [
        oci.Image("one:1.0", [shared], ["/bin/shared"], {"PATH": "/bin"}),
        oci.Image("two:2.0", [shared, own], ["/bin/own", "x"], {"PATH": "/bin"}),
    ]
    oci.write_layout(folder / "layout", images, "amd64")
    return folder / "layout"


def blobs(layout: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((layout / "blobs" / "sha256").iterdir()):
        yield path.name, path.read_bytes()


def read(layout: Path, descriptor: dict[str, object]) -> bytes:
    data = (layout / "blobs" / str(descriptor["digest"]).replace(":", "/")).read_bytes()
    assert len(data) == descriptor["size"]
    return data


def test_every_blob_bears_its_digest_and_layers_match_their_diff_ids(oci: ModuleType, tmp_path: Path) -> None:
    layout = write(oci, tmp_path / "a")
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs(layout))
    index = json.loads((layout / "index.json").read_bytes())
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert names == ["one:1.0", "two:2.0"]
    for entry in index["manifests"]:
        manifest = json.loads(read(layout, entry))
        config = json.loads(read(layout, manifest["config"]))
        inside = [gzip.decompress(read(layout, layer)) for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in inside]
    assert config["config"]["Entrypoint"] == ["/bin/own", "x"]
    assert len(list(blobs(layout))) == 2 + 2 + 2  # layers (one is shared), configurations, manifests


def test_the_same_inputs_give_the_same_bytes(oci: ModuleType, tmp_path: Path) -> None:
    assert list(blobs(write(oci, tmp_path / "a"))) == list(blobs(write(oci, tmp_path / "b")))


def test_files_in_a_layer_can_run_and_have_their_folders(oci: ModuleType) -> None:
    tar = oci.tar_of({"opt/x/run.py": b"#!", "opt/x/data": b"1"}, {}, ["var/tmp"])
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        modes = {member.name: oct(member.mode) for member in archive}
    expected = {"opt": "0o755", "opt/x": "0o755", "var": "0o755", "var/tmp": "0o1777"}
    assert modes == expected | {"opt/x/run.py": "0o755", "opt/x/data": "0o644"}


def test_a_layer_is_found_again_and_half_a_layer_is_not(oci: ModuleType, tmp_path: Path) -> None:
    made = oci.compress(iter([b"tar"]), tmp_path / "layer.tar.gz")
    assert oci.stored_layer(tmp_path / "layer.tar.gz") == made
    (tmp_path / "half.tar.gz").write_bytes(b"\x1f")
    assert oci.stored_layer(tmp_path / "half.tar.gz") is None
