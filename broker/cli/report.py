"""Reports in a terminal: a table with a bar for the first figure, what the figures mean, how old they are."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.fitting import BAR, Bar
from broker.cli.options import Json, api, examples
from broker.cli.output import emit, harmless, table, when
from broker.cli.periods import Last, Since, Until, chosen_period
from broker.cli.report_exports import (
    EXPORT,
    EXPORTS,
    Period,
    Wait,
    ask_for_export,
    refuse_of_reports,
    show_exports,
)
from broker.cli.report_files import save
from broker.cli.report_words import DEFINITION, TITLE, WORDS, Language
from broker.errors import InvalidRequest

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_ALL: Final = {"limit": 10_000}
"""Lines of a file: as many as there may be."""
_TEXTS: Final = ("text", "date", "time")
"""Units of figures that are no numbers."""
_FILTERS: Final = (
    "cluster, tenant, user, partition, qos, gpu_type, gpu_count, size (CPUs as a power of two), wait "
    "(`1-10m`), outcome, node, began, state, reason, account"
)


def report(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A report; without one: which there are; `exports`: what became of exports to the object "
            "store; `export`: ask for one.",
        ),
    ] = None,
    which: Annotated[
        str | None, typer.Argument(metavar="EXPORT", help="Of `export` and `exports`: the export's name.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="DIMENSION", help="How to split it: `tenant`, `month`, …; repeatable."),
    ] = None,
    last: Last = None,
    since: Since = None,
    until: Until = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="NAME=VALUE", help=f"Only these jobs; repeatable. {_FILTERS}."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="FIGURE", help="Most of this first; it gets the bars.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="Show at most this many.")
    ] = 20,
    jobs: Annotated[bool, typer.Option("--jobs", help="The jobs behind it, newest first.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each figure means.")] = False,
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="`--format csv -o FILE`; `-` is standard output."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write it, or with `--jobs` all of the jobs, to a file."
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="`csv`, `json` or `parquet`; else as the file's name says."
        ),
    ] = None,
    lang: Annotated[Language, typer.Option("--lang", help="Language of headings and meanings.")] = "en",
    period_: Period = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Show what was used, how long it waited, how it ended and how well it was used, from Slurm's accounting.

    Everybody sees their own jobs, a tenant's admins and viewers the tenant's, an admin all. `export` has the
    worker write earlier periods of a scheduled export (`[reports]` in the settings) to the object store.
    """
    if name != EXPORT and (period_ or wait):
        raise InvalidRequest(f"--period and --wait belong to `broker report {EXPORT} NAME`")
    if name not in (EXPORT, EXPORTS) and which is not None:
        raise InvalidRequest(f"{which}: give one report at a time")
    if name is None:
        _show_list(ctx, as_json)
        return
    period = chosen_period(last, since, until)
    if name in (EXPORT, EXPORTS):
        refuse_of_reports(
            {"--by": by, "--where": where, "--sort": sort, "--jobs": jobs, "--explain": explain}
        )
        refuse_of_reports({"--csv": csv, "--output": output, "--format": format_})
        if name == EXPORT:
            ask_for_export(ctx, which, {"period": period_, **period}, wait=wait, as_json=as_json)
        else:
            show_exports(ctx, which, period, limit, as_json=as_json)
        return
    if jobs and (by or sort):
        raise InvalidRequest("--jobs lists the jobs, newest first: leave --by and --sort out")
    if csv is not None:
        if output is not None or format_ is not None:
            raise InvalidRequest("--csv FILE is --format csv --output FILE: leave one of them out")
        output, format_ = csv, "csv"
    asked: dict[str, Any] = (
        period | chosen_filters(where or [], _FILTERS) | {"by": by or None, "sort": sort, "limit": limit}
    )
    if output is not None or format_ is not None:
        path, wanted = f"/reports/{name}", asked | _ALL
        if jobs:
            path, wanted = f"{path}/jobs", dict.fromkeys(("by", "sort", "limit"))
        save(ctx, path, asked | wanted, format_, output or "-", as_json=as_json)
    elif jobs:
        _show_jobs(ctx, name, asked, limit, as_json)
    else:
        with api(ctx) as client:
            found = client.get(f"/reports/{name}", **asked)
        if found["report"]["now"] and any(period.values()):
            raise InvalidRequest(f"{name} tells how things stand now: leave --last, --since and --until out")
        emit(found, lambda: _shown(found, sort, explain, lang), as_json=as_json)


def bar(value: float | str | None, largest: float, cells: int = BAR) -> str:
    """A bar of eighths of a cell; anything above nothing is seen. What is no number has none.

    >>> bar(1, 1) == "█" * BAR, bar(0, 1), bar(None, 1), bar(1e-9, 1), bar("2026-11-30", 1)
    (True, '', '', '▏', '')
    """
    if not value or isinstance(value, str) or value < 0 or largest <= 0:
        return ""
    eighths = max(1, round(cells * 8 * min(value / largest, 1)))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def drawn_bar(value: float | str | None, largest: float) -> Bar:
    """The bar as a cell of a table; it becomes shorter where the terminal is narrow."""
    return Bar(lambda cells: bar(value, largest, cells), style="cyan")


