"""When a job is told to leave GPUs idle: by what was measured, once, and never by what was not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.notifications.kinds import Kind
from broker.notifications.texts import write
from broker.resources.idle import (
    News,
    Rule,
    Standing,
    Track,
    as_json,
    follow,
    from_json,
    looks_of,
    news,
    span_at,
    standing,
)
from broker.resources.usage import GpuUse, JobUse, Source

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HALF_HOUR = Rule(below=5, width_s=300, count=6)
"""Of looks a minute apart: five in a span, thirty in a window."""
Look = Mapping[str, float | None]


def gpu(name: str, util: float | None, source: Source = Source.SAMPLER) -> GpuUse:
    return GpuUse("n1", "0", name, False, util, 1.0, 2.0, None, None, source, NOW)


class Job:
    """A job as the gauge follows it: one look a minute, kept as JSON in between."""

    def __init__(self, gpus: int = 1, rule: Rule = HALF_HOUR) -> None:
        self.gpus, self.rule, self.minute = gpus, rule, 0
        self.kept: Any = None
        self.told: dict[str, Any] | None = None
        self.standing: Standing | None = None
        self.heard: list[tuple[int, News]] = []

    def look(self, look: Look) -> None:
        use = JobUse(gpus=tuple(gpu(name, util) for name, util in look.items()))
        span = span_at(NOW, NOW + timedelta(minutes=self.minute), self.rule)
        looks = looks_of(use, span, self.gpus)
        tracks = follow(from_json(self.kept, self.rule), looks, span, self.rule, told=self.told is not None)
        self.kept = json.loads(json.dumps(as_json(tracks, self.rule)))
        self.standing = standing(tracks, span, self.rule, self.gpus)
        what = news(self.told, self.standing)
        if what in (News.IDLE, News.CHANGED):
            self.told = {"gpus": self.standing.idle, "measured": self.standing.measured}
        elif what is not None:
            self.told = None
        if what in (News.IDLE, News.BUSY):
            self.heard.append((self.minute, what))
        self.minute += 1

    def see(self, looks: Iterable[Look]) -> list[tuple[int, News]]:
        for look in looks:
            self.look(look)
        return self.heard


def minutes(n: int, **utils: float | None) -> list[Look]:
    return [utils] * n


def test_idle_is_told_once_after_a_whole_window_and_work_once() -> None:
    job = Job()
    assert job.see(minutes(300, a=0.0)) == [(30, News.IDLE)]
    assert job.see(minutes(300, a=95.0)) == [(30, News.IDLE), (300, News.BUSY)]
    job.see(minutes(300, a=1.0))
    assert [what for _, what in job.heard] == [News.IDLE, News.BUSY, News.IDLE]


def test_of_several_gpus_those_that_idle_are_counted() -> None:
    job = Job(gpus=4)
    job.see(minutes(60, a=90.0, b=0.0, c=0.5, d=0.1))
    assert job.standing == Standing(idle=3, measured=4, allocated=4, percent=0.2, settled=True)
    job.see(minutes(10, a=90.0, b=80.0, c=0.5, d=0.1))
    assert job.told == {"gpus": 2, "measured": 4} and len(job.heard) == 1, "shown anew, and not told again"
    job.see(minutes(10, a=90.0, b=80.0, c=50.0, d=50.0))
    assert [what for _, what in job.heard] == [News.IDLE, News.BUSY]


def test_gpus_that_go_idle_one_after_the_other_are_told_of_together() -> None:
    job = Job(gpus=4)
    names = "abcd"
    for minute in range(120):
        job.look({name: 90.0 if minute < 40 + 3 * n else 0.0 for n, name in enumerate(names)})
    assert len(job.heard) == 1 and job.told == {"gpus": 4, "measured": 4}


def test_a_job_that_has_just_begun_is_given_time_and_so_is_one_that_loaded_its_data_first() -> None:
    assert Job().see(minutes(30, a=0.0)) == []
    assert Job().see([*minutes(29, a=0.0), *minutes(300, a=90.0)]) == []
    late = [*minutes(27, a=0.0), *minutes(3, a=40.0)]  # the mean of the window: 4 %
    assert Job().see([*late, *minutes(1, a=40.0)]) == [], "it computes just now"


def test_what_computes_now_and_then_is_not_idle() -> None:
    burst = [*minutes(18, a=0.0), *minutes(2, a=90.0)]
    assert Job().see(burst * 20) == []


def test_at_the_edge_nobody_is_told_this_and_that() -> None:
    job = Job()
    job.see([*minutes(40, a=4.0), *minutes(100, a=6.0), *minutes(100, a=4.0), *minutes(100, a=7.0)])
    assert job.heard == [(30, News.IDLE)]


@pytest.mark.parametrize("util", [None, 0.0])
def test_what_nobody_measures_is_not_idle(util: float | None) -> None:
    job = Job(gpus=2)
    looks = minutes(200, a=None) if util is None else [{}] * 200  # slices (MIG); or nobody looks
    assert job.see(looks) == [] and job.standing is not None and job.standing.percent is None


def test_a_span_without_a_look_is_unknown_and_the_window_begins_again() -> None:
    job = Job()
    for _ in range(10):
        job.see([*minutes(20, a=0.0), *minutes(10, a=None)])
    assert job.heard == []
    assert job.see(minutes(31, a=0.0)) == [(330, News.IDLE)]


def test_a_gpu_that_is_seen_with_gaps_holds_up_nothing_that_is_known_of_the_others() -> None:
    job = Job(gpus=2)
    for _ in range(20):
        job.see([*minutes(20, a=0.0, b=0.0), *minutes(5, a=0.0)])
    assert [what for _, what in job.heard] == [News.IDLE] and job.told == {"gpus": 1, "measured": 2}


def test_what_cannot_be_measured_any_more_is_forgotten_without_a_word() -> None:
    job = Job()
    job.see([*minutes(40, a=0.0), *minutes(20, a=None)])
    assert job.told is not None, "it was measured to be idle within the window"
    job.see(minutes(20, a=None))
    assert job.told is None and len(job.heard) == 1
    two = Job(gpus=2)
    two.see([*minutes(40, a=0.0, b=90.0), *minutes(60, a=None, b=90.0)])
    assert two.told is None and len(two.heard) == 1, "of one of them nothing is known: that is not busy"


def test_a_gpu_is_the_same_whoever_measures_it() -> None:
    tracks: dict[str, Track] = {}
    for minute in range(40):
        source = Source.DCGM if minute % 2 else Source.SAMPLER
        span = span_at(NOW, NOW + timedelta(minutes=minute), HALF_HOUR)
        looks = looks_of(JobUse(gpus=(gpu("GPU-1", 0.0, source),)), span, 1)
        tracks = follow(tracks, looks, span, HALF_HOUR, told=False)
    assert list(tracks) == ["n1/GPU-1"] and tracks["n1/GPU-1"].idle


def test_one_figure_of_slurm_stands_for_all_of_a_jobs_gpus() -> None:
    whole = replace(gpu("", 1.0, Source.SLURM), node="", index="all")
    looks = looks_of(JobUse(gpus=(whole,)), 0, 8)
    assert looks == {"/all": Track({0: (1.0, 1)}, worth=8)}
    idle = {name: replace(track, idle=True) for name, track in looks.items()}
    assert standing(idle, 0, HALF_HOUR, 8).idle == 8


def test_where_slurm_takes_over_from_a_sampler_no_gpu_counts_twice() -> None:
    whole = replace(gpu("", 0.0, Source.SLURM), node="", index="all")
    sampled = [gpu(name, 0.0) for name in ("GPU-1", "GPU-2")]
    tracks: dict[str, Track] = {}
    for minute in range(120):
        span = span_at(NOW, NOW + timedelta(minutes=minute), HALF_HOUR)
        looks = looks_of(JobUse(gpus=tuple(sampled if minute < 42 else [whole])), span, 2)
        tracks = follow(tracks, looks, span, HALF_HOUR, told=minute > 30)
        now = standing(tracks, span, HALF_HOUR, 2)
        assert (now.idle, now.measured) == (0 if minute < 30 else 2, 2), minute


def test_another_setting_begins_anew_and_rare_looks_make_longer_spans() -> None:
    kept = as_json({"a": Track({5: (0.0, 5)}, idle=True)}, HALF_HOUR)
    assert from_json(kept, replace(HALF_HOUR, width_s=600.0)) == {}
    rare = Rule.of(1800, 5, 600)
    assert rare is not None and (rare.width_s, rare.count) == (1200, 2)
    job = Job(rule=rare)
    for minute in range(0, 120, 10):
        job.minute = minute
        job.look({"a": 0.0})
    assert job.heard == [(40, News.IDLE)]


UTIL = st.one_of(st.none(), st.just(0.0), st.floats(0, 100))
RUNS = st.lists(st.tuples(st.sampled_from([1, 3, 15, 35]), UTIL, UTIL), max_size=5)


@settings(max_examples=60)
@given(RUNS)
def test_whoever_is_told_idle_was_measured_so_and_told_in_turn(runs: list[tuple[int, Any, Any]]) -> None:
    """Against the looks themselves: idle is told where each span of a window has a look, and all are low."""
    job = Job(gpus=2)
    seen: list[Look] = [look for n, a, b in runs for look in minutes(n, a=a, b=b)]
    for minute, look in enumerate(seen):
        before = len(job.heard)
        job.look(look)
        if len(job.heard) > before and job.heard[-1][1] is News.IDLE:
            assert _idle(seen[: minute + 1], "a") or _idle(seen[: minute + 1], "b")
    told = [what for _, what in job.heard]
    assert all(not (a is b is News.BUSY) for a, b in pairwise(told))
    assert told[:1] in ([], [News.IDLE])


def _idle(seen: list[Look], name: str) -> bool:
    """The last 30 minutes and what is under way, looked at in each 5 minutes, below 5 % on the mean."""
    first = len(seen) - 1 - (len(seen) - 1) % 5 - 30
    if first < 0:
        return False
    spans = [[look[name] for look in seen[at : at + 5]] for at in range(first, len(seen), 5)]
    known = [[util for util in span if util is not None] for span in spans]
    return all(known[:6]) and fmean([util for span in known for util in span]) < 5 + 1e-9


def test_people_read_the_numbers_in_both_languages() -> None:
    data = {"component": "trainer", "gpus_idle": 3, "gpus": 4, "gpu_util": 0.4, "since": "2026-05-01"}
    english, korean = (write(Kind.RUN_GPU_IDLE, "digits #7", data, lang) for lang in ("en", "ko"))
    assert english.title == "digits #7 leaves GPUs idle" and "Idle GPUs: 3" in english.body
    assert korean.title == "GPU 유휴: digits #7" and "유휴 GPU 수: 3" in korean.body
    assert write(Kind.RUN_GPU_BUSY, "digits #7", {}, "ko").title == "GPU 사용 재개: digits #7"
