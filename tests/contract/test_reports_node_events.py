"""Reports of node events are columns: their hours are those of the events hour by hour and node by node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow
from broker.accounting.looks import EVENTS
from broker.context import Context
from broker.db.upsert import upsert_mappings
from broker.reports import sources
from broker.reports import wanted as reports
from broker.reports.definitions import REPORTS
from broker.reports.wanted import PERIODS, Scope, Wanted, period_name
from tests.accounting import at
from tests.api_support import context
from tests.postgres import database_of

FIRST, HOUR = at("2026-05-30T00:00"), 3600
SINCE, UNTIL, READ = date(2026, 5, 31), date(2026, 6, 4), FIRST + 100 * HOUR
AMOUNTS = {
    "n1": (64, {"a100": 4}),
    "n2": (64, {"a100": 4}),
    "n3": (16, {"a100": 1, "v100": 2}),
    "n4": (8, {}),
}
Row = dict[str, Any]


@st.composite
def events(draw: st.DrawFn) -> list[Row]:
    """Down, drained, maintained and reserved nodes, over each other; registrations one after the other."""
    made: list[Row] = []
    changes = sorted(draw(st.sets(st.integers(0, 130), min_size=1, max_size=3)))
    for begin, end in zip(changes, [*changes[1:], None], strict=True):
        made.append(_event("", begin, end, "capacity", [["", 152 + begin, {"a100": 9, "v100": begin}]]))
    names = st.sampled_from(sorted(AMOUNTS))
    kinds = st.sampled_from(["down", "drained", "planned", "reserved"])
    for number in range(draw(st.integers(0, 14))):
        begin, kind = draw(st.integers(0, 120)), draw(kinds)
        end = draw(st.none() | st.integers(begin + 1, begin + 60))
        of = draw(st.lists(names, min_size=1, max_size=3, unique=True))
        name = f"reservation {number}" if kind in ("planned", "reserved") else of[0]
        nodes = of if name.startswith("reservation") else of[:1]
        parts = [[node, *AMOUNTS[node]] for node in nodes]
        unused = draw(st.sampled_from([0.25, 1.0])) if kind == "reserved" else 1.0
        made.append(_event(name, begin, end, kind, parts, unused=unused, reason=draw(REASONS)))
    return list({(one["name"], one["start_at"]): one for one in made}.values())


REASONS = st.sampled_from(["fan", "dimm, 우진", ""])


def _event(name: str, begin: int, end: int | None, lack: str, parts: list[Any], **more: Any) -> Row:
    times = {"start_at": FIRST + begin * HOUR, "end_at": None if end is None else FIRST + end * HOUR}
    row = {"cluster": "main", "name": name, "seen_at": READ, "lack": lack, "state": lack.upper()}
    return row | times | {"who": "root", "reason": "", "parts": parts, "unused": 1.0} | more


@pytest.fixture(params=["sqlite", "postgres"], scope="module")
def ctx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    url = database_of(request)
    with context(Path(tmp_path_factory.mktemp("events")), url) as made:
        yield made


def stored(ctx: Context, rows: Sequence[Row]) -> None:
    with ctx.db.write() as session:
        session.execute(delete(AccountingEventRow))
        upsert_mappings(session, AccountingEventRow, rows)
        look = {"cluster": "main", "what": EVENTS, "since": FIRST, "read_to": READ, "trouble": None}
        upsert_mappings(session, AccountingLookRow, [look])


def hours(rows: Sequence[Row]) -> Iterator[tuple[Row, str, int, tuple[int, dict[str, int]], bool]]:
    """Each hour of each event and node that was read of the period: when, what, whether maintenance took it
    before.
    """
    planned = set()
    first, after = at(f"{SINCE}T00:00"), min(at(f"{UNTIL}T00:00"), READ)
    for row in sorted(rows, key=lambda one: (one["lack"] != "planned", one["start_at"], one["name"])):
        for node, *amounts in row["parts"]:
            for hour in range(max(row["start_at"], first), min(row["end_at"] or READ, READ, after), HOUR):
                yield row, node, hour, (amounts[0], amounts[1]), (node, hour) in planned
                if row["lack"] == "planned":
                    planned.add((node, hour))


def labels(row: Row, node: str, hour: int) -> dict[str, str]:
    moment = datetime.fromtimestamp(row["start_at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    facts = {"cluster": "main", "node": node, "state": row["lack"], "reason": row["reason"], "began": moment}
    day = datetime.fromtimestamp(hour, UTC).date()
    return facts | {name: period_name(name, day) for name in PERIODS}


DOWN = ("cluster", "node", "state", "reason", "began", *PERIODS)
given_events = settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@given_events
@given(
    events(),
    st.lists(st.sampled_from(DOWN), min_size=1, max_size=4, unique=True),
    st.sampled_from([{}, {"state": "planned"}, {"node": "n2", "reason": "fan"}, {"cluster": "spare"}]),
)
def test_down_time_is_that_of_its_hours_one_by_one(
    ctx: Context, rows: list[Row], by: list[str], filters: dict[str, str]
) -> None:
    stored(ctx, rows)
    expected: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    of_line: dict[tuple[str, ...], set[tuple[str, int]]] = defaultdict(set)
    for row, node, hour, (cores, gpus), taken in hours(rows):
        known = labels(row, node, hour)
        if row["lack"] in ("capacity", "reserved") or any(known[n] != value for n, value in filters.items()):
            continue
        if not taken:
            key = tuple(known[name] for name in by)
            amounts = (1, cores, sum(gpus.values()))
            expected[key] = [n + more for n, more in zip(expected[key], amounts, strict=True)]
            of_line[key].add((row["name"], row["start_at"]))
    wanted = Wanted(REPORTS["node_downtime"], SINCE, UNTIL, tuple(by), filters)
    with ctx.db.read() as session:
        made = sources.groups(session, wanted, Scope())
    found = {tuple(one.key[name] for name in by): one.sums for one in made}
    hours_of = {
        key: [sums[name] / HOUR for name in ("node_s", "core_s", "gpu_s")] for key, sums in found.items()
    }
    assert {key: amounts for key, amounts in hours_of.items() if any(amounts)} == expected
    whole = reports.whole(made)
    assert whole["node_s"] == HOUR * sum(amounts[0] for amounts in expected.values())
    for key, several in of_line.items():
        if len(several) > 1:
            assert found[key].texts == {}, "no event's words are the line's"
    ordered = [one.sums["node_s"] for one in made]
    if not set(by) & set(PERIODS):
        assert ordered == sorted(ordered, reverse=True)
        assert whole["events"] == sum(one.sums["events"] for one in made)


@given_events
@given(events())
def test_a_line_of_one_event_has_its_words_and_sorts_by_them(ctx: Context, rows: list[Row]) -> None:
    stored(ctx, rows)
    wanted = Wanted(REPORTS["node_downtime"], SINCE, UNTIL, ("node", "began", "state"), sort="reason")
    with ctx.db.read() as session:
        made = list(sources.groups(session, wanted, Scope()))
    of_key: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row, node, hour, *_ in hours(rows):
        known = labels(row, node, hour)
        key = tuple(known[name] for name in wanted.by)
        if row["lack"] in ("down", "drained", "planned") and row not in of_key[key]:
            of_key[key].append(row)
    assert {tuple(one.key.values()) for one in made} == {key for key, some in of_key.items() if some}
    for one in made:
        some = of_key[tuple(one.key.values())]
        assert one.sums["events"] == len(some)
        if len(some) == 1:
            assert one.sums.texts.get("reason", "") == some[0]["reason"]
            assert one.sums.texts["slurm_state"] == some[0]["state"]
            ended = some[0]["end_at"] is not None and some[0]["end_at"] <= READ
            assert ("ended" in one.sums.texts) == ended
    words = [(one.sums.texts.get("reason") is None, one.sums.texts.get("reason", "")) for one in made]
    assert words == sorted(words)


@given_events
@given(
    events(),
    st.lists(st.sampled_from(["gpu_type", "cluster", *PERIODS]), min_size=1, max_size=3, unique=True),
)
def test_capacity_and_what_was_lacking_are_those_of_the_hours_one_by_one(
    ctx: Context, rows: list[Row], by: list[str]
) -> None:
    stored(ctx, rows)
    expected: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row, node, hour, (_, gpus), taken in hours(rows):
        name = {"capacity": "total_s"}.get(row["lack"], f"{row['lack']}_s")
        for gpu_type, count in gpus.items() if not taken or row["lack"] in ("capacity", "reserved") else ():
            known = labels(row, node, hour) | {"gpu_type": gpu_type}
            if count:
                expected[tuple(known[one] for one in by)][name] += HOUR * count * row["unused"]
    with ctx.db.read() as session:
        made = sources.groups(session, Wanted(REPORTS["utilisation"], SINCE, UNTIL, tuple(by)), Scope())
    names = ("total_s", "down_s", "drained_s", "planned_s", "reserved_s")
    found = {tuple(one.key[name] for name in by): one.sums for one in made}
    told = {key: {name: sums[name] for name in names if sums[name]} for key, sums in found.items()}
    assert {key: sums for key, sums in told.items() if sums} == expected


def test_lines_keep_their_names_however_many_could_be(ctx: Context) -> None:
    """Of as many nodes, moments, reasons, days and events, more could be made than 64 bits tell apart."""
    many = 7000
    rows = [
        _event(f"n{n}", -24 * n, 1 - 24 * n, "down", [[f"n{n}", 1, {}]], reason=f"reason {n}")
        for n in range(many)
    ]
    stored(ctx, rows)
    with ctx.db.write() as session:
        look = {"cluster": "main", "what": EVENTS, "since": 0, "read_to": READ, "trouble": None}
        upsert_mappings(session, AccountingLookRow, [look])
    by = ("node", "began", "reason", "day")
    with ctx.db.read() as session:
        made = sources.groups(session, Wanted(REPORTS["node_downtime"], date(2000, 1, 1), UNTIL, by), Scope())
        found = {tuple(one.key[name] for name in by): one.sums["node_s"] for one in made}
    known = [labels(row, row["name"], row["start_at"]) for row in rows]
    assert found == {tuple(one[name] for name in by): HOUR for one in known}
