"""The price list: what an hour costs, from when on, and what was wrong about it."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final, Literal, get_args

import typer

from broker.cli.cost_words import COST_WORDS, PRICE_HEADS, PRICE_STATES, WITHDRAWN_HEADS
from broker.cli.options import Json, api, examples, group
from broker.cli.output import emit, table, when
from broker.cli.periods import chosen_day
from broker.cli.report_words import Lang, Language
from broker.errors import InvalidRequest

prices = group("prices", "What an hour of a core, a GPU, a GiB of memory costs, and from when on.")

_PLACE: Final = ("cluster", "partition", "qos", "gpu_type")
Resource = Literal["core_hour", "gpu_hour", "gib_hour", "billing_hour"]


@prices.command("list", epilog=examples("broker prices list", "broker prices list --all --lang ko"))
def list_prices(
    ctx: typer.Context,
    every: Annotated[
        bool, typer.Option("--all", help="Past and withdrawn ones, and other currencies too.")
    ] = False,
    lang: Lang = "en",
    as_json: Json = False,
) -> None:
    """List the prices that hold, and those that will."""
    with api(ctx) as client:
        found = client.get("/prices", all=every)
    words = COST_WORDS[lang]
    rows = (
        (
            one["id"],
            one["resource"],
            place_of(one, words["everywhere"]),
            words["ends"] if one["amount"] is None else f"{grouped(one['amount'])} {one['currency']}",
            one["valid_from"],
            one["valid_until"],
            PRICE_STATES[lang][one["state"]],
            *(_withdrawal(one, lang) if every else ()),
        )
        for one in found["items"]
    )
    heads = (*PRICE_HEADS[lang], *(WITHDRAWN_HEADS[lang] if every else ()))
    emit(found, lambda: table(heads, rows, empty=words["no_prices"]), as_json=as_json)


@prices.command(
    "set",
    epilog=examples(
        "broker prices set core_hour 12 --from 2026-12-01",
        "broker prices set gpu_hour 1500 --from 2026-12-01 --cluster main --gpu-type a100",
        "broker prices set gpu_hour 0 --from 2026-12-01 --qos idle    # free",
        "broker prices set core_hour --end --from 2027-01-01 --partition debug    # the wider one again",
    ),
)
def set_price(
    ctx: typer.Context,
    resource: Annotated[
        Resource, typer.Argument(metavar="RESOURCE", help=f"{', '.join(get_args(Resource))}.")
    ],
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
    _check_amount("AMOUNT", amount, end)
    first = chosen_day("--from", since)
    place = {"cluster": cluster, "partition": partition, "qos": qos, "gpu_type": gpu_type}
    with api(ctx) as client:
        found = client.post("/prices", {"resource": resource, "amount": amount, "valid_from": first, **place})
    emit(found, lambda: _entered(found), as_json=as_json)


@prices.command(
    epilog=examples(
        'broker prices correct price-1m7yk7h67jtj8nfp --amount 1.20 --why "a zero too many"',
        'broker prices correct price-1m7yk7h67jtj8nfp --end --why "debug costs what all cores do"',
    )
)
def correct(
    ctx: typer.Context,
    price: Annotated[str, typer.Argument(metavar="PRICE", help="Id of the wrong price.")],
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Told with all costs that change by it.")],
    amount: Annotated[
        str | None, typer.Option("--amount", metavar="AMOUNT", help="Per hour, what it should have been.")
    ] = None,
    end: Annotated[
        bool,
        typer.Option("--end", help="Instead: the place should have had no price of its own from then on."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the right price stand in the place of a wrong one from its first day on; past costs change by it.

    The wrong one is kept (`broker prices list --all`), and costs of the days on which it held tell of it.
    """
    _check_amount("--amount", amount, end)
    with api(ctx) as client:
        found = client.post(f"/prices/{price}/corrections", {"amount": amount, "why": why})
    emit(found, lambda: f"Withdrew {price}. {_entered(found)}", as_json=as_json)


@prices.command(
    epilog=examples(
        "broker prices withdraw price-1m7yk7h67jtj8nfp",
        'broker prices withdraw price-1m7yk7h67jtj8nfp --why "of another cluster"    # it holds already',
    )
)
def withdraw(
    ctx: typer.Context,
    price: Annotated[str, typer.Argument(metavar="PRICE", help="Id of a price.")],
    why: Annotated[
        str | None,
        typer.Option(
            "--why", metavar="TEXT", help="Required once it holds; told with all costs that change."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Withdraw a price that should not have been entered: the one before it, or a wider one, holds instead.

    Once it holds, past costs change by it. To end a price from a later day on, `broker prices set … --end`.
    """
    with api(ctx) as client:
        client.delete(f"/prices/{price}", why=why)
    emit({"withdrawn": price}, lambda: f"Withdrew {price}.", as_json=as_json)


def _entered(price: dict[str, Any]) -> str:
    amount = price["amount"]
    told = "no price of its own" if amount is None else f"{grouped(amount)} {price['currency']}"
    return f"{price['id']}: {price['resource']} {told} from {price['valid_from']} on, {place_of(price)}."


def _withdrawal(price: dict[str, Any], lang: Language) -> tuple[str | None, ...]:
    if price["withdrawn_at"] is None:
        return None, None
    who = COST_WORDS[lang]["withdrawn_by"].format(at=when(price["withdrawn_at"]), by=price["withdrawn_by"])
    why = f": {price['withdrawn_why']}" if price["withdrawn_why"] else ""
    return f"{who}{why}", price["corrected_by"]


def _check_amount(option: str, amount: str | None, end: bool) -> None:
    if (amount is None) is not end:
        raise InvalidRequest("Name an amount, or --end: one of them")
    if amount is not None and not _is_number(amount):
        raise InvalidRequest(
            f"{option} {amount}: write a number with a point, without separators: 12 or 0.05"
        )


def place_of(price: dict[str, Any], everywhere: str = "everywhere") -> str:
    """Where a price holds, in words.

    >>> place_of({"cluster": "*", "partition": "*", "qos": "idle", "gpu_type": "a100"})
    'qos idle, gpu_type a100'
    """
    return ", ".join(f"{part} {price[part]}" for part in _PLACE if price[part] != "*") or everywhere


def _is_number(amount: str) -> bool:
    try:
        return Decimal(amount).is_finite()
    except InvalidOperation:
        return False


def grouped(amount: str) -> str:
    """An amount with its thousands apart.

    >>> grouped("1234567"), grouped("0.050000")
    ('1,234,567', '0.050000')
    """
    try:
        return f"{Decimal(amount):,f}"
    except InvalidOperation:
        return amount
