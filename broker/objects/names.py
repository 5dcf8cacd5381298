"""Names that S3, URLs and HTTP headers carry: keys, metadata, the name of a saved file. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from broker.errors import InvalidRequest

MAX_KEY_BYTES = 900  # S3 allows 1,024; Swift keeps a multipart's parts below "key/upload id/number"
SHA256_METADATA = "sha256"
_METADATA_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PLAIN = frozenset("-_.~!()+,=@")


def check_key(key: str) -> None:
    """Refuse a key that servers or URLs treat differently from what it says. Raises `InvalidRequest`."""
    try:
        size = len(key.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"The key {key!r} is no Unicode text") from error
    if not 1 <= size <= MAX_KEY_BYTES:
        raise InvalidRequest(f"A key has 1 to {MAX_KEY_BYTES} bytes, not {size}: {key[:80]!r}")
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise InvalidRequest(f"The key {key!r} has an empty, '.' or '..' segment: URLs would lose it")
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in key):
        raise InvalidRequest(f"The key {key!r} has a control character: listings (XML) can't carry it")


def content_disposition(filename: str) -> str:
    """`attachment` under any name: plain for old clients, UTF-8 for the rest (RFC 6266, RFC 8187)."""
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata as given, if HTTP headers carry them unchanged. Raises `InvalidRequest`."""
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name) or name == SHA256_METADATA:
            raise InvalidRequest(f"metadata {name!r}: names are a-z, 0-9 and '-', and not sha256")
        if not value.isascii() or not value.isprintable() or len(value) > 1024:
            raise InvalidRequest(f"metadata {name!r}: values are printable ASCII of at most 1,024 characters")
    return dict(metadata)


def encode_name(path: str) -> str:
    """A path as part of a key: letters and digits of every script stay, the rest is percent-encoded.

    What stays is what listings (XML), URLs and consoles all show the same way: no control or invisible
    character, blank, quote or percent sign. Raises `UnicodeEncodeError` where a name is no text.
    """
    return re.sub(r"[^/]", lambda match: _encode(match[0]), path)


def decode_name(encoded: str) -> str:
    """The path that `encode_name` was given."""
    return unquote(encoded, errors="strict")


def _encode(character: str) -> str:
    if character.isalnum() or character in _PLAIN:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8"))
