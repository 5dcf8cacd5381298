"""Host lists: `a100-[1-4],v100-[01,03-05]` is nine names (scontrol(1), show hostnames)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_NONE = frozenset({"", "(null)", "n/a", "none", "none assigned", "unknown"})
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_LIMIT = 65_536
"""Names at most (Slurm's own limit is the same, `MAX_SLURM_NODES`); a longer list is given as it stands."""


@lru_cache(4096)
def expand(text: str) -> tuple[str, ...]:
    """The names in a host list, in its order; what is no host list stands for itself."""
    if text.strip().lower() in _NONE:
        return ()
    names: list[str] = []
    for word in _words(text.strip()):
        budget = _LIMIT - len(names)
        expanded = _expand_word(word, budget)
        names += expanded if expanded is not None else [word]
    return tuple(names)


def _words(text: str) -> Iterator[str]:
    """Split at commas that stand outside brackets."""
    depth = start = 0
    for at, char in enumerate(text):
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and depth <= 0:
            if text[start:at]:
                yield text[start:at]
            start, depth = at + 1, 0
    if text[start:]:
        yield text[start:]


def _expand_word(word: str, budget: int) -> list[str] | None:
    """All names of one word with any number of brackets; None where it is malformed or too many."""
    names = [""]
    for literal, ranges in re.findall(r"([^\[\]]*)(?:\[([^\[\]]*)\])?", word):
        numbers = [literal] if not ranges else _numbers(literal, ranges, budget)
        if numbers is None or len(names) * len(numbers) > budget:
            return None
        names = [name + number for name in names for number in numbers]
    plain = re.sub(r"\[[^\[\]]+\]", "", word)
    return None if "[" in plain or "]" in plain else names


def _numbers(prefix: str, ranges: str, budget: int) -> list[str] | None:
    numbers: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            return None
        low, high = match[1], match[2] or match[1]
        count = int(high) - int(low) + 1
        if count < 1 or len(numbers) + count > budget:
            return None
        numbers += (f"{prefix}{n:0{len(low)}d}" for n in range(int(low), int(high) + 1))
    return numbers
