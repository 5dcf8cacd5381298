"""A report, and the jobs behind it, as tables for spreadsheets: CSV (RFC 4180)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from broker.audit.reading import csv_text
from broker.reports.measures import INFINITE, Value
from broker.reports.schemas import Coverage, JobFacts, Line, ReportView


def csv_of(view: ReportView) -> str:
    """One row per line, the total last: its key, its figures, and the coverage of those that need it.

    The first character is a byte order mark, without which Excel takes UTF-8 for something else. What is
    unknown is an empty field, and the total's key is one. Lines beyond the limit are one row that says how
    many they are: else the total would be more than its lines without a word.
    """
    names = [measure.name for measure in view.report.measures]
    covered = list(view.total.coverage)
    heads = [f"{measure.name} ({measure.unit})" for measure in view.report.measures]
    known = [part for name in covered for part in _heads(name, view.total.coverage[name])]
    *rows, total = (_row(line, view.by, names, covered) for line in (*view.lines, view.total))
    if view.left_out:
        rows.append([f"({view.left_out} more)", *[""] * (len(total) - 1)])
    return "\ufeff" + csv_text([[*view.by, *heads, *known], *rows, total])


def jobs_csv(pages: Iterable[Sequence[JobFacts]]) -> Iterator[str]:
    """Jobs, a row each, a page of them at a time: memory does not grow with their number."""
    names = list(JobFacts.model_fields)
    yield "\ufeff" + csv_text([names])
    for page in pages:
        yield csv_text([[_plain(getattr(job, name)) for name in names] for job in page])


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _row(line: Line, by: Sequence[str], names: Sequence[str], covered: Sequence[str]) -> list[str]:
    figures = [line.values[name] for name in names]
    counts = [
        str(count) for name in covered for count in (line.coverage[name].with_data, line.coverage[name].of)
    ]
    keys = [line.key.get(name) or "" for name in by]
    return [*keys, *map(_shown, figures), *counts]


def _heads(name: str, coverage: Coverage) -> tuple[str, str]:
    return f"{name}: {coverage.counted} with data", f"{name}: {coverage.counted}"


def _shown(value: Value) -> str:
    if value == math.inf:
        return INFINITE
    return f"{value:.15g}" if isinstance(value, int | float) else value or ""
