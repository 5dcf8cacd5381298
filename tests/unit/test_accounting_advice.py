"""What is advised for the next time: never too little, nothing from nothing, and no end of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broker.accounting.tables import AccountingJobRow
from broker.advice.jobs import options_for
from broker.advice.rules import (
    CLOSE,
    CPU_IDLE,
    CPU_MARGIN,
    GPU_IDLE,
    GPU_TARGET,
    KILLED_MARGIN,
    MEMORY_FLOOR_MIB,
    MEMORY_MARGIN,
    SAMPLES,
    TIME_FLOOR_S,
    TIME_MARGIN,
    WORTH,
    Asked,
    Attempt,
    Finding,
    Resource,
    Rule,
    advise,
)
from broker.advice.texts import TEXTS, for_sbatch, in_spec, sentence
from broker.spec.models import Resources
from tests.accounting import job

SAMPLE_S = 30
PAGE = Path(__file__).resolve().parents[2] / "docs/advice.md"
LARGE = Asked(memory_mib=64 << 10, time_s=7200, gpu_count=4, gpu_type="A100", cpus=16)
WELL = Attempt("run-1", "COMPLETED", LARGE, 1800, 1, peak_mib=10 << 10, cpu_s=1800 * 3, gpu_util=0.2)


def of(findings: tuple[Finding, ...], resource: Resource) -> Finding:
    return next(one for one in findings if one.resource == resource)


def found(resource: Resource, *attempts: Attempt, asked: Asked = LARGE) -> Finding:
    return of(advise(asked, attempts, SAMPLE_S), resource)


def told(one: Finding) -> tuple[Rule, int | None]:
    return one.rule, one.suggested


# ---- properties -------------------------------------------------------------------------------------

NODES = st.sampled_from([1, 2, 3])
STATES = st.sampled_from(["COMPLETED", "COMPLETED", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", "CANCELLED"])


@st.composite
def asks(draw: st.DrawFn) -> Asked:
    nodes = draw(NODES)
    return Asked(
        memory_mib=nodes * draw(st.integers(64, 1 << 20)),
        time_s=draw(st.none() | st.integers(60, 30 * 86_400)),
        gpu_count=nodes * draw(st.integers(0, 16)),
        cpus=draw(st.none() | st.integers(1, 128).map(lambda each: each * nodes)),
        nodes=nodes,
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[Asked, list[Attempt]]:
    """What is asked for, and jobs that had asked for the same, as a cluster could have seen them."""
    asked = draw(asks())
    attempts = []
    for number in range(draw(st.integers(0, 6))):
        elapsed = draw(st.integers(1, asked.limit_s))
        attempts.append(
            Attempt(
                run_id=f"run-{draw(st.integers(number // 2, number))}",
                state=draw(STATES),
                asked=asked,
                elapsed_s=elapsed,
                starts=draw(st.integers(1, 3)),
                peak_mib=draw(st.none() | st.integers(1, 2 * asked.memory_mib)),
                cpu_s=draw(st.none() | st.integers(0, (asked.cpus or 4) * elapsed)),
                gpu_util=draw(st.none() | st.floats(0, 1)) if asked.gpu_count else None,
            )
        )
    return asked, sorted(attempts, key=lambda one: one.run_id)


def followed(asked: Asked, findings: tuple[Finding, ...]) -> Asked:
    """What is asked for by somebody who takes all advice."""
    wanted = {one.resource: one.suggested for one in findings if one.suggested is not None}
    return replace(
        asked,
        memory_mib=wanted.get("memory", asked.memory_mib),
        time_s=wanted.get("time", asked.time_s),
        gpu_count=wanted.get("gpu_count", asked.gpu_count),
        cpus=wanted.get("cpus", asked.cpus),
    )


def again(asked: Asked, attempt: Attempt) -> Attempt:
    """The same use with other resources: as many GPUs' worth of work, all else unchanged."""
    busy = (attempt.gpu_util or 0) * attempt.asked.gpu_count
    util = min(1.0, busy / asked.gpu_count) if asked.gpu_count and attempt.gpu_util is not None else None
    state = attempt.state if attempt.succeeded else "FAILED"  # what it lacked, it has now
    return replace(attempt, asked=asked, gpu_util=util, state=state)


