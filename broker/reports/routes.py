"""Reports over HTTP: period, dimensions and filters stand in the address, so a report can be linked to."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import StreamingResponse

from broker.accounting import wait_classes
from broker.api.pagination import Page, PageParams
from broker.api.security import Ctx, requires
from broker.errors import NotFound
from broker.identity import Permission, Principal
from broker.reports.asked import MAX_BY, MAX_LINES, Filter, Narrowed, named, refuse
from broker.reports.definitions import REPORTS
from broker.reports.jobs import behind, page_of, pages_of
from broker.reports.measures import Report
from broker.reports.parquet import MEDIA_TYPE, jobs_parquet, parquet_of
from broker.reports.schemas import JobFacts, ReportList, ReportView
from broker.reports.spreadsheets import csv_of, jobs_csv
from broker.reports.views import describe, view_report
from broker.reports.wanted import Wanted, dimensions, scope_of
from broker.slurm.events import Lack

router = APIRouter(prefix="/reports", tags=["reports"])
Reader = Annotated[Principal, Depends(requires(Permission.REPORTS_READ))]
_Format = Annotated[Literal["json", "csv", "parquet"], Query()]
_TYPES = {"csv": "text/csv; charset=utf-8", "parquet": MEDIA_TYPE}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/csv": {"schema": {"type": "string"}},
            MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
        }
    }
}
_NODE_STATES = (Lack.DOWN, Lack.DRAINED, Lack.PLANNED)


async def wanted_report(
    report: str,
    common: Narrowed,
    gpu_count: Filter = None,
    size: Annotated[str | None, Query(max_length=255, description="CPUs per job as a power of two")] = None,
    wait: Annotated[
        str | None, Query(max_length=16, description=f"Eligible to start: {', '.join(wait_classes.NAMES)}")
    ] = None,
    node: Filter = None,
    began: Annotated[str | None, Query(max_length=32, description="When a node's event began (UTC)")] = None,
    state: Annotated[str | None, Query(max_length=32, description="`down`, `drained` or `planned`")] = None,
    reason: Annotated[str | None, Query(max_length=255, description="Of a node's event")] = None,
    account: Annotated[str | None, Query(max_length=64, description="Slurm account")] = None,
) -> Wanted:
    """What a request asks for, but for how it is split; raises `InvalidRequest` or `NotFound`."""
    found = REPORTS.get(report)
    if found is None:
        raise NotFound(f"There is no report {report[:64]!r}; there are: {', '.join(REPORTS)}")
    given = {
        "gpu_count": _number_named("gpu_count", gpu_count, "a job's GPUs as a number: 4"),
        "size": _number_named("size", size, "its CPUs as a power of two: 3 means 8 to 15 CPUs"),
        "wait": _wait_named(wait),
        "node": node,
        "began": began,
        "state": _state_named(state),
        "reason": reason,
        "account": account,
    }
    filters = {**common.filters, **named(given)}
    _check_dimensions(found, list(filters), "")
    return Wanted(found, common.since, common.until, found.by, filters)


def _wait_named(given: str | None) -> str | None:
    """The class of waits that a filter names; raises `InvalidRequest` for what is none."""
    if given is not None and given not in wait_classes.NAMES:
        detail = f"There is no class of waits {given!r}; there are: {', '.join(wait_classes.NAMES)}"
        refuse("?wait", "unknown_wait", detail)
    return given


def _number_named(name: str, given: str | None, wanted: str) -> str | None:
    if given is not None and not (given.isascii() and given.isdecimal()):
        refuse(f"?{name}", "not_a_number", f"There is no {name} {given!r}; write {wanted}")
    return given


def _state_named(given: str | None) -> str | None:
    if given is not None and given.lower() not in _NODE_STATES:
        detail = f"No node is {given!r} in this report; they are: {', '.join(_NODE_STATES)}"
        refuse("?state", "unknown_node_state", detail)
    return given and given.lower()


Asked = Annotated[Wanted, Depends(wanted_report)]


@router.get("")
def list_reports(principal: Reader) -> ReportList:
    """The reports there are, with the definition of every figure."""
    return ReportList(items=[describe(report) for report in REPORTS.values()])


@router.get(
    "/{report}",
    response_model=ReportView,
    responses=_FILES,
)
def show_report(
    ctx: Ctx,
    principal: Reader,
    asked: Asked,
    by: Annotated[list[str] | None, Query(max_length=MAX_BY, description="Dimensions, in order")] = None,
    sort: Annotated[
        str | None, Query(max_length=32, description="Measure that orders the lines, most first")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LINES)] = 1000,
    format: _Format = "json",
) -> ReportView | Response:
    """A report over a period, for the jobs one may see: all (admins), the tenant's, or one's own.

    With a time among the dimensions the lines are in its order, else the most first. Parquet has a column
    type and the definition of each figure; the total and the coverage stand in its metadata.
    """
    chosen = tuple(dict.fromkeys(by or asked.by))
    _check_dimensions(asked.report, chosen, "/by")
    measures = [measure.name for measure in asked.report.measures]
    if sort is not None and sort not in measures:
        refuse(
            "?sort", "unknown_measure", f"There is no measure {sort!r} here; there are: {', '.join(measures)}"
        )
    wanted = replace(asked, by=chosen, sort=sort, quotas=ctx.settings.quotas)
    with ctx.db.read() as session:
        view = view_report(session, wanted, scope_of(principal), limit)
    if format == "json":
        return view
    content = csv_of(view) if format == "csv" else parquet_of(view)
    return Response(content, media_type=_TYPES[format], headers=_saved_as(wanted, format))


@router.get("/{report}/jobs", response_model=Page[JobFacts], responses=_FILES)
def list_report_jobs(
    ctx: Ctx, principal: Reader, asked: Asked, page: PageParams, format: _Format = "json"
) -> Page[JobFacts] | Response:
    """The jobs behind a report or a line of it (`jobs_url`), newest submission first.

    As CSV or Parquet all of them are streamed, without pages.
    """
    if not asked.report.jobs:
        raise NotFound(f"The report {asked.report.name} is not made of jobs")
    began = any(measure.histograms for measure in asked.report.measures)
    gpus = asked.report.source == "gpu_capacity"
    query = behind(asked.since, asked.until, asked.filters, scope_of(principal), began=began, gpus=gpus)
    if format != "json":
        pages = pages_of(ctx.db, query, sample_s=ctx.settings.accounting.sample_s)
        content = jobs_csv(pages) if format == "csv" else jobs_parquet(pages)
        headers = _saved_as(asked, format, "-jobs")
        return StreamingResponse(content, media_type=_TYPES[format], headers=headers)
    with ctx.db.read() as session:
        items, cursor = page_of(session, query, page, ctx.settings.accounting.sample_s)
    return Page[JobFacts](items=items, next_cursor=cursor)


def _saved_as(wanted: Wanted, format: str, part: str = "") -> dict[str, str]:
    name = f"{wanted.report.name}{part}-{wanted.since}-{wanted.until}.{format}"
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _check_dimensions(report: Report, names: list[str] | tuple[str, ...], pointer: str) -> None:
    known = dimensions(report)
    for name in names:
        if name not in known:
            detail = f"{report.name} has no dimension {name!r}; it has: {', '.join(known)}"
            refuse("?by" if pointer else f"?{name}", "unknown_dimension", detail)
