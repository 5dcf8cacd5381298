"""The sums of days priced as columns: a year of a million jobs is hundreds of thousands of rows. Pure.

Rows whose price is the same for every resource are one class, and are added up before anything is priced;
only what an item is made of (`pricing.Item`) is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from broker.costs.pricing import SUM_OF, Fate, Item, Place, Price, PriceBook, Resource, fate, where
from broker.reports import days
from broker.reports.grouping import Grouped, coded, group

SPAN, OUTCOME = "cost_span", "outcome"
_CLASS, _LINE = "cost_class", "cost_line"


class Priced(NamedTuple):
    """All that decides about one resource in a class of rows."""

    fate: Fate
    place: Place
    price: Price | None


def items_of(
    table: pa.Table,
    by: Sequence[str],
    book: PriceBook,
    exempt: Sequence[str],
    starts: Sequence[date],
    *,
    places: bool = True,
) -> list[Item]:
    """The items of each line, in no order.

    `table` has the dimensions of `by`, the parts of places that prices name, `outcome`, the sums, and `SPAN`:
    the place among `starts`, between which no price changes. Without `places` nothing says where what is
    unpriced was: there may be many.
    """
    counted, parts = book.counted(), book.parts()
    codes, combinations = _combinations(table, (*parts, OUTCOME, SPAN))
    classes: dict[tuple[Priced | None, ...], int] = {}
    of_combination = []
    for values in combinations:
        found = dict(zip((*parts, OUTCOME, SPAN), values, strict=True))
        place = Place()._replace(**{part: found[part] for part in parts})
        what, day = fate(found[OUTCOME], exempt), starts[found[SPAN]]
        known = tuple(_priced(book, one, place, day, what, places=places) for one in counted)
        of_combination.append(classes.setdefault(known, len(classes)))
    of_row = pc.take(pa.array(of_combination, pa.int64()), codes)
    sums = [SUM_OF[one] for one in counted]
    made = group(table.append_column(_CLASS, of_row), (*by, _CLASS), sums)
    priced = {one: [known[at] for known in classes] for at, one in enumerate(counted)}
    return _items(made, by, priced)


def _combinations(table: pa.Table, names: Sequence[str]) -> tuple[Any, list[tuple[Any, ...]]]:
    """Each row's combination of these columns, as a place in the list of all that occur."""
    keys, labels = pa.repeat(pa.scalar(0, pa.int64()), table.num_rows), []
    for name in names:
        codes, values = coded(table[name])
        keys = pc.add(pc.multiply(keys, max(len(values), 1)), codes)
        labels.append(values)
    known = pc.unique(keys)
    found = Grouped(tuple(labels), known, {}, {})
    return pc.index_in(keys, known), [found.labels_of(key) for key in known.to_pylist()]


def _priced(
    book: PriceBook, resource: Resource, place: Place, day: date, what: Fate, *, places: bool
) -> Priced | None:
    """None: on that day it is not to be paid for."""
    if resource not in book.counted(day):
        return None
    at = where(resource, place)
    price = book.holding(resource, at, day)
    return Priced(what, price.place if price else at if places else Place(), price)


def _items(
    made: Grouped, by: Sequence[str], priced: Mapping[Resource, Sequence[Priced | None]]
) -> list[Item]:
    """Per resource, what is priced the same in one line added up."""
    order: Sequence[Any] = made.labels[-1]
    lines = pc.divide(made.keys, max(len(order), 1))
    classes = pc.take(pa.array(order, pa.int64()), pc.subtract(made.keys, pc.multiply(lines, len(order))))
    items: list[Item] = []
    texts: dict[int, tuple[str, ...]] = {}
    for resource, known in priced.items():
        distinct = list(dict.fromkeys(known))
        place_of = {one: at for at, one in enumerate(distinct)}
        of_class = pa.array([place_of[one] for one in known], pa.int64())
        columns = {_LINE: lines, _CLASS: pc.take(of_class, classes), "sum": made.columns[SUM_OF[resource]]}
        added = group(pa.table(columns), (_LINE, _CLASS), ["sum"])
        for key, amount in zip(added.keys.to_pylist(), added.columns["sum"].to_pylist(), strict=True):
            line, at = (int(label) for label in added.labels_of(key))
            one = distinct[at]
            if not amount or one is None:
                continue
            if line not in texts:
                labels = made.labels_of(line * len(order))
                texts[line] = tuple(
                    days.label(name, label) for name, label in zip(by, labels[:-1], strict=True)
                )
            items.append(Item(texts[line], one.fate, resource, one.place, one.price, amount))
    return items
