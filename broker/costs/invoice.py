"""Costs as the lines of an invoice: CSV (RFC 4180), one line per tenant, user, resource and price."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction

from sqlalchemy.orm import Session

from broker.audit.reading import csv_text
from broker.costs.corrections import Correction
from broker.costs.pricing import Fate, Item, PriceBook, in_order, rounded
from broker.costs.usage import Pricing, costs
from broker.reports.wanted import Scope, Wanted

COLUMNS = (
    *("tenant", "user", "resource", "cluster", "partition", "qos", "gpu_type", "status", "price"),
    *("since", "until", "hours", "unit_price", "amount", "currency"),
    *("replaces", "unit_price_before", "corrected_at", "corrected_by", "why"),
)
BY = ("tenant", "user")
_NOT_CORRECTED = ("",) * 5


def invoice_csv(
    session: Session, wanted: Wanted, scope: Scope, pricing: Pricing, currency: str, *, mark: bool
) -> str:
    """The invoice of a period, the total last. `mark`: begin with a byte order mark, without which Excel
    takes UTF-8 for something else.

    Each amount is rounded once, and the total is their sum. `since` and `until` (not in it): the part of the
    period in which the price held. `cluster` to `gpu_type`: for what the price holds; of what is unpriced,
    where it was. `status`: `charged`; `exempt` (an end that is not charged) and `unpriced` have no amount;
    `corrected` is no use, but a price that was corrected since: with it, an earlier invoice may have been
    another. Only such lines have something in the last five columns.
    """
    rows, total = [], Decimal()
    found = costs(session, wanted, scope, pricing, places=True)
    for item in _merged(sorted(found.items() if found else [], key=in_order)):
        cost = None if item.fate is Fate.EXEMPT or item.cost is None else rounded(item.cost, currency)
        total += cost or 0
        since, until = _held(pricing.book, item, wanted.since, wanted.until)
        price, unit = (item.price.id, item.price.amount) if item.price else ("", None)
        status = "unpriced" if item.price is None else "exempt" if item.fate is Fate.EXEMPT else "charged"
        what = (*item.key, item.resource.value, *item.place, status, price)
        figures = (hours(item.hours), _text(unit), _text(cost))
        rows.append([*what, f"{since}", f"{until}", *figures, currency, *_NOT_CORRECTED])
    rows += [_corrected(one, wanted.since, wanted.until, currency) for one in pricing.corrections(wanted)]
    period = (f"{wanted.since}", f"{wanted.until}")
    last = ["total", *[""] * 8, *period, "", "", f"{total:f}", currency, *_NOT_CORRECTED]
    return ("\ufeff" if mark else "") + csv_text([COLUMNS, *rows, last])


def _corrected(one: Correction, since: date, until: date, currency: str) -> list[str]:
    """A correction as a line without use; `since` and `until`: the part of the period for which the wrong
    price may have been charged.
    """
    was, now = one.was, one.now
    what = ("", "", was.resource.value, *was.place, "corrected", now.id if now else "")
    held = (f"{max(since, was.valid_from)}", f"{min(until, one.until)}")
    price = ("", _text(now.amount if now else None), "", currency)
    return [*what, *held, *price, was.id, _text(was.amount), f"{one.at:%Y-%m-%dT%H:%M:%SZ}", one.by, one.why]


def hours(amount: Fraction) -> str:
    """Hours with four digits after the point.

    >>> hours(Fraction(1, 3)), hours(Fraction(12))
    ('0.3333', '12.0000')
    """
    return f"{Decimal(round(amount * 10_000)).scaleb(-4):f}"


def _text(amount: Decimal | None) -> str:
    return "" if amount is None else f"{amount:f}"


def _merged(parts: Iterable[Item]) -> Iterator[Item]:
    """One item of what is charged, whether the cluster ended it or not."""
    found: dict[tuple[object, ...], Item] = {}
    for item in parts:
        fate = Fate.OWN if item.fate is Fate.FAULT else item.fate
        key = (item.key, item.resource, item.place, item.price, fate)
        before = found[key].amount if key in found else 0
        found[key] = replace(item, fate=fate, amount=before + item.amount)
    yield from found.values()


def _held(book: PriceBook, item: Item, since: date, until: date) -> tuple[date, date]:
    if item.price is None:
        return since, until
    end = book.until(item.price)
    return max(since, item.price.valid_from), min(until, end or until)
