"""Sending code: an archive as it is, or a folder packed the same way every time."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from broker.cli.client import Api
from broker.cli.output import stderr
from broker.errors import InvalidRequest, Problem

_CHUNK = 1 << 20
_LEFT_OUT = frozenset({".git", "__pycache__", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"})
_SPOOL = 16 << 20


def send(api: Api, source: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Upload an archive, or a folder's files; the answer of `POST /uploads`.

    The same content twice within a day is one upload: its checksum is the idempotency key.
    """
    with _archive(source) as file:
        digest, size = _digest(file)
        columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=stderr(), disable=quiet or not stderr().is_terminal) as progress:
            task = progress.add_task("uploading", total=size)

            def chunks() -> Iterator[bytes]:
                file.seek(0)
                progress.reset(task)
                while chunk := file.read(_CHUNK):
                    yield chunk
                    progress.advance(task, len(chunk))

            answer: dict[str, Any] = api.upload("/uploads", chunks, size=size, key=f"sha256-{digest}")
    return answer


@contextmanager
def _archive(source: Path) -> Iterator[IO[bytes]]:
    try:
        if source.is_dir():
            with tempfile.SpooledTemporaryFile(_SPOOL) as packed:
                pack(source, packed)
                yield packed
        else:
            with source.open("rb") as file:
                yield file
    except OSError as error:
        raise InvalidRequest(f"{source} can't be read: {error.strerror or error}") from None


def pack(folder: Path, into: IO[bytes]) -> None:
    """Write a folder's files as tar.gz: sorted, no owners, no times, so that equal content is equal bytes.

    Caches and `.git` are left out; links and devices, which the broker would refuse, are named at once.
    """
    problems: list[Problem] = []
    with (
        gzip.GzipFile(fileobj=into, mode="wb", filename="", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as archive,
    ):
        for path in sorted(_files(folder)):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file():
                problems.append(
                    Problem(f"/{name}", "not_a_file", f"{name} is a link or a device: replace it")
                )
                continue
            with path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                member = tarfile.TarInfo(name)
                member.size, member.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
                archive.addfile(member, stream)
    if problems:
        raise InvalidRequest(f"{folder} holds what can't be uploaded", problems=problems)


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name in _LEFT_OUT:
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _digest(file: IO[bytes]) -> tuple[str, int]:
    file.seek(0)
    hasher, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
        size += len(chunk)
    return hasher.hexdigest(), size
