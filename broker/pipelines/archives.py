"""Uploaded archives: read with suspicion, written anew.

Whoever unpacks an archive may understand it differently from whoever checked it. So what is kept is not what
was sent: its members are read once, checked, and written to a fresh tar.gz of plain files and folders. That
archive has nothing in it that could be unpacked elsewhere, as somebody else, or as anything but a file.

No link, device, absolute or upward path, control character, duplicate, password; sizes are counted while
unpacking (what headers say is not believed), and no header may ask for much memory.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final, NoReturn, cast

from broker.errors import Problem, UploadRejected
from broker.text import escape_pointer

CHUNK: Final = 256 << 10
MAX_HEADER: Final = 1 << 20
"""Of one header of a tar archive (long names, pax records), which Python's tarfile reads as a whole."""
_UNREADABLE: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,
)
"""What Python's readers raise on damaged archives (zipfile: `NotImplementedError` for unknown versions)."""
_END_OF_ZIP: Final = struct.Struct("<4s4H2LH")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold, unpacked."""

    max_bytes: int = 1 << 30
    max_members: int = 20_000


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of an archive; `size` in bytes as its header says."""

    path: str
    is_dir: bool
    size: int
    executable: bool
    mtime: int


@dataclass(slots=True)
class _Tree:
    """What was seen so far, to find one path used twice."""

    limits: Limits
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    size: int = 0

    def add(self, member: Member) -> None:
        path = member.path
        parents = [path[:i] for i, c in enumerate(path) if c == "/"]
        clash = path in self.files or (not member.is_dir and path in self.folders)
        if clash or any(parent in self.files for parent in parents):
            _refuse(path, "duplicate_member", "stands in the archive twice: pack it again")
        self.folders.update(parents, [path] if member.is_dir else [])
        if not member.is_dir:
            self.files.add(path)
            self.size += member.size
        if len(self.files) + len(self.folders) > self.limits.max_members:
            _too_many(self.limits)
        if self.size > self.limits.max_bytes:
            _too_large(self.limits)


def repack(source: IO[bytes], target: IO[bytes], limits: Limits | None = None) -> int:
    """Write the members of `source` (tar.gz or zip, seekable) to `target` as a plain tar.gz; their number.

    Raises `UploadRejected`, naming the member and what is wrong with it.
    """
    limits = limits or Limits()
    tree = _Tree(limits)
    source.seek(0)
    magic = source.read(4)
    source.seek(0)
    if magic[:2] == b"\x1f\x8b":
        members = _tar_members(source, limits)
    elif magic in {b"PK\x03\x04", b"PK\x05\x06"}:
        members = _zip_members(source)
    else:
        _reject("unknown_archive", "The upload is neither a .tar.gz nor a .zip: pack it as one of these")
    try:
        with (
            gzip.GzipFile(filename="", fileobj=target, mode="wb", mtime=0, compresslevel=6) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as out,
        ):
            for member, content in members:
                tree.add(member)
                out.addfile(_header(member), cast("IO[bytes]", content))
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # our own disk, not the archive
        _reject("broken_archive", f"The archive can't be read to its end ({error}): pack it again")
    if not tree.files:
        _reject("empty_archive", "The archive has no file in it")
    return len(tree.files)


def _header(member: Member) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.path)
    info.type = tarfile.DIRTYPE if member.is_dir else tarfile.REGTYPE
    info.mode = 0o755 if member.is_dir or member.executable else 0o644
    info.size = 0 if member.is_dir else member.size
    info.mtime = max(0, min(member.mtime, 1 << 33))
    return info


def _tar_members(source: IO[bytes], limits: Limits) -> Iterator[tuple[Member, Any]]:
    unpacked = _Forward(gzip.GzipFile(fileobj=source, mode="rb"), limits)
    with tarfile.open(fileobj=cast("IO[bytes]", unpacked), mode="r:", errors="surrogateescape") as archive:
        for number, info in enumerate(archive):
            if number > limits.max_members:
                _too_many(limits)
            path = _checked_path(info.name)
            if not (info.isdir() or (info.isreg() and not info.issparse())) or info.size < 0:
                _refuse(path, "unsafe_member", "is no plain file or folder: leave links and devices out")
            if path:
                member = Member(path, info.isdir(), info.size, bool(info.mode & 0o100), int(info.mtime))
                yield member, None if info.isdir() else archive.extractfile(info)


