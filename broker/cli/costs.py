"""What use costs, and invoices."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.files import save
from broker.cli.options import Json, api, examples
from broker.cli.output import emit, harmless, table, when
from broker.cli.periods import Last, Since, Until, chosen_period
from broker.cli.prices import corrections_told, grouped, prices
from broker.cli.report_views import age_notes, drawn_bar
from broker.cli.splitting import Lines, by_option, chosen_filters, where_option
from broker.errors import InvalidRequest

_FILTERS: Final = "cluster, tenant, user, partition, qos, gpu_type, outcome"
_NAMES: Final = {
    "core_hour": ("core h", "코어"),
    "gpu_hour": ("GPU h", "GPU"),
    "gib_hour": ("GiB h", "메모리"),
    "billing_hour": ("billing h", "Slurm billing"),
}
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
    as_json: Json = False,
) -> None:
    """Show what use costs: of yourself, of your tenant (its admins and viewers), of all (admins).

    What no price holds for is shown as hours.
    """
    if run is not None:
        if by or last or since or until or where or invoice:
            raise InvalidRequest("--run shows all that one run costs: leave the other options out")
        with api(ctx) as client:
            found = client.get(f"/runs/{run}/cost")
        emit(found, lambda: _shown_run(found), as_json=as_json)
        return
    asked: dict[str, Any] = chosen_period(last, since, until) | chosen_filters(where, _FILTERS)
    if invoice is not None:
        if by:
            raise InvalidRequest("An invoice is by tenant and user: leave --by out")
        wanted = asked | {"format": "csv", "bom": bom}
        save(ctx, "/costs", wanted, invoice, option="--invoice", as_json=as_json)
        return
    with api(ctx) as client:
        found = client.get("/costs", **asked, by=by or None, limit=limit)
    emit(found, lambda: _shown(found), as_json=as_json)


def register(root: typer.Typer) -> None:
    """Add the commands."""
    lines = (
        "broker costs --by tenant --last month",
        "broker costs --by user --by gpu_type --where tenant=team-a --since 2026-11-01",
        "broker costs --by run --last week",
        "broker costs --run run-1m7yk7h67jtj8nfp",
        "broker costs --last month --invoice november.csv",
    )
    root.command(epilog=examples(*lines))(costs)
    root.add_typer(prices)


def _shown(found: dict[str, Any]) -> RenderableType:
    largest = max((float(line["amount"] or 0) for line in found["lines"]), default=0)
    keys = found["by"]
    rows = [
        (
            *(line["key"][name] for name in keys),
            drawn_bar(float(line["amount"] or 0), largest),
            *_figures(line),
        )
        for line in found["lines"]
    ]
    if rows:
        blank = [""] * (len(keys) - 1)
        rows.append((Text("total 합계", style="bold"), *blank, Text(), *_figures(found["total"])))
    heads = (*(name.upper() for name in keys), "", *_heads(found["currency"]))
    period = f"Costs 비용, {found['since']} to {found['until']} (UTC), {found['scope']}"
    return Group(
        Text(harmless(period), style="bold"),
        table(heads, rows, empty="No use in this period, or none that you may see."),
        _notes(found),
    )


def _shown_run(found: dict[str, Any]) -> RenderableType:
    rows = [
        (
            *(line["key"][name] for name in ("component", "attempt", "job", "state")),
            when(line["started_at"]),
            *_figures(line),
        )
        for line in found["jobs"]
    ]
    if rows:
        rows.append((Text("total 합계", style="bold"), "", "", "", "", *_figures(found["total"])))
    heads = ("COMPONENT", "ATTEMPT", "JOB", "STATE", "STARTED", *_heads(found["currency"]))
    partly = () if found["complete"] else ("Not all of it is counted yet",)
    return Group(
        table(heads, rows, empty="Accounting knows none of its jobs yet."),
        _notes(found | {"left_out": 0}, *partly),
    )


def _notes(found: dict[str, Any], *more: str) -> Text:
    """What to know about the figures; that they are others than before is not said in grey."""
    said = Text(harmless("\n".join(corrections_told(found))), style="yellow")
    others = "\n".join([*more, *_loose(found["total"]), *age_notes(found)])
    return Text("\n").join(part for part in (said, Text(harmless(others), style="bright_black")) if part)


def _heads(currency: str) -> tuple[str, ...]:
    return (f"{currency} 금액>", "FAULTS>", "EXEMPT>", "HOURS 시간", "UNPRICED 단가 없음")


def _figures(line: dict[str, Any]) -> tuple[str, ...]:
    amounts = ("?" if line["amount"] is None else grouped(line["amount"]),)
    others = ("" if line[name] is None else grouped(line[name]) for name in ("faults", "exempt"))
    return (*amounts, *others, _hours(line["hours"]), _hours(line["unpriced"]))


def _hours(found: dict[str, float]) -> str:
    return ", ".join(f"{hours:,.1f} {_NAMES[name][0]}" for name, hours in found.items())


def _loose(total: dict[str, Any]) -> list[str]:
    if not total["unpriced"]:
        return []
    names = ", ".join(f"{name} ({_NAMES[name][1]})" for name in total["unpriced"])
    return [f"Unpriced hours are in no amount: an admin enters prices with `broker prices set`. {names}"]
