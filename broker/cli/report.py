"""Reports in a terminal, and as files: of all jobs of the clusters, for whoever may see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from broker.cli.files import format_of, save
from broker.cli.options import Json, api, examples
from broker.cli.output import emit
from broker.cli.periods import Last, Since, Until, chosen_period
from broker.cli.report_views import jobs_view, list_view, report_view
from broker.cli.report_words import Lang, Language
from broker.cli.splitting import Lines, by_option, chosen_filters, where_option
from broker.errors import InvalidRequest

_FILTERS: Final = (
    "cluster, tenant, user, partition, qos, gpu_type, gpu_count, size (CPUs as a power of two), wait "
    "(`1-10m`), outcome, node, began, state, reason, account"
)
_ALL: Final = 10_000
"""Lines of a file: as many as there may be."""

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="A report; without one: which there are.")]
By = Annotated[list[str] | None, by_option("`tenant`, `month`")]
Where = Annotated[list[str] | None, where_option("these jobs", _FILTERS)]
Sort = Annotated[
    str | None, typer.Option("--sort", metavar="FIGURE", help="Most of this first; it gets the bars.")
]
Jobs = Annotated[bool, typer.Option("--jobs", help="The jobs behind it, newest first.")]
Explain = Annotated[bool, typer.Option("--explain", help="Say what each figure means.")]
Csv = Annotated[
    str | None,
    typer.Option("--csv", metavar="FILE", help="`--format csv -o FILE`; `-` is standard output."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write it, or with `--jobs` all of the jobs, to a file."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="FORMAT", help="`csv`, `json` or `parquet`; else as the file's name says."
    ),
]


def report(
    ctx: typer.Context,
    name: Name = None,
    by: By = None,
    last: Last = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    sort: Sort = None,
    limit: Lines = 20,
    jobs: Jobs = False,
    explain: Explain = False,
    csv: Csv = None,
    output: Output = None,
    format_: Format = None,
    lang: Lang = "en",
    as_json: Json = False,
) -> None:
    """Show what was used, how long it waited, how it ended and how well it was used, from Slurm's accounting.

    Everybody sees their own jobs, a tenant's admins and viewers the tenant's, an admin all.
    """
    if name is None:
        _show_list(ctx, as_json)
        return
    if jobs and (by or sort):
        raise InvalidRequest("--jobs lists the jobs, newest first: leave --by and --sort out")
    if csv is not None and (output is not None or format_ is not None):
        raise InvalidRequest("--csv FILE is --format csv --output FILE: leave one of them out")
    asked = chosen_period(last, since, until) | chosen_filters(where, _FILTERS)
    lines = {"by": by or None, "sort": sort}
    if csv is not None:
        _save(ctx, name, asked, None if jobs else lines, csv, "csv", as_json)
    elif output is not None or format_ is not None:
        _save(ctx, name, asked, None if jobs else lines, output or "-", format_, as_json)
    elif jobs:
        _show_jobs(ctx, name, asked, limit, lang, as_json)
    else:
        with api(ctx) as client:
            found = client.get(f"/reports/{name}", **asked, **lines, limit=limit)
        if found["report"]["now"] and (last or since or until):
            raise InvalidRequest(f"{name} tells how things stand now: leave --last, --since and --until out")
        emit(found, lambda: report_view(found, sort, explain, lang), as_json=as_json)


def register(root: typer.Typer) -> None:
    """Add the command."""
    lines = (
        "broker report",
        "broker report usage --by tenant --last month",
        "broker report waits --by partition --by gpu_type --since 2026-11-01",
        "broker report outcomes --where tenant=team-a --jobs --lang ko",
        "broker report slowdown --by partition --last month",
        "broker report usage --by wait --where gpu_type=a100",
        "broker report utilisation --last week --explain",
        "broker report node_downtime --by reason --last quarter",
        "broker report fairshare --by day --where tenant=team-a --last month",
        "broker report usage --by user --last quarter --csv usage.csv",
        "broker report usage --by day --last year --output usage.parquet",
        "broker report usage --last month --jobs --format parquet --output jobs.parquet",
    )
    root.command(epilog=examples(*lines))(report)


def _show_list(ctx: typer.Context, as_json: bool) -> None:
    with api(ctx) as client:
        found = client.get("/reports")
    emit(found, lambda: list_view(found["items"]), as_json=as_json)


def _show_jobs(
    ctx: typer.Context, name: str, asked: Mapping[str, str | None], limit: int, lang: Language, as_json: bool
) -> None:
    with api(ctx) as client:
        found = list(client.pages(f"/reports/{name}/jobs", limit + 1, **asked))
    items, more = found[:limit], len(found) > limit
    emit(items, lambda: jobs_view(items, lang, more=more), as_json=as_json)


def _save(
    ctx: typer.Context,
    name: str,
    asked: Mapping[str, str | None],
    lines: Mapping[str, Any] | None,
    output: str,
    given: str | None,
    as_json: bool,
) -> None:
    """Write a report, all of its `lines`, into a file; None: the jobs behind it."""
    wanted = {**asked, "format": format_of(given, output)}
    if lines is not None:
        save(ctx, f"/reports/{name}", wanted | {**lines, "limit": _ALL}, output, as_json=as_json)
    elif wanted["format"] == "json":
        raise InvalidRequest("The jobs as JSON: use --jobs --json; files of them are csv or parquet")
    else:
        save(ctx, f"/reports/{name}/jobs", wanted, output, as_json=as_json)
