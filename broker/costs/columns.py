"""The sums of days priced as columns: a year of a million jobs is hundreds of thousands of rows. Pure.

Rows whose price is the same for every resource are one class, and are added up before anything is priced;
only what an item is made of (`pricing.Item`) is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import compress
from operator import mul
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from broker.costs.pricing import SUM_OF, Fate, Item, Place, Price, PriceBook, Resource, fate, where
from broker.reports import days
from broker.reports.grouping import Grouped, group, keyed

SPAN, OUTCOME = "cost_span", "outcome"
_CLASS, _LINE = "cost_class", "cost_line"


class Priced(NamedTuple):
    """All that decides about one resource in a class of rows."""

    resource: Resource
    fate: Fate
    place: Place
    price: Price | None


@dataclass(frozen=True)
class Costs:
    """Use added up by line and by class: rows of one class are priced alike for every resource.

    `made`: sums by (line, class); `priced`: of each resource, how each class is, None where it is not to be
    paid for. A line without any use of what is to be paid for is none.
    """

    by: Sequence[str]
    made: Grouped
    priced: Mapping[Resource, Sequence[Priced | None]]

    @cached_property
    def _rows(self) -> tuple[list[int], list[int], dict[Resource, list[int]]]:
        """Line, class and sums of each row: in the order of lines."""
        lines, classes = _split(self.made)
        sums = {one: self.made.columns[SUM_OF[one]].to_pylist() for one in self.priced}
        return lines.to_pylist(), classes.to_pylist(), sums

    @cached_property
    def lines(self) -> list[int]:
        """The lines there are, in the order of their keys."""
        lines, classes, sums = self._rows
        used = [False] * len(lines)
        for resource, known in self.priced.items():
            paid = [one is not None for one in known]
            used = [
                had or (amount != 0 and paid[at])
                for had, amount, at in zip(used, sums[resource], classes, strict=True)
            ]
        return list(dict.fromkeys(compress(lines, used)))

    def amounts(self, *fates: Fate) -> list[int | None]:
        """What each of `lines` costs, in parts of the currency (`pricing.PARTS`); None: nothing in it has a
        price and came to one of these ends.
        """
        lines, classes, sums = self._rows
        places = range(len(next(iter(self.priced.values()))))
        found: dict[int, int] = {}
        rates = {one: [_rate(known[at], fates) for at in places] for one, known in self.priced.items()}
        for resource, of_class in rates.items():
            if all(rate is None for rate in of_class):
                continue
            amounts = sums[resource]
            has = [rate is not None for rate in of_class]
            counts = [amount and has[at] for amount, at in zip(amounts, classes, strict=True)]
            prices = [rate or 0 for rate in of_class]
            costs = map(mul, compress(amounts, counts), [prices[at] for at in compress(classes, counts)])
            for line, cost in zip(compress(lines, counts), costs, strict=True):
                found[line] = found.get(line, 0) + cost
        return [found.get(line) for line in self.lines]

    def items(self, lines: Sequence[int] | None = None) -> list[Item]:
        """The items of these lines (None: of all), in no order."""
        made = self.made
        if lines is not None:
            known = pc.is_in(_split(made)[0], pa.array(lines, pa.int64()))
            columns = {name: column.filter(known) for name, column in made.columns.items()}
            made = replace(made, keys=made.keys.filter(known), columns=columns)
        return _items(made, self.by, self.priced)

    def whole(self) -> list[Item]:
        """The items of all lines together."""
        classes = _split(self.made)[1]
        table = pa.table({_CLASS: classes, **self.made.columns})
        return _items(group(table, (_CLASS,), list(self.made.columns)), (), self.priced)

    def key(self, line: int) -> tuple[str, ...]:
        """What a line is called in each dimension."""
        labels = self.made.labels_of(line * len(self.made.labels[-1]))
        return tuple(days.label(name, label) for name, label in zip(self.by, labels[:-1], strict=True))


def _split(made: Grouped) -> tuple[Any, Any]:
    """The line and the class of each key."""
    order: Sequence[Any] = made.labels[-1]
    lines = pc.divide(made.keys, max(len(order), 1))
    places = pc.subtract(made.keys, pc.multiply(lines, len(order)))
    return lines, pc.take(pa.array(order, pa.int64()), places)


def _rate(one: Priced | None, fates: Sequence[Fate]) -> int | None:
    """What one of the sum costs, in parts of the currency."""
    if one is None or one.price is None or one.fate not in fates:
        return None
    return Item((), one.fate, one.resource, one.place, one.price, 1).parts


def costs_of(
    table: pa.Table,
    by: Sequence[str],
    book: PriceBook,
    exempt: Sequence[str],
    starts: Sequence[date],
    *,
    places: bool = True,
) -> Costs:
    """The costs of what was used.

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
    return Costs(by, made, {one: [known[at] for known in classes] for at, one in enumerate(counted)})


def _combinations(table: pa.Table, names: Sequence[str]) -> tuple[Any, list[tuple[Any, ...]]]:
    """Each row's combination of these columns, as a place in the list of all that occur."""
    labels, keys = keyed(table, names)
    known = pc.unique(keys)
    found = Grouped(labels, known, {}, {})
    return pc.index_in(keys, known), [found.labels_of(key) for key in known.to_pylist()]


def _priced(
    book: PriceBook, resource: Resource, place: Place, day: date, what: Fate, *, places: bool
) -> Priced | None:
    """None: on that day it is not to be paid for."""
    if resource not in book.counted(day):
        return None
    at = where(resource, place)
    price = book.holding(resource, at, day)
    return Priced(resource, what, price.place if price else at if places else Place(), price)


def _items(
    made: Grouped, by: Sequence[str], priced: Mapping[Resource, Sequence[Priced | None]]
) -> list[Item]:
    """Per resource, what is priced the same in one line added up."""
    lines, classes = _split(made)
    width = len(made.labels[-1])
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
                labels = made.labels_of(line * width)
                texts[line] = tuple(
                    days.label(name, label) for name, label in zip(by, labels[:-1], strict=True)
                )
            items.append(Item(texts[line], one.fate, resource, one.place, one.price, amount))
    return items
