"""Reports read packed columns: their sums are those of the jobs one by one, however days were packed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, select, update

from broker.accounting import archive, packed
from broker.accounting.buckets import Sums
from broker.accounting.histograms import ERROR, quantile
from broker.accounting.tables import (
    AccountingDayRow,
    AccountingJobRow,
    AccountingPackedRow,
    AccountingWaitRow,
)
from broker.accounting.wait_classes import NAMES, wait_class
from broker.context import Context
from broker.reports import days
from broker.reports import wanted as reports
from broker.reports.definitions import LOST, REPORTS
from broker.reports.measures import Report
from broker.reports.wanted import COLUMNS, PERIODS, Scope, Wanted, dimensions, period_name
from tests.accounting import at, job, keep
from tests.api_support import context
from tests.postgres import database_of

FIRST = at("2025-12-28T00:00")
SINCE, UNTIL = date(2025, 12, 30), date(2026, 1, 12)
OF_DAYS = [report for report in REPORTS.values() if report.source == "days"]

GPUS = st.sampled_from(
    [
        {"gpu_count": 0},
        {"gpu_count": 0},
        {"gpu_count": 1, "gpu_type": "a100"},
        {"gpu_count": 16, "gpu_type": "v100", "gpu_types": "a100=5,h100=3,v100=8"},
        {"gpu_count": 3, "gpu_type": "", "gpu_types": "=2,v100=1"},
        {"gpu_count": 2, "gpu_type": "mixed"},
    ]
)


def drawn(
    number: int, submit: int, wait_s: int, run_s: int, gpus: dict[str, Any], began: bool, **more: Any
) -> dict[str, Any]:
    """A job; one that never began was cancelled while it waited."""
    one = job(number, FIRST + submit, wait_s, run_s, **gpus, **more)
    never = {"state": "CANCELLED", "start_at": None, "end_at": one["start_at"], "elapsed_s": 0}
    return one if began else one | never | {"counted_to": None, "node_list": "None assigned"}


JOBS = st.lists(
    st.builds(
        drawn,
        st.integers(1, 1 << 40),
        st.integers(0, 20 * 86_400),
        st.integers(0, 200_000),
        st.integers(0, 300_000),
        tenant=st.sampled_from(["team-a", "team-b"]),
        user=st.sampled_from(["ann", "bob", "우진"]),
        partition=st.sampled_from(["gpu", "cpu"]),
        qos=st.sampled_from(["normal", ""]),
        gpus=GPUS,
        began=st.sampled_from([True, True, True, False]),
        cpus=st.sampled_from([1, 4, 130]),
        state=st.sampled_from(["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"]),
        mem_in_tot_mib=st.none() | st.integers(1, 8192),
        gpu_util=st.none() | st.floats(0, 100),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda one: one["job_id"],
)


@pytest.fixture(params=["sqlite", "postgres"], scope="module")
def ctx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    url = database_of(request)
    with context(Path(tmp_path_factory.mktemp("days")), url) as made:
        yield made


@st.composite
def asked(draw: st.DrawFn) -> tuple[Wanted, Scope]:
    report: Report = draw(st.sampled_from(OF_DAYS))
    known = dimensions(report)
    by = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True)))
    value = {"tenant": "team-a", "user": "bob", "gpu_count": "16", "outcome": "FAILED", "cluster": "main"}
    value |= {"size": "7", "partition": "nowhere", "gpu_type": "v100", "wait": "1-6h"}
    names = draw(st.lists(st.sampled_from(sorted(value.keys() & set(known))), max_size=2, unique=True))
    scope = draw(st.sampled_from([Scope(), Scope("team-b"), Scope("team-a", "ann")]))
    return Wanted(report, SINCE, UNTIL, by, {name: value[name] for name in names}), scope


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(JOBS, asked(), st.sampled_from(["all", "some", "none"]))
def test_any_report_has_the_sums_of_its_jobs(
    ctx: Context, jobs: list[dict[str, Any]], asked: tuple[Wanted, Scope], packing: str
) -> None:
    wanted, scope = asked
    stored(ctx, jobs, packing)
    with ctx.db.read() as session:
        made = days.groups(session, wanted, scope)
    found = {tuple(group.key[name] for name in wanted.by): group.sums for group in made}
    expected = one_by_one(jobs, wanted, scope)
    numbers = {name for measure in wanted.report.measures for name in measure.numbers}
    for key in expected:
        for name in numbers:
            assert found[key][name] == expected[key].get(name, 0), (key, name)
    assert found.keys() == expected.keys(), "a line with nothing in it is none"
    whole = reports.whole(made)
    assert {name: whole[name] for name in numbers} == {
        name: sum(sums.get(name, 0) for sums in expected.values()) for name in numbers
    }


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(JOBS, st.sampled_from(["all", "some", "none"]), st.sampled_from([0.5, 0.9, 0.95]))
def test_a_quantile_of_packed_days_is_off_by_the_stated_error_at_most(
    ctx: Context, jobs: list[dict[str, Any]], packing: str, share: float
) -> None:
    stored(ctx, jobs, packing)
    wanted = Wanted(REPORTS["waits"], date(2025, 1, 1), date(2027, 1, 1), ("partition", "tenant"))
    with ctx.db.read() as session:
        made = days.groups(session, wanted, Scope())
    began = [one for one in jobs if one["start_at"] is not None]
    assert len(made) == len({(one["partition"], one["tenant"]) for one in began})
    for group in made:
        mine = [one for one in began if (one["partition"], one["tenant"]) == tuple(group.key.values())]
        exact = nearest_rank([one["start_at"] - one["eligible_at"] for one in mine], share)
        told = quantile(group.sums.histograms["wait"], share)
        assert told is not None and abs(told - exact) <= ERROR * exact + 1e-6


def nearest_rank(values: list[float], share: float) -> float:
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(JOBS, st.sampled_from(["all", "some", "none"]), st.sampled_from([0.5, 0.9, 0.95]))
def test_slowdowns_are_off_by_the_stated_error_at_most_and_their_mean_by_a_thousandth(
    ctx: Context, jobs: list[dict[str, Any]], packing: str, share: float
) -> None:
    stored(ctx, jobs, packing)
    report = REPORTS["slowdown"]
    names = {0.5: "slowdown_median", 0.9: "slowdown_p90", 0.95: "slowdown_p95"}
    figures = {one.name: one for one in report.measures}
    with ctx.db.read() as session:
        made = days.groups(session, Wanted(report, date(2025, 1, 1), date(2027, 1, 1), ("tenant",)), Scope())
    for group in made:
        mine = [one for one in jobs if (one["tenant"],) == tuple(group.key.values()) and one["start_at"]]
        slow = [
            max(1, (one["start_at"] - one["eligible_at"] + one["elapsed_s"]) / max(one["elapsed_s"], 10))
            for one in mine
        ]
        told = figures[names[share]].compute(group.sums, group.sums)
        assert isinstance(told, float) and told == pytest.approx(nearest_rank(slow, share), rel=ERROR + 1e-9)
        mean = figures["mean_slowdown"].compute(group.sums, group.sums)
        assert mean == pytest.approx(sum(slow) / len(slow), abs=0.001)
        assert figures["mean_slowdown"].coverage(group.sums) == (len(mine), len(mine))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(JOBS, st.sampled_from([(), ("tenant",), ("tenant", "month")]))
def test_hours_by_gpu_type_are_of_that_type_and_add_up_to_those_without_it(
    ctx: Context, jobs: list[dict[str, Any]], by: tuple[str, ...]
) -> None:
    stored(ctx, jobs, "all")
    whole = Wanted(REPORTS["usage"], date(2025, 1, 1), date(2027, 1, 1), by)
    with ctx.db.read() as session:
        of_types = list(days.groups(session, replace(whole, by=(*by, "gpu_type")), Scope()))
        together = {tuple(one.key.values()): one.sums for one in days.groups(session, whole, Scope())}
    numbers = {name for measure in whole.report.measures for name in measure.numbers}
    for key, sums in together.items():
        parts = [one.sums for one in of_types if tuple(one.key.values())[:-1] == key]
        assert {name: sum(part[name] for part in parts) for name in numbers} == {
            name: sums[name] for name in numbers
        }
    expected: dict[str, int] = defaultdict(int)
    for one in jobs:
        typed = dict(part.split("=") for part in one["gpu_types"].split(",") if part)
        for kind, count in typed.items() or [(one["gpu_type"], one["gpu_count"])]:
            expected[kind] += one["elapsed_s"] * int(count)
    found: dict[str, float] = defaultdict(float)
    for group in of_types:
        found[group.key["gpu_type"]] += group.sums["gpu_s"]
    assert {kind: n for kind, n in found.items() if n} == {kind: n for kind, n in expected.items() if n}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(JOBS, asked(), st.data())
def test_lines_stand_in_the_same_order_whether_made_one_by_one_or_not(
    ctx: Context, jobs: list[dict[str, Any]], asked: tuple[Wanted, Scope], data: st.DataObject
) -> None:
    wanted, scope = asked
    sort = data.draw(st.none() | st.sampled_from([one.name for one in wanted.report.measures]))
    wanted = Wanted(wanted.report, SINCE, UNTIL, wanted.by, wanted.filters, sort)
    stored(ctx, jobs, "all")
    with ctx.db.read() as session:
        made = days.groups(session, wanted, scope)
    in_order = list(reports.ordered(made, wanted))
    total = reports.whole(made)
    measures = {measure.name: measure for measure in wanted.report.measures}
    first = measures[sort] if sort else wanted.report.measures[0]
    if sort or not any(name in PERIODS for name in wanted.by):
        ranks = [reports.rank(first.compute(group.sums, total)) for group in in_order]
        assert ranks == sorted(ranks)
    else:
        keys = [[order_of(name, group.key[name]) for name in wanted.by] for group in in_order]
        assert keys == sorted(keys)
    assert [made[n] for n in range(len(made))] == list(made) == made[:]


def order_of(name: str, label: str) -> Any:
    if name == "wait":
        return NAMES.index(label)
    return int(label) if name in ("gpu_count", "size") else label


def stored(ctx: Context, jobs: list[dict[str, Any]], packing: str) -> None:
    """The warehouse with these jobs; of its days all are packed, some have changed since, or none is."""
    with ctx.db.write() as session:
        for table in (AccountingJobRow, AccountingDayRow, AccountingWaitRow, AccountingPackedRow):
            session.execute(delete(table))
        half = len(jobs) // 2 if packing == "some" else len(jobs)
        keep(session, *jobs[:half]) if half else None
        if packing != "none":
            assert packed.pack(session, "main", 10_000) == len(touched(jobs[:half]))
        if jobs[half:]:
            keep(session, *jobs[half:])


def touched(jobs: list[dict[str, Any]]) -> set[date]:
    sums = Sums()
    for one in jobs:
        sums.add(one)
    return {key[0] for key in sums.days}


def one_by_one(
    jobs: list[dict[str, Any]], wanted: Wanted, scope: Scope
) -> dict[tuple[str, ...], dict[str, int]]:
    """The sums by key, added up in plain Python from what each job is on each day."""
    total: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in jobs:
        if scope.tenant not in (None, one["tenant"]) or scope.user not in (None, one["user"]):
            continue
        waited = None if one["start_at"] is None else one["start_at"] - one["eligible_at"]
        facts = one | {"outcome": one["state"], "size": one["cpus"].bit_length() - 1}
        facts |= {"wait": NAMES[wait_class(waited)]}
        sums = Sums()
        sums.add(one)
        for (day, who, _), values in sums.days.items():
            facts["gpu_type"] = who.gpu_type
            if any(str(facts[name]) != value for name, value in wanted.filters.items()):
                continue
            if wanted.since <= day < wanted.until and any(values.values()):
                key = key_of(facts, day, wanted)
                for name, value in partial(facts, values).items():
                    total[key][name] += value
    numbers = {name for measure in wanted.report.measures for name in measure.numbers}
    return {key: dict(sums) for key, sums in total.items() if any(sums.get(name) for name in numbers)}


def partial(facts: dict[str, Any], values: dict[str, int]) -> dict[str, int]:
    lost, gpu = facts["state"] in LOST, facts["gpu_count"] > 0
    of_lost = {"lost_jobs": "ended", "lost_core_s": "core_s", "lost_gpu_s": "gpu_s"}
    of_gpus = {"gpu_core_s": "core_s", "gpu_ended": "ended"}
    made = {name: values[column] * lost for name, column in of_lost.items()}
    return values | made | {name: values[column] * gpu for name, column in of_gpus.items()}


def key_of(facts: dict[str, Any], day: date, wanted: Wanted) -> tuple[str, ...]:
    return tuple(str(facts[name]) if name in COLUMNS else period_name(name, day) for name in wanted.by)


def test_a_day_packed_before_a_column_was_added_is_read_from_its_rows(ctx: Context) -> None:
    stored(ctx, [job(1, at("2026-01-05T10:00"), 60, 3600)], "all")
    with ctx.db.write() as session:
        session.execute(update(AccountingPackedRow).values(layout="of-old", days=b"unreadable"))
    wanted = Wanted(REPORTS["usage"], SINCE, UNTIL, ("tenant",))
    with ctx.db.read() as session:
        assert days.groups(session, wanted, Scope())[0].sums["core_s"] == 4 * 3600
    with ctx.db.write() as session:
        assert packed.pack(session, "main", 10) == 1
        assert packed.pack(session, "main", 10) == 0


def test_rows_of_nothing_are_looked_for_only_where_something_was_taken_away(ctx: Context) -> None:
    """What is only added to, as in a first ingest, can't come to nothing; what is added later hides none."""
    deletes: list[str] = []

    def seen(*more: Any) -> None:
        deletes.extend(text for text in more if isinstance(text, str) and text.startswith("DELETE"))

    one, other = (job(n, at("2026-01-05T10:00"), 60, 3600) for n in (1, 2))
    stored(ctx, [], "none")
    event.listen(ctx.db.engine, "before_cursor_execute", seen)
    try:
        with ctx.db.write() as session:
            keep(session, one | {"state": "RUNNING", "end_at": None})
            packed.pack(session, "main", 10)
        assert deletes == []
        became, more = Sums(), Sums()
        became.add(one | {"state": "RUNNING", "end_at": None}, -1)
        became.add(one)
        more.add(other)
        for sums in (became, more):
            with ctx.db.write() as session:
                archive.add_sums(session, "main", sums)
        for of_this_look in (2, 0):
            with ctx.db.write() as session:
                packed.stale(session, "main", [date(2026, 1, 5)])
                packed.pack(session, "main", 10)
                assert session.scalars(select(AccountingDayRow.outcome)).all() == ["COMPLETED"]
            assert len(deletes) == of_this_look
            deletes.clear()
    finally:
        event.remove(ctx.db.engine, "before_cursor_execute", seen)


def test_sums_that_came_to_nothing_make_no_line(ctx: Context) -> None:
    """A job that was RUNNING has left that outcome."""
    one = job(1, at("2026-01-05T10:00"), 60, 3600)
    stored(ctx, [one | {"state": "RUNNING", "end_at": None}], "all")
    sums = Sums()
    sums.add(one | {"state": "RUNNING", "end_at": None}, -1)
    sums.add(one)
    wanted = Wanted(REPORTS["outcomes"], SINCE, UNTIL, ("outcome",))
    with ctx.db.write() as session:
        archive.add_sums(session, "main", sums)
    for _ in ("stale", "packed"):
        with ctx.db.read() as session:
            made = days.groups(session, wanted, Scope())
        assert [group.key["outcome"] for group in made] == ["COMPLETED"]
        with ctx.db.write() as session:
            packed.pack(session, "main", 10)
