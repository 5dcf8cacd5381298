"""Utilisation, node down time and fair shares: from what the worker's looks stored, against sums by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import update

from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow, AccountingShareRow
from broker.accounting.tables import AccountingCursorRow
from broker.db.upsert import upsert_mappings
from broker.identity import Role
from tests.accounting import at, job, keep
from tests.api_support import Api, codes, context
from tests.postgres import database_of

MAY = {"since": "2026-05-01", "until": "2026-06-01"}
HALF = at("2026-05-16T00:00")
"""Up to here everything was read."""


def event(name: str, start: str, end: str | None, lack: str, **changes: Any) -> dict[str, Any]:
    row = {
        "cluster": "main",
        "name": name,
        "start_at": at(start),
        "end_at": end and at(end),
        "seen_at": HALF,
        "lack": lack,
        "state": {"down": "DOWN*", "drained": "DRAIN"}.get(lack, ""),
        "who": "root",
        "reason": "bad fan",
        "parts": [[name, 64, {"a100": 4}]],
        "unused": 1.0,
    }
    return row | changes


CLUSTER = [["", 192, {"a100": 8, "v100": 4}]]
EVENTS = [
    event("", "2026-05-02T00:00", "2026-05-10T00:00", "capacity", parts=CLUSTER, reason=""),
    event("", "2026-05-10T00:00", None, "capacity", parts=[["", 256, {"a100": 12, "v100": 4}]], reason=""),
    event("n1", "2026-05-03T20:00", "2026-05-04T04:00", "down"),
    event("n1", "2026-05-12T00:00", None, "drained", reason="=cmd|firmware", who="kim"),
    event("n2", "2026-05-05T00:00", "2026-05-05T10:00", "down", reason="dimm"),
    event(
        "reservation 1", "2026-05-05T06:00", "2026-05-05T18:00", "planned", state="mnt", reason="MAINT",
        parts=[["n2", 64, {"a100": 4}], ["n3", 64, {"v100": 4}]], who="",
    ),
    event(
        "reservation 2", "2026-05-06T00:00", "2026-05-06T10:00", "reserved", state="course", reason="",
        parts=[["n3", 64, {"v100": 4}]], unused=0.25,
    ),
]  # fmt: skip
JOBS = [
    job(1, at("2026-05-04T00:00"), run_s=10 * 3600, gpu_count=4, gpu_type="a100", cpus=32, node_list="n3"),
    job(2, at("2026-05-04T18:00"), run_s=12 * 3600, gpu_count=2, gpu_type="v100", cpus=8, user="bob"),
    job(3, at("2026-05-11T00:00"), run_s=24 * 3600, cpus=16, tenant="team-b", user="eve"),
]


def share(account: str, unix_user: str, day: str, **values: Any) -> dict[str, Any]:
    taken = at(f"{day}T12:00")
    row = {
        "cluster": "main",
        "day": date.fromisoformat(day),
        "account": account,
        "unix_user": unix_user,
        "partition": "",
    }
    row |= {"tenant": account, "user": unix_user, "raw_shares": "1", "norm_shares": 0.5, "raw_usage": 7}
    row |= {"effective_usage": 0.25, "fair_share": 0.9 if unix_user else None, "level_fs": 2.0}
    return row | {"taken_at": taken} | values


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path / "data", url) as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("boss", Role.TENANT_ADMIN, "team-a")
        for name, tenant in (("ann", "team-a"), ("bob", "team-a"), ("eve", "team-b")):
            made.add(name, tenant=tenant)
        shares = [
            share("team-a", "", "2026-05-14", level_fs=9.0),
            share("team-a", "", "2026-05-15", level_fs=1.5),
            share("team-a", "ann", "2026-05-15", level_fs=math.inf),
            share("team-a", "bob", "2026-05-15", level_fs=0.5),
            share("team-b", "", "2026-05-15", level_fs=0.75),
            share("team-b", "eve", "2026-05-15"),
        ]
        with ctx.db.write() as session:
            keep(session, *JOBS)
            session.execute(update(AccountingCursorRow).values(read_to=HALF))
            upsert_mappings(session, AccountingEventRow, EVENTS)
            upsert_mappings(session, AccountingShareRow, shares)
            since = at("2026-04-01T00:00")
            for what in ("events", "shares"):
                look = {"cluster": "main", "what": what, "since": since, "read_to": HALF, "trouble": None}
                upsert_mappings(session, AccountingLookRow, [look])
        yield made


def ask(api: Api, report: str, who: str = "root", **params: Any) -> dict[str, Any]:
    answer = api.call("GET", f"/reports/{report}", who, params=MAY | params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def lines(view: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(one["key"][name] for name in view["by"]): one["values"] for one in view["lines"]}


def test_utilisation_of_a_day_is_what_was_given_of_what_there_was(api: Api) -> None:
    days = lines(ask(api, "utilisation"))
    fourth = days["2026-05-04", "a100"]
    assert fourth["total_hours"] == 8 * 24 and fourth["allocated_hours"] == 40
    assert fourth["down_hours"] == 4 * 4, "only what lies in the day"
    assert fourth["utilisation"] == pytest.approx(40 / (192 - 16), abs=1e-6)
    assert fourth["raw_utilisation"] == pytest.approx(40 / 192, abs=1e-6)
    assert fourth["idle_hours"] == 192 - 16 - 40
    assert days["2026-05-03", "a100"]["down_hours"] == 16


def test_what_happens_under_maintenance_is_planned_and_counts_once(api: Api) -> None:
    fifth = lines(ask(api, "utilisation"))["2026-05-05", "a100"]
    assert (fifth["down_hours"], fifth["planned_hours"]) == (4 * 6, 4 * 12)
    assert fifth["idle_hours"] == 192 - 24 - 48
    v100 = lines(ask(api, "utilisation"))
    assert v100["2026-05-05", "v100"]["planned_hours"] == 48
    assert v100["2026-05-06", "v100"]["reserved_hours"] == 4 * 10 * 0.25


def test_capacity_follows_what_was_registered_and_ends_where_it_was_read(api: Api) -> None:
    view = ask(api, "utilisation", by="gpu_type")
    a100 = lines(view)["a100",]
    assert a100["total_hours"] == 24 * (8 * 8 + 6 * 12), "8 days of 8, 6 of 12; the rest is not read yet"
    assert a100["drained_hours"] == 4 * 24 * 4, "what goes on counts up to when it was seen"
    coverage = next(one for one in view["lines"] if one["key"] == {"gpu_type": "a100"})["coverage"]
    assert coverage["utilisation"] == {"with_data": 14 * 24, "of": 15 * 24, "counted": "hours"}
    before = lines(ask(api, "utilisation", since="2026-05-01", until="2026-05-02"))
    assert before == {}, "nothing is known of it"


def test_what_ran_before_the_capacity_is_known_is_no_part_of_its_use(api: Api) -> None:
    with api.ctx.db.write() as session:
        before = at("2026-05-01T00:00")
        keep(session, job(9, before, run_s=86_400, cpus=64, gpu_count=8, gpu_type="a100"))
    days, month = lines(ask(api, "utilisation")), lines(ask(api, "utilisation", by="month"))["2026-05",]
    known = [one for one in days.values() if one["total_hours"]]
    given, had = (sum(one[name] for one in known) for name in ("allocated_hours", "total_hours"))
    assert days["2026-05-01", "a100"]["utilisation"] is None
    assert month["allocated_hours"] == given + 192, "what was given is known of all days"
    assert month["raw_utilisation"] == pytest.approx(given / had, abs=1e-6)
    assert month["idle_hours"] == sum(one["idle_hours"] for one in known)


def test_gpus_whose_type_nobody_tells_are_one_line_with_what_was_given_of_them(api: Api) -> None:
    capacity = event("", "2026-05-02T00:00", "2026-05-10T00:00", "capacity", parts=[["", 192, {"gpu": 12}]])
    with api.ctx.db.write() as session:
        keep(session, job(9, at("2026-05-02T00:00"), run_s=86_400, gpu_count=2))
        keep(session, job(10, at("2026-05-02T00:00"), run_s=86_400))
        upsert_mappings(session, AccountingEventRow, [capacity])
    asked = {"by": "gpu_type", "until": "2026-05-03"}
    view = ask(api, "utilisation", **asked)
    assert {key: one["utilisation"] for key, one in lines(view).items()} == {
        ("gpu",): pytest.approx(2 / 12, abs=1e-6)
    }
    assert ask(api, "utilisation", gpu_type="gpu", **asked)["lines"] == view["lines"]
    jobs = api.http.get(view["lines"][0]["jobs_url"], headers=api.headers("root")).json()["items"]
    assert [one["job_id"] for one in jobs] == ["9"], "and no job without GPUs"


def test_cores_are_a_report_of_their_own_and_periods_add_up(api: Api) -> None:
    cores = lines(ask(api, "core_utilisation", by="cluster"))["main",]
    assert cores["total_hours"] == 24 * (8 * 192 + 6 * 256)
    assert cores["allocated_hours"] == 320 + 96 + 384
    for by in ("day", "week", "month", "quarter", "year"):
        total = ask(api, "core_utilisation", by=by)["total"]["values"]
        assert total == pytest.approx(ask(api, "core_utilisation", by="cluster")["total"]["values"], abs=1e-5)


def test_a_clusters_totals_are_everybodys_and_lead_to_the_own_jobs_only(api: Api) -> None:
    seen = [ask(api, "utilisation", who) for who in ("root", "boss", "ann")]
    assert seen[0]["lines"] == seen[1]["lines"] == seen[2]["lines"] and seen[2]["scope"] == "all"
    line = next(one for one in seen[2]["lines"] if one["key"] == {"day": "2026-05-04", "gpu_type": "v100"})
    behind = {
        who: [
            one["job_id"] for one in api.http.get(line["jobs_url"], headers=api.headers(who)).json()["items"]
        ]
        for who in ("root", "ann", "bob")
    }
    assert behind == {"root": ["2"], "ann": [], "bob": ["2"]}


def test_down_time_says_when_how_long_why_and_what_it_cost(api: Api) -> None:
    found = lines(ask(api, "node_downtime"))
    assert set(found) == {
        ("n1", "2026-05-03T20:00:00Z", "down"),
        ("n1", "2026-05-12T00:00:00Z", "drained"),
        ("n2", "2026-05-05T00:00:00Z", "down"),
        ("n2", "2026-05-05T06:00:00Z", "planned"),
        ("n3", "2026-05-05T06:00:00Z", "planned"),
    }
    first = found["n1", "2026-05-03T20:00:00Z", "down"]
    assert (first["node_hours"], first["gpu_hours"], first["core_hours"], first["events"]) == (8, 32, 512, 1)
    assert (first["ended"], first["slurm_state"], first["reason"]) == (
        "2026-05-04T04:00:00Z",
        "DOWN*",
        "bad fan",
    )
    goes_on = found["n1", "2026-05-12T00:00:00Z", "drained"]
    assert (goes_on["node_hours"], goes_on["ended"], goes_on["who"]) == (96, None, "kim")


def test_down_time_splits_by_node_state_reason_and_day(api: Api) -> None:
    by_node = lines(ask(api, "node_downtime", by="node"))
    assert by_node["n1",]["node_hours"] == 104 and by_node["n1",]["events"] == 2
    assert by_node["n1",]["reason"] is None, "of two events no one's reason is the line's"
    assert lines(ask(api, "node_downtime", by="reason"))["dimm",]["node_hours"] == 6
    assert lines(ask(api, "node_downtime", by="node"))["n2",]["node_hours"] == 18, "00:00 to 18:00"
    days = lines(ask(api, "node_downtime", by="day", node="n1"))
    assert (days["2026-05-03",]["node_hours"], days["2026-05-04",]["node_hours"]) == (4, 4)
    assert days["2026-05-04",]["events"] == 0, "it began the day before"
    assert set(lines(ask(api, "node_downtime", by="state"))) == {("down",), ("drained",), ("planned",)}
    assert lines(ask(api, "node_downtime", state="planned", by="cluster"))["main",]["node_hours"] == 24


def test_what_happened_only_under_maintenance_is_told_and_takes_no_hour(api: Api) -> None:
    with api.ctx.db.write() as session:
        new = event("n3", "2026-05-05T08:00", "2026-05-05T09:00", "drained", reason="new disk")
        again = event(
            "reservation 9", "2026-05-05T12:00", "2026-05-05T19:00", "planned", parts=[["n3", 64, {}]]
        )
        upsert_mappings(session, AccountingEventRow, [new, again])
    for by in ("reason", "day"):
        [line] = ask(api, "node_downtime", by=by, reason="new disk")["lines"]
        assert (line["values"]["node_hours"], line["values"]["events"]) == (0, 1)
    assert lines(ask(api, "node_downtime", by="node"))["n3",]["node_hours"] == 13, "06:00 to 19:00"


def test_down_time_by_reason_is_a_file_that_can_be_read(api: Api) -> None:
    asked = MAY | {"by": "reason", "format": "parquet"}
    found = pq.read_table(
        io.BytesIO(api.call("GET", "/reports/node_downtime", params=asked, who="root").content)
    )
    assert {"dimm", "MAINT"} < {row["reason"] for row in found.to_pylist()}


def test_who_did_it_is_for_admins_and_why_for_everybody(api: Api) -> None:
    for who in ("boss", "ann"):
        values = [one["values"] for one in ask(api, "node_downtime", who)["lines"]]
        assert {one["who"] for one in values} == {None} and "dimm" in {one["reason"] for one in values}
    assert codes(api.call("GET", "/reports/node_downtime?by=who", "root")) == {"unknown_dimension"}
    assert api.call("GET", "/reports/node_downtime/jobs", "root").status_code == 404


def test_fair_shares_are_the_last_of_the_period_for_whom_they_concern(api: Api) -> None:
    accounts = lines(ask(api, "fairshare"))
    assert {key: one["level_fs"] for key, one in accounts.items()} == {("team-a",): 1.5, ("team-b",): 0.75}
    assert accounts["team-a",]["fair_share"] is None and accounts["team-a",]["seen"] == "2026-05-15T12:00:00Z"
    before = lines(ask(api, "fairshare", until="2026-05-15"))
    assert before["team-a",]["level_fs"] == 9.0
    people = lines(ask(api, "fairshare", by="user"))
    assert people["bob",]["fair_share"] == 0.9 and people["ann",]["level_fs"] == "Infinity"
    assert set(lines(ask(api, "fairshare", "boss", by="user"))) == {("ann",), ("bob",)}
    assert set(lines(ask(api, "fairshare", "boss"))) == {("team-a",)}
    assert lines(ask(api, "fairshare", "eve")) == {
        ("team-b",): lines(ask(api, "fairshare", by="user"))["eve",]
    }
    assert ask(api, "fairshare", "ann", user="bob")["lines"] == []
    total = ask(api, "fairshare", by="user")["total"]["values"]
    assert total["level_fs"] is None, "several people's factors are nobody's"
