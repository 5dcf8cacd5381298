"""Which finished periods a scheduled export has yet to write, where it lies, and its manifest. Pure.

    PREFIX/NAME/PERIOD/v1/REPORT.parquet    a version's files
    PREFIX/NAME/PERIOD/manifest.json        every version, written last: the word for "stored"

Periods are named as in reports (`2026-11-21`, `2026-W47`, `2026-11`) and lie in UTC.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final

from broker.reports.parquet import MEDIA_TYPE, parquet_of
from broker.reports.schemas import ReportView
from broker.reports.spreadsheets import csv_of
from broker.reports.wanted import period_bounds, period_name

MOST_BEHIND: Final = 100
"""Periods that are caught up on, at most: a worker that was away for longer begins with these."""
CHECK_EVERY: Final = timedelta(days=1)
"""How often the figures of a period are compared with what was written."""
TYPES: Final = {"parquet": MEDIA_TYPE, "csv": "text/csv; charset=utf-8", "json": "application/json"}


@dataclass(frozen=True, slots=True)
class StoredReport:
    """One file of a version: its format, where it lies, its size in bytes, its SHA-256 (hex)."""

    format: str
    key: str
    size: int
    sha256: str


def due_periods(
    kind: str, now: datetime, hour: int, known: Collection[str], done: Collection[str]
) -> list[str]:
    """The finished periods (`day`, `week` or `month`) that are not `done`, oldest first.

    A period is due at `hour` (UTC) of the day after it. Of an export that has no `known` period it is the
    last one alone, else all from the first known one on: what no worker was there for is caught up on.

    >>> now = datetime(2026, 11, 21, 5, tzinfo=UTC)
    >>> due_periods("day", now, 6, [], []), due_periods("day", now, 4, ["2026-11-18"], ["2026-11-18"])
    (['2026-11-19'], ['2026-11-19', '2026-11-20'])
    """
    day = (now.astimezone(UTC) - timedelta(hours=hour)).date()
    since, _ = period_bounds(kind, period_name(kind, day))
    first = min(known, default=None)
    found: list[str] = []
    for _ in range(MOST_BEHIND):
        label = period_name(kind, since - timedelta(days=1))
        if found and (first is None or label < first):
            break
        found.append(label)
        since, _ = period_bounds(kind, label)
    return [label for label in reversed(found) if label not in done]


def to_check(until: datetime, checked_at: datetime, now: datetime, revise_days: int) -> bool:
    """Whether a stored period is to be compared once more: late data may have changed its figures."""
    return now < until + timedelta(days=revise_days) and now >= checked_at + CHECK_EVERY


def unread(until: datetime, read: Mapping[str, datetime], clusters: Iterable[str]) -> str | None:
    """Why the period's figures can't be whole yet; None when accounting was read to its end."""
    known = [name for name in clusters if name in read]
    late = [name for name in known if read[name] < until]
    if late:
        return f"Accounting of {', '.join(late)} has not been read up to {until:%Y-%m-%d} 00:00 UTC yet"
    return None if known else "No cluster's accounting has been read yet"


def midnight(day: Any) -> datetime:
    """The first moment of a day (UTC)."""
    return datetime.combine(day, time(), UTC)


def digest(view: ReportView) -> str:
    """SHA-256 (hex) of a report's figures: not of when they were computed, nor of words about them."""
    figures = view.model_dump(mode="json", include={"by", "lines", "total", "since", "until"})
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()


def rendered(view: ReportView, format: str) -> bytes:
    """A report as a file. The same report gives the same bytes."""
    if format == "parquet":
        return parquet_of(view)
    return csv_of(view).encode() if format == "csv" else view.model_dump_json().encode()


def file_key(prefix: str, name: str, period: str, version: int, report: str, format: str) -> str:
    """Where one file of a version lies.

    >>> file_key("reports", "monthly", "2026-10", 1, "usage", "csv")
    'reports/monthly/2026-10/v1/usage.csv'
    """
    return f"{prefix}/{name}/{period}/v{version}/{report}.{format}"


def manifest_key(prefix: str, name: str, period: str) -> str:
    """Where the manifest of a period lies."""
    return f"{prefix}/{name}/{period}/manifest.json"


@dataclass(frozen=True, slots=True)
class Version:
    """One version in a manifest. Times as text (ISO 8601, UTC)."""

    version: int
    made_at: str
    digest: str
    sources: Sequence[Mapping[str, Any]]
    files: Sequence[StoredReport]


def manifest(name: str, period: str, view: ReportView, versions: Sequence[Version]) -> bytes:
    """The manifest of a period: what the report is, and every version, the last of which holds."""
    content = {
        "format": 1,
        "export": name,
        "period": period,
        "report": view.report.name,
        "since": f"{view.since}",
        "until": f"{view.until}",
        "by": list(view.by),
        "scope": view.scope,
        "current": versions[-1].version,
        "versions": [asdict(version) for version in versions],
    }
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True).encode("ascii")
