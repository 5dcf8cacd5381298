"""What use costs, the price list, and invoices."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.files import save
from broker.cli.options import Json, api, examples, group
from broker.cli.output import emit, harmless, table, when
from broker.cli.periods import Last, Since, Until, chosen_day, chosen_period
from broker.cli.report_views import age_notes, drawn_bar
from broker.cli.splitting import Lines, by_option, chosen_filters, where_option
from broker.errors import InvalidRequest

prices = group("prices", "What an hour of a core, a GPU, a GiB of memory costs, and from when on.")

_FILTERS: Final = "cluster, tenant, user, partition, qos, gpu_type, outcome"
_NAMES: Final = {
    "core_hour": ("core h", "코어"),
    "gpu_hour": ("GPU h", "GPU"),
    "gib_hour": ("GiB h", "메모리"),
    "billing_hour": ("billing h", "Slurm billing"),
}
_PLACE: Final = ("cluster", "partition", "qos", "gpu_type")
By = Annotated[list[str] | None, by_option("`user`, `run`, `month`")]
Where = Annotated[list[str] | None, where_option("this use", _FILTERS)]
Resource = Literal["core_hour", "gpu_hour", "gib_hour", "billing_hour"]


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


@prices.command("list", epilog=examples("broker prices list", "broker prices list --all --json"))
def list_prices(
    ctx: typer.Context,
    every: Annotated[
        bool, typer.Option("--all", help="Past and withdrawn ones, and other currencies too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the prices that hold, and those that will."""
    with api(ctx) as client:
        found = client.get("/prices", all=every)
    rows = (
        (
            one["id"],
            one["resource"],
            _place(one),
            "ends" if one["amount"] is None else f"{_grouped(one['amount'])} {one['currency']}",
            one["valid_from"],
            one["valid_until"],
            one["state"],
        )
        for one in found["items"]
    )
    heads = ("ID", "RESOURCE", "WHERE", "PRICE>", "FROM", "UNTIL", "STATE")
    emit(found, lambda: table(heads, rows, empty="No prices: all use is unpriced"), as_json=as_json)


@prices.command(
    "set",
    epilog=examples(
        "broker prices set core_hour 12 --from 2026-12-01",
        "broker prices set gpu_hour 1500 --from 2026-12-01 --cluster main --gpu-type a100",
        "broker prices set gpu_hour 0 --from 2026-12-01 --qos idle    free",
        "broker prices set core_hour --end --from 2027-01-01 --partition debug    the wider one again",
    ),
)
def set_price(
    ctx: typer.Context,
    resource: Annotated[Resource, typer.Argument(metavar="RESOURCE", help=f"{', '.join(_NAMES)}.")],
    since: Annotated[str, typer.Option("--from", metavar="DATE", help="First day (UTC) on which it holds.")],
    amount: Annotated[
        str | None, typer.Argument(metavar="AMOUNT", help="Per hour, in the broker's currency: `12`, `0.05`.")
    ] = None,
    cluster: Annotated[str, typer.Option("--cluster", help="Only there.")] = "*",
    partition: Annotated[str, typer.Option("--partition", help="Only there.")] = "*",
    qos: Annotated[str, typer.Option("--qos", help="Only with this QOS.")] = "*",
    gpu_type: Annotated[str, typer.Option("--gpu-type", help="Only these GPUs.")] = "*",
    end: Annotated[
        bool, typer.Option("--end", help="Instead of an amount: no price of this place's own any more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Enter a price that holds from a day on; what was charged stays."""
    if (amount is None) is not end:
        raise InvalidRequest("Name an amount, or --end: one of them")
    if amount is not None and not _is_number(amount):
        raise InvalidRequest(f"AMOUNT {amount}: write a number with a point, without separators: 12 or 0.05")
    first = chosen_day("--from", since)
    place = {"cluster": cluster, "partition": partition, "qos": qos, "gpu_type": gpu_type}
    with api(ctx) as client:
        found = client.post("/prices", {"resource": resource, "amount": amount, "valid_from": first, **place})
    told = "no price of its own" if end else f"{_grouped(found['amount'])} {found['currency']}"
    sentence = f"{found['id']}: {resource} {told} from {found['valid_from']} on, {_place(found)}."
    emit(found, lambda: sentence, as_json=as_json)


@prices.command(epilog=examples("broker prices withdraw price-1m7yk7h67jtj8nfp"))
def withdraw(
    ctx: typer.Context,
    price: Annotated[str, typer.Argument(metavar="PRICE", help="Id of a price that does not hold yet.")],
    as_json: Json = False,
) -> None:
    """Withdraw a price before it holds."""
    with api(ctx) as client:
        client.delete(f"/prices/{price}")
    emit({"withdrawn": price}, lambda: f"Withdrew {price}.", as_json=as_json)


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
        Text(harmless("\n".join([*_loose(found["total"]), *age_notes(found)])), style="bright_black"),
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
    partly = [] if found["complete"] else ["Not all of it is counted yet"]
    notes = [*partly, *_loose(found["total"]), *age_notes(found | {"left_out": 0})]
    return Group(
        table(heads, rows, empty="Accounting knows none of its jobs yet."),
        Text(harmless("\n".join(notes)), style="bright_black"),
    )


def _place(price: dict[str, Any]) -> str:
    """Where a price holds.

    >>> _place({"cluster": "*", "partition": "*", "qos": "idle", "gpu_type": "a100"})
    'qos idle, gpu_type a100'
    """
    return ", ".join(f"{part} {price[part]}" for part in _PLACE if price[part] != "*") or "everywhere"


def _heads(currency: str) -> tuple[str, ...]:
    return (f"{currency} 금액>", "FAULTS>", "EXEMPT>", "HOURS 시간", "UNPRICED 단가 없음")


def _figures(line: dict[str, Any]) -> tuple[str, ...]:
    amounts = ("?" if line["amount"] is None else _grouped(line["amount"]),)
    others = ("" if line[name] is None else _grouped(line[name]) for name in ("faults", "exempt"))
    return (*amounts, *others, _hours(line["hours"]), _hours(line["unpriced"]))


def _hours(found: dict[str, float]) -> str:
    return ", ".join(f"{hours:,.1f} {_NAMES[name][0]}" for name, hours in found.items())


def _loose(total: dict[str, Any]) -> list[str]:
    if not total["unpriced"]:
        return []
    names = ", ".join(f"{name} ({_NAMES[name][1]})" for name in total["unpriced"])
    return [f"Unpriced hours are in no amount: an admin enters prices with `broker prices set`. {names}"]


def _is_number(amount: str) -> bool:
    try:
        return Decimal(amount).is_finite()
    except InvalidOperation:
        return False


def _grouped(amount: str) -> str:
    """An amount with its thousands apart.

    >>> _grouped("1234567"), _grouped("0.050000")
    ('1,234,567', '0.050000')
    """
    try:
        return f"{Decimal(amount):,f}"
    except InvalidOperation:
        return amount