class _Forward:
    """A file that is only read forward, in small pieces, up to a limit: all that tarfile needs of it."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limits: Limits) -> None:
        self._file, self._limits, self._at = file, limits, 0
        self._end = limits.max_bytes + limits.max_members * 4096

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            _reject("broken_archive", "A header of the archive is larger than any honest one")
        data = self._file.read(size)
        self._at += len(data)
        if self._at > self._end:
            _too_large(self._limits)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < self._at:
            _reject("broken_archive", "The archive's headers point backwards")
        while self._at < position and self.read(min(CHUNK, position - self._at)):
            pass
        return self._at


def _zip_members(source: IO[bytes]) -> Iterator[tuple[Member, Any]]:
    _check_end_of_zip(source)
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            path = _checked_path(info.orig_filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                _refuse(path, "unsafe_member", "is no plain file or folder: leave links and devices out")
            if info.flag_bits & 1:
                _refuse(path, "encrypted_member", "is encrypted: pack it without a password")
            if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                _refuse(path, "unknown_compression", "is compressed in an unusual way: pack it anew")
            executable = bool((info.external_attr >> 16) & 0o100)
            member = Member(path, info.is_dir(), info.file_size, executable, _zip_time(info))
            if info.is_dir():
                yield member, None
            elif path:
                with archive.open(info) as content:
                    yield member, content
                    if content.read(1):  # also compares the CRC
                        _refuse(path, "broken_archive", "is longer than its header says")


def _zip_time(info: zipfile.ZipInfo) -> int:
    year, month, day, *clock = info.date_time
    days = (year - 1980) * 365 + (month - 1) * 30 + day  # a rough day will do, and no calendar can refuse it
    return 315_532_800 + days * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2]


def _check_end_of_zip(source: IO[bytes]) -> None:
    """Refuse a directory so large that reading it would take the memory, before zipfile reads it."""
    size = source.seek(0, os.SEEK_END)
    source.seek(max(0, size - (1 << 16) - _END_OF_ZIP.size))
    tail = source.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_OF_ZIP.size:
        _reject("broken_archive", "The zip archive has no end: it was cut off; send it again")
    *_, directory_size, _offset, _comment = _END_OF_ZIP.unpack_from(tail, at)
    if b"PK\x06\x07" in tail[max(0, at - 64) : at] or directory_size > 16 << 20:
        _reject("too_many_members", "The zip archive's directory is too large: pack less, or a tar.gz")
    source.seek(0)


def _checked_path(name: str) -> str:
    """The member's path below the archive's root, "" for the root itself; refused when it leaves that."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts or (len(name) > 1 and name[1] == ":"):
        _refuse(name, "unsafe_path", "leads out of the archive: pack paths relative to its root, without ..")
    if "\\" in name or any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        _refuse(name, "unsafe_path", "has a control character, a backslash or bytes that are not UTF-8")
    if len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts):
        _refuse(name, "unsafe_path", "is longer than file systems take")
    return "/".join(parts)


def _refuse(path: str, code: str, what: str) -> NoReturn:
    place = "/" + escape_pointer(path)
    raise UploadRejected(
        f"The upload was rejected: {place} {what}", problems=[Problem(place, code, f"{place} {what}")]
    )


def _reject(code: str, detail: str) -> NoReturn:
    raise UploadRejected(detail, problems=[Problem("", code, detail)])


def _too_many(limits: Limits) -> NoReturn:
    _reject("too_many_members", f"The archive has more than {limits.max_members:,} members")


def _too_large(limits: Limits) -> NoReturn:
    _reject("too_large_unpacked", f"The archive is larger than {limits.max_bytes >> 20:,} MiB when unpacked")
