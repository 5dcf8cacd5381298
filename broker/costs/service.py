"""The price list: entering, correcting, withdrawing, reading.

No price that is entered changes the past: what was charged stays. Only who says that a price was wrong, and
why, changes it; nothing of it is lost, and the costs of that time tell of it (`corrections`).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.accounting.tables import AccountingCursorRow
from broker.audit import record
from broker.costs.corrections import Entry
from broker.costs.pricing import ANY, Place, Price, PriceBook, Resource
from broker.costs.schemas import PriceCorrection, PriceList, PriceRequest, PriceView
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


def history_of(session: Session, currency: str) -> list[Entry]:
    """All prices of a currency that ever were, with what became of them."""
    return [
        Entry(
            price_of(row),
            row.created_at,
            row.withdrawn_at,
            row.withdrawn_by or "",
            row.withdrawn_why or "",
            row.corrects,
        )
        for row in session.scalars(select(PriceRow).where(PriceRow.currency == currency))
    ]


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
            f"From {price.valid_from} on {_told(same)} holds there ({same.id}): name another day{first}, or "
            f"correct it if it is wrong"
        )
    _check_end(book, price, "name an amount")
    if price.valid_from < today and (old := book.rewritten(price, today)):
        raise Conflict(
            f"Use since {price.valid_from} was charged by {_told(old)} ({old.id}), and stays so: name a day "
            f"from {today} on, or correct that price if it is wrong"
        )


def _check_end(book: PriceBook, price: Price, remedy: str) -> None:
    if price.amount is None and book.ended(price) is None:
        detail = f"There is no price of that place to end on {price.valid_from}: {remedy}"
        raise InvalidRequest(detail, problems=[Problem("/amount", "no_price_to_end", detail)])


def correct_price(
    session: Session, principal: Principal, price_id: str, wanted: PriceCorrection
) -> PriceView:
    """Withdraw a wrong price and let the right one stand in its place from its first day on, the past too;
    raises `NotFound`, `InvalidRequest`, or `Conflict` where it was withdrawn or corrected already.
    """
    exclusive(session, "prices")
    old = _standing(session, price_id)
    if wanted.amount == old.amount:
        detail = f"That is what {old.id} says already: name the amount that it should have been"
        raise InvalidRequest(detail, problems=[Problem("/amount", "same_amount", detail)])
    now = utcnow()
    _withdraw(old, principal, now, wanted.why)
    session.flush()  # only one price may begin at a place on a day
    facts = {name: getattr(old, name) for name in _FACTS} | {"amount": wanted.amount, "corrects": old.id}
    row = PriceRow(id=new_id("price"), created_at=now, created_by=principal.username, **facts)
    _check_end(book_of(session, old.currency), price_of(row), "name an amount, or withdraw the wrong one")
    session.add(row)
    session.flush()
    session.refresh(row)
    after = _facts(row) | {"corrected_by": row.id}
    record(session, principal, "price.correct", "price", old.id, _facts(old), after, wanted.why)
    entered = _facts(row) | {"corrects": old.id}
    record(session, principal, "price.set", "price", row.id, None, entered, wanted.why)
    return _view(row, book_of(session, row.currency), now.date())


def withdraw_price(session: Session, principal: Principal, price_id: str, why: str | None) -> None:
    """Withdraw a price, also for days that have passed: that of before, or of a wider place, holds then.

    Raises `NotFound`, `Conflict`, or `InvalidRequest` where nobody says why although it has begun to hold.
    """
    exclusive(session, "prices")
    row, now = _standing(session, price_id), utcnow()
    if why is None and row.valid_from <= now.date():
        detail = (
            f"{row.id} holds since {row.valid_from}, and without it the costs of these days change: say why. "
            f"To end it, enter a price from a later day"
        )
        raise InvalidRequest(detail, problems=[Problem("?why", "why_required", detail)])
    _withdraw(row, principal, now, why)
    record(session, principal, "price.withdraw", "price", row.id, _facts(row), None, why or "")


def _standing(session: Session, price_id: str) -> PriceRow:
    """A price that was not withdrawn; raises `NotFound`, or `Conflict`, which names what stands there now."""
    row = session.get(PriceRow, price_id)
    if row is None:
        raise NotFound(f"There is no price {price_id[:64]!r}")
    last = row
    while after := session.scalar(select(PriceRow).where(PriceRow.corrects == last.id)):
        last = after
    if last.withdrawn_at is not None:
        which = "" if last is row else f" was corrected, and {last.id}, which stood in its place,"
        raise Conflict(f"{row.id}{which} was withdrawn already: enter a price if one should hold")
    if last is not row:
        raise Conflict(f"{row.id} was corrected already: {last.id} stands in its place")
    return row


def _withdraw(row: PriceRow, principal: Principal, moment: datetime, why: str | None) -> None:
    row.withdrawn_at, row.withdrawn_by, row.withdrawn_why = moment, principal.username, why


def list_prices(session: Session, currency: str, *, all_: bool) -> PriceList:
    """The prices that hold or will hold; with `all_` past and withdrawn ones and other currencies too."""
    today, books = utcnow().date(), {}
    items = []
    rows = session.scalars(select(PriceRow)).all()
    instead = {row.corrects: row.id for row in rows if row.corrects is not None}
    for row in rows:
        if row.currency not in books:
            books[row.currency] = book_of(session, row.currency)
        view = _view(row, books[row.currency], today, instead.get(row.id))
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


def _view(row: PriceRow, book: PriceBook, today: date, corrected_by: str | None = None) -> PriceView:
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
    found = {"valid_until": until, "state": state, "corrected_by": corrected_by}
    return PriceView.model_validate(known | found)


def _facts(row: PriceRow) -> dict[str, str | None]:
    """What the audit trail keeps of a price."""
    facts = {name: getattr(row, name) for name in _FACTS}
    return {name: None if value is None else f"{value}" for name, value in facts.items()}


def _told(price: Price) -> str:
    return "no price" if price.amount is None else f"the price {price.amount:f}"