def figure(value: float | str | None, unit: str) -> str:
    """A figure for people; unknown is a question mark, never 0.

    >>> figure(None, "h"), figure(0.4567, "ratio"), figure(5400, "s"), figure(1234.56, "h"), figure(3, "jobs")
    ('?', '45.7 %', '1.5 h', '1,234.6', '3')
    >>> figure("2026-11-30", "date"), figure("bad fan", "text"), figure(None, "text")
    ('2026-11-30', 'bad fan', '')
    >>> figure(3, "count"), figure(0.12345, "count"), figure(98765.4, "count")
    ('3', '0.1235', '98,765')
    """
    if unit == "time" and isinstance(value, str):
        return when(value)
    if value is None or isinstance(value, str):
        return value or ("" if unit == "text" else "?")
    if unit == "ratio":
        return f"{100 * value:.1f} %"
    if unit == "s":
        scale, word = next(
            (scale, word)
            for scale, word in ((86_400, "d"), (3600, "h"), (60, "min"), (0, "s"))
            if value >= scale
        )
        return f"{value / (scale or 1):.3g} {word}"
    if unit == "count" and value % 1 and abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if unit in ("jobs", "count") else f"{value:,.1f}"


def register(root: typer.Typer) -> None:
    """Add the command."""
    lines = (
        "broker report",
        "broker report usage --by tenant --last month",
        "broker report waits --by partition --by gpu_type --since 2026-11-01",
        "broker report outcomes --where tenant=team-a --jobs",
        "broker report slowdown --by partition --last month",
        "broker report usage --by wait --where gpu_type=a100",
        "broker report utilisation --last week --explain",
        "broker report node_downtime --by reason --last quarter",
        "broker report usage --by user --last quarter --csv usage.csv",
        "broker report usage --by day --last year --output usage.parquet",
        "broker report usage --last month --jobs --format parquet --output jobs.parquet",
        "broker report exports",
        "broker report export monthly-usage --period 2026-09 --wait",
        "broker report export monthly-usage --since 2026-01-01 --until 2026-10-01",
    )
    root.command(epilog=examples(*lines))(report)


def _show_list(ctx: typer.Context, as_json: bool) -> None:
    with api(ctx) as client:
        found = client.get("/reports")
    rows = (
        (
            one["name"],
            one["title"],
            one["title_ko"],
            ", ".join(measure["name"] for measure in one["measures"]),
        )
        for one in found["items"]
    )
    emit(found, lambda: table(("REPORT", "WHAT", "", "FIGURES"), rows, empty="No reports"), as_json=as_json)


def _show_jobs(ctx: typer.Context, name: str, asked: dict[str, Any], limit: int, as_json: bool) -> None:
    filters = {key: value for key, value in asked.items() if key not in ("by", "sort", "limit")}
    with api(ctx) as client:
        found = list(client.pages(f"/reports/{name}/jobs", limit + 1, **filters))
    items, more = found[:limit], len(found) > limit
    columns = (
        "JOB",
        "USER",
        "TENANT?",
        "PARTITION?",
        "STATE",
        "SUBMITTED?",
        "WAITED>",
        "SLOWDOWN>",
        "CORE H>",
        "GPU H>",
        "CPU>",
        "MEM>",
        "NEXT TIME",
    )
    rows = (
        (
            one["job_id"],
            one["user"],
            one["tenant"],
            one["partition"],
            one["state"],
            when(one["submitted_at"]),
            figure(one["wait_s"], "s"),
            figure(one["slowdown"], "count"),
            figure(one["core_hours"], "h"),
            figure(one["gpu_hours"], "h"),
            figure(one["cpu_efficiency"], "ratio"),
            figure(one["memory_efficiency"], "ratio"),
            one["advice"],
        )
        for one in items
    )
    shown = [table(columns, rows, empty="No jobs")]
    if more:
        note = f"The newest {limit}; there are more: see --limit, or write all of them with --output FILE"
        shown.append(Text(note, style="bright_black"))
    emit(items, lambda: Group(*shown), as_json=as_json)


def save_csv(ctx: typer.Context, path: str, asked: dict[str, Any], target: str, as_json: bool) -> None:
    """Write what an address of the API gives as CSV into a file; `-` is standard output."""
    if target == "-" and as_json:
        raise InvalidRequest("With --json the CSV needs a place of its own: name a file for it")
    with api(ctx) as client:
        chunks: list[bytes] = []
        count = client.save(path, chunks.append, **asked, format="csv")
    if target == "-":
        sys.stdout.buffer.write(b"".join(chunks))
        sys.stdout.flush()
        return
    try:
        Path(target).write_bytes(b"".join(chunks))
    except OSError as error:
        raise InvalidRequest(f"{target} can't be written: {error.strerror}") from None
    emit({"path": target, "bytes": count}, lambda: f"Wrote {target} ({count} bytes).", as_json=as_json)


