"""When a run is likely to end: its graph, what runs, what waits, and what nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.runs.expected import Allowance, ExpectedEnd, Left, Start, Usual, expected_end
from broker.runs.run_end import Forecast, GapCode, Part, RunEnd, forecast
from broker.runs.states import JobState

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
DAY = 86400
LONG = Allowance(time_s=10 * DAY)


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def runs(minutes: float | None, limit: float = 600, name: str = "a") -> Part:
    """It runs, and ends then as it usually does; None: nothing says."""
    earlier = Usual(seconds=60 * minutes, runs=3) if minutes is not None else None
    end = expected_end(NOW, Allowance(int(60 * limit)), None, earlier, NOW)
    return Part(name, JobState.RUNNING, (), LONG, end)


def waits(name: str, *parents: str, minutes: float | None = 10, **fields: Any) -> Part:
    left = Left(60 * minutes, "history", 4) if minutes is not None else None
    return replace(Part(name, JobState.PENDING, parents, LONG, left=left), **fields)


def run_of(*parts: Part) -> RunEnd:
    found = forecast(parts, NOW).run
    assert found is not None
    return found


def gaps(end: RunEnd) -> dict[str, list[str]]:
    return {gap.code: gap.components for gap in end.gaps}


def test_what_runs_ends_with_its_last_component() -> None:
    found = run_of(runs(30), runs(20, name="b"))
    assert (found.kind, found.at, found.earliest, found.latest) == ("likely", at(30), at(30), at(600))
    assert (found.path, found.gaps) == (["a"], [])


def test_what_waits_for_others_ends_its_time_after_them_at_the_earliest() -> None:
    """a → b → d, a → c → d: the longer way counts; nobody knows how long any of them queues."""
    parts = [
        *(runs(30), waits("b", "a", minutes=5), waits("c", "a", minutes=15)),
        waits("d", "b", "c", minutes=10),
    ]
    found = run_of(*parts)
    assert (found.kind, found.at, found.latest) == ("not_before", at(55), None)
    assert (found.path, gaps(found)) == (["a", "c", "d"], {"queue": ["b", "c", "d"]})
    ends = forecast(parts, NOW).ends
    assert {name: end.at for name, end in ends.items()} == {
        "a": at(30),
        "b": at(35),
        "c": at(45),
        "d": at(55),
    }
    assert (ends["d"].starts_at, ends["d"].start_source, ends["d"].kind) == (
        at(45),
        "components",
        "not_before",
    )


def test_a_start_that_slurm_estimates_makes_the_end_a_likely_one() -> None:
    found = run_of(runs(30), waits("b", start=Start(at(60), "slurm")))
    assert (found.kind, found.at, found.latest, found.gaps) == ("likely", at(70), None, [])
    passed = run_of(runs(30), waits("b", start=Start(at(-1), "slurm")))
    assert (passed.kind, passed.at, gaps(passed)) == ("not_before", at(30), {"queue": ["b"]})


@pytest.mark.parametrize(("start", "end", "path"), [(60, 70, ["b"]), (10, 40, ["a", "b"])])
def test_an_estimate_of_what_still_waits_for_others_is_the_earliest_at_best(
    start: float, end: float, path: list[str]
) -> None:
    found = run_of(runs(30), waits("b", "a", start=Start(at(start), "slurm")))
    assert (found.kind, found.at, found.path, gaps(found)) == ("not_before", at(end), path, {"queue": ["b"]})


@pytest.mark.parametrize("fields", [{"held": True}, {"state": JobState.REQUEUE_HOLD}])
def test_slurm_estimates_no_start_of_what_is_held(fields: Mapping[str, Any]) -> None:
    """The last look may be older than the hold."""
    part = waits("a", start=Start(at(60), "slurm"), **fields)
    found = run_of(part)
    assert (found.kind, found.at, gaps(found)) == ("not_before", at(10), {"held": ["a"]})
    assert forecast([part], NOW).ends["a"].start_source is None
    retried = run_of(replace(part, start=Start(at(5), "retry")))
    assert (retried.kind, retried.at, gaps(retried)) == ("not_before", at(15), {"held": ["a"]})


def test_the_way_through_the_graph_leads_to_its_end_also_by_what_takes_nobody_knows_how_long() -> None:
    found = run_of(runs(30), waits("b", "a", minutes=None), waits("c", "a", "b", minutes=None))
    assert (found.at, found.path) == (at(30), ["a", "b", "c"])


def test_the_next_try_is_the_earliest_start_and_no_estimate() -> None:
    part = waits("a", start=Start(at(5), "retry"), state=JobState.INTENDED)
    found = run_of(part)
    assert (found.kind, found.at, gaps(found)) == ("not_before", at(15), {"not_submitted": ["a"]})
    assert forecast([part], NOW).ends["a"].start_source == "retry"


def test_a_component_that_never_ran_before_is_named() -> None:
    found = run_of(runs(30), waits("b", "a", minutes=None), waits("c", "b", minutes=None))
    assert (found.kind, found.at) == ("not_before", at(30))
    assert gaps(found) == {"queue": ["b", "c"], "no_history": ["b", "c"]}
    assert "No earlier run with such resources says how long it takes: b, c." in found.text
    assert "b, c" in found.text_ko and "기록이 없어" in found.text_ko


def test_where_nothing_is_known_no_time_is_told() -> None:
    found = run_of(waits("a", minutes=None))
    assert (found.kind, found.at, found.earliest, found.latest) == ("unknown", None, None, None)
    assert gaps(found) == {"queue": ["a"], "no_history": ["a"]}
    end = forecast([waits("a", minutes=None)], NOW).ends["a"]
    assert (end.kind, end.at, end.source, end.starts_at) == ("unknown", None, None, None)


def test_limits_are_the_latest_end_once_all_of_it_has_started() -> None:
    found = run_of(runs(None, limit=60), runs(30, limit=90, name="b"))
    assert (found.kind, found.at, found.earliest, found.latest) == ("at_latest", at(90), at(30), at(90))
    assert gaps(found) == {"only_limit": ["a"]}
    assert run_of(runs(None, limit=60), waits("b", "a")).latest is None


def test_what_surely_ends_before_the_rest_keeps_nothing_from_being_known() -> None:
    found = run_of(runs(None, limit=20), runs(30, name="b"))
    assert (found.kind, found.at, found.path, found.gaps) == ("likely", at(30), ["b"], [])


def test_what_another_start_must_finish_is_told_as_the_earliest() -> None:
    several = Allowance(3 * DAY, DAY)
    end = expected_end(NOW, several, None, Usual(seconds=1.5 * DAY, runs=2), NOW)
    found = run_of(Part("a", JobState.RUNNING, (), several, end))
    assert (found.kind, found.at, found.latest) == ("not_before", at(1.5 * 1440), None)
    assert gaps(found) == {"more_starts": ["a"]}
    waiting = waits("a", minutes=1.5 * 1440, allowed=several, start=Start(at(60), "slurm"))
    found = run_of(waiting)
    assert (found.kind, found.at, gaps(found)) == ("not_before", at(2220), {"more_starts": ["a"]})


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_time_that_is_too_short_is_told_even_if_the_end_is_known(name: str) -> None:
    parts = [runs(30, limit=20), waits("b", start=Start(at(9), "slurm"))]
    if name == "b":
        parts = [runs(30), waits("b", minutes=50, allowed=Allowance(600), start=Start(at(9), "slurm"))]
    found = run_of(*parts)
    assert found.kind == "likely" and gaps(found) == {"too_short": [name]}
    assert "fail" in found.text and "실패" in found.text_ko


def test_between_two_starts_what_is_left_counts() -> None:
    """Its node was taken away; Slurm has told when it starts again, or has not."""
    several = Allowance(3 * DAY, DAY, None)
    left = Left(3600, "progress")
    again = Part("a", JobState.PENDING, (), several, left=left, start=Start(at(10), "slurm"), restarts=1)
    end = forecast([again], NOW).ends["a"]
    assert (end.kind, end.at, end.source, end.starts_at) == ("likely", at(70), "progress", at(10))
    end = forecast([replace(again, start=None)], NOW).ends["a"]
    assert (end.kind, end.at, end.limit) == ("not_before", at(60), None)
    end = forecast([replace(again, left=None)], NOW).ends["a"]
    assert (end.kind, end.at, end.source) == ("not_before", at(10), None)
    assert "earlier starts" in end.text and "이전 실행" in end.text_ko
    anew = replace(again, left=None, allowed=LONG)  # it goes on from nothing
    assert gaps(run_of(anew)) == {"no_history": ["a"]}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"held": True}, GapCode.HELD),
        ({"state": JobState.REQUEUE_HOLD}, GapCode.HELD),
        ({"state": JobState.SUSPENDED}, GapCode.STOPPED),
        ({"state": JobState.UNKNOWN}, GapCode.STOPPED),
        ({"state": JobState.INTENDED, "held": True}, GapCode.NOT_SUBMITTED),
        ({"state": JobState.REQUEUED}, GapCode.QUEUE),
    ],
)
def test_it_is_said_why_a_start_is_not_known(fields: Mapping[str, Any], code: GapCode) -> None:
    assert gaps(run_of(waits("a", **fields))) == {code: ["a"]}


def test_what_is_about_to_start_or_to_end_waits_for_nobody() -> None:
    assert run_of(waits("a", state=JobState.CONFIGURING)).at == at(10)
    ending = Part("a", JobState.COMPLETING, (), LONG)
    assert (run_of(ending).kind, run_of(ending).at) == ("likely", NOW)


def test_of_many_components_a_sentence_names_a_few_and_counts_the_rest() -> None:
    found = run_of(*(waits(f"c{number}") for number in range(5)))
    (gap,) = found.gaps
    assert len(gap.components) == 5 and gap.text.endswith("c0, c1, c2 and 2 more.")
    assert gap.text_ko.endswith("c0, c1, c2 외 2개.")


def test_a_run_of_which_all_has_ended_has_no_expected_end() -> None:
    assert forecast([], NOW) == Forecast({}, None)


# ---- what must hold of any run --------------------------------------------------------------------------


@st.composite
def _graphs(draw: st.DrawFn) -> list[Part]:
    parts: list[Part] = []
    for number in range(draw(st.integers(1, 6))):
        name, earlier = f"c{number}", [part.component for part in parts]
        minutes = draw(st.none() | st.integers(1, 500))
        if draw(st.booleans()):
            parts.append(runs(minutes, limit=draw(st.integers(501, 900)), name=name))
            continue
        parents = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        start = draw(
            st.none() | st.builds(Start, st.integers(-5, 300).map(at), st.sampled_from(["slurm", "retry"]))
        )
        parts.append(waits(name, *parents, minutes=minutes, start=start, held=draw(st.booleans())))
    return parts


def _played(parts: Sequence[Part], draw: st.DataObject, ends: Mapping[str, ExpectedEnd]) -> datetime:
    """The end of a run in which all that was told comes true, and the rest takes whatever it takes."""
    ended: dict[str, datetime] = {}
    some = st.integers(0, 400).map(lambda minutes: timedelta(minutes=minutes))
    for part in parts:
        name, end = part.component, part.end
        if end is not None and end.limit is not None and end.at is not None:
            known = end.kind == "likely"
            ended[name] = end.at if known else min(end.limit, NOW + draw.draw(some))
            continue
        begin = max((ended[parent] for parent in part.waits_for), default=NOW)
        start = part.start if part.start is not None and part.start.at > NOW else None
        if start is not None and part.held and start.source == "slurm":
            start = None
        begin = begin if start is None else max(begin, start.at)
        exact = start is not None and start.source == "slurm" and not part.waits_for
        begin += timedelta(0) if exact else draw.draw(some)
        ended[name] = begin + (timedelta(seconds=part.left.seconds) if part.left else draw.draw(some))
        said = ends[name]
        assert said.at is None or (
            ended[name] == said.at if said.kind == "likely" else ended[name] >= said.at
        )
    return max(ended.values())


@given(parts=_graphs(), data=st.data())
def test_no_run_ends_before_or_after_what_was_told_of_it(parts: list[Part], data: st.DataObject) -> None:
    found = forecast(parts, NOW)
    assert found.run is not None
    end, told = _played(parts, data, found.ends), found.run
    assert told.earliest is None or end >= told.earliest
    assert told.latest is None or end <= told.latest
    assert told.kind != "likely" or end == told.at


@given(parts=_graphs())
def test_a_run_names_what_it_does_not_know_and_only_that(parts: list[Part]) -> None:
    told = run_of(*parts)
    assert (told.kind == "likely") == (told.gaps == [])
    assert (told.at is None) == (told.kind == "unknown")
    assert told.earliest is None or told.latest is None or told.earliest <= told.latest
    names = [part.component for part in parts]
    waiting = {part.component for part in parts if part.end is None}
    assert told.path == sorted(told.path, key=names.index)
    assert all(
        parent in dict(zip(names, parts, strict=True))[child].waits_for
        for parent, child in zip(told.path, told.path[1:], strict=False)
    )
    assert (told.latest is None) == bool(waiting)


@given(parts=_graphs(), more=st.integers(0, 500), which=st.integers(0, 5))
def test_what_takes_longer_makes_no_run_end_earlier(parts: list[Part], more: int, which: int) -> None:
    part = parts[which % len(parts)]
    if part.left is None:
        return
    longer = replace(part, left=Left(part.left.seconds + 60 * more, "history", 4))
    before, after = run_of(*parts), run_of(*(longer if one is part else one for one in parts))
    assert (after.earliest or NOW) >= (before.earliest or NOW)
