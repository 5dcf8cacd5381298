"""The chain of the audit trail, pure: each link's hash covers its row and the link before.

So nothing can be changed, removed or slipped in between without a hash giving it away:

- a row that was *changed* no longer has its hash;
- a row or a link that was *removed* leaves a gap in the numbers, or a link without its row;
- a row that was *inserted* into the past stands out of its time: a row is sealed within seconds of being
  written, so none in the chain is more than `LATE` older than any before it, and no older row is without a
  link.

A chain that was computed anew from some link on, or whose end was cut off, is whole in itself. It is found by
a head (number and hash) that was kept elsewhere: in the data folder of the machine that seals, in its log, or
on paper.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

LATE: Final = timedelta(minutes=15)
"""How much later than its own time a row may be committed, and how far machines' clocks may differ."""

FIELDS: Final = (
    "id",
    "at",
    "actor_id",
    "actor_name",
    "source_ip",
    "action",
    "object_type",
    "object_id",
    "before",
    "after",
    "note",
    "tenant",
)
"""What of a row the hash covers: all of it."""


class Breach(StrEnum):
    """What is wrong with a row."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"
    REWRITTEN = "rewritten"
    CUT_OFF = "cut_off"


@dataclass(frozen=True, slots=True)
class Head:
    """A link by number and hash: whoever keeps it can tell later that everything up to it still stands."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


EMPTY: Final = Head(0, "")
"""The head of a chain without a link."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the database has it. `fields` is None when its row is gone."""

    number: int
    audit_id: str
    sealed_at: datetime
    hash: str
    fields: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Broken:
    """The first place where the chain does not hold."""

    breach: Breach
    number: int | None
    audit_id: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What a walk along the chain found: how far it holds, the latest time of a row, what is wrong."""

    head: Head
    last_at: datetime | None
    broken: Broken | None


def digest(head: Head, sealed_at: datetime, fields: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the link after `head`. `sealed_at` and `fields["at"]` are aware, UTC."""
    row = {name: fields[name] for name in FIELDS} | {"at": fields["at"].isoformat()}
    content = [head.number + 1, head.hash, sealed_at.isoformat(), row]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def examine(links: Iterable[Link], known: Sequence[Head] = ()) -> Examination:
    """Walk the links in order of their numbers; `known` are heads that were kept elsewhere."""
    expected: dict[int, set[str]] = {}
    for kept in known:
        if kept.number:
            expected.setdefault(kept.number, set()).add(kept.hash)
    head, last_at = EMPTY, None
    for link in links:
        broken = _broken(head, last_at, link, expected)
        if broken or link.fields is None:
            return Examination(head, last_at, broken)
        # The latest, not the last: else many small steps back would lead as far as one likes.
        head, last_at = Head(link.number, link.hash), max(last_at or link.fields["at"], link.fields["at"])
    furthest = max(expected, default=0)
    if furthest <= head.number:
        return Examination(head, last_at, None)
    detail = (
        f"The chain ends at {head.number}, but it was known to reach {furthest}: its end was cut off, or the "
        "database is an older copy"
    )
    return Examination(head, last_at, Broken(Breach.CUT_OFF, head.number + 1, None, detail))


def _broken(
    head: Head, last_at: datetime | None, link: Link, expected: Mapping[int, Set[str]]
) -> Broken | None:
    number = head.number + 1
    if link.number != number:
        missing = f"{number}" if link.number == number + 1 else f"{number} to {link.number - 1}"
        return Broken(Breach.REMOVED, number, None, f"{missing} is missing before {link.number}")
    if link.fields is None:
        return Broken(Breach.REMOVED, number, link.audit_id, "The row that was sealed here is gone")
    if digest(head, link.sealed_at, link.fields) != link.hash:
        return Broken(Breach.CHANGED, number, link.audit_id, "The row, or its seal, is not what was sealed")
    if last_at is not None and link.fields["at"] < last_at - LATE:
        return Broken(
            Breach.INSERTED,
            number,
            link.audit_id,
            f"The row says {link.fields['at']:%Y-%m-%d %H:%M:%S} UTC, but was sealed after one of "
            f"{last_at:%Y-%m-%d %H:%M:%S}: it was inserted afterwards, or a clock was wrong",
        )
    if expected.get(number, {link.hash}) != {link.hash}:
        detail = "The chain is another one than was known: it was computed anew from here or before"
        return Broken(Breach.REWRITTEN, number, link.audit_id, detail)
    return None