def chosen_filters(words: list[str], names: str) -> dict[str, str]:
    """`--where NAME=VALUE`, each of the `names` that are listed for people."""
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name not in {one.split()[0] for one in names.split(", ")}:
            raise InvalidRequest(f"--where {word}: write NAME=VALUE; names are: {names}")
        found[name] = value
    return found


def _shown(found: dict[str, Any], sort: str | None, explain: bool, lang: Language) -> RenderableType:
    measures = found["report"]["measures"]
    first = sort or measures[0]["name"]
    sizes = [value for line in found["lines"] if isinstance(value := line["values"][first], int | float)]
    largest = max(sizes, default=0)
    names = {
        name: {one["value"]: one[TITLE[lang]] for one in values}
        for name, values in found["report"]["values"].items()
    }
    rows = [
        (
            *(_key(name, line["key"][name], names.get(name, {})) for name in found["by"]),
            drawn_bar(line["values"][first], largest),
            *_figures(line, measures),
        )
        for line in found["lines"]
    ]
    shown = zip(_figures(found["total"], measures), measures, strict=True)
    numbers = ["" if one["unit"] in _TEXTS else text for text, one in shown]
    if rows and set(numbers) - {"", "?"}:
        blank = [""] * (len(found["by"]) - 1)
        rows.append((Text(WORDS[lang]["total"], style="bold"), *blank, Text(), *numbers))
    heads = (*(name.upper() for name in found["by"]), "", *(_head(one, lang) for one in measures))
    parts: list[RenderableType] = [
        Text(harmless(_headline(found, lang)), style="bold"),
        table(heads, rows, empty=WORDS[lang]["empty"]),
    ]
    if explain:
        rows_ = ((one[TITLE[lang]], one[DEFINITION[lang]]) for one in measures)
        parts.append(table((WORDS[lang]["figure"], WORDS[lang]["meaning"]), rows_, empty=""))
    return Group(*parts, Text(harmless("\n".join(age_notes(found, lang))), style="bright_black"))


def _head(measure: dict[str, Any], lang: Language) -> str:
    """A figure's heading, with its unit where nothing else says it; numbers stand to the right."""
    title, unit = measure[TITLE[lang]].upper(), measure["unit"]
    told = f" ({unit})" if unit in ("h", "GiB h") and WORDS[lang]["hour"] not in title else ""
    return f"{title}{told}{'' if unit in _TEXTS else '>'}"


def _key(name: str, value: str, names: Mapping[str, str]) -> str:
    """What a line is about, as a filter takes it; where that says little, in words too: a size is a power of
    two, and `names` are those that the report brings.

    >>> _key("size", "0", {}), _key("size", "5", {}), _key("user", "kim", {})
    ('0 (1 CPU)', '5 (32–63 CPUs)', 'kim')
    >>> _key("wait", "1-6h", {"1-6h": "1 to 6 hours"})
    '1-6h (1 to 6 hours)'
    """
    if value in names:
        return f"{value} ({names[value]})"
    if name != "size" or not value.isdecimal():
        return value
    return f"{value} ({f'{2 ** int(value)}–{2 ** (int(value) + 1) - 1} CPUs' if int(value) else '1 CPU'})"


def _figures(line: dict[str, Any], measures: list[dict[str, Any]]) -> list[str]:
    """The figures; with of how many jobs (or hours) they are known where that is not all. Hours are the same
    for all of a line's figures: they are told once.
    """
    shown, told = [], ""
    for one in measures:
        text, known = figure(line["values"][one["name"]], one["unit"]), line["coverage"].get(one["name"])
        if known and 0 < known["with_data"] < known["of"]:
            hours = "" if known["counted"] == "jobs" else " h"
            share = f" (of {known['with_data']}/{known['of']}{hours})"
            text += "" if hours and share == told else share
            told = share
        shown.append(text)
    return shown


def _headline(found: dict[str, Any], lang: Language) -> str:
    words = WORDS[lang]
    period = (
        words["now"] if found["report"]["now"] else words["period"].format(found["since"], found["until"])
    )
    return f"{found['report'][TITLE[lang]]}, {period}, {found['scope']}"


def age_notes(found: dict[str, Any], lang: Language = "en") -> list[str]:
    """What is not shown, and up to when each cluster's accounting was read."""
    words, notes = WORDS[lang], []
    for one in found["sources"]:
        age = (datetime.now(UTC) - datetime.fromisoformat(one["complete_until"])).total_seconds()
        late = words["late"] if one["trouble"] else ""
        notes.append(words["age"].format(cluster=one["cluster"], age=figure(max(age, 0), "s")) + late)
    more = [words["more"].format(found["left_out"])] if found["left_out"] else []
    return more + (notes or [words["unread"]])
