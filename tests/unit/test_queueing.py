"""The order of the queue, and what a wish for a place in it means: pure functions only."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from broker.cli.queue import _wanted, priority_view, queue_view
from broker.errors import InvalidRequest
from broker.identity import Role
from broker.queueing.order import Candidate, Rank, in_order, in_words, largest, rank_of, unmet
from broker.queueing.wishes import MAX_NUMBER, Outcome, Wish, beside, outcome, overtaken, steps, verdict
from broker.runs.priority import Level, check_class, first_level, nice_of, submission_nice
from broker.settings import ClusterSettings
from broker.slurm import DONE, Result, ResultKind, SlurmState
from broker.slurm.changes import Adjusted, Shown

LEVEL = Wish("level", nice=-20_000)
NUMBER = Wish("number", nice=0, number=77)


def shown(priority: int = 5, nice: int = 0, state: SlurmState = SlurmState.PENDING) -> Shown:
    return Shown(state, "Priority", priority, nice)


def candidate(key: str, rank: Rank, priority: int = 0, submit: float = 0, job_id: int = 0) -> Candidate:
    return Candidate(key, rank, priority, submit, job_id, 0)


def test_priority_comes_before_submission_and_held_jobs_are_last() -> None:
    jobs = [
        candidate("held", Rank.HELD, 900),
        candidate("new", Rank.SUBMITTING),
        candidate("child", Rank.DEPENDENT, 800),
        candidate("late", Rank.READY, 5, submit=2),
        candidate("early", Rank.READY, 5, submit=1),
        candidate("first", Rank.READY, 7, submit=9),
        candidate("same-second", Rank.READY, 5, submit=2, job_id=3),
    ]
    assert in_order(jobs) == ["first", "early", "late", "same-second", "child", "new", "held"]


@given(st.lists(st.tuples(st.sampled_from(Rank), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_every_job_has_one_place_and_none_goes_before_a_better_one(
    facts: list[tuple[Rank, int, int]],
) -> None:
    jobs = {
        str(n): candidate(str(n), rank, priority, submit, n)
        for n, (rank, priority, submit) in enumerate(facts)
    }
    order = in_order(jobs.values())
    assert sorted(order) == sorted(jobs)
    for before, after in pairwise(order):
        one, other = jobs[before], jobs[after]
        assert (one.rank, -one.priority, one.submit) <= (other.rank, -other.priority, other.submit)


def test_what_stands_between_a_job_and_its_start() -> None:
    assert rank_of(in_slurm=True, held=True, reason="Priority") is Rank.HELD
    assert rank_of(in_slurm=False, held=False, reason="None") is Rank.SUBMITTING
    assert rank_of(in_slurm=True, held=False, reason="Dependency") is Rank.DEPENDENT
    assert rank_of(in_slurm=True, held=False, reason="Resources") is Rank.READY


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("afterok:7(unfulfilled),afterok:9(failed)", [7, 9]),
        ("afterok:7(fulfilled),afterok:9(unfulfilled)", [9]),
        ("afterok:7_*(unfulfilled)", [7]),
        ("", []),
    ],
)
def test_dependencies_that_are_not_met_are_read(text: str, ids: list[int]) -> None:
    assert unmet(text) == ids


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"gpu_type": "A100", "gpu_count": 4, "memory_mib": 131_072}, "A100 x 4, 128GB"),
        ({"gpu_type": None, "gpu_count": 1, "memory_mib": 1536}, "GPU x 1, 1.5GB"),
        ({"gpu_count": 0, "cpus": 8, "memory_mib": 32_768}, "CPU x 8, 32GB"),
        ({"gpu_count": 0, "cpus": None, "memory_mib": 64}, "CPU x 2, 64MB"),
    ],
)
def test_resources_are_told_as_people_write_them(resources: dict[str, Any], words: str) -> None:
    assert in_words(resources, default_cpus=2) == words


def test_a_run_asks_for_the_most_that_one_of_its_components_does() -> None:
    one = {"gpu_type": "A100", "gpu_count": 2, "memory_mib": 10, "cpus": None, "time_s": 60}
    other = {"gpu_type": None, "gpu_count": 0, "memory_mib": 99, "cpus": 4, "time_s": None}
    assert largest([one, other]) == {
        "gpu_type": "A100", "gpu_count": 2, "memory_mib": 99, "cpus": 4, "time_s": 60
    }  # fmt: skip


def test_a_held_job_is_never_released_by_a_wish() -> None:
    for wish in (LEVEL, Wish("scheduler", nice=0)):
        for frozen in (True, False):
            assert [change.line for change in steps(wish, 7, held=True, frozen=frozen)] == [
                f"update JobId=7 Nice={wish.nice}"
            ]


def test_an_explicit_priority_is_taken_away_before_a_level_counts() -> None:
    assert [c.line for c in steps(LEVEL, 7, held=False, frozen=True)] == [
        "release 7",
        "update JobId=7 Nice=-20000",
    ]
    assert [c.line for c in steps(LEVEL, 7, held=False, frozen=False)] == ["update JobId=7 Nice=-20000"]
    assert [c.line for c in steps(NUMBER, 7, held=False, frozen=False)] == ["update JobId=7 Priority=77"]


@pytest.mark.parametrize(
    ("result", "after", "came"),
    [
        (DONE, shown(priority=77), Outcome.APPLIED),
        (Result(ResultKind.OUTCOME_UNKNOWN), shown(priority=77), Outcome.APPLIED),
        (DONE, shown(priority=5), Outcome.DIFFERS),
        (DONE, None, Outcome.UNREAD),
        (DONE, shown(state=SlurmState.RUNNING), Outcome.STARTED),
        (DONE, shown(state=SlurmState.COMPLETED), Outcome.ENDED),
        (Result(ResultKind.NOT_FOUND), None, Outcome.ENDED),
        (Result(ResultKind.HELD), shown(priority=0), Outcome.HELD),
        (Result(ResultKind.DENIED), shown(), Outcome.REFUSED),
        (Result(ResultKind.UNREACHABLE), None, Outcome.UNKNOWN),
    ],
)
def test_what_slurm_shows_decides_over_what_it_answered(
    result: Result, after: Shown | None, came: Outcome
) -> None:
    assert outcome(NUMBER, result, after) is came


@pytest.mark.parametrize(
    ("results", "done", "again"),
    [
        ([DONE, DONE], True, False),
        ([DONE, Result(ResultKind.NOT_FOUND)], True, False),
        ([DONE, Result(ResultKind.OUTCOME_UNKNOWN, "Socket timed out")], False, True),
        ([Result(ResultKind.DENIED, "no"), Result(ResultKind.OUTCOME_UNKNOWN)], False, False),
    ],
)
def test_a_wish_is_done_failed_or_tried_again(results: list[Result], done: bool, again: bool) -> None:
    after = {n: shown(priority=77) for n, result in enumerate(results) if result == DONE}
    found = verdict(NUMBER, {0: "a", 1: "b"}, Adjusted(dict(enumerate(results)), {}, after))
    assert (found.done, found.again) == (done, again)
    assert [job["component"] for job in found.jobs] == ["a", "b"]


@given(st.lists(st.integers(1, MAX_NUMBER), max_size=5), st.booleans())
def test_a_place_beside_another_run_is_one_and_never_a_hold(others: list[int], again: bool) -> None:
    before, after = beside("before", others, again=again), beside("after", others, again=again)
    if not others:
        assert before is after is None
        return
    assert before is not None and 1 <= before <= MAX_NUMBER
    assert max(others) == MAX_NUMBER or not overtaken("before", before, others)
    if min(others) == 1:
        assert after is None
    else:
        assert after is not None and after >= 1
        assert not overtaken("after", after, others)


@pytest.mark.parametrize(
    ("role", "priority_class", "wanted", "level"),
    [
        (Role.INTERNAL, "training", "normal", Level.HIGH),
        (Role.INTERNAL, "training", "low", Level.LOW),
        (Role.INTERNAL, "inference", "normal", Level.NORMAL),
        (Role.RESEARCHER, "training", "normal", Level.NORMAL),
        (Role.RESEARCHER, "training", "low", Level.LOW),
        (Role.ADMIN, "inference", "high", Level.HIGH),
    ],
)
def test_where_a_level_comes_from(role: Role, priority_class: str, wanted: str, level: Level) -> None:
    assert first_level(role, priority_class, wanted) is level


@pytest.mark.parametrize("role", [Role.RESEARCHER, Role.TENANT_ADMIN])
def test_nobody_but_an_admin_puts_a_run_before_others(role: Role) -> None:
    with pytest.raises(InvalidRequest) as refused:
        first_level(role, "training", "high")
    assert refused.value.problems[0].pointer == "/priority"


def test_a_class_that_preempts_others_work_is_not_everybodys() -> None:
    urgent = ClusterSettings().classes["urgent-inference"].roles
    check_class(Role.INTERNAL, "urgent-inference", urgent)
    check_class(Role.RESEARCHER, "inference", ClusterSettings().classes["inference"].roles)
    with pytest.raises(InvalidRequest) as refused:
        check_class(Role.RESEARCHER, "urgent-inference", urgent)
    assert [problem.pointer for problem in refused.value.problems] == ["/priority_class"]


def test_levels_are_nice_values_and_only_low_goes_with_the_submission() -> None:
    assert [nice_of(level, 100) for level in Level] == [-100, 0, 100]
    assert [submission_nice(level, 100) for level in Level] == [0, 0, 100]


# ---- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wish"),
    [
        (("high", None, None, False), {"level": "high"}),
        (("500", None, None, False), {"number": 500}),
        ((None, "run-1", None, False), {"before": "run-1"}),
        ((None, None, "run-1", False), {"after": "run-1"}),
        ((None, None, None, True), {"scheduler": True}),
        ((None, None, None, False), None),
    ],
)
def test_a_place_is_read_from_the_command_line(words: Any, wish: dict[str, Any] | None) -> None:
    *place, scheduler = words
    assert _wanted(*place, scheduler=scheduler) == wish


@pytest.mark.parametrize("words", [("urgent", None, None, False), ("high", "run-1", None, False)])
def test_no_place_or_two_are_refused(words: Any) -> None:
    *place, scheduler = words
    with pytest.raises(InvalidRequest):
        _wanted(*place, scheduler=scheduler)


def text_of(view: Any) -> str:
    console = Console(width=300)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


JOB = {
    "position": 1, "component": "train", "slurm_job_id": 7, "priority": 77, "frozen": True,
    "resources": "A100 x 4, 128GB", "expected_start": None,
    "why": {"code": "priority", "en": "Others first.", "ko": "먼저입니다."},
}  # fmt: skip
ITEM = {
    **JOB, "run_id": "run-1", "name": "digits", "priority_class": "training", "level": "high",
    "level_ko": "높음", "owner": "ann", "requested_at": "2026-11-01T08:00:00+00:00", "jobs": [JOB],
}  # fmt: skip
SOURCE = {"cluster": "main", "observed_at": "2026-11-01T08:00:00+00:00", "age_s": 3.0, "trouble": "no answer"}


def test_the_queue_is_shown_in_either_language_with_its_age() -> None:
    found = {"items": [ITEM], "total": 3, "sources": [SOURCE]}
    english = text_of(queue_view(found))
    for words in ("77 (frozen)", "A100 x 4, 128GB", "Others first.", "high", "2 more", "3 s ago; no answer"):
        assert words in english
    korean = text_of(queue_view(found, "ko", components=True))
    assert "높음" in korean and "먼저입니다." in korean and "train" in korean
    assert "Nothing waits." in text_of(queue_view({"items": [], "total": 0, "sources": []}))


def test_what_came_of_a_wish_is_shown_job_by_job() -> None:
    change = {
        "wish": "number", "number": 77, "state": "applied", "message": "1 applied", "other_run_id": None,
        "asked_by": "root", "asked_at": "2026-11-01T08:00:00+00:00", "applied_at": None,
        "jobs": [{"component": "train", "slurm_job_id": 7, "outcome": "applied",
                  "before": {"priority": 5, "nice": 0}, "after": None}],
    }  # fmt: skip
    view = text_of(priority_view({"run_id": "run-1", "level": "high", "change": change}))
    assert "1 applied" in view and "train" in view
    assert "run-1" in text_of(priority_view({"run_id": "run-1", "level": "high", "change": None}))
