"""What figures mean, and how far medians from log buckets may be off. Pure."""

from __future__ import annotations

import math
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.accounting.histograms import ERROR, histogram, merged, quantile
from broker.cli.periods import last_whole
from broker.reports.definitions import REPORTS
from broker.reports.measures import Measure, Sums
from broker.reports.sources import SOURCES
from broker.reports.wanted import DIMENSIONS, PERIODS, dimensions, period_bounds, period_name
from broker.slurm.states import SlurmState

MEASURES = {one.name: one for report in REPORTS.values() for one in report.measures}
DURATIONS = st.lists(st.integers(0, 10**8), min_size=1, max_size=200)
DAYS = st.dates(date(1990, 1, 1), date(2200, 1, 1))


@given(DURATIONS, st.sampled_from([0.01, 0.5, 0.9, 0.95, 1.0]))
def test_a_quantile_is_off_by_the_stated_error_at_most(values: list[int], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    told = quantile(histogram(values), share)
    assert told is not None and abs(told - exact) <= ERROR * exact + 1e-6


@given(DURATIONS, DURATIONS)
def test_days_add_up_to_what_the_whole_would_have_given(one: list[int], other: list[int]) -> None:
    assert merged([histogram(one), histogram(other)]) == histogram(one + other)


def test_an_efficiency_is_a_ratio_of_sums_and_no_mean_of_ratios() -> None:
    small, large = (1, 1), (0, 99)  # used, allocated: 100 % and 0 %
    used, allocated = (sum(pair) for pair in zip(small, large, strict=True))
    sums = Sums({"cpu_used_s": used, "cpu_alloc_s": allocated})
    assert MEASURES["cpu_efficiency"].compute(sums, sums) == pytest.approx(0.01)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_what_nobody_measured_is_unknown_and_never_0_percent(measure: Measure) -> None:
    nothing = Sums({})
    found = measure.compute(nothing, nothing)
    if measure.unit in ("h", "jobs") and not measure.covered:
        assert found == 0, "added up"
    else:
        assert found is None or (measure.unit == "count" and measure.numbers and found == 0)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_every_figure_is_defined_in_both_languages(measure: Measure) -> None:
    assert measure.definition and any("가" <= letter <= "힣" for letter in measure.definition_ko)
    assert measure.title and any(
        "가" <= letter <= "힣" for letter in measure.title_ko + measure.definition_ko
    )
    assert not any("가" <= letter <= "힣" for letter in measure.definition + measure.title)


def test_what_counts_as_lost_are_ends_that_slurm_knows() -> None:
    lost = MEASURES["lost_jobs"].definition.partition(" as ")[2].partition(" (")[0].split(", ")
    assert all(SlurmState(word).finished and not SlurmState(word).succeeded for word in lost)
    assert "CANCELLED" not in lost and {"TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED"} <= set(lost)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_a_report_is_split_by_dimensions_it_has(report) -> None:  # type: ignore[no-untyped-def]
    assert set(report.by) <= set(dimensions(report))
    assert report.source in SOURCES and (
        report.source != "days" or set(dimensions(report)) <= set(DIMENSIONS)
    )


@given(DAYS, st.sampled_from(PERIODS))
def test_a_named_period_is_found_again_and_holds_its_day(day: date, name: str) -> None:
    label = period_name(name, day)
    first, after = period_bounds(name, label)
    assert first <= day < after
    assert period_name(name, first) == label == period_name(name, after - timedelta(days=1))
    assert period_name(name, after) > label > period_name(name, first - timedelta(days=1))


@given(DAYS, st.sampled_from(PERIODS))
def test_the_last_period_is_whole_and_over(today: date, name: str) -> None:
    first, after = last_whole(name, today)
    assert (first, after) == period_bounds(name, period_name(name, first))
    assert after <= today and period_bounds(name, period_name(name, today))[0] == after
