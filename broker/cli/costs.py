"""What use costs, and invoices."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.cost_words import COST_WORDS, HEADS, RESOURCES, RUN_HEADS
from broker.cli.files import save
from broker.cli.options import Json, api, examples
from broker.cli.output import emit, harmless, table, when
from broker.cli.periods import Last, Since, Until, chosen_period
from broker.cli.prices import grouped, place_of, prices
from broker.cli.report_views import age_notes, drawn_bar, headline
from broker.cli.report_words import WORDS, Lang, Language
from broker.cli.splitting import Lines, by_option, chosen_filters, where_option
from broker.errors import InvalidRequest

_SPLIT: Final = ("by", "last", "since", "until", "where", "limit")
"""Parameters that choose what is counted, and which lines of it are shown."""
_FILTERS: Final = "cluster, tenant, user, partition, qos, gpu_type, outcome"
By = Annotated[list[str] | None, by_option("`user`, `run`, `month`")]
Where = Annotated[list[str] | None, where_option("this use", _FILTERS)]


def costs(
    ctx: typer.Context,
    by: By = None,
    last: Last = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    limit: Lines = 20,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Of one run: every attempt of its jobs.")
    ] = None,
    invoice: Annotated[
        str | None,
        typer.Option(
            "--invoice",
            metavar="FILE",
            help="Write an invoice as CSV, by tenant, user, resource and price; `-` is standard output.",
        ),
    ] = None,
    bom: Annotated[
        bool, typer.Option("--bom/--no-bom", help="Begin the invoice with a byte order mark, for Excel.")
    ] = True,
    lang: Lang = "en",
    as_json: Json = False,
) -> None:
    """Show what use costs: of yourself, of your tenant (its admins and viewers), of all (admins).

    What no price holds for is shown as hours.
    """
    if run is not None:
        _leave_out(ctx, "--run shows all that one run costs", *_SPLIT, "invoice", "bom")
        with api(ctx) as client:
            found = client.get(f"/runs/{run}/cost")
        emit(found, lambda: _shown_run(found, lang), as_json=as_json)
        return
    asked: dict[str, Any] = chosen_period(last, since, until) | chosen_filters(where, _FILTERS)
    if invoice is not None:
        _leave_out(ctx, "An invoice is by tenant and user, and whole", "by", "limit")
        wanted = asked | {"format": "csv", "bom": bom}
        save(ctx, "/costs", wanted, invoice, option="--invoice", as_json=as_json)
        return
    _leave_out(ctx, "A byte order mark begins an invoice (--invoice FILE), and nothing else", "bom")
    with api(ctx) as client:
        found = client.get("/costs", **asked, by=by or None, limit=limit)
    emit(found, lambda: _shown(found, lang), as_json=as_json)


def _leave_out(ctx: typer.Context, why: str, *names: str) -> None:
    """Raise `InvalidRequest` where options were given that would do nothing; `names` of their parameters."""
    given = [
        "/".join([*option.opts[:1], *option.secondary_opts])
        for option in ctx.command.params
        if option.name in names and _was_given(ctx, option.name)
    ]
    if given:
        raise InvalidRequest(f"{why}: leave {', '.join(given)} out")


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def register(root: typer.Typer) -> None:
    """Add the commands."""
    lines = (
        "broker costs --by tenant --last month",
        "broker costs --by user --by gpu_type --where tenant=team-a --since 2026-11-01",
        "broker costs --by run --last week",
        "broker costs --run run-1m7yk7h67jtj8nfp",
        "broker costs --by tenant --last month --lang ko",
        "broker costs --last month --invoice november.csv",
    )
    root.command(epilog=examples(*lines))(costs)
    root.add_typer(prices)


def _shown(found: dict[str, Any], lang: Language) -> RenderableType:
    words, keys = COST_WORDS[lang], found["by"]
    largest = max((float(line["amount"] or 0) for line in found["lines"]), default=0)
    rows = [
        (
            *(line["key"][name] for name in keys),
            drawn_bar(float(line["amount"] or 0), largest),
            *_figures(line, lang),
        )
        for line in found["lines"]
    ]
    heads = (*(name.upper() for name in keys), "", *_heads(found["currency"], lang))
    return Group(
        Text(harmless(headline(words["title"], found, lang)), style="bold"),
        table(heads, [*rows, *_sums(found, len(keys), lang)] if rows else [], empty=words["empty"]),
        _notes(found, lang),
    )


def _shown_run(found: dict[str, Any], lang: Language) -> RenderableType:
    words = COST_WORDS[lang]
    rows = [
        (
            *(line["key"][name] for name in ("component", "attempt", "job", "state")),
            when(line["started_at"]),
            *_figures(line, lang),
        )
        for line in found["jobs"]
    ]
    heads = (*RUN_HEADS[lang], *_heads(found["currency"], lang))
    partly = () if found["complete"] else (words["partly"],)
    return Group(
        table(heads, [*rows, *_sums(found, 4, lang)] if rows else [], empty=words["no_jobs"]),
        _notes(found | {"left_out": 0}, lang, *partly),
    )


def _sums(found: dict[str, Any], blanks: int, lang: Language) -> list[tuple[str | Text, ...]]:
    """The total, and before it what the lines fall short of it, since each is rounded by itself."""
    rows: list[tuple[str | Text, ...]] = []
    blank = (Text(),) * blanks
    if found["rounding"] is not None and Decimal(found["rounding"]):
        rows.append((COST_WORDS[lang]["rounding"], *blank, grouped(found["rounding"]), *(Text(),) * 4))
    total = Text(WORDS[lang]["total"], style="bold")
    return [*rows, (total, *blank, *_figures(found["total"], lang))]


def _notes(found: dict[str, Any], lang: Language, *more: str) -> Text:
    """What to know about the figures; that they are others than before is not said in grey."""
    corrected = "\n".join(_correction(one, found["currency"], lang) for one in found["corrections"])
    said = Text(harmless(corrected), style="yellow")
    others = "\n".join([*more, *_loose(found["total"], lang), *age_notes(found, lang)])
    return Text("\n").join(part for part in (said, Text(harmless(others), style="bright_black")) if part)


def _correction(one: dict[str, Any], currency: str, lang: Language) -> str:
    """A correction with which an earlier answer was another, in a sentence."""
    words = COST_WORDS[lang]
    was = words["no_price"] if one["was"] is None else f"{grouped(one['was'])} {currency}"
    now = words["withdrawn"] if one["corrected_by"] is None else words["no_price"]
    return words["corrected"].format(
        at=when(one["at"]),
        by=one["by"],
        resource=one["resource"],
        place=place_of(one, words["everywhere"]),
        since=one["held_from"],
        until=one["held_until"],
        was=was,
        now=now if one["now"] is None else f"{grouped(one['now'])} {currency}",
        ids=f"{one['price']} → {one['corrected_by']}" if one["corrected_by"] else one["price"],
        why=one["why"],
    )


def _heads(currency: str, lang: Language) -> tuple[str, ...]:
    return (COST_WORDS[lang]["amount"].format(currency) + ">", *HEADS[lang])


def _figures(line: dict[str, Any], lang: Language) -> tuple[str, ...]:
    amounts = ("?" if line["amount"] is None else grouped(line["amount"]),)
    others = ("" if line[name] is None else grouped(line[name]) for name in ("faults", "exempt"))
    return (*amounts, *others, _hours(line["hours"], lang), _hours(line["unpriced"], lang))


def _hours(found: dict[str, float], lang: Language) -> str:
    return ", ".join(f"{hours:,.1f} {RESOURCES[lang][name]}" for name, hours in found.items())


def _loose(total: dict[str, Any], lang: Language) -> list[str]:
    if not total["unpriced"]:
        return []
    names = ", ".join(f"{name} ({RESOURCES[lang][name]})" for name in total["unpriced"])
    return [COST_WORDS[lang]["unpriced"].format(names)]
