"""The worker's looks at node events, reservations and fair shares: stored once, replaced by what changed.

Slurm is not here: `Slurm` answers with records, some of them out of recordings of a real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow, AccountingShareRow
from broker.accounting.looks import BACK_S, Looker, event_row, reservation_row
from broker.context import Context
from broker.errors import Unreachable
from broker.slurm import Share, parse_tres
from broker.slurm.events import Lack, NodeEvent, ReservationRecord
from tests.api_support import Api, context, worker_lease
from tests.postgres import database_of
from tests.recordings import parsed

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
T = int(NOON.timestamp())
NODE = parse_tres("cpu=64,mem=512G,gres/gpu=4,gres/gpu:a100=4")


class Slurm:
    """What one cluster answers, and what it was asked."""

    def __init__(self) -> None:
        self.events: list[NodeEvent] = [
            NodeEvent("n1", T - 60, None, Lack.DOWN, "DOWN*", NODE, "root", "psu")
        ]
        self.kept: list[ReservationRecord] = []
        self.tree: tuple[Share, ...] = parsed("shares")[0]
        self.since: list[int] = []
        self.down = False

    def capabilities(self) -> Any:
        config = SimpleNamespace(
            has_accounting=True, cluster_name="dev", priority_type="priority/multifactor"
        )
        return SimpleNamespace(config=config)

    def node_events(self, cluster: str, since: int) -> Any:
        assert cluster == "dev"
        if self.down:
            raise Unreachable("sacctmgr: error: failed to open persistent connection")
        self.since.append(since)
        return tuple(one for one in self.events if one.end_at is None or one.end_at >= since), ()

    def reservations(self, cluster: str, since: int) -> Any:
        return tuple(self.kept), ()

    def nodes(self) -> Any:
        return [SimpleNamespace(name=f"n{n}", total=NODE) for n in (1, 2)]

    def shares(self) -> Any:
        return self.tree


class Site:
    """A broker's database, a cluster, and a clock."""

    def __init__(self, ctx: Context) -> None:
        self.ctx, self.slurm, self.now = ctx, Slurm(), NOON
        lease = worker_lease(ctx)
        slurm: Any = self.slurm
        self.looker = Looker(ctx, "main", lease, slurm=slurm, clock=lambda: self.now)

    def rows(self, table: Any) -> list[Any]:
        with self.ctx.db.read() as session:
            return list(session.scalars(select(table)))

    def look(self, what: str) -> AccountingLookRow:
        (found,) = (row for row in self.rows(AccountingLookRow) if row.what == what)
        return found  # type: ignore[no-any-return]


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    url = database_of(request)
    clusters: Any = {"main": {"transport": "local", "account": "default"}}
    with context(tmp_path / "data", url, clusters=clusters, accounting={"history_days": 30}) as ctx:
        Api(ctx).add("kim", tenant="team-a")
        yield Site(ctx)


def test_what_ended_since_replaces_itself_and_what_is_gone_stays(site: Site) -> None:
    site.looker.tick()
    assert site.slurm.since == [T - 30 * 86_400], "the first look goes back as far as the jobs"
    site.now += timedelta(minutes=5)
    site.slurm.events = [replace(site.slurm.events[0], end_at=T + 30)]
    site.looker.tick()
    (row,) = site.rows(AccountingEventRow)
    assert (row.name, row.start_at, row.end_at, row.parts) == (
        "n1",
        T - 60,
        T + 30,
        [["n1", 64, {"a100": 4}]],
    )
    assert site.slurm.since[-1] == T - BACK_S, "a week back: slurmdbd learns late"
    site.slurm.events = []
    site.looker.tick()
    assert len(site.rows(AccountingEventRow)) == 1, "what Slurm purged stays"


def test_what_goes_on_is_known_up_to_the_last_look_that_saw_it(site: Site) -> None:
    site.looker.tick()
    site.now += timedelta(minutes=5)
    site.slurm.down = True
    with pytest.raises(Unreachable):
        site.looker.tick()
    (row,) = site.rows(AccountingEventRow)
    look = site.look("events")
    assert (row.seen_at, look.read_to) == (T, T) and "persistent" in (look.trouble or "")
    assert site.look("shares").read_to == T + 300, "the other look had its turn"
    site.slurm.down = False
    site.looker.tick()
    look = site.look("events")
    assert (look.read_to, look.trouble, look.since) == (T + 300, None, T - 30 * 86_400)


