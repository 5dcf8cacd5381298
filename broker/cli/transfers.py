"""Downloads by presigned URL: verified, resumable, several at once."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from broker.cli.output import harmless, stderr
from broker.errors import BrokerError, Denied, DiskFull, IntegrityError, InvalidRequest, TransferInterrupted

AT_ONCE = 4
_CHUNK = 1 << 20
_TIMEOUT = httpx.Timeout(60, connect=10)
_PARTIAL = ".part"

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Download:
    """One file: where it comes from, where it goes, and what it must be (bytes, hex SHA-256)."""

    url: str
    target: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that lies here, verified. `present`: it lay here before."""

    target: Path
    size: int
    sha256: str
    present: bool


def inside(folder: Path, *parts: str) -> Path:
    """The path of a stored file below `folder`; one that would leave it is refused."""
    path = PurePosixPath(*parts)
    if path.is_absolute() or ".." in path.parts or "\0" in str(path) or not path.parts:
        raise InvalidRequest(
            f"The stored name {str(path)!r} would lie outside {folder}; it is not downloaded"
        )
    return folder.joinpath(*path.parts)


def fetch_all(downloads: Sequence[Download], *, quiet: bool = False) -> list[Fetched]:
    """Download everything, with progress on standard error; raises the first error when all have ended."""
    wanted = {download.target for download in downloads}
    if len(wanted) < len(downloads):
        raise InvalidRequest(
            "Two stored files have the same name here; download them one component at a time"
        )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        Progress(*columns, console=stderr(), disable=quiet or not stderr().is_terminal) as progress,
        httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as http,
        ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool,
    ):
        task = progress.add_task("downloading", total=sum(one.size for one in downloads))

        def one(download: Download) -> Fetched:
            return fetch(http, download, lambda count: progress.advance(task, count))

        futures = [pool.submit(one, download) for download in downloads]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]


def fetch(http: httpx.Client, download: Download, advance: Advance = lambda _count: None) -> Fetched:
    """Put one verified file in its place; a part that arrived earlier is continued, a whole one is kept.

    Raises `IntegrityError` (nothing is left in its place), `TransferInterrupted`, `Denied` (the URL expired),
    `DiskFull`.
    """
    if download.target.is_file() and download.target.stat().st_size == download.size:
        with download.target.open("rb") as stream:
            digest, _ = _digest(stream, lambda _count: None)
        if digest.hexdigest() == download.sha256:
            advance(download.size)
            return Fetched(download.target, download.size, download.sha256, present=True)
    try:
        download.target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(http, download, advance)
    except OSError as error:
        sentence = f"{download.target} can't be written: {error.strerror or error}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (DiskFull if full else Denied)(sentence) from None
    return Fetched(download.target, download.size, download.sha256, present=False)


@retry(
    retry=retry_if_exception_type(TransferInterrupted),
    stop=stop_after_attempt(4),
    wait=wait_exponential(min=0.5, max=10),
    reraise=True,
)
def _fetch(http: httpx.Client, download: Download, advance: Advance) -> None:
    partial = download.target.with_name(download.target.name + _PARTIAL)
    with partial.open("a+b") as stream:
        stream.seek(0)
        digest, have = _digest(stream, advance)
        if have > download.size:
            stream.truncate(0)
            advance(-have)
            digest, have = hashlib.sha256(), 0
        if have < download.size or not download.size:
            have = _receive(http, download, stream, digest, have, advance)
        stream.flush()
        os.fsync(stream.fileno())
    if have != download.size or digest.hexdigest() != download.sha256:
        partial.unlink()
        advance(-have)
        raise IntegrityError(
            f"{download.target.name}: {have} bytes with SHA-256 {digest.hexdigest()} arrived, "
            f"{download.size} bytes with {download.sha256} were stored; nothing was kept"
        )
    partial.replace(download.target)


def _receive(
    http: httpx.Client, download: Download, stream: Any, digest: Any, have: int, advance: Advance
) -> int:
    headers = (
        {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        if have
        else {"Accept-Encoding": "identity"}
    )
    try:
        with http.stream("GET", download.url, headers=headers) as response:
            _check(response, download)
            if have and response.status_code != httpx.codes.PARTIAL_CONTENT:
                raise IntegrityError(
                    f"{download.target.name}: the object store ignores ranges; delete the .part file"
                )
            for chunk in response.iter_raw():  # as it comes: what a chunk size gathers is lost with the rest
                stream.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                advance(len(chunk))
    except httpx.TransportError as error:
        stream.flush()
        advance(-have)
        raise TransferInterrupted(
            f"{download.target.name}: the transfer broke off after {have} bytes ({error}); they are kept"
        ) from None
    return have


def _check(response: httpx.Response, download: Download) -> None:
    if response.is_success:
        return
    name = download.target.name
    if response.status_code in (httpx.codes.FORBIDDEN, httpx.codes.UNAUTHORIZED):
        raise Denied(f"{name}: the object store refuses the link; it may have expired: run the command again")
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise TransferInterrupted(f"{name}: the object store answered {response.status_code}")
    raise BrokerError(f"{name}: the object store answered {response.status_code} {response.reason_phrase}")


def _digest(stream: Any, advance: Advance) -> tuple[Any, int]:
    """SHA-256 and length of what a stream holds, left at its end."""
    digest, length = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
        advance(len(chunk))
    return digest, length


def summary(fetched: Iterable[Fetched]) -> str:
    """One line for a person."""
    files = list(fetched)
    old = sum(one.present for one in files)
    note = f", {old} of them were here already" if old else ""
    return harmless(f"{len(files)} files, {sum(one.size for one in files)} bytes, checksums verified{note}")
