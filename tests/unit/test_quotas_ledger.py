"""GPU time: whose month it counts in, and what is set aside."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.quotas.ledger import Reserved, attempts_of, by_month, carried, charges, committed, observed, over
from broker.quotas.periods import bounds, day_of, month_of, next_day, next_month
from broker.slurm import AccountingJob
from tests.harness.sacct import Row, parse

NOON = datetime(2026, 11, 15, 12, tzinfo=UTC)
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
moments = st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)).map(
    lambda at: at.replace(microsecond=0, tzinfo=UTC)
)


def read(*rows: Row) -> list[AccountingJob]:
    return parse(rows)


def test_a_day_and_a_month_are_those_of_utc() -> None:
    from_seoul = datetime.fromisoformat("2026-12-01T08:59:59+09:00")
    assert (day_of(from_seoul), month_of(from_seoul)) == ("2026-11-30", "2026-11")
    assert next_day(from_seoul) == next_month(from_seoul) == datetime(2026, 12, 1, tzinfo=UTC)


@given(month=st.sampled_from(["2026-02", "2026-11", "2026-12", "2028-02"]), data=st.data())
def test_seconds_of_each_month_are_those_that_lie_in_it(month: str, data: st.DataObject) -> None:
    _, boundary = bounds(month)
    start = boundary - timedelta(seconds=data.draw(st.integers(-5, 2000)))
    wall = data.draw(st.integers(0, 2000))
    truth = Counter(month_of(start + timedelta(seconds=second)) for second in range(wall))
    found = by_month(start, start + timedelta(seconds=wall), wall)
    assert {name: seconds for name, seconds in found.items() if seconds} == dict(truth)


def test_a_job_over_whole_months_is_charged_to_each() -> None:
    begin, end = datetime(2026, 1, 31, 23, tzinfo=UTC), datetime(2026, 4, 1, 1, tzinfo=UTC)
    days = {"2026-02": 28, "2026-03": 31}
    expected = {"2026-01": 3600, **{month: n * 86400 for month, n in days.items()}, "2026-04": 3600}
    assert by_month(begin, end, int((end - begin).total_seconds())) == expected


@given(start=moments, wall=st.integers(1, 10**7), share=st.floats(0, 1))
def test_what_was_suspended_is_in_no_month_and_the_parts_add_up(
    start: datetime, wall: int, share: float
) -> None:
    elapsed = int(wall * share)
    found = by_month(start, start + timedelta(seconds=wall), elapsed)
    assert sum(found.values()) == elapsed
    assert all(seconds >= 0 for seconds in found.values())


def test_an_attempt_over_the_end_of_a_year_is_charged_to_both() -> None:
    (job,) = read(Row(1, NEW_YEAR, submit=-10800, start=-7200, end=3600, gpus=4))
    assert {charge.month: charge.gpu_seconds for charge in charges(job, 4)} == {
        "2026-12": 4 * 7200,
        "2027-01": 4 * 3600,
    }


def test_gpus_are_those_that_were_allocated() -> None:
    (job,) = read(Row(1, NOON, start=0, end=60, gpus=8))
    assert [charge.gpu_seconds for charge in charges(job, 2)] == [480]


def test_where_accounting_tracks_no_gpus_those_that_were_asked_for_count() -> None:
    (job,) = read(Row(1, NOON, start=0, end=60, gpus=0))
    assert [charge.gpu_seconds for charge in charges(job, 2)] == [120]


@pytest.mark.parametrize("state", ["CANCELLED by 1000", "CANCELLED"])
def test_what_was_cancelled_while_it_waited_is_settled_with_nothing(state: str) -> None:
    (job,) = read(Row(1, NOON, start=None, end=60, gpus=0, state=state))
    assert [charge.gpu_seconds for charge in charges(job, 2)] == [0]


def test_an_attempt_that_goes_on_is_not_charged() -> None:
    running, waiting = read(
        Row(1, NOON, start=0, end=None, state="RUNNING"),
        Row(2, NOON, start=None, end=None, state="PENDING"),
    )
    assert not charges(running, 2) and not charges(waiting, 2)
    assert not over(running) and not over(waiting)


@pytest.mark.parametrize("state", ["REQUEUED", "PREEMPTED", "NODE_FAIL", "CANCELLED by 0", "HIBERNATED"])
def test_an_attempt_that_was_put_back_is_charged_whatever_slurm_calls_it(state: str) -> None:
    (job,) = read(Row(1, NOON, start=0, end=30, state=state))
    assert [charge.elapsed_s for charge in charges(job, 1)] == [30]


def test_attempts_are_told_by_their_submit_time_and_recycled_ids_left_out() -> None:
    old = Row(7, NOON - timedelta(days=900), start=0, end=10)
    first, second = Row(7, NOON, start=0, end=10), Row(7, NOON, submit=20, start=30, end=40)
    other = Row(8, NOON, start=0, end=10)
    rows = read(second, old, other, first, first)
    assert [job.submit for job in attempts_of(rows, 7, NOON - timedelta(hours=1))] == [
        NOON,
        NOON + timedelta(seconds=20),
    ]


def test_what_waits_counts_whole_in_the_present_month_and_in_no_other() -> None:
    waiting = [Reserved(2, 3600, None)]
    assert committed(waiting, month_of(NOON), NOON) == 7200
    assert committed(waiting, "2026-12", NOON) == 0


def test_what_runs_counts_in_each_month_by_its_limit() -> None:
    first, _ = bounds("2026-12")
    running = [Reserved(2, 7200, first - timedelta(seconds=1800))]
    assert committed(running, "2026-11", NOON) == 2 * 1800
    assert committed(running, "2026-12", NOON) == 2 * 5400
    assert committed(running, "2027-01", NOON) == 0


def test_the_next_month_has_to_bear_what_waits_and_the_rest_of_what_runs() -> None:
    first, _ = bounds("2026-12")
    jobs = [
        Reserved(2, 7200, first - timedelta(seconds=1800)),
        Reserved(1, 3600, None),
        Reserved(1, 60, NOON),
    ]
    assert carried(jobs, NOON) == 2 * 5400 + 3600


def test_what_only_the_broker_saw_costs_at_most_its_limit() -> None:
    seen = observed(NOON, NOON, NOON + timedelta(hours=5), gpus=2, limit_s=3600)
    assert sum(charge.gpu_seconds for charge in seen) == 7200
    assert observed(NOON, None, NOON, gpus=2, limit_s=3600) == []