@given(histories())
def test_advice_is_never_below_what_a_job_that_succeeded_has_used(
    history: tuple[Asked, list[Attempt]],
) -> None:
    asked, attempts = history
    for one in advise(asked, attempts, SAMPLE_S):
        for ran in attempts:
            if one.suggested is None or not ran.succeeded:
                continue
            used: dict[str, float] = {
                "memory": ran.peak_mib or 0,
                "time": ran.elapsed_s if ran.starts == 1 or one.lowers else 0,
                "gpu_count": (ran.gpu_util or 0) * asked.gpu_count if one.rule != Rule.GPUS_UNUSED else 0,
                "cpus": (ran.cpu_s or 0) / ran.elapsed_s,
            }
            assert one.suggested >= used[one.resource], (one, ran)


@given(histories())
def test_advice_that_was_followed_gives_no_further_advice(history: tuple[Asked, list[Attempt]]) -> None:
    asked, attempts = history
    first = advise(asked, attempts, SAMPLE_S)
    taken = followed(asked, first)
    assume(taken != asked)
    assert not [one for one in advise(taken, attempts, SAMPLE_S) if one.suggested is not None]
    # and with runs that ask for what was advised, and use what those before them used
    later = [replace(again(taken, one), run_id=f"{one.run_id}-again") for one in attempts]
    second = advise(taken, [*attempts, *later], SAMPLE_S)
    waited = of(first, "time").rule == Rule.TIME_WAITS or {"gpu_count", "cpus"} & {
        one.resource for one in first if one.lowers
    }
    left = [one for one in second if one.suggested is not None and not (waited and one.resource == "time")]
    assert not left
    if waited:
        third = followed(taken, second)
        assert not [one for one in advise(third, [*attempts, *later], SAMPLE_S) if one.suggested is not None]


@given(histories())
def test_what_nobody_measured_gives_no_advice(history: tuple[Asked, list[Attempt]]) -> None:
    asked, attempts = history
    unknown = [replace(one, peak_mib=None, cpu_s=None, gpu_util=None) for one in attempts]
    for one in advise(asked, unknown, SAMPLE_S):
        if one.resource != "time" and one.rule != Rule.MEMORY_KILLED:
            assert one.suggested is None, one


@given(histories())
def test_every_advice_is_a_change_that_a_spec_can_say(history: tuple[Asked, list[Attempt]]) -> None:
    asked, attempts = history
    for one in advise(asked, attempts, SAMPLE_S):
        en, ko = sentence(one)
        assert "{" not in en + ko
        assert (one.suggested is None) == (one.confidence is None)
        if one.suggested is not None:
            assert one.suggested != one.asked
            tree = {"nodes": asked.nodes, "memory": f"{asked.nodes}GB"}
            made = Resources.model_validate(tree | {one.resource: in_spec(one.resource, one.suggested)})
            value = getattr(made, one.resource)
            assert (value.mib if one.resource == "memory" else value) == one.suggested
            assert for_sbatch(one.resource, one.suggested, asked.nodes).startswith("--")


# ---- rules ------------------------------------------------------------------------------------------


def test_memory_follows_the_largest_peak_of_any_job_however_it_ended() -> None:
    crashed = replace(WELL, run_id="run-2", state="FAILED", peak_mib=30 << 10)
    one = found("memory", WELL, crashed)
    assert told(one) == (Rule.MEMORY_LOWER, 36 << 10) and 30 * MEMORY_MARGIN <= 36
    assert (one.jobs, one.measured, one.confidence) == (2, 2, "low")
    assert one.saves == pytest.approx(2 * 0.5 * 28)
    assert "30 GiB" in sentence(one)[0] and "64 GiB" in sentence(one)[1]


def test_a_job_killed_for_memory_asks_for_more_than_it_had_and_not_for_more_than_what_worked() -> None:
    killed = replace(WELL, state="OUT_OF_MEMORY", peak_mib=None)
    assert told(found("memory", killed)) == (Rule.MEMORY_KILLED, 96 << 10)
    small = replace(killed, asked=replace(LARGE, memory_mib=8 << 10))
    assert told(found("memory", small, WELL)) == (Rule.MEMORY_LOWER, 12 << 10), "1.5 x 8, above 1.2 x 10"
    doubled = [replace(killed, asked=replace(LARGE, memory_mib=size << 10)) for size in (4, 8, 16)]
    assert told(found("memory", *doubled, WELL)) == (Rule.MEMORY_LOWER, 24 << 10)


