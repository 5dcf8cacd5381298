"""Prices that were wrong: what was told before about any day, and is not so any more, has a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.costs.corrections import Correction, Entry, corrections
from broker.costs.pricing import Place, Price, PriceBook, Resource

FIRST = date(2026, 10, 1)
DAYS = 20
PLACES = (Place(), Place(cluster="main"), Place(qos="idle"), Place(cluster="main", qos="idle"))
USED = (
    Place("main", "gpu", "idle", ""),
    Place("main", "gpu", "normal", ""),
    Place("spare", "gpu", "idle", ""),
)


def day(number: int) -> date:
    return FIRST + timedelta(days=number)


def moment(number: int, hour: int = 12) -> datetime:
    return datetime.combine(day(number), time(hour), UTC)


def book(entries: Iterable[Entry]) -> PriceBook:
    return PriceBook(one.price for one in entries if one.withdrawn_at is None)


def entry(number: int, amount: str | None, since: int, entered: datetime, place: Place = PLACES[0]) -> Entry:
    money = None if amount is None else Decimal(amount)
    return Entry(Price(f"p{number}", Resource.CORE, place, money, day(since)), entered)


def withdrawn(one: Entry, at: datetime, why: str = "mistyped") -> Entry:
    return replace(one, withdrawn_at=at, withdrawn_by="root", why=why)


doings = st.tuples(
    st.sampled_from(("enter", "correct", "withdraw")),
    st.integers(0, 30),
    st.sampled_from(PLACES),
    st.sampled_from((None, "0", "1", "2.5")),
    st.integers(-5, 5),
)


def history(steps: list[tuple[str, int, Place, str | None, int]]) -> list[tuple[datetime, list[Entry]]]:
    """The price list after each step, by the rules of the service: entering changes no day that has passed,
    correcting and withdrawing do.
    """
    known: list[Entry] = []
    found: list[tuple[datetime, list[Entry]]] = []
    for number, (what, which, place, amount, offset) in enumerate(steps):
        at = moment(number)
        standing = [one for one in known if one.withdrawn_at is None]
        if what == "enter":
            new = entry(number, amount, number + offset, at, place)
            now = book(known)
            late = new.price.valid_from < at.date() and now.rewritten(new.price, at.date()) is not None
            if now.same(new.price) is None and not late:
                known = [*known, new]
        elif standing:
            wrong = standing[which % len(standing)]
            known = [withdrawn(one, at) if one is wrong else one for one in known]
            if what == "correct":
                right = entry(number, amount, 0, at, wrong.price.place)
                price = replace(right.price, valid_from=wrong.price.valid_from)
                known = [*known, replace(right, price=price, corrects=wrong.price.id)]
        found.append((at, known))
    return found


@settings(max_examples=300)
@given(st.lists(doings, max_size=DAYS))
def test_whatever_was_charged_and_is_not_any_more_was_corrected(
    steps: list[tuple[str, int, Place, str | None, int]],
) -> None:
    """Costs of days that had passed were read after each step; where they are others now, the answer about
    that day and place names a correction, and one that was made since.
    """
    seen = history(steps)
    if not seen:
        return
    last = book(seen[-1][1])
    known = corrections(seen[-1][1])
    for at, entries in seen:
        then = book(entries)
        for past in range(-8, (at.date() - FIRST).days):
            for place in USED:
                before = then.holding(Resource.CORE, place, day(past))
                after = last.holding(Resource.CORE, place, day(past))
                if before is not None and (after is None or after.amount != before.amount):
                    touching = [one for one in known if one.touches(day(past), day(past + 1), place)]
                    assert any(one.at > at for one in touching), (at, past, place, before, after)


def test_a_price_that_was_withdrawn_before_it_held_was_told_to_nobody() -> None:
    early = withdrawn(entry(1, "5", 10, moment(0)), moment(9))
    assert corrections([early]) == []
    on_its_day = withdrawn(entry(1, "5", 10, moment(0)), moment(10, hour=0))
    (found,) = corrections([on_its_day])
    assert (found.was.valid_from, found.until, found.now) == (day(10), day(11), None)


def test_a_correction_says_what_was_what_is_and_for_which_days() -> None:
    wrong = withdrawn(entry(1, "150", 0, moment(0)), moment(8), why="a zero too many")
    right = replace(entry(2, "15", 0, moment(8)), corrects="p1")
    (found,) = corrections([wrong, right])
    assert found == Correction(wrong.price, day(9), right.price, moment(8), "root", "a zero too many")
    for since, until, touched in ((-9, 0, False), (-9, 1, True), (8, 9, True), (9, 30, False)):
        assert found.touches(day(since), day(until)) is touched


def test_a_correction_ends_where_the_next_price_took_its_turn_when_it_was_made() -> None:
    wrong = withdrawn(entry(1, "150", 0, moment(0)), moment(8))
    right = replace(entry(2, "15", 0, moment(8)), corrects="p1")
    turn = entry(3, "20", 4, moment(2))
    elsewhere = entry(4, "20", 2, moment(2), PLACES[1])
    assert corrections([wrong, right, turn, elsewhere])[0].until == day(4)
    gone_before = withdrawn(turn, moment(5))
    assert [one.until for one in corrections([wrong, right, gone_before])] == [day(6), day(9)]
    gone_since = withdrawn(turn, moment(9))
    assert corrections([wrong, right, gone_since])[0].until == day(4)


def test_corrections_of_corrections_are_told_one_after_the_other() -> None:
    first = withdrawn(entry(1, "150", 0, moment(0)), moment(5))
    second = withdrawn(replace(entry(2, "15", 0, moment(5)), corrects="p1"), moment(8))
    third = replace(entry(3, "12", 0, moment(8)), corrects="p2")
    told = [(one.was.id, one.now and one.now.id) for one in corrections([third, second, first])]
    assert told == [("p1", "p2"), ("p2", "p3")]


def test_a_correction_does_not_touch_what_was_used_elsewhere() -> None:
    (found,) = corrections([withdrawn(entry(1, "150", 0, moment(0), PLACES[1]), moment(8))])
    for place, touched in (
        (None, True),
        (Place("spare"), False),
        (Place("main", "gpu"), True),
        (Place(), True),
    ):
        assert found.touches(day(0), day(9), place) is touched
