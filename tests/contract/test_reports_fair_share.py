"""Fair shares over time: each line against the looks chosen one by one, on both databases."""

from __future__ import annotations

import io
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from broker.accounting.event_tables import AccountingShareRow
from broker.db.upsert import upsert_mappings
from broker.identity import Role
from broker.reports.wanted import PERIODS, period_name
from tests.accounting import at
from tests.api_support import Api, context
from tests.postgres import database_of

FIRST, AFTER = date(2025, 11, 20), date(2026, 3, 2)
PEOPLE = {"team-a": ("ann", "bob"), "team-b": ("bob", "eve")}
NUMBERS = ("level_fs", "fair_share", "norm_shares", "effective_usage", "raw_usage")
Share = dict[str, Any]


@dataclass
class Place:
    """A broker, and what its looks stored."""

    api: Api
    shares: list[Share]

    def ask(self, *by: str, who: str = "root", **params: Any) -> dict[str, Any]:
        wanted = {"since": FIRST, "until": AFTER, "by": list(by), "limit": 10_000} | params
        answer = self.api.call("GET", "/reports/fairshare", who, params=wanted)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def by_hand(
        self, *by: str, people: bool, since: date = FIRST, until: date = AFTER, **filters: str
    ) -> Any:
        """The lines: of what was looked at last by each cluster within each of the periods."""
        there = [one for one in self.shares if since <= one["day"] < until]
        periods = [name for name in by if name in PERIODS]

        def within(one: Share) -> tuple[str, ...]:
            return one["cluster"], *(period_name(name, one["day"]) for name in periods)

        last: dict[tuple[str, ...], date] = {}
        for one in there:
            last[within(one)] = max(one["day"], last.get(within(one), FIRST))
        lines: dict[tuple[str, ...], list[Share]] = defaultdict(list)
        for one in there:
            told = one | {name: period_name(name, one["day"]) for name in PERIODS if name in by}
            mine = all(one[name] == value for name, value in filters.items())
            if mine and one["day"] == last[within(one)] and bool(one["unix_user"]) is people:
                lines[tuple(told[name] for name in by)].append(one)
        return {key: _figures(rows) for key, rows in sorted(lines.items())}


def _figures(rows: list[Share]) -> dict[str, Any]:
    alone = rows[0] if len(rows) == 1 else dict.fromkeys(NUMBERS)
    alone = alone | {"level_fs": "Infinity" if alone["level_fs"] == math.inf else alone["level_fs"]}
    seen = datetime.fromtimestamp(max(one["taken_at"] for one in rows), UTC)
    return {name: alone[name] for name in NUMBERS} | {"seen": f"{seen:%Y-%m-%dT%H:%M:%SZ}"}


def lines(view: dict[str, Any]) -> Any:
    return {tuple(one["key"][name] for name in view["by"]): one["values"] for one in view["lines"]}


def looked(chance: random.Random, cluster: str, day: date) -> Iterator[Share]:
    """What a look of a day found: of each account, of the people in it, of one in a partition too."""
    taken = at(f"{day}T00:00") + chance.randrange(86_400)
    for account, people in PEOPLE.items():
        for unix_user, partition in (("", ""), *((name, "") for name in people), (people[0], "gpu")):
            yield {
                "cluster": cluster,
                "day": day,
                "account": account,
                "unix_user": unix_user,
                "partition": partition,
                "tenant": account,
                "user": unix_user,
                "raw_shares": "1",
                "norm_shares": round(chance.random(), 6),
                "raw_usage": chance.randrange(10**9),
                "effective_usage": round(chance.random(), 6),
                "fair_share": round(chance.random(), 6) if unix_user else None,
                "level_fs": chance.choice((None, math.inf, round(3 * chance.random(), 6))),
                "taken_at": taken,
            }


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    chance, folder = random.Random(1), tmp_path_factory.mktemp("shares")
    days = [FIRST + timedelta(days=n) for n in range((AFTER - FIRST).days)]
    shares = [
        one
        for cluster, gap in (("main", 0.2), ("other", 0.6))  # a worker is away now and then
        for day in days
        if chance.random() > gap
        for one in looked(chance, cluster, day)
    ]
    with context(Path(folder) / "data", database_of(request)) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("boss", Role.TENANT_ADMIN, "team-a")
        api.add("ann", tenant="team-a")
        with ctx.db.write() as session:
            upsert_mappings(session, AccountingShareRow, shares)
        yield Place(api, shares)


