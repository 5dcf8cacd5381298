"""Reading what Slurm's commands print: tables that no job name can forge, times, `key=value` records."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

T = TypeVar("T")

_NO_TIME = frozenset({"", "n/a", "none", "unknown", "(null)", "0", "4294967294", "4294967295"})


def fresh_delimiter() -> str:
    """What separates columns in one call: a control character and four letters nobody could know beforehand.

    A job's name is its owner's text and may hold newlines and control characters; with a fixed delimiter it
    could end its row and forge another job's. This one it can't contain, and the name stands last.
    """
    return "\x1f" + secrets.token_urlsafe(3)


def table(
    text: str, delimiter: str, columns: int, row: Callable[[Sequence[str]], T]
) -> tuple[list[T], list[str]]:
    """Parse rows of `columns` fields, the last of which may hold newlines; give (rows, lines not understood).

    `row` makes a record of the fields and raises ValueError where it can't: that costs this row only.
    """
    found: list[list[str]] = []
    bad: list[str] = []
    for line in text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"):
        fields = line.split(delimiter)
        if len(fields) == columns:
            found.append(fields)
        elif len(fields) == 1 and found and columns > 1:
            found[-1][-1] += "\n" + line
        elif line:
            bad.append(line)
    records: list[T] = []
    for fields in found:
        try:
            records.append(row(fields))
        except (ValueError, OverflowError, OSError):
            bad.append(delimiter.join(fields))
    return records, bad


def moment(text: str) -> datetime | None:
    """Seconds since the epoch (`SLURM_TIME_FORMAT=%s`) as a UTC time; None for N/A, Unknown and the like."""
    if text.strip().lower() in _NO_TIME:
        return None
    return datetime.fromtimestamp(int(text), UTC)


def duration_s(text: str) -> int | None:
    """`1-02:03:04`, `02:03:04`, `03:04` as seconds; None for UNLIMITED, NOT_SET, Partition_Limit, …"""
    match = re.fullmatch(r"(?:(\d{1,7})-)?(?:(\d{1,7}):)?(\d{1,7}):(\d{1,7})", text.strip())
    if match is None:
        if not text.strip() or text.strip()[0].isalpha():
            return None
        raise ValueError(f"{text!r} is no duration")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def number(text: str, default: int | None = None) -> int:
    """A whole number; `default`, where there is one, for what is empty or N/A."""
    if default is not None and text.strip().lower() in {"", "n/a", "none", "(null)", "unknown"}:
        return default
    return int(text)


def key_values(line: str, keys: Iterable[str] = ()) -> dict[str, str]:
    """One `scontrol -o` record. A value goes up to the next ` Word=`; `(null)` is empty.

    Values with spaces (Reason, OS, Comment) may contain ` word=` themselves. Give the `keys` that count, and
    only these begin a new value; one that was there before belongs to the value it stands in.
    """
    known = "|".join(map(re.escape, keys)) or r"[A-Z][A-Za-z_:/]*"
    found: dict[str, str] = {}
    last = ""
    parts = re.split(rf"(?:^|\s)({known})=", line.strip())
    for key, value in zip(parts[1::2], parts[2::2], strict=True):
        if key in found:
            found[last] += f" {key}={value}"
        else:
            found[key], last = value, key
    return {key: "" if value.strip() == "(null)" else value.strip() for key, value in found.items()}
