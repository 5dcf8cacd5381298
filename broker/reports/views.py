"""A report as the API shows it: lines with figures, their definitions, coverage and the way to the jobs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Final
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from broker.accounting.histograms import ERROR
from broker.accounting.wait_classes import WAIT_CLASSES
from broker.reports import sources
from broker.reports.measures import Report, Sums, Value
from broker.reports.schemas import (
    Coverage,
    DimensionValue,
    Line,
    MeasureView,
    ReportDescription,
    ReportView,
)
from broker.reports.wanted import PERIODS, Group, Scope, Wanted, dimensions, period_bounds, whole

ROOT = "/api/v1/reports"
_DIGITS = 6
_VALUES: Final = {
    "wait": [DimensionValue(value=one.name, title=one.title, title_ko=one.title_ko) for one in WAIT_CLASSES]
}


def describe(report: Report) -> ReportDescription:
    """A report and the definitions of its figures."""
    return ReportDescription(
        name=report.name,
        title=report.title,
        title_ko=report.title_ko,
        dimensions=dimensions(report),
        values={name: values for name, values in _VALUES.items() if name in dimensions(report)},
        default_by=report.by,
        now=report.now,
        jobs=report.jobs,
        measures=[
            MeasureView(
                name=one.name,
                unit=one.unit,
                title=one.title,
                title_ko=one.title_ko,
                definition=one.definition,
                definition_ko=one.definition_ko,
            )
            for one in report.measures
        ],
    )


def view_report(session: Session, wanted: Wanted, scope: Scope, limit: int | None) -> ReportView:
    """A report; at most `limit` lines (None: all), the total is of all."""
    made = sources.groups(session, wanted, scope)
    total = whole(made)
    shown = made if limit is None else made[:limit]
    return ReportView(
        report=describe(wanted.report),
        since=wanted.since,
        until=wanted.until,
        by=wanted.by,
        filters=dict(wanted.filters),
        scope="all" if wanted.report.public else str(scope),
        lines=[_line(wanted, group, total) for group in shown],
        left_out=len(made) - len(shown),
        total=_line(wanted, Group({}, total), total),
        quantile_error=round(ERROR, 3),
        sources=sources.ages(session, wanted),
        url=_url(wanted),
    )


def _line(wanted: Wanted, group: Group, total: Sums) -> Line:
    values: dict[str, Value] = {}
    coverage: dict[str, Coverage] = {}
    for measure in wanted.report.measures:
        value = measure.compute(group.sums, total)
        values[measure.name] = round(value, _DIGITS) if isinstance(value, float) else value
        known = measure.coverage(group.sums)
        if known is not None:
            coverage[measure.name] = Coverage(with_data=known[0], of=known[1], counted=measure.counted)
    below = _jobs_url(wanted, group.key) if wanted.report.jobs else None
    return Line(key=dict(group.key), values=values, coverage=coverage, jobs_url=below)


def _jobs_url(wanted: Wanted, key: Mapping[str, str]) -> str:
    """The address of the jobs behind a line: its key as filters, its period cut out of the report's."""
    since, until = wanted.since, wanted.until
    filters = dict(wanted.filters)
    for name, value in key.items():
        if name in PERIODS:
            first, after = period_bounds(name, value)
            since, until = max(since, first), min(until, after)
        else:
            filters[name] = value
    return f"{ROOT}/{wanted.report.name}/jobs?" + _query(since, until, filters)


def _url(wanted: Wanted) -> str:
    more = [("by", name) for name in wanted.by] + ([("sort", wanted.sort)] if wanted.sort else [])
    return (
        f"{ROOT}/{wanted.report.name}?{_query(wanted.since, wanted.until, wanted.filters)}&{urlencode(more)}"
    )


def _query(since: date, until: date, filters: Mapping[str, str]) -> str:
    return urlencode([("since", f"{since}"), ("until", f"{until}"), *sorted(filters.items())])