@pytest.mark.parametrize(
    "by",
    [
        ("tenant",),
        ("tenant", "day"),
        ("cluster", "account", "day"),
        ("week",),
        ("cluster", "tenant", "week"),
        ("month", "cluster", "account"),
        ("quarter", "year", "cluster", "tenant"),
        ("week", "tenant", "day", "cluster"),
        ("user", "account", "cluster", "day"),
        ("month", "user"),
        ("year", "day", "user", "account"),
    ],
    ids=" ".join,
)
def test_a_line_is_of_the_last_look_within_its_period(place: Place, by: tuple[str, ...]) -> None:
    people = "user" in by
    view = place.ask(*by)
    assert list(lines(view).items()) == list(place.by_hand(*by, people=people).items())
    assert view["total"]["values"]["level_fs"] is None and view["left_out"] == 0
    few = place.ask(*by, limit=3)
    assert few["lines"] == view["lines"][:3] and few["left_out"] == max(0, len(view["lines"]) - 3)


def test_a_part_of_a_period_has_the_last_look_of_that_part(place: Place) -> None:
    part: dict[str, Any] = {"since": date(2025, 12, 10), "until": date(2026, 1, 20)}
    found = lines(place.ask("month", "cluster", "tenant", **part))
    assert found == place.by_hand("month", "cluster", "tenant", people=False, **part)
    assert {key[0] for key in found} == {"2025-12", "2026-01"}
    assert place.ask("week", since="2024-01-01", until="2024-02-01")["lines"] == []


def test_over_time_too_everybody_sees_what_concerns_them(place: Place) -> None:
    whole = place.by_hand("tenant", "week", "cluster", people=False)
    mine = lines(place.ask("tenant", "week", "cluster", who="boss"))
    assert mine == {key: line for key, line in whole.items() if key[0] == "team-a"}
    own = place.by_hand("user", "day", "cluster", people=True, user="ann")
    assert lines(place.ask("user", "day", "cluster", who="ann")) == own and own
    one = place.by_hand("day", people=False, tenant="team-b", cluster="main")
    assert lines(place.ask("day", tenant="team-b", cluster="main")) == one
    assert {line["norm_shares"] is not None for line in one.values()} == {True}


@pytest.mark.parametrize("figure", ["level_fs", "raw_usage", "seen"])
def test_sorted_by_a_figure_the_most_come_first_and_the_unknown_last(place: Place, figure: str) -> None:
    values = [line["values"][figure] for line in place.ask("cluster", "tenant", "day", sort=figure)["lines"]]
    known = [float(one) if figure != "seen" else one for one in values if one is not None]
    assert known == sorted(known, reverse=figure != "seen")
    assert values[len(known) :] == [None] * (len(values) - len(known))
    if figure == "level_fs":
        assert values[0] == "Infinity" and values[-1] is None and known[-1] < 3


def test_they_are_saved_over_time_too(place: Place) -> None:
    wanted = {"since": FIRST, "until": AFTER, "by": ["tenant", "week"], "cluster": "main", "format": "csv"}
    text = place.api.call("GET", "/reports/fairshare", "root", params=wanted).text
    assert text.splitlines()[1].startswith('"team-a","2025-W47",')


def test_who_used_nothing_is_due_most_and_files_say_so(place: Place) -> None:
    by = ("cluster", "tenant", "day")
    levels = [one["values"]["level_fs"] for one in place.ask(*by, sort="level_fs")["lines"]]
    asked = {"since": FIRST, "until": AFTER, "by": by, "sort": "level_fs"}
    saved = {
        format: place.api.call("GET", "/reports/fairshare", "root", params=asked | {"format": format})
        for format in ("csv", "parquet")
    }
    rows = saved["csv"].text.splitlines()[1:]
    assert [one.split('","')[3] for one in rows[: len(levels)]] == [
        "" if one is None else one if isinstance(one, str) else f"{one:.15g}" for one in levels
    ]
    column = pq.read_table(io.BytesIO(saved["parquet"].content)).column("level_fs").to_pylist()
    assert column == [None if one is None else float(one) for one in levels] and column[0] == math.inf
