"""The day on which a quota runs out: a straight line, within bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.reports.standing import (
    DAY,
    LONGER,
    RECENT,
    Rates,
    Use,
    in_words,
    mean_of_counts,
    mean_per_day,
    outlook,
    reached,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
amounts = st.floats(0, 1e6, allow_nan=False)
rates = st.floats(0, 1e5, allow_nan=False)
moments = st.integers(0, 60 * 86_400).map(lambda s: NOW - timedelta(seconds=s))


@st.composite
def uses(draw: st.DrawFn) -> Use:
    end = draw(moments)
    return Use(end - timedelta(seconds=draw(st.integers(0, 40 * 86_400))), end, draw(amounts))


@given(uses(), moments)
def test_the_parts_of_a_use_add_up_to_the_whole(use: Use, cut: datetime) -> None:
    first, after = use.begin - DAY, use.end + DAY
    cut = min(max(cut, first), after)
    assert use.within(first, cut) + use.within(cut, after) == pytest.approx(use.amount)


@given(st.lists(uses(), min_size=1, max_size=8))
def test_a_mean_over_a_time_is_what_was_used_in_it_by_the_days_it_is_known_for(some: list[Use]) -> None:
    began = min(use.begin for use in some)
    for over in (RECENT, LONGER):
        mean = mean_per_day(some, began, NOW, over)
        if mean is None:
            assert began >= NOW
            continue
        days = max(1.0, min(over, NOW - began) / DAY)
        assert mean * days == pytest.approx(sum(use.within(NOW - over, NOW) for use in some), abs=1e-6)


def test_who_began_two_days_ago_is_not_averaged_over_a_week_nor_an_hour_taken_for_a_day() -> None:
    assert mean_per_day([Use(NOW - 2 * DAY, NOW, 10)], NOW - 2 * DAY, NOW, RECENT) == pytest.approx(5)
    hour = NOW - timedelta(hours=1)
    assert mean_per_day([Use(hour, NOW, 10)], hour, NOW, RECENT) == pytest.approx(10)
    old = [Use(NOW - 40 * DAY, NOW - 30 * DAY, 100)]
    assert mean_per_day(old, NOW - 40 * DAY, NOW, RECENT) == 0, "it has used, only not lately"
    assert mean_per_day([], None, NOW, RECENT) is None, "it never has: nobody knows"


@given(amounts, amounts, rates)
def test_the_day_is_the_first_on_which_the_line_is_at_the_limit(
    total: float, limit: float, rate: float
) -> None:
    day = reached(total, limit, rate, NOW, END)
    if total >= limit:
        assert day == NOW.date()
    elif day is None:
        assert total + rate * ((END - NOW) / DAY) <= limit * (1 + 1e-9)
    else:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        assert NOW.date() <= day < END.date()
        assert total + rate * ((midnight + DAY - NOW) / DAY) >= limit * (1 - 1e-9)
        assert total + rate * max(0.0, (midnight - NOW) / DAY) <= limit * (1 + 1e-9)


@given(amounts, amounts, rates, st.floats(0, 1e5))
def test_more_use_never_runs_out_later(total: float, limit: float, rate: float, more: float) -> None:
    slow, fast = (reached(total, limit, one, NOW, END) for one in (rate, rate + more))
    assert slow is None or (fast is not None and fast <= slow)


@given(amounts, amounts, st.one_of(st.none(), rates), st.one_of(st.none(), rates))
def test_the_range_begins_with_the_higher_rate(
    total: float, limit: float, recent: float | None, longer: float | None
) -> None:
    found = outlook(total, limit, Rates(recent, longer), NOW, END)
    assert found.known == (total >= limit or recent is not None or longer is not None)
    assert found.latest is None or (found.earliest is not None and found.earliest <= found.latest)


@given(st.lists(st.tuples(st.integers(1, 40).map(lambda n: n * DAY), amounts), max_size=5))
def test_counters_of_nothing_have_no_mean(counts: list[tuple[timedelta, float]]) -> None:
    mean = mean_of_counts(counts)
    assert (mean is None) == (sum(amount for _, amount in counts) == 0)


def test_a_reader_is_told_a_day_the_periods_end_or_nothing() -> None:
    assert in_words(None, known=False, until=END) is None
    assert in_words(None, known=True, until=END) == "not before 2026-12-01"
    assert in_words(NOW.date(), known=True, until=END) == "2026-11-21"
