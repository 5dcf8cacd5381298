"""Cutting a stream into parts and knowing them by their checksums. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from broker.errors import InvalidRequest
from broker.objects.config import MAX_OBJECT_SIZE, MAX_PARTS, MIB

_MD5 = re.compile(r"[0-9a-f]{32}")
_COMPOSITE = re.compile(r"[0-9a-f]{32}-[0-9]+")
_READ_SIZE = MIB


class Reader(Protocol):
    """Anything with a file's `read`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""
        ...


def chunks_of(source: Iterable[bytes] | Reader) -> Iterator[bytes]:
    """The source's bytes in pieces of any size."""
    read = getattr(source, "read", None)
    if read is None:
        assert isinstance(source, Iterable)
        yield from source
        return
    while chunk := read(_READ_SIZE):
        yield chunk


def part_size_for(size: int | None, wanted: int) -> int:
    """The part size for an object of `size` bytes: `wanted`, or more where 10,000 parts would not do."""
    if size is None:
        return wanted
    if size > MAX_OBJECT_SIZE:
        raise InvalidRequest(f"{size} bytes are more than one S3 object holds (5 TiB): split the file")
    return max(wanted, -(-size // MAX_PARTS // MIB) * MIB)


def split(chunks: Iterable[bytes], size: int) -> Iterator[bytearray]:
    """Parts of exactly `size` bytes, the last of what is left; nothing of an empty stream."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            take = view[: size - len(part)]
            part += take
            view = view[len(take) :]
            if len(part) == size:
                yield part
                part = bytearray()
    if part:
        yield part


def is_md5(etag: str) -> bool:
    """Whether an ETag can be an MD5 (it isn't where the server encrypts with keys of a KMS)."""
    return _MD5.fullmatch(etag) is not None


def is_composite(etag: str) -> bool:
    """Whether an ETag has the form of a multipart object's."""
    return _COMPOSITE.fullmatch(etag) is not None


def composite_etag(md5s: Mapping[int, str]) -> str:
    """The ETag of a multipart object: the MD5 of its parts' MD5s, a dash, their count."""
    joined = b"".join(bytes.fromhex(md5s[number]) for number in sorted(md5s))
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(md5s)}"