def test_a_reservation_takes_what_its_nodes_have(site: Site) -> None:
    site.slurm.kept = [
        ReservationRecord(7, "mnt", T, T + 600, "n[1-2]", frozenset({"MAINT"}), parse_tres("cpu=128"), 0.0),
        ReservationRecord(8, "later", T + 600, T + 900, "n1", frozenset(), parse_tres("cpu=64"), 0.0),
    ]
    site.looker.tick()
    (row,) = (one for one in site.rows(AccountingEventRow) if one.lack == "planned")
    assert (row.name, row.state, row.parts) == (
        "reservation 7",
        "mnt",
        [["n1", 64, {"a100": 4}], ["n2", 64, {"a100": 4}]],
    )
    assert len(site.rows(AccountingEventRow)) == 2, "what has not begun is nothing yet"


def test_of_each_day_the_last_look_at_the_shares_is_kept(site: Site) -> None:
    site.looker.tick()
    site.now += timedelta(hours=1)
    site.slurm.tree = tuple(replace(one, fair_share=0.125) for one in site.slurm.tree)
    site.looker.tick()
    site.now += timedelta(days=1)
    site.looker.tick()
    rows = site.rows(AccountingShareRow)
    assert {row.day.day for row in rows} == {10, 11}
    today = [row for row in rows if row.day.day == 10]
    assert {row.fair_share for row in today} == {0.125} and {row.taken_at for row in today} == {T + 3600}
    by_name = {(row.account, row.unix_user): row for row in today}
    assert ("root", "") not in by_name and by_name["default", ""].tenant == "default"
    assert by_name["team-a", "kim"].user == "main:kim", "nobody's Unix account"
    recorded_one = next(one for one in parsed("shares")[0] if (one.account, one.user) == ("team-a", "kim"))
    assert by_name["team-a", "kim"].raw_usage == recorded_one.raw_usage
    assert by_name["team-a", ""].level_fs == math.inf, "it has shares and used nothing"
    assert by_name["default", ""].level_fs == 0.25


def test_gpus_whose_type_nobody_tells_have_that_of_the_nodes_where_the_numbers_agree() -> None:
    untyped = parse_tres("cpu=64,gres/gpu=4")
    event = NodeEvent("n1", T, None, Lack.DOWN, "DOWN", untyped, "", "")
    assert event_row(event, {"n1": NODE})["parts"] == [["n1", 64, {"a100": 4}]]
    assert event_row(event, {})["parts"] == [["n1", 64, {"gpu": 4}]]
    whole = replace(event, node="", lack=Lack.CAPACITY, tres=parse_tres("cpu=128,gres/gpu=8"))
    assert event_row(whole, {"n1": NODE, "n2": NODE})["parts"] == [["", 128, {"a100": 8}]]
    assert event_row(whole, {"n1": NODE})["parts"] == [["", 128, {"gpu": 8}]], "it had other nodes then"


def test_of_a_part_of_a_node_only_the_cores_are_reserved() -> None:
    one = ReservationRecord(7, "x", T, T + 100, "n1", frozenset(), parse_tres("cpu=8"), 25.0)
    row = reservation_row(one, {"n1": NODE}, T + 500)
    assert (row["parts"], row["unused"], row["lack"]) == ([["n1", 8, {}]], 0.25, "reserved")


def test_a_reservation_that_goes_on_is_unused_by_the_time_it_has_been_there() -> None:
    one = ReservationRecord(7, "x", T, T + 1000, "n1", frozenset(), parse_tres("cpu=64"), 75.0)
    shares = [reservation_row(one, {"n1": NODE}, T + past)["unused"] for past in (0, 100, 300, 5000)]
    assert shares == [1.0, 0.75, 0.25, 0.075]


def test_maintenance_takes_all_of_its_time_before_slurmdbd_has_counted_any() -> None:
    one = ReservationRecord(7, "mnt", T, T + 1000, "n1", frozenset({"MAINT"}), parse_tres("cpu=64"), 0.0)
    assert reservation_row(one, {"n1": NODE}, T + 100)["unused"] == 1.0
