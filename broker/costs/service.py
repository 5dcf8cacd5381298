"""The price list: entering, withdrawing, reading. What was charged stays: no price changes the past."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.accounting.tables import AccountingCursorRow
from broker.audit import record
from broker.costs.pricing import ANY, Place, Price, PriceBook, Resource
from broker.costs.schemas import PriceList, PriceRequest, PriceView
from broker.costs.tables import PriceRow
from broker.db import new_id, utcnow
from broker.db.locks import exclusive
from broker.errors import Conflict, InvalidRequest, NotFound, Problem
from broker.identity import Principal

_FACTS = ("resource", "cluster", "partition", "qos", "gpu_type", "amount", "currency", "valid_from")


def book_of(session: Session, currency: str) -> PriceBook:
    """The prices of a currency that were not withdrawn."""
    query = select(PriceRow).where(PriceRow.currency == currency, PriceRow.withdrawn_at.is_(None))
    return PriceBook(price_of(row) for row in session.scalars(query))


def price_of(row: PriceRow) -> Price:
    """A row as the arithmetic takes it."""
    place = Place(row.cluster, row.partition, row.qos, row.gpu_type)
    return Price(row.id, Resource(row.resource), place, row.amount, row.valid_from)


def set_price(
    session: Session, principal: Principal, wanted: PriceRequest, currency: str, clusters: Collection[str]
) -> PriceView:
    """Enter a price; raises `InvalidRequest`, or `Conflict` where one begins there on that day already or
    where it would change what was charged. `clusters`: those that are configured.
    """
    exclusive(session, "prices")
    _check_cluster(session, wanted.cluster, clusters)
    book, today = book_of(session, currency), utcnow().date()
    row = PriceRow(id=new_id("price"), currency=currency, created_at=utcnow(), created_by=principal.username)
    for name, value in wanted.model_dump().items():
        setattr(row, name, value)
    _check(book, price_of(row), today)
    session.add(row)
    session.flush()
    session.refresh(row)  # as it is kept: 1e3 is 1000
    record(session, principal, "price.set", "price", row.id, None, _facts(row))
    return _view(row, book_of(session, currency), today)


def _check_cluster(session: Session, name: str, configured: Collection[str]) -> None:
    """A cluster that is configured, or was: its jobs are in the warehouse."""
    if name in (ANY, *configured) or session.get(AccountingCursorRow, name) is not None:
        return
    known = ", ".join(configured) or "none is configured"
    detail = f"There is no cluster {name!r}; known: {known}"
    raise InvalidRequest(detail, problems=[Problem("/cluster", "unknown_cluster", detail)])


def _check(book: PriceBook, price: Price, today: date) -> None:
    if price.place.gpu_type != ANY and price.resource is not Resource.GPU:
        detail = f"A price of {price.resource} has no GPU type: leave it out, or name gpu_hour"
        raise InvalidRequest(detail, problems=[Problem("/gpu_type", "price_without_gpu", detail)])
    if same := book.same(price):
        first = ", or withdraw that one first" if same.valid_from > today else ""
        raise Conflict(
            f"From {price.valid_from} on {_told(same)} holds there ({same.id}): name another day{first}"
        )
    if price.amount is None and book.ended(price) is None:
        detail = f"There is no price of that place to end on {price.valid_from}: name an amount"
        raise InvalidRequest(detail, problems=[Problem("/amount", "no_price_to_end", detail)])
    if price.valid_from < today and (old := book.rewritten(price, today)):
        raise Conflict(
            f"Use since {price.valid_from} was charged by {_told(old)} ({old.id}), and stays so: name a day "
            f"from {today} on"
        )


def withdraw_price(session: Session, principal: Principal, price_id: str) -> None:
    """Withdraw a price that has not begun to hold; raises `NotFound` or `Conflict`."""
    exclusive(session, "prices")
    row = session.get(PriceRow, price_id)
    if row is None:
        raise NotFound(f"There is no price {price_id[:64]!r}")
    if row.withdrawn_at is not None:
        raise Conflict(f"{price_id} was withdrawn already")
    if row.valid_from <= utcnow().date():
        raise Conflict(
            f"{price_id} holds since {row.valid_from}: enter one that takes its place from a later day"
        )
    row.withdrawn_at, row.withdrawn_by = utcnow(), principal.username
    record(session, principal, "price.withdraw", "price", row.id, _facts(row), None)


def list_prices(session: Session, currency: str, *, all_: bool) -> PriceList:
    """The prices that hold or will hold; with `all_` past and withdrawn ones and other currencies too."""
    today, books = utcnow().date(), {}
    items = []
    for row in session.scalars(select(PriceRow)):
        if row.currency not in books:
            books[row.currency] = book_of(session, row.currency)
        view = _view(row, books[row.currency], today)
        if all_ or (row.currency == currency and view.state in ("holds", "future")):
            items.append(view)
    order = list(Resource)
    items.sort(
        key=lambda one: (
            one.currency != currency,
            order.index(one.resource),
            *(part != ANY for part in (one.cluster, one.partition, one.qos, one.gpu_type)),
            *(one.cluster, one.partition, one.qos, one.gpu_type, one.valid_from, one.id),
        )
    )
    return PriceList(currency=currency, items=items)


def _view(row: PriceRow, book: PriceBook, today: date) -> PriceView:
    until = None if row.withdrawn_at else book.until(price_of(row))
    state = (
        "withdrawn"
        if row.withdrawn_at
        else "future"
        if row.valid_from > today
        else "past"
        if until is not None and until <= today
        else "holds"
    )
    known = {
        name: getattr(row, name) for name in PriceView.model_fields if name in PriceRow.__table__.columns
    }
    return PriceView.model_validate(known | {"valid_until": until, "state": state})


def _facts(row: PriceRow) -> dict[str, str | None]:
    """What the audit trail keeps of a price."""
    facts = {name: getattr(row, name) for name in _FACTS}
    return {name: None if value is None else f"{value}" for name, value in facts.items()}


def _told(price: Price) -> str:
    return "no price" if price.amount is None else f"the price {price.amount:f}"