def test_what_was_too_little_long_ago_is_no_reason_for_more_than_what_has_worked() -> None:
    small = replace(LARGE, memory_mib=4 << 10, time_s=600)
    killed = replace(WELL, run_id="run-0", state="OUT_OF_MEMORY", asked=small, peak_mib=None)
    assert found("memory", killed, replace(WELL, peak_mib=60 << 10)).rule == Rule.FITS
    busy = replace(WELL, gpu_util=0.9, cpu_s=None, elapsed_s=6600)
    ended = replace(busy, run_id="run-0", state="TIMEOUT", asked=small, elapsed_s=605)
    assert found("time", ended, busy).rule == Rule.FITS, "6600 s of 7200 s are not close"


def test_the_peak_of_a_job_that_did_not_succeed_is_never_a_reason_for_more() -> None:
    killed = replace(WELL, state="OUT_OF_MEMORY", peak_mib=128 << 10)
    assert told(found("memory", killed)) == (Rule.MEMORY_KILLED, 96 << 10), "shared pages count twice"
    tight, crashed = replace(WELL, peak_mib=62 << 10), replace(WELL, state="FAILED", peak_mib=128 << 10)
    one = found("memory", tight, crashed)
    assert told(one) == (Rule.MEMORY_CLOSE, 75 << 10)
    assert "A job that succeeded had a peak of 62 GiB" in sentence(one)[0]


def test_what_was_too_little_is_told_where_it_and_not_the_use_decides() -> None:
    small = replace(LARGE, memory_mib=16 << 10, time_s=3600)
    busy = replace(WELL, gpu_util=0.9, cpu_s=None)
    killed = replace(busy, run_id="run-0", state="OUT_OF_MEMORY", asked=small)
    one = found("memory", killed, WELL)
    assert told(one) == (Rule.MEMORY_LOWER, 24 << 10)
    assert "a job ran out of 16 GiB, and 1.5 times that" in sentence(one)[0] and "16 GiB" in sentence(one)[1]
    ended = replace(busy, run_id="run-0", state="TIMEOUT", asked=small, elapsed_s=3605)
    one = found("time", ended, busy)
    assert told(one) == (Rule.TIME_LOWER, 5400)
    assert "a limit of 1h, and 1.5 times" in sentence(one)[0] and "1h" in sentence(one)[1]
    assert "But" not in sentence(found("memory", WELL))[0] + sentence(found("time", busy))[0]


def test_a_job_that_succeeded_at_the_limit_was_lucky() -> None:
    tight = replace(WELL, peak_mib=62 << 10, elapsed_s=7000)
    assert told(found("memory", tight)) == (Rule.MEMORY_CLOSE, 75 << 10)
    assert told(found("time", replace(tight, gpu_util=0.9, cpu_s=None))) == (Rule.TIME_CLOSE, 9000)
    assert found("memory", replace(WELL, peak_mib=50 << 10)).rule == Rule.FITS
    assert found("memory", replace(WELL, peak_mib=90 << 10)).rule == Rule.FITS, "shared pages count twice"
    assert told(found("memory", WELL, asked=replace(LARGE, memory_mib=8 << 10))) == (
        Rule.MEMORY_CLOSE,
        12 << 10,
    )


def test_time_is_what_all_attempts_of_a_run_took_together() -> None:
    busy = replace(WELL, gpu_util=0.9, cpu_s=None)
    assert told(found("time", busy)) == (Rule.TIME_LOWER, 2400) and 1800 * TIME_MARGIN <= 2400
    lost = replace(busy, state="NODE_FAIL")
    assert told(found("time", lost, busy)) == (Rule.TIME_LOWER, 4500), "it may have gone on from a checkpoint"
    twice = replace(busy, elapsed_s=9000, starts=2)
    assert found("time", twice).rule == Rule.FITS, "a node's death is no reason to ask for more"


