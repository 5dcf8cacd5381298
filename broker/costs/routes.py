"""Costs and prices over HTTP: everyone reads the costs of the use they may see, admins enter prices."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response

from broker.api.security import Ctx, requires
from broker.costs.invoice import BY as INVOICED
from broker.costs.invoice import invoice_csv
from broker.costs.schemas import CostView, PriceCorrection, PriceList, PriceRequest, PriceView, RunCost, Why
from broker.costs.service import correct_price, list_prices, set_price, withdraw_price
from broker.costs.usage import BY, COSTS, RUN
from broker.costs.views import pricing_of, view_costs, view_run_cost
from broker.identity import Permission, Principal
from broker.reports.asked import MAX_BY, MAX_LINES, Narrowed, refuse
from broker.reports.wanted import PERIODS, Wanted, scope_of
from broker.runs.views import find_run

router = APIRouter(tags=["costs"])
Reader = Annotated[Principal, Depends(requires(Permission.REPORTS_READ))]
Admin = Annotated[Principal, Depends(requires(Permission.PRICES_MANAGE))]


async def wanted_costs(common: Narrowed) -> Wanted:
    """The use that a request asks the costs of."""
    return Wanted(COSTS, common.since, common.until, COSTS.by, common.filters)


Asked = Annotated[Wanted, Depends(wanted_costs)]


@router.get(
    "/costs",
    response_model=CostView,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def show_costs(
    ctx: Ctx,
    principal: Reader,
    asked: Asked,
    by: Annotated[
        list[str] | None, Query(max_length=MAX_BY, description=f"Dimensions, in order: {', '.join(BY)}")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LINES)] = 1000,
    format: Annotated[
        Literal["json", "csv"], Query(description="`csv`: an invoice, by tenant, user, resource and price")
    ] = "json",
    bom: Annotated[bool, Query(description="Begin the CSV with a byte order mark, for Excel")] = True,
) -> CostView | Response:
    """What the use that one may see costs: all (admins), the tenant's, or one's own; as JSON or an invoice.

    What no price holds for is listed as hours without an amount.
    """
    settings, scope = ctx.settings.costs, scope_of(principal)
    if format == "json":
        wanted = replace(asked, by=_checked(by or list(asked.by)))
        with ctx.db.read() as session:
            return view_costs(session, wanted, scope, settings, limit)
    if by is not None:
        refuse("?by", "invoice_by", "An invoice is by tenant and user: leave `by` out")
    with ctx.db.read() as session:
        pricing = pricing_of(session, settings)
        invoiced = replace(asked, by=INVOICED)
        text = invoice_csv(session, invoiced, scope, pricing, settings.currency, mark=bom)
    return Response(
        text,
        media_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="invoice-{asked.since}-{asked.until}.csv"',
        },
    )


@router.get("/runs/{run_id}/cost")
def show_run_cost(run_id: str, ctx: Ctx, principal: Reader) -> RunCost:
    """What a run costs, by attempt of each job; of what runs, up to when its use was last counted."""
    with ctx.db.read() as session:
        return view_run_cost(session, find_run(session, principal, run_id), ctx.settings.costs)


@router.get("/prices")
def show_prices(
    ctx: Ctx,
    principal: Reader,
    all: Annotated[bool, Query(description="Past and withdrawn ones, and other currencies too")] = False,
) -> PriceList:
    """The prices that hold, and those that will."""
    with ctx.db.read() as session:
        return list_prices(session, ctx.settings.costs.currency, all_=all)


@router.post("/prices", status_code=201)
def add_price(body: PriceRequest, ctx: Ctx, principal: Admin) -> PriceView:
    """Enter a price that holds from a day on, in place of the one before; what was charged stays.

    A day in the past is for use that has no price yet; a price that is wrong is corrected.
    """
    with ctx.db.write() as session:
        return set_price(session, principal, body, ctx.settings.costs.currency, ctx.settings.clusters)


@router.post("/prices/{price_id}/corrections", status_code=201)
def add_correction(price_id: str, body: PriceCorrection, ctx: Ctx, principal: Admin) -> PriceView:
    """Let the right price stand in the place of a wrong one from its first day on, the past too.

    The wrong one is withdrawn and kept; the costs of all days on which it held tell of it.
    """
    with ctx.db.write() as session:
        return correct_price(session, principal, price_id, body)


@router.delete("/prices/{price_id}", status_code=204)
def delete_price(
    price_id: str,
    ctx: Ctx,
    principal: Admin,
    why: Annotated[Why | None, Query(description="Required once it has begun to hold")] = None,
) -> None:
    """Withdraw a price that should not have been entered: that of before, or of a wider place, holds instead.

    Where it has begun to hold, the costs of these days change, and tell of it.
    """
    with ctx.db.write() as session:
        withdraw_price(session, principal, price_id, why)


def _checked(by: list[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(by))
    for name in names:
        if name not in BY:
            refuse(
                "?by", "unknown_dimension", f"Costs have no dimension {name!r}; there are: {', '.join(BY)}"
            )
    if RUN in names and set(names) & set(PERIODS):
        refuse("?by", "unknown_dimension", "Costs of runs are not split by time: narrow the period instead")
    return names
