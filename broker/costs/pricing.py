"""Which price holds, and what use costs by it. Pure, and exact until it is shown.

The rule for which of several prices holds on the day of use: the one that names the cluster goes before one
that names none; among these the one that names the partition, then the QOS, then the GPU type. Two prices
that are equal in all of this are for the same place, where the one with the later `valid_from` holds; two
with the same day are refused when they are entered. Nothing else can tie.

What no price holds for is not free: it is *unpriced*, and stays visible as hours without an amount. Free is
what has the price 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from itertools import product
from typing import Final, NamedTuple

ANY: Final = "*"


class Resource(StrEnum):
    """What a price is for an hour of."""

    CORE = "core_hour"
    GPU = "gpu_hour"
    MEMORY = "gib_hour"
    """A GiB of memory, allocated for an hour."""
    BILLING = "billing_hour"
    """A unit of Slurm's own `billing` TRES (`TRESBillingWeights`), for an hour."""


SUM_OF: Final[Mapping[Resource, str]] = {
    Resource.CORE: "core_s",
    Resource.GPU: "gpu_s",
    Resource.MEMORY: "mem_mib_s",
    Resource.BILLING: "billing_s",
}
"""The sum per day (`accounting_days`) that a resource's use stands in."""
PER_HOUR: Final[Mapping[Resource, int]] = {
    Resource.CORE: 3600,
    Resource.GPU: 3600,
    Resource.MEMORY: 3600 * 1024,
    Resource.BILLING: 3600,
}
"""How much of that sum is one hour."""
_LEAST: Final = 3600 * 1024
PARTS: Final = _LEAST * 10**6
"""Parts of the currency in which every cost is a whole number: prices have six digits after the point."""


class Place(NamedTuple):
    """Where use took place, or where a price holds (`*`: anywhere); the first that is named weighs most."""

    cluster: str = ANY
    partition: str = ANY
    qos: str = ANY
    gpu_type: str = ANY

    def overlaps(self, other: Place) -> bool:
        """Whether any use can be in both."""
        return all(ANY in pair or pair[0] == pair[1] for pair in zip(self, other, strict=True))


@dataclass(frozen=True, slots=True)
class Price:
    """A price of one currency. `amount` null: the place has none of its own any more."""

    id: str
    resource: Resource
    place: Place
    amount: Decimal | None
    valid_from: date


