"""Showing other people's text in a sentence, and naming places in a JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable

_SHOWN_CHARS = 60
_POINTER_PART_CHARS = 128


def shown(value: object) -> str:
    """Write a JSON value for an error sentence: short, on one line, nothing in it that acts on a terminal."""
    text = json.dumps(value, ensure_ascii=False, default=repr) if not isinstance(value, str) else f'"{value}"'
    short = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 2] + "…" + text[-1]
    return printable(short)


def printable(text: str) -> str:
    """Escape what does not print: control characters, lone surrogates, bidirectional overrides."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def pointer(parts: Iterable[str | int]) -> str:
    """Join keys and indices to a JSON pointer (RFC 6901)."""
    return "".join("/" + _part(str(part)) for part in parts)


def _part(part: str) -> str:
    return printable(part[:_POINTER_PART_CHARS]).replace("~", "~0").replace("/", "~1")
