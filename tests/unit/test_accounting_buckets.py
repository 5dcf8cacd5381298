"""What a job adds to the days it ran in, and which part of the past is asked for next."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Any

from broker.accounting.buckets import DAY_S, Sums, size_class, spread
from broker.accounting.windows import Cursor, adapted, after, interrupted, started, too_wide
from broker.errors import SlurmRefused
from broker.settings import AccountingSettings
from tests.accounting_support import NOON, Row, answer, job, step

SETTINGS = AccountingSettings()
MIDNIGHT = NOON + DAY_S // 2
FIRST, SECOND = date(2026, 11, 10), date(2026, 11, 11)


def counted(*rows: Row, **more: Any) -> dict[str, Any]:
    (record,) = answer(*rows).jobs
    people = {"tenant": "team-a", "user": "kim", "counted_to": record.end_at or record.start_at}
    return asdict(record) | people | more


def test_a_job_over_midnight_counts_in_both_days_and_no_second_is_lost() -> None:
    sums = Sums()
    sums.add(counted(job(7, submit=MIDNIGHT - 1000, wait=0, run=4000)))
    days = {key[0]: values for key, values in sums.days.items()}
    assert (days[FIRST]["elapsed_s"], days[SECOND]["elapsed_s"]) == (1000, 3000)
    assert (days[FIRST]["core_s"], days[SECOND]["gpu_s"]) == (4000, 6000)
    assert (days[FIRST]["mem_mib_s"], days[SECOND]["mem_mib_s"]) == (1000 * 8192, 3000 * 8192)
    assert (days[FIRST]["submitted"], days[FIRST]["started"], days[SECOND]["ended"]) == (1, 1, 1)


def test_efficiency_never_passes_the_whole_for_a_job_over_midnight() -> None:
    """CPU time cannot be clipped: it counts with all of its job's allocation, on the day of the end."""
    row = job(7, submit=MIDNIGHT - 3500, wait=0, run=3600)
    sums = Sums()
    sums.add(counted(row, step(row, TotalCPU="04:00:00")))
    (last,) = [values for key, values in sums.days.items() if key[0] == SECOND]
    assert (last["cpu_used_s"], last["cpu_alloc_s"], last["core_s"]) == (14_400, 14_400, 400)


def test_suspended_time_is_spread_and_not_counted() -> None:
    parts = list(spread(MIDNIGHT - 100, MIDNIGHT + 200, 100))
    assert [seconds for _, seconds in parts] == [33, 67]


def test_what_is_added_and_taken_away_is_nothing() -> None:
    sums = Sums()
    sums.add(counted(job(7)))
    sums.add(counted(job(7)), -1)
    sums.settle()
    assert (sums.days, sums.waits) == ({}, {})


def test_a_job_that_waits_has_no_use_and_no_wait_yet() -> None:
    sums = Sums()
    sums.add(counted(job(7, run=None, State="PENDING", JobID="7_[0-9]")))
    ((_, values),) = sums.days.items()
    assert (values["submitted"], values["started"], values["core_s"], sums.waits) == (10, 0, 0, {})


def test_waits_before_and_after_being_eligible_are_told_apart() -> None:
    sums = Sums()
    sums.add(counted(job(7, wait=700, Eligible=NOON + 600)))
    assert {key[2]: value for key, value in sums.waits.items()} == {"eligible": [1, 600], "start": [1, 100]}


def test_partial_cpu_time_and_missing_memory_stay_out_of_efficiency() -> None:
    row = job(7, State="TIMEOUT")
    sums = Sums()
    sums.add(counted(row, step(row, TotalCPU="00:01")))
    ((_, values),) = sums.days.items()
    assert (values["cpu_jobs"], values["mem_jobs"], values["gpu_jobs"], values["limit_jobs"]) == (0, 0, 0, 1)


def test_sizes_are_powers_of_two() -> None:
    assert [size_class(cpus) for cpus in (0, 1, 2, 7, 8, 15, 16)] == [0, 0, 1, 2, 3, 3, 4]


def test_the_first_reading_begins_with_history() -> None:
    assert started(None, NOON, SETTINGS).settled_to == NOON - 365 * DAY_S
    none = AccountingSettings(history_days=0)
    assert started(None, NOON, none).settled_to < NOON, "else every tick would be the first one"


def test_the_cursor_stays_the_overlap_behind_the_present() -> None:
    cursor = Cursor(NOON - 9000, NOON - 9000)
    assert after(cursor, NOON - 8000, NOON, SETTINGS).settled_to == NOON - 8000
    near = after(cursor, NOON, NOON, SETTINGS)
    assert (near.settled_to, near.read_to) == (NOON - 3600, NOON)
    assert after(near, NOON - 3500, NOON + 1, SETTINGS).settled_to == NOON - 3600 + 1


def test_what_was_missed_while_slurmdbd_was_away_is_read_again_after_an_hour() -> None:
    away = interrupted(Cursor(NOON - 3600, NOON), NOON + 500, "no slurmdbd")
    away = interrupted(away, NOON + 1000, "no slurmdbd")
    back = after(away, NOON + 2000, NOON + 2000, SETTINGS)
    assert (back.trouble, back.again_from) == (None, NOON - 3600)
    assert started(back, NOON + 4000, SETTINGS).settled_to == back.settled_to
    late = started(after(back, NOON + 5600, NOON + 5600, SETTINGS), NOON + 5600, SETTINGS)
    assert (late.settled_to, late.again_from) == (NOON - 3600, None)


def test_the_last_day_is_read_again_once_a_day() -> None:
    cursor = after(Cursor(NOON - 60, NOON), NOON, NOON, SETTINGS)
    assert started(cursor, NOON + DAY_S - 1, SETTINGS).settled_to == cursor.settled_to
    assert (
        started(after(cursor, NOON + DAY_S, NOON + DAY_S, SETTINGS), NOON + DAY_S, SETTINGS).settled_to < NOON
    )


def test_windows_follow_what_they_gave() -> None:
    cursor = Cursor(0, 0, window_s=7200)
    assert adapted(cursor, 10, 0.1).window_s == 14_400
    assert adapted(cursor, 50_000, 0.1).window_s == 3600
    assert adapted(cursor, 10, 20.0).window_s == 3600
    assert adapted(cursor, 5000, 1.0).window_s == 7200


def test_no_window_is_wider_than_a_month_or_narrower_than_a_minute() -> None:
    wide, narrow = Cursor(0, 0, window_s=20 * DAY_S), Cursor(0, 0, window_s=60)
    assert adapted(wide, 0, 0.1).window_s == 31 * DAY_S
    assert adapted(narrow, 10**6, 60.0).window_s == 60


def test_a_window_that_slurmdbd_refuses_is_halved() -> None:
    refusal = SlurmRefused("sacct: error: Too wide of a date range in query")
    narrower = too_wide(Cursor(0, 0, window_s=7200), refusal)
    assert narrower is not None
    assert narrower.window_s == 3600
    assert too_wide(Cursor(0, 0, window_s=60), refusal) is None
    assert too_wide(Cursor(0, 0, window_s=7200), SlurmRefused("something else")) is None
