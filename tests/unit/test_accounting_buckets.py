"""What a job adds to the days it ran in, and which part of the past is asked for next."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.accounting.buckets import DAY_S, Sums, size_class, slowdown, spread
from broker.accounting.histograms import bucket
from broker.accounting.wait_classes import NAMES, NOT_STARTED, WAIT_CLASSES, bounds_of, wait_class
from broker.accounting.windows import Cursor, adapted, after, interrupted, started, too_wide
from broker.errors import SlurmRefused
from broker.settings import AccountingSettings
from broker.slurm import gpu_types
from broker.slurm.tres import Tres
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
    ((key, values),) = sums.days.items()
    assert (values["hold_s"], values["wait_s"], NAMES[key[1].wait]) == (600, 100, "1-10m")
    assert {key[2:]: jobs for key, jobs in sums.waits.items()} == {
        ("wait", bucket(100)): 1,
        ("slowdown", bucket(3700 / 3600)): 1,
    }


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


def test_a_slowdown_is_1_at_least_and_short_jobs_count_as_ten_seconds() -> None:
    assert [slowdown(*one) for one in ((0, 3600), (3600, 3600), (90, 1), (5, 0), (1000, 0))] == [
        1.0,
        2.0,
        9.1,
        1.0,
        100.0,
    ]


def test_a_slowdown_is_known_when_the_job_has_ended_and_counts_on_the_day_it_began() -> None:
    sums = Sums()
    row = job(7, submit=MIDNIGHT - 1000, wait=900, run=300, Eligible=MIDNIGHT - 400)
    sums.add(counted(row | {"End": "Unknown", "State": "RUNNING"}))
    assert [key[2] for key in sums.waits] == ["wait"]
    sums = Sums()
    sums.add(counted(row))
    first = next(values for key, values in sums.days.items() if key[0] == FIRST)
    assert (first["slowdown_jobs"], first["slowdowns"], first["submit_slowdowns"]) == (1, 2000, 4000)
    assert {key[2:]: key[0] for key in sums.waits}["slowdown", bucket(2)] == FIRST


def test_a_job_with_gpus_of_several_types_is_one_and_each_gpu_counts_as_what_it_is() -> None:
    sums = Sums()
    tres = "cpu=4,gres/gpu=3,gres/gpu:a100=1,gres/gpu:v100=2"
    sums.add(counted(job(7, submit=MIDNIGHT - 1000, wait=0, run=4000, AllocTRES=tres), gpu_util=50.0))
    seen = {(key[0], key[1].gpu_type, key[1].gpu_count): values for key, values in sums.days.items()}
    names = ("started", "ended", "core_s", "gpu_s", "gpu_jobs", "gpu_used_s", "gpu_alloc_s")
    assert {key: tuple(values[name] for name in names) for key, values in seen.items()} == {
        (FIRST, "v100", 3): (1, 0, 4000, 2000, 0, 0, 0),
        (FIRST, "a100", 3): (0, 0, 0, 1000, 0, 0, 0),
        (SECOND, "v100", 3): (0, 1, 12_000, 6000, 1, 6000, 12_000),
        (SECOND, "a100", 3): (0, 0, 0, 3000, 0, 0, 0),
    }


GPUS = st.dictionaries(st.sampled_from(["a100", "v100", "h100", ""]), st.integers(1, 9), max_size=4)


@given(GPUS, st.integers(1, 200_000), st.none() | st.floats(0, 100))
def test_sums_over_gpu_types_are_those_of_the_whole_job(
    types: dict[str, int], run: int, util: float | None
) -> None:
    count = sum(types.values())
    kind, text = gpu_types.named({name: n for name, n in types.items() if name}, count)
    facts = counted(job(7, submit=MIDNIGHT - 1000, wait=70, run=run))
    split, plain = Sums(), Sums()
    split.add(facts | {"gpu_count": count, "gpu_type": kind, "gpu_types": text, "gpu_util": util})
    plain.add(facts | {"gpu_count": count, "gpu_type": kind, "gpu_types": "", "gpu_util": util})
    for day in {key[0] for key in plain.days}:
        parts = [values for key, values in split.days.items() if key[0] == day]
        (whole,) = (values for key, values in plain.days.items() if key[0] == day)
        assert {name: sum(part[name] for part in parts) for name in whole} == whole
    assert split.waits == plain.waits
    found: dict[str, int] = {}
    for key, values in split.days.items():
        found[key[1].gpu_type] = found.get(key[1].gpu_type, 0) + values["gpu_s"]
    assert {name: n for name, n in found.items() if n} == {name: n * run for name, n in types.items()}


@given(st.none() | st.integers(0, 10**7))
def test_every_wait_is_in_one_class_and_within_its_bounds(wait_s: int | None) -> None:
    name = NAMES[wait_class(wait_s)]
    within = [
        one
        for one in NAMES
        if (bounds := bounds_of(one)) is not None
        and wait_s is not None
        and bounds[0] <= wait_s
        and (bounds[1] is None or wait_s < bounds[1])
    ]
    assert within == ([] if wait_s is None else [name])
    assert (wait_s is None) is (name == NAMES[NOT_STARTED])


def test_classes_of_waits_are_documented_in_both_languages() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/accounting.md").read_text()
    told = re.findall(r"^\| `([\w-]+)` \| ([^|(]+?)(?: \([^|]*)? \| ([^|]+) \|$", text, re.MULTILINE)
    assert [one for one in told if one[0] in NAMES] == [
        (one.name, one.title, one.title_ko) for one in WAIT_CLASSES
    ]


def node(**types: int) -> Tres:
    return Tres(gpus=sum(types.values()), gpu_types=types)


@pytest.mark.parametrize(
    ("count", "typed", "nodes", "types"),
    [
        (2, {}, [node(a100=4), node(a100=4)], {"a100": 2}),
        (2, {}, [node(a100=4), node()], {"a100": 2}),  # the second has none
        (6, {}, [node(a100=4), node(v100=2)], {"a100": 4, "v100": 2}),  # all of both
        (7, {}, [node(a100=4, t4=1), node(v100=2)], {"a100": 4, "t4": 1, "v100": 2}),
        (2, {}, [node(a100=4), node(v100=2)], {"a100": 1, "v100": 1}),
        (3, {}, [node(a100=4), node(v100=2)], None),
        (8, {}, [node(a100=8), node(v100=2)], None),  # four on each does not fit
        (2, {}, [node(a100=4, t4=4)], None),
        (2, {}, [None], {}),
        (2, {}, [node(a100=4), None], {}),
        (3, {"a100": 1}, [node(a100=4), node(v100=2)], {"a100": 1, "v100": 2}),
        (3, {"a100": 1}, [node(a100=4), node(v100=2, t4=1)], {"a100": 1}),
        (2, {}, [Tres(gpus=4)], {}),
    ],
)
def test_types_that_accounting_does_not_name_come_from_the_nodes(
    count: int, typed: dict[str, int], nodes: list[Tres | None], types: dict[str, int] | None
) -> None:
    assert gpu_types.on_nodes(count, typed, nodes) == types