def test_a_success_counts_though_its_run_was_tried_once_more_and_failed() -> None:
    busy = replace(WELL, run_id="run-0", gpu_util=0.9, cpu_s=None)
    long, crashed = replace(busy, elapsed_s=4000), replace(busy, state="FAILED", elapsed_s=5)
    assert told(found("time", long, crashed)) == (Rule.TIME_LOWER, 5100)
    assert told(found("time", long, crashed, replace(busy, run_id="run-1"))) == (Rule.TIME_LOWER, 5100)


def test_a_time_limit_that_was_reached_asks_for_more_until_longer_ones_have_worked() -> None:
    busy = replace(WELL, gpu_util=0.9, cpu_s=None)
    ended = replace(busy, run_id="run-0", state="TIMEOUT", elapsed_s=7205)
    assert told(found("time", ended)) == (Rule.TIME_OUT, 10_800)
    later = replace(LARGE, time_s=4 * 7200)
    done = replace(busy, asked=later, elapsed_s=8000)
    assert told(found("time", ended, done, asked=later)) == (Rule.TIME_LOWER, 10_800)
    resumed = [ended, replace(busy, run_id="run-0", elapsed_s=600)]
    assert told(found("time", *resumed)) == (Rule.TIME_OUT, 10_800)


def test_time_waits_while_fewer_gpus_are_advised_and_comes_from_jobs_with_as_many() -> None:
    assert found("time", WELL).rule == Rule.TIME_WAITS
    fewer = replace(LARGE, gpu_count=1, cpus=5)
    assert told(found("time", WELL, asked=fewer)) == (Rule.NO_JOBS, None)
    slower = replace(WELL, run_id="run-2", asked=fewer, elapsed_s=4000, gpu_util=0.8, cpu_s=None)
    assert told(found("time", WELL, slower, asked=fewer)) == (Rule.TIME_LOWER, 5100)


def test_gpus_are_as_many_as_would_be_busy_and_divide_what_was_asked_for() -> None:
    assert told(found("gpu_count", WELL)) == (Rule.GPUS_LOWER, 1)
    busier = replace(WELL, run_id="run-2", gpu_util=0.3)
    assert told(found("gpu_count", WELL, busier)) == (Rule.GPUS_LOWER, 2), "1.2 GPUs were busy"
    assert found("gpu_count", WELL, replace(WELL, gpu_util=0.5)).rule == Rule.FITS
    two_nodes = replace(LARGE, nodes=2)
    assert told(found("gpu_count", replace(WELL, asked=two_nodes), asked=two_nodes)) == (Rule.GPUS_LOWER, 2)


def test_no_gpus_at_all_are_advised_only_where_every_job_was_measured_and_never_used_one() -> None:
    idle = replace(WELL, gpu_util=0.0)
    assert told(found("gpu_count", idle, idle)) == (Rule.GPUS_UNUSED, 0)
    assert "never used" in sentence(found("gpu_count", idle))[0]
    unknown = replace(idle, gpu_util=None)
    assert told(found("gpu_count", idle, unknown)) == (Rule.PARTLY_MEASURED, None)
    assert told(found("gpu_count", replace(WELL, gpu_util=None))) == (Rule.NOT_MEASURED, None)


def test_cores_are_half_more_than_were_busy_and_none_are_named_where_the_spec_names_none() -> None:
    assert told(found("cpus", WELL)) == (Rule.CPUS_LOWER, 5)
    assert found("cpus", WELL, replace(WELL, cpu_s=1800 * 8)).rule == Rule.FITS
    assert told(found("cpus", WELL, asked=replace(LARGE, cpus=None))) == (Rule.NOT_ASKED, None)


def test_too_little_data_gives_no_advice_and_says_so() -> None:
    assert {one.rule for one in advise(LARGE, [], SAMPLE_S)} == {Rule.NO_JOBS}
    failed = replace(WELL, state="FAILED")
    assert {one.rule for one in advise(LARGE, [failed], SAMPLE_S)} == {Rule.NO_SUCCESS}
    short = replace(WELL, elapsed_s=2 * SAMPLE_S - 1)
    assert found("memory", short).rule == Rule.TOO_SHORT == found("gpu_count", short).rule
    assert found("memory", replace(short, elapsed_s=2 * SAMPLE_S)).rule == Rule.MEMORY_LOWER


