"""Lines of a log: their level, and which of them are asked for. Pure, in memory bounded by one line's limit.

A line ends at LF, CR LF or a lone CR, with which progress bars redraw themselves. Offsets are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

LINE_LIMIT = 16 * 1024
"""Bytes after which a line is cut into several."""
_HEAD = 300
"""Bytes of a line that its level is looked for in."""


class Level(StrEnum):
    """How much a line matters, least first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @property
    def weight(self) -> int:
        """Its place in the order."""
        return list(Level).index(self)


_WORDS = {
    **dict.fromkeys(("trace", "debug", "verbose"), Level.DEBUG),
    **dict.fromkeys(("info", "notice"), Level.INFO),
    **dict.fromkeys(("warn", "warning"), Level.WARNING),
    **dict.fromkeys(("error", "err"), Level.ERROR),
    **dict.fromkeys(("critical", "fatal", "panic"), Level.CRITICAL),
}
_LOUD = (b"warn", b"err", b"crit", b"fatal", b"panic", b"exception", b"traceback")
"""In lower case: without any of these (or glog's letters) no line is a warning or more."""
_LOUD_GLOG = re.compile(rb"[WEF]\d{4}\s\d\d:")
_GLOG = {"I": Level.INFO, "W": Level.WARNING, "E": Level.ERROR, "F": Level.CRITICAL}
_LEVEL = re.compile(
    rb"""(?P<glog>^[IWEF])\d{4}\s\d\d:\d\d                                  # glog: W1121 10:00:00
    |["']?\blevel(?:name)?["']?\s*[:=]\s*["']?(?P<field>[A-Za-z]{3,8})\b     # JSON, logfmt
    |(?:^|[\s\[(<|:-])(?P<upper>TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)(?=$|[\s\])>|:,-])
    |^(?:[\w./-]{1,80}:\s)?(?P<lower>debug|info|warning|error|critical|fatal)(?=:)  # slurmstepd: error: x
    |^(?P<raised>Traceback\ \(most\ recent|[\w.]{0,80}(?:Error|Exception)\b)
    |^[^\s:]{1,200}:\d+:\s(?P<python>\w{0,40})Warning:                       # warnings.warn
    """,
    re.VERBOSE,
)


def level_of(line: bytes, before: Level = Level.INFO) -> Level:
    """The level of a line; an indented one without its own has that of the line `before` it.

    >>> level_of(b"2026-11-21 10:00:00 [WARNING] slow disk").value
    'warning'
    """
    found = _LEVEL.search(line[:_HEAD])
    if found is not None:
        kind, word = str(found.lastgroup), (found[found.lastgroup or 0] or b"").decode("ascii", "replace")
        if kind == "glog":
            return _GLOG[word]
        if kind in {"raised", "python"}:
            return Level.ERROR if kind == "raised" else Level.WARNING
        if (level := _WORDS.get(word.lower())) is not None:
            return level
    return before if line[:1] in (b" ", b"\t") else Level.INFO


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines: of at least `level`, holding `text` (case of ASCII letters does not count)."""

    level: Level = Level.DEBUG
    text: str = ""

    @property
    def needle(self) -> bytes:
        """What is looked for, in lower case."""
        return self.text.encode(errors="surrogatepass").lower()

    def skips(self, block: bytes, before: Level = Level.INFO) -> bool:
        """Whether no line of a block (after one of level `before`) can be wanted; at memory speed."""
        lower = block.lower()
        if self.text and self.needle not in lower:
            return True
        if self.level.weight < Level.WARNING.weight or before.weight >= self.level.weight:
            return False
        return not (any(word in lower for word in _LOUD) or _LOUD_GLOG.search(block))


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its end. `next_offset` is where the one after it begins."""

    offset: int
    next_offset: int
    level: Level
    data: bytes


_LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n)")


def whole_lines(data: bytes, *, final: bool) -> int:
    """How many bytes of `data` are whole lines. A CR at its very end may be half of a CR LF.

    All of them when nothing more will come, or when a line without an end has become too long.
    """
    if final:
        return len(data)
    end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, max(0, len(data) - 1))) + 1
    return end or len(data) // LINE_LIMIT * LINE_LIMIT


def last_level(block: bytes, before: Level) -> Level:
    """The level that an indented line after `block` has; `before`: that of the line above the block."""
    for text in reversed(block[-LINE_LIMIT:].splitlines()):
        if text[:1] not in (b" ", b"\t"):
            return level_of(text)
    return before


def lines(block: bytes, offset: int, wanted: Wanted, before: Level = Level.INFO) -> Iterator[Line]:
    """The wanted lines of a block of whole lines that begins at `offset`; `before`: the level above it."""
    if wanted.skips(block, before):
        return
    needle, least, at = wanted.needle, wanted.level.weight, 0
    while at < len(block):
        found = _LINE.match(block, at)
        text, end = (found[1], found.end()) if found else (block[at:], len(block))
        before = level_of(text, before)
        if before.weight >= least and (not needle or needle in text.lower()):
            for cut in range(0, max(1, len(text)), LINE_LIMIT):
                piece = text[cut : cut + LINE_LIMIT]
                last = cut + LINE_LIMIT >= len(text)
                place = offset + at + cut
                yield Line(place, offset + end if last else place + len(piece), before, piece)
        at = end