class PriceBook:
    """All prices of one currency that were not withdrawn."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._lines: dict[tuple[Resource, Place], list[Price]] = {}
        for price in sorted(prices, key=lambda one: one.valid_from):
            self._lines.setdefault((price.resource, price.place), []).append(price)
        named = {(resource, _names(place)) for resource, place in self._lines}
        self._forms = {
            resource: [form for form in _FORMS if (resource, form) in named] for resource in Resource
        }
        self._found: dict[tuple[Resource, Place, date], Price | None] = {}
        self._counted: dict[date, tuple[Resource, ...]] = {}

    def holding(self, resource: Resource, place: Place, day: date) -> Price | None:
        """The price that holds for use at a place on a day; None: it has no price."""
        key = (resource, place, day)
        if key not in self._found:
            self._found[key] = self._search(*key)
        return self._found[key]

    def _search(self, resource: Resource, place: Place, day: date) -> Price | None:
        for form in self._forms[resource]:
            known = (part if named else ANY for part, named in zip(place, form, strict=True))
            line = self._lines.get((resource, Place(*known)), [])
            at = bisect_right(line, day, key=_begin)
            if at and line[at - 1].amount is not None:
                return line[at - 1]
        return None

    def changes(self, since: date, until: date) -> list[date]:
        """The days in between on which any price begins or ends: from one to the next, all stay the same."""
        days = {price.valid_from for line in self._lines.values() for price in line}
        return sorted(day for day in days if since < day < until)

    def until(self, price: Price) -> date | None:
        """The first day on which another price holds for the same place; None: there is none yet."""
        line = self._lines[price.resource, price.place]
        at = bisect_right(line, price.valid_from, key=_begin)
        return line[at].valid_from if at < len(line) else None

    def parts(self) -> tuple[str, ...]:
        """The parts of a place that any price names: the others make no difference."""
        forms = [_names(place) for _, place in self._lines]
        return tuple(name for at, name in enumerate(Place._fields) if any(form[at] for form in forms))

    def counted(self, day: date | None = None) -> tuple[Resource, ...]:
        """The resources that are to be paid for: Slurm's billing units, what was allocated, or both.

        Whoever has prices for one of these ways has none for the other on purpose. On a `day` only those that
        hold then say so, if any does: who goes from one way to the other counts each in its time.
        """
        priced = {resource for resource, _ in self._lines}
        if day is None:
            return self._of_ways(priced)
        if day not in self._counted:
            held = {resource for resource, place in self._lines if self.holding(resource, place, day)}
            self._counted[day] = self._of_ways(held or priced)
        return self._counted[day]

    @staticmethod
    def _of_ways(priced: Set[Resource]) -> tuple[Resource, ...]:
        allocated = bool(priced - {Resource.BILLING}) or not priced
        return tuple(one for one in Resource if (one in priced if one is Resource.BILLING else allocated))

    def same(self, price: Price) -> Price | None:
        """The price that begins on the same day at the same place."""
        line = self._lines.get((price.resource, price.place), [])
        return next((one for one in line if one.valid_from == price.valid_from), None)

    def ended(self, price: Price) -> Price | None:
        """The price that `price` takes the turn of, at the same place; None: there is none to end."""
        line = self._lines.get((price.resource, price.place), [])
        at = bisect_right(line, price.valid_from, key=_begin)
        return line[at - 1] if at and line[at - 1].amount is not None else None

    def rewritten(self, price: Price, today: date) -> Price | None:
        """A price that held before today and that `price` would replace for the past; None: there is none,
        so nothing that was charged changes.
        """
        line = self._lines.get((price.resource, price.place), [])
        end = min([today, *(one.valid_from for one in line if one.valid_from > price.valid_from)])
        for (resource, place), others in self._lines.items():
            if resource is not price.resource or not place.overlaps(price.place):
                continue
            if _names(place) > _names(price.place):  # goes before it, whatever it says
                continue
            for one in others:
                after = self.until(one)
                if (
                    one.amount is not None
                    and one.valid_from < end
                    and (after is None or after > price.valid_from)
                ):
                    return one
        return None


def _begin(price: Price) -> date:
    return price.valid_from


def _names(place: Place) -> tuple[bool, ...]:
    return tuple(part != ANY for part in place)


_FORMS: Final = tuple(product((True, False), repeat=len(Place._fields)))
"""Which parts of a place are named, in the order in which prices are tried."""


class Fate(StrEnum):
    """What became of the attempts that some use is of."""

    OWN = "own"
    FAULT = "fault"
    """The cluster ended them (`FAULTS`)."""
    EXEMPT = "exempt"
    """They are not charged (setting `costs.exempt_outcomes`)."""


FAULTS: Final = ("BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL", "PREEMPTED")
"""Ends that nobody who submitted a job can help."""


def fate(outcome: str, exempt: Sequence[str]) -> Fate:
    """What an end (Slurm's state) means for the costs."""
    return Fate.EXEMPT if outcome in exempt else Fate.FAULT if outcome in FAULTS else Fate.OWN


@dataclass(frozen=True, slots=True)
class Use:
    """What was allocated: the sums of `SUM_OF`, on days on which no price changes (`day`: the first)."""

    key: tuple[str, ...]
    place: Place
    day: date
    fate: Fate
    sums: Mapping[Resource, int]


@dataclass(frozen=True, slots=True)
class Item:
    """Use of one resource at one price (None: unpriced). `place`: the price's, else where the use was."""

    key: tuple[str, ...]
    fate: Fate
    resource: Resource
    place: Place
    price: Price | None
    amount: int

    @property
    def hours(self) -> Fraction:
        """Hours, exactly."""
        return Fraction(self.amount, PER_HOUR[self.resource])

    @property
    def parts(self) -> int | None:
        """What it costs, exactly, in parts of the currency (`PARTS`); None: nobody has said."""
        if self.price is None or self.price.amount is None:
            return None
        millionths = int(self.price.amount.scaleb(6))
        return self.amount * millionths * (_LEAST // PER_HOUR[self.resource])

    @property
    def cost(self) -> Fraction | None:
        """The same as a fraction of the currency."""
        return None if self.parts is None else Fraction(self.parts, PARTS)


def where(resource: Resource, place: Place) -> Place:
    """Where use of a resource took place: only GPUs have a type."""
    return place if resource is Resource.GPU else place._replace(gpu_type=ANY)


def itemized(book: PriceBook, uses: Iterable[Use]) -> list[Item]:
    """Every use priced, and what has the same price in the same line added up; in the order of the lines."""
    found: dict[tuple[tuple[str, ...], Fate, Resource, Place, Price | None], int] = {}
    for use in uses:
        for resource in book.counted(use.day):
            if amount := use.sums.get(resource, 0):
                at = where(resource, use.place)
                price = book.holding(resource, at, use.day)
                place = price.place if price else at
                key = (use.key, use.fate, resource, place, price)
                found[key] = found.get(key, 0) + amount
    return sorted((Item(*key, amount) for key, amount in found.items() if amount), key=in_order)


def in_order(item: Item) -> tuple[object, ...]:
    """Where an item stands: by line, then by resource, place and price."""
    order = _RESOURCES.index(item.resource)
    return item.key, order, item.place, item.price.valid_from if item.price else date.min, item.fate


_RESOURCES: Final = tuple(Resource)
_NONE: Final = (
    *("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"),
    *("RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"),
)
_THREE: Final = ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")
_DIGITS: Final = {**dict.fromkeys(_NONE, 0), **dict.fromkeys(_THREE, 3)}
"""Digits after the point (ISO 4217, minor unit) where they are not two."""


def in_units(parts: Iterable[int | None], currency: str) -> list[int | None]:
    """Amounts in parts of the currency (`PARTS`) as numbers of its least unit; rounded as `rounded` does.

    >>> in_units([PARTS * 5 // 2, PARTS * 7 // 2, PARTS // 3, None], "KRW")
    [2, 4, 0, None]
    """
    unit = PARTS // 10 ** digits_of(currency)
    half = unit // 2  # of an even number
    # a half and more is carried, but for a half exactly where the number before it is even
    return [
        None if one is None else (one + half) // unit - (one % unit == half and one // unit % 2 == 0)
        for one in parts
    ]


def digits_of(currency: str) -> int:
    """Digits after the point."""
    return _DIGITS.get(currency, 2)


def rounded(amount: Fraction, currency: str) -> Decimal:
    """An amount in the currency's least unit; a half goes to the even neighbour, so that errors even out.

    >>> rounded(Fraction(5, 2), "KRW"), rounded(Fraction(1, 3), "USD"), rounded(Fraction(7, 2), "KRW")
    (Decimal('2'), Decimal('0.33'), Decimal('4'))
    """
    digits = digits_of(currency)
    return Decimal(round(amount * 10**digits)).scaleb(-digits)