def test_confidence_grows_with_jobs_and_falls_with_those_that_nobody_measured() -> None:
    unknown = replace(WELL, peak_mib=None)
    sure = [
        found("memory", *many).confidence
        for many in ([WELL] * 2, [WELL] * 3, [WELL] * 10, [WELL] * 10 + [unknown] * 5, [WELL] + [unknown] * 9)
    ]
    assert sure == ["low", "medium", "high", "medium", "low"]
    tight = replace(WELL, peak_mib=62 << 10)
    assert [found("memory", *[tight] * count).confidence for count in (1, 3, 10)] == ["low", "medium", "high"]
    assert found("memory", replace(tight, state="OUT_OF_MEMORY")).confidence == "high", "that is certain"


# ---- texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        f"at most {WORTH:g} of what is asked for",
        f"at least {('', 'one', 'two')[SAMPLES]} looks",
        f"largest peak of any job, however it ended, × {MEMORY_MARGIN:g}; at least {MEMORY_FLOOR_MIB} MiB",
        f"{KILLED_MARGIN:g} × the memory of a job that ran out of it; × {MEMORY_MARGIN:g} after a peak of "
        f"{CLOSE:.0%}".replace("%", " %"),
        f"longest run × {TIME_MARGIN:g}, all its",
        f"at least {TIME_FLOOR_S // 60} min",
        f"{KILLED_MARGIN:g} × the limit that was reached; × {TIME_MARGIN:g} after",
        f"busy to {GPU_TARGET:.0%} at most, if no job kept them busier than {GPU_IDLE:.0%};".replace(
            "%", " %"
        ),
        f"(CPU time / elapsed) × {CPU_MARGIN:g}, if no job kept them busier than {CPU_IDLE:.0%}".replace(
            "%", " %"
        ),
    ],
)
def test_the_numbers_of_the_rules_are_documented(words: str) -> None:
    assert words in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", Rule)
def test_every_rule_is_told_in_both_languages_and_documented(rule: Rule) -> None:
    en, ko = TEXTS[rule]
    assert any("가" <= letter <= "힣" for letter in ko) and not any("가" <= letter <= "힣" for letter in en)
    assert f"| `{rule}` |" in PAGE.read_text(encoding="utf-8")


def test_no_amount_is_told_with_an_exponent() -> None:
    many = replace(LARGE, memory_mib=64 << 20, nodes=64)
    one = found("memory", replace(WELL, asked=many, peak_mib=20 << 20), asked=many)
    assert "20,480 GiB of 65,536 GiB" in sentence(one)[0]


# ---- jobs that are no run's -------------------------------------------------------------------------


def options(**changes: object) -> str:
    return options_for(AccountingJobRow(**job(1, 1_800_000_000, **changes)))  # type: ignore[arg-type]


def test_any_job_of_the_cluster_gets_the_options_that_follow_from_it() -> None:
    assert options(max_rss_mib=None, mem_in_tot_mib=1000) == "--mem=1280M --time=0-01:15:00"
    assert options(max_rss_mib=500, mem_in_tot_mib=600, nodes=4) == "--mem=640M --time=0-01:15:00"
    both = {"gpu_count": 2, "gpu_util": 0.0, "mem_in_tot_mib": 7000, "timelimit_s": 4000}
    assert options(**both) == "--gres=none"
    few = both | {"gpu_count": 8, "gpu_util": 10.0}
    assert options(**few, gpu_type="a100", nodes=2) == "--gres=gpu:a100:1"
    assert options(**few, gpu_type="mixed") == options(**few) == "--gres=gpu:1"
    assert options(state="OUT_OF_MEMORY", cpu_partial=True, timelimit_s=None) == "--mem=12288M"
    assert options(state="TIMEOUT", max_rss_mib=None, mem_in_tot_mib=None) == "--time=0-03:00:00"


def test_a_job_says_nothing_of_what_was_not_limited_or_has_not_ended() -> None:
    assert options(timelimit_s=None, mem_mib=0) == ""
    assert options(end_at=None) == options(run_s=0) == ""
