"""Which price holds, and what use costs by it: exact, whatever the period is cut into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.costs.columns import SPAN, costs_of
from broker.costs.pricing import (
    ANY,
    PARTS,
    PER_HOUR,
    SUM_OF,
    Fate,
    Item,
    Place,
    Price,
    PriceBook,
    Resource,
    Use,
    digits_of,
    fate,
    in_order,
    in_units,
    itemized,
    rounded,
)

FIRST = date(2026, 10, 1)
DAYS = 40
NAMES = (("main", "spare"), ("gpu", "cpu"), ("training", "inference"), ("a100", ""))


def price(number: int, amount: str | None, day: int = 0, where: Place | None = None, **more: str) -> Price:
    resource = Resource(more.pop("resource", "core_hour"))
    place = where or Place(**more)
    return Price(
        f"p{number}", resource, place, None if amount is None else Decimal(amount), FIRST + timedelta(day)
    )


def use(day: int, place: Place, core_s: int = 3600, gpu_s: int = 0, key: tuple[str, ...] = ("a",)) -> Use:
    return Use(key, place, FIRST + timedelta(day), Fate.OWN, {Resource.CORE: core_s, Resource.GPU: gpu_s})


def cost(items: Iterable[Item]) -> Fraction:
    return sum((item.cost or Fraction() for item in items), Fraction())


def unpriced(items: Iterable[Item]) -> int:
    return sum(item.amount for item in items if item.price is None)


places = st.builds(Place, *(st.sampled_from(names) for names in NAMES))
scopes = st.builds(Place, *(st.sampled_from((*names, ANY)) for names in NAMES))
amounts = st.one_of(
    st.none(), st.decimals(0, 10_000, places=6), st.sampled_from([Decimal(0), Decimal("0.000001")])
)


@st.composite
def books(draw: st.DrawFn) -> list[Price]:
    """Prices without ties, as they are entered."""
    found: dict[tuple[Resource, Place, date], Price] = {}
    for number in range(draw(st.integers(0, 12))):
        resource = draw(st.sampled_from([Resource.CORE, Resource.GPU]))
        place = draw(scopes)
        if resource is not Resource.GPU:
            place = place._replace(gpu_type=ANY)
        one = Price(
            f"p{number}", resource, place, draw(amounts), FIRST + timedelta(draw(st.integers(-5, DAYS)))
        )
        found[resource, place, one.valid_from] = one
    return list(found.values())


daily = st.lists(
    st.tuples(st.integers(0, DAYS - 1), places, st.integers(0, 10**7), st.integers(0, 10**6)), max_size=15
)


def holding(prices: Sequence[Price], resource: Resource, place: Place, day: date) -> Price | None:
    """The documented rule, word by word: of the prices that match and have begun, each place's latest; of
    these the one that names the most weighty parts.
    """
    matching = [
        one
        for one in prices
        if one.resource is resource
        and one.valid_from <= day
        and all(mine in (ANY, theirs) for mine, theirs in zip(one.place, place, strict=True))
    ]
    latest = {one.place: one for one in sorted(matching, key=lambda one: one.valid_from)}
    ranked = sorted(
        (one for one in latest.values() if one.amount is not None),
        key=lambda one: [part == ANY for part in one.place],
    )
    return ranked[0] if ranked else None


@given(books(), places, st.integers(-10, DAYS + 5))
def test_the_price_that_holds_is_that_of_the_written_rule(
    prices: list[Price], place: Place, day: int
) -> None:
    when = FIRST + timedelta(day)
    for resource in (Resource.CORE, Resource.GPU):
        assert PriceBook(prices).holding(resource, place, when) == holding(prices, resource, place, when)


def test_the_cluster_weighs_more_than_partition_qos_and_gpu_type_together() -> None:
    book = PriceBook(
        [
            price(1, "1"),
            price(2, "2", gpu_type="a100", resource="gpu_hour"),
            price(3, "3", partition="gpu", qos="training", gpu_type="a100", resource="gpu_hour"),
            price(4, "4", cluster="main", resource="gpu_hour"),
            price(5, "5", qos="training", gpu_type="a100", resource="gpu_hour"),
            price(6, "6", partition="gpu", resource="gpu_hour"),
        ]
    )

    def told(place: Place) -> str | None:
        found = book.holding(Resource.GPU, place, FIRST)
        return found and found.id

    assert told(Place("main", "gpu", "training", "a100")) == "p4"
    assert told(Place("spare", "gpu", "training", "a100")) == "p3"
    assert told(Place("spare", "gpu", "other", "a100")) == "p6"
    assert told(Place("spare", "cpu", "training", "a100")) == "p5"
    assert told(Place("spare", "cpu", "other", "a100")) == "p2"
    assert told(Place("spare", "cpu", "other", "")) is None


@given(books(), daily, st.lists(st.integers(1, DAYS - 1), max_size=4, unique=True))
def test_parts_of_a_period_cost_exactly_what_the_whole_does(
    prices: list[Price], rows: list[tuple[int, Place, int, int]], cuts: list[int]
) -> None:
    book = PriceBook(prices)
    whole = itemized(book, [use(*row) for row in rows])
    ends = [0, *sorted(cuts), DAYS]
    parts = [
        itemized(book, [use(*row) for row in rows if begin <= row[0] < end]) for begin, end in pairwise(ends)
    ]
    assert sum((cost(part) for part in parts), Fraction()) == cost(whole)
    assert sum(unpriced(part) for part in parts) == unpriced(whole)


@given(books(), daily)
def test_days_between_two_changes_may_be_added_up_before_they_are_priced(
    prices: list[Price], rows: list[tuple[int, Place, int, int]]
) -> None:
    """What the database does: one sum for all days on which no price changes, priced as on their first."""
    book = PriceBook(prices)
    starts = [FIRST, *book.changes(FIRST, FIRST + timedelta(DAYS))]
    added: dict[tuple[date, Place], list[int]] = {}
    for day, place, core_s, gpu_s in rows:
        begun = max(start for start in starts if start <= FIRST + timedelta(day))
        kept = Place()._replace(**{part: getattr(place, part) for part in book.parts()})
        sums = added.setdefault((begun, kept), [0, 0])
        sums[0] += core_s
        sums[1] += gpu_s
    packed = [
        Use(("a",), place, day, Fate.OWN, {Resource.CORE: core, Resource.GPU: gpu})
        for (day, place), (core, gpu) in added.items()
    ]
    once, daily_ = itemized(book, packed), itemized(book, [use(*row) for row in rows])
    assert cost(once) == cost(daily_)
    assert unpriced(once) == unpriced(daily_)


@given(books(), daily)
def test_costs_are_what_the_rule_says_row_by_row(
    prices: list[Price], rows: list[tuple[int, Place, int, int]]
) -> None:
    expected, left = Fraction(), 0
    book = PriceBook(prices)
    for day, place, core_s, gpu_s in rows:
        for resource, amount in ((Resource.CORE, core_s), (Resource.GPU, gpu_s)):
            found = holding(prices, resource, place, FIRST + timedelta(day))
            if found is None or found.amount is None:
                left += amount
            else:
                expected += Fraction(amount) * Fraction(found.amount) / PER_HOUR[resource]
    items = itemized(book, [use(*row) for row in rows])
    assert (cost(items), unpriced(items)) == (expected, left)


@given(
    books(),
    daily,
    st.sampled_from([("tenant",), ("partition", "tenant"), ()]),
    st.sampled_from([(), ("FAILED",)]),
)
def test_columns_are_priced_as_their_rows_are(
    prices: list[Price], rows: list[tuple[int, Place, int, int]], by: tuple[str, ...], exempt: tuple[str, ...]
) -> None:
    """What pricing a million rows at once gives, against pricing them one by one."""
    book = PriceBook(prices)
    starts = [FIRST, *book.changes(FIRST, FIRST + timedelta(DAYS))]
    outcomes = ("COMPLETED", "FAILED", "NODE_FAIL")
    told = [
        {
            **place._asdict(),
            "tenant": f"team-{core_s % 3}",
            "outcome": outcomes[gpu_s % 3],
            "core_s": core_s,
            "gpu_s": gpu_s,
            "mem_mib_s": core_s * 7,
            "billing_s": 0,
            SPAN: sum(start <= FIRST + timedelta(day) for start in starts) - 1,
            "day": day,
        }
        for day, place, core_s, gpu_s in rows
    ]
    uses = [
        Use(
            tuple(row[name] for name in by),
            Place(*(row[part] for part in Place._fields))._replace(
                **{part: ANY for part in Place._fields if part not in book.parts()}
            ),
            FIRST + timedelta(row["day"]),
            fate(row["outcome"], exempt),
            {one: row[name] for one, name in SUM_OF.items()},
        )
        for row in told
    ]
    if told:
        costs, one_by_one = (
            costs_of(pa.Table.from_pylist(told), by, book, exempt, starts),
            itemized(book, uses),
        )
        assert sorted(costs.items(), key=in_order) == one_by_one
        of_lines: dict[tuple[str, ...], list[Item]] = {}
        for item in one_by_one:
            of_lines.setdefault(item.key, []).append(item)
        assert list(map(costs.key, costs.lines)) == sorted(of_lines)
        for fates in ((Fate.OWN, Fate.FAULT), (Fate.EXEMPT,)):
            priced = [
                [i.cost for i in of_lines[key] if i.price and i.fate in fates] for key in sorted(of_lines)
            ]
            expected = [sum((cost or 0 for cost in line), Fraction()) if line else None for line in priced]
            amounts = costs.amounts(*fates)
            assert [one if one is None else Fraction(one, PARTS) for one in amounts] == expected
            for currency in ("KRW", "USD", "KWD"):
                shown = [one if one is None else rounded(one, currency) for one in expected]
                units = in_units(amounts, currency)
                assert [u if u is None else Decimal(u).scaleb(-digits_of(currency)) for u in units] == shown
        some = costs.lines[::2]
        assert {item.key for item in costs.items(some)} == set(map(costs.key, some))
        assert cost(costs.whole()) == cost(one_by_one)
        assert unpriced(costs.whole()) == unpriced(one_by_one)


@given(st.integers(0, 10**24), st.integers(-2, 2), st.sampled_from(["KRW", "USD", "KWD"]))
def test_parts_are_rounded_as_fractions_are_halves_too(whole: int, beside: int, currency: str) -> None:
    half = PARTS // 10 ** digits_of(currency) // 2
    parts = max(0, whole // half * half + beside)
    (unit,) = in_units([parts], currency)
    assert unit is not None
    assert Decimal(unit).scaleb(-digits_of(currency)) == rounded(Fraction(parts, PARTS), currency)


def test_a_price_that_changes_at_midnight_splits_what_ran_over_it() -> None:
    book = PriceBook([price(1, "10"), price(2, "16", day=1)])
    where = Place("main", "gpu", "training", "")
    items = itemized(book, [use(0, where, 3600 * 3), use(1, where, 3600 * 5)])
    assert [(item.price and item.price.id, item.hours, item.cost) for item in items] == [
        ("p1", 3, 30),
        ("p2", 5, 80),
    ]


def test_what_no_price_holds_for_is_hours_without_an_amount_and_free_is_a_price() -> None:
    book = PriceBook([price(1, "0", resource="gpu_hour", gpu_type="a100"), price(2, "7", day=1)])
    items = itemized(book, [use(0, Place("main", "gpu", "training", "a100"), gpu_s=7200)])
    told = {item.resource: (item.cost, item.hours) for item in items}
    assert told == {Resource.CORE: (None, 1), Resource.GPU: (Fraction(0), 2)}


def test_a_price_that_ends_gives_way_to_the_wider_one() -> None:
    book = PriceBook([price(1, "5"), price(2, "9", qos="training"), price(3, None, day=3, qos="training")])
    where = Place("main", "gpu", "training", "")
    held = [book.holding(Resource.CORE, where, FIRST + timedelta(day)) for day in (2, 3)]
    assert [one and one.id for one in held] == ["p2", "p1"]


def test_slurms_billing_and_what_was_allocated_are_counted_where_prices_say_so() -> None:
    assert PriceBook([]).counted() == (Resource.CORE, Resource.GPU, Resource.MEMORY)
    assert PriceBook([price(1, "1", resource="billing_hour")]).counted() == (Resource.BILLING,)
    both = PriceBook([price(1, "1", resource="billing_hour"), price(2, "1", resource="gpu_hour")])
    assert both.counted() == tuple(Resource)


def test_who_goes_from_billing_units_to_cores_has_each_counted_in_its_time() -> None:
    billed, ended = (price(n, a, day=d, resource="billing_hour") for n, a, d in ((1, "2", 0), (2, None, 9)))
    book = PriceBook([billed, ended, price(3, "5", day=9)])
    allocated = (Resource.CORE, Resource.GPU, Resource.MEMORY)
    told = [book.counted(FIRST + timedelta(day)) for day in (-1, 0, 8, 9)]
    assert told == [tuple(Resource), (Resource.BILLING,), (Resource.BILLING,), allocated]
    where = Place("main", "gpu", "training", "")
    sums = {Resource.CORE: 3600, Resource.BILLING: 7200}
    items = itemized(book, [Use((), where, FIRST + timedelta(day), Fate.OWN, sums) for day in (3, 10)])
    assert [(item.resource, item.cost) for item in items] == [(Resource.CORE, 5), (Resource.BILLING, 4)]
    none = {"gpu_s": 0, "mem_mib_s": 0, "outcome": "COMPLETED"}
    rows = [{"core_s": 3600, "billing_s": 7200, SPAN: span} | none for span in (0, 1)]
    columns = costs_of(pa.Table.from_pylist(rows), (), book, (), [FIRST, FIRST + timedelta(9)]).items()
    assert sorted(columns, key=in_order) == items


@given(books(), books(), daily, st.integers(0, DAYS))
def test_a_price_that_is_let_in_changes_nothing_that_was_charged(
    prices: list[Price], more: list[Price], rows: list[tuple[int, Place, int, int]], days: int
) -> None:
    """Prices are entered one after the other on day `days`; none may change a charge of the days before."""
    today = FIRST + timedelta(days)
    book, known = PriceBook(prices), list(prices)
    past = [row for row in rows if FIRST + timedelta(row[0]) < today]

    def charged(now: PriceBook) -> list[tuple[Resource, Place, str]]:
        return [
            (resource, place, found.id)
            for day, place, *_ in past
            for resource in (Resource.CORE, Resource.GPU)
            if (found := book.holding(resource, place, FIRST + timedelta(day)))
            and now.holding(resource, place, FIRST + timedelta(day)) == found
        ]

    before = charged(book)
    for one in more:
        now = PriceBook(known)
        if now.same(one) is None and (one.valid_from >= today or now.rewritten(one, today) is None):
            known.append(one)
    assert charged(PriceBook(known)) == before


def test_a_price_for_the_past_is_refused_only_where_it_would_replace_one() -> None:
    today = FIRST + timedelta(20)
    book = PriceBook([price(1, "5", day=5, cluster="main")])
    for late, refused in (
        (price(2, "6", day=1, cluster="main"), False),  # gives way on day 5
        (price(3, "6", day=7, cluster="main"), True),
        (price(4, "6", day=1, cluster="spare"), False),
        (price(5, "6", day=1), False),  # the one that names the cluster goes before it
        (price(6, "6", day=1, cluster="main", qos="training"), True),
        (price(7, "6", day=1, cluster="main", resource="gpu_hour"), False),
    ):
        assert (book.rewritten(late, today) is not None) is refused, late


def test_ends_that_are_exempt_and_ends_that_are_the_clusters_fault_are_told_apart() -> None:
    ends = ("COMPLETED", "NODE_FAIL", "PREEMPTED")
    assert [fate(end, ["PREEMPTED"]) for end in ends] == [Fate.OWN, Fate.FAULT, Fate.EXEMPT]


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (Fraction(1, 2), "KRW", "0"),
        (Fraction(3, 2), "KRW", "2"),
        (Fraction(12_345_678_901, 10), "KRW", "1234567890"),
        (Fraction(1, 200), "USD", "0.00"),
        (Fraction(3, 200), "USD", "0.02"),
        (Fraction(1, 3), "KWD", "0.333"),
    ],
)
def test_a_half_of_the_least_unit_goes_to_the_even_neighbour(
    amount: Fraction, currency: str, shown: str
) -> None:
    assert f"{rounded(amount, currency):f}" == shown
