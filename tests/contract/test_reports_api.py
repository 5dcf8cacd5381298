"""Reports over the warehouse: figures against what the jobs say one by one, scope, drill-down, CSV."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.accounting.histograms import ERROR
from tests.accounting import at, job, keep, two_tenants
from tests.api_support import Api, codes, context
from tests.postgres import database_of

OCTOBER = {"since": "2026-10-01", "until": "2026-11-01"}


def made_jobs() -> list[dict[str, Any]]:
    """Two tenants' October, with one job over its end, one that was never measured, and losses."""
    jobs = [
        job(1, at("2026-10-05T10:00"), wait_s=60),
        job(2, at("2026-10-05T11:00"), wait_s=600, run_s=7200, user="bob", gpu_count=2, gpu_type="a100"),
        job(3, at("2026-10-31T22:00"), run_s=4 * 3600, user="bob"),
        job(4, at("2026-10-09T09:00"), state="TIMEOUT", cpu_partial=True, user="ann"),
        job(5, at("2026-10-09T09:00"), total_cpu_s=None, mem_in_tot_mib=None, user="bob"),
        job(6, at("2026-10-12T09:00"), state="OUT_OF_MEMORY", cpus=16, user="eve", tenant="team-b"),
        job(7, at("2026-10-13T09:00"), state="CANCELLED", user="eve", tenant="team-b"),
        job(8, at("2026-09-30T09:00"), user="eve", tenant="team-b"),
    ]
    chance = random.Random(7)
    waits = [chance.randrange(10, 200_000) for _ in range(60)]
    return jobs + [
        job(100 + n, at("2026-10-02T00:00") + n, wait_s=wait, partition="cpu") for n, wait in enumerate(waits)
    ]


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path / "data", url) as ctx:
        yield two_tenants(ctx, made_jobs())


def ask(api: Api, who: str, report: str, **params: Any) -> dict[str, Any]:
    answer = api.call("GET", f"/reports/{report}", who, params=OCTOBER | params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def lines(view: dict[str, Any], figure: str) -> dict[tuple[str, ...], float | None]:
    return {tuple(one["key"][name] for name in view["by"]): one["values"][figure] for one in view["lines"]}


def october_core_hours(**wanted: Any) -> float:
    """What the jobs say one by one: core hours within October."""
    first, after = at("2026-10-01T00:00"), at("2026-11-01T00:00")
    return sum(
        one["cpus"] * max(0, min(one["end_at"], after) - max(one["start_at"], first)) / 3600
        for one in made_jobs()
        if all(one[name] == value for name, value in wanted.items())
    )


def test_usage_is_what_the_jobs_say_cut_at_the_ends_of_the_period(api: Api) -> None:
    view = ask(api, "root", "usage")
    hours = lines(view, "core_hours")
    assert hours == {("team-a",): pytest.approx(october_core_hours(tenant="team-a")), ("team-b",): 20.0}
    assert view["total"]["values"]["core_hours"] == pytest.approx(october_core_hours())
    assert sum(share or 0 for share in lines(view, "core_share").values()) == pytest.approx(1)
    assert lines(view, "gpu_hours")["team-a",] == 4.0
    over = ask(api, "root", "usage", since="2026-11-01", until="2026-11-02", user="bob")
    assert over["total"]["values"] | {"mean_wait": None} == over["total"]["values"]
    assert (over["total"]["values"]["core_hours"], over["total"]["values"]["jobs"]) == (8.0, 1)


@pytest.mark.parametrize("time", ["day", "week", "month", "quarter", "year"])
def test_times_add_up_to_the_whole_and_stand_in_order(api: Api, time: str) -> None:
    whole = ask(api, "root", "usage", since="2026-09-01", until="2026-12-01")
    split = ask(api, "root", "usage", since="2026-09-01", until="2026-12-01", by=[time, "user"])
    assert split["total"]["values"] == whole["total"]["values"]
    parts = [one["values"]["core_hours"] for one in split["lines"]]
    assert sum(parts) == pytest.approx(whole["total"]["values"]["core_hours"], abs=1e-3)
    keys = [tuple(one["key"].values()) for one in split["lines"]]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)


def test_percentiles_of_waits_are_within_the_stated_error(api: Api) -> None:
    exact = sorted(one["start_at"] - one["submit_at"] for one in made_jobs() if one["partition"] == "cpu")
    view = ask(api, "root", "waits", partition="cpu", by="partition")
    assert view["quantile_error"] == pytest.approx(ERROR, abs=1e-3)
    for name, share in (("wait_median", 0.5), ("wait_p90", 0.9), ("wait_p95", 0.95)):
        told = lines(view, name)["cpu",]
        assert told == pytest.approx(exact[math.ceil(share * len(exact)) - 1], rel=ERROR)
    assert lines(view, "mean_wait")["cpu",] == pytest.approx(sum(exact) / len(exact))


def test_hours_are_lost_to_bad_ends_and_not_to_what_somebody_cancelled(api: Api) -> None:
    view = ask(api, "root", "outcomes")
    lost = lines(view, "lost_core_hours")
    assert {key[0] for key, hours in lost.items() if hours} == {"TIMEOUT", "OUT_OF_MEMORY"}
    assert view["total"]["values"]["lost_core_hours"] == 4 + 16
    assert lines(view, "jobs")["CANCELLED",] == 1
    by_tenant = lines(ask(api, "root", "outcomes", by="tenant"), "lost_core_hours")
    assert by_tenant == {("team-a",): 4.0, ("team-b",): 16.0}


def test_efficiency_is_of_the_jobs_that_have_the_data_and_says_of_how_many(api: Api) -> None:
    view = ask(api, "root", "efficiency", by="user", partition="gpu")
    ann, bob = (next(one for one in view["lines"] if one["key"]["user"] == name) for name in ("ann", "bob"))
    assert ann["values"]["cpu_efficiency"] == 0.5 and ann["values"]["memory_efficiency"] == 0.5
    assert ann["coverage"]["cpu_efficiency"] == {"with_data": 1, "of": 2, "counted": "jobs"}, (
        "a timed-out job's is partial"
    )
    assert bob["coverage"]["memory_efficiency"] == {"with_data": 1, "of": 2, "counted": "jobs"}
    assert ann["values"]["gpu_efficiency"] is None, "nobody measured: unknown, not 0"


def test_waste_is_what_was_allocated_and_not_used_where_both_are_known(api: Api) -> None:
    view = ask(api, "root", "waste", partition="gpu", tenant="team-a")
    assert lines(view, "unused_core_hours") == {("ann",): 2.0, ("bob",): 4.0}
    assert lines(view, "untouched_memory_gib_hours")["bob",] == 8.0
    assert lines(view, "idle_gpu_hours")["bob",] is None, "nobody measured: unknown, not 0"
    assert lines(view, "cores_per_gpu")["bob",] == 2.0


@pytest.mark.parametrize(
    ("who", "users", "scope"),
    [
        ("root", {"ann", "bob", "eve"}, "all"),
        ("boss", {"ann", "bob"}, "tenant team-a"),
        ("eye", {"ann", "bob"}, "tenant team-a"),
        ("ann", {"ann"}, "user ann"),
        ("eve", {"eve"}, "user eve"),
    ],
)
def test_everybody_sees_what_the_role_allows_and_no_filter_widens_it(
    api: Api, who: str, users: set[str], scope: str
) -> None:
    view = ask(api, who, "top")
    assert {key[0] for key in lines(view, "jobs")} == users and view["scope"] == scope
    jobs = api.call("GET", "/reports/top/jobs", who, params=OCTOBER).json()["items"]
    assert {one["user"] for one in jobs} == users
    if who != "root":
        for foreign in ({"user": "root"}, {"tenant": "team-z"}):
            assert ask(api, who, "top", **foreign)["lines"] == []
            found = api.call("GET", "/reports/top/jobs", who, params=OCTOBER | foreign)
            assert found.json()["items"] == []
    other = "eve" if who != "eve" else "ann"
    assert (ask(api, who, "top", user=other)["lines"] == []) is (other not in users)


@pytest.mark.parametrize(
    ("report", "by"),
    [("usage", "tenant"), ("usage", "week"), ("top", "user"), ("sizes", "size"), ("outcomes", "outcome")],
)
def test_a_line_leads_down_to_the_jobs_that_ended_in_it(api: Api, report: str, by: str) -> None:
    first, after = at("2026-10-01T00:00"), at("2026-11-01T00:00")
    view = ask(api, "root", report, by=by)
    assert view["lines"]
    for line in view["lines"]:
        found = api.http.get(f"{line['jobs_url']}&limit=200", headers=api.headers("root")).json()["items"]
        ended = [one for one in found if first <= at(one["ended_at"].removesuffix("Z")) < after]
        assert found and (by == "week" or len(ended) == line["values"]["jobs"]), line


def test_jobs_that_were_given_no_cpu_lie_behind_the_smallest_size(api: Api) -> None:
    """Slurm tells 0 CPUs of what was cancelled while it waited."""
    never = {"state": "CANCELLED", "start_at": None, "counted_to": None, "elapsed_s": 0, "node_list": ""}
    with api.ctx.db.write() as session:
        keep(session, job(200, at("2026-10-20T08:00"), cpus=0, **never))
    (line,) = (one for one in ask(api, "root", "sizes")["lines"] if one["key"]["size"] == "0")
    found = api.http.get(line["jobs_url"], headers=api.headers("root")).json()["items"]
    assert [one["job_id"] for one in found] == ["200"] and line["values"]["jobs"] == 1


def test_the_jobs_behind_waits_are_those_that_began(api: Api) -> None:
    view = ask(api, "root", "waits", by="partition")
    for line in view["lines"]:
        found = api.http.get(f"{line['jobs_url']}&limit=200", headers=api.headers("root")).json()["items"]
        assert len(found) == line["values"]["waited"]


@pytest.mark.parametrize(("report", "by"), [("usage", "wait"), ("outcomes", "wait"), ("waits", "wait")])
def test_jobs_of_a_class_of_waits_lie_behind_its_line(api: Api, report: str, by: str) -> None:
    late = {"eligible_at": at("2026-10-20T23:00"), "start_at": at("2026-10-20T09:00")}  # clocks that differ
    unknown = {"eligible_at": None, "start_at": at("2026-10-20T12:00")}
    never = {"state": "CANCELLED", "start_at": None, "counted_to": None, "elapsed_s": 0, "node_list": ""}
    with api.ctx.db.write() as session:
        for number, more in enumerate((late, unknown, never)):
            keep(session, job(200 + number, at("2026-10-20T08:00"), run_s=6 * 3600, **more))
    view = ask(api, "root", report, by=by, since="2026-09-01", until="2026-12-01")
    known = {one["value"] for one in view["report"]["values"]["wait"]}
    count = "waited" if report == "waits" else "jobs"
    seen: dict[str, set[str]] = {}
    for line in view["lines"]:
        name = line["key"]["wait"]
        found = api.http.get(f"{line['jobs_url']}&limit=200", headers=api.headers("root")).json()["items"]
        seen[name] = {one["job_id"] for one in found}
        assert name in known and len(found) == line["values"][count], line
        alone = ask(api, "root", report, by="user", wait=name, since="2026-09-01", until="2026-12-01")
        assert alone["total"]["values"][count] == len(found)
    assert "200" in seen["0-1m"] and "201" in seen["1-6h"]
    assert seen.get("not-started", set()) == (set() if report == "waits" else {"202"})
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_a_class_of_waits_that_does_not_exist_is_refused_with_those_that_do(api: Api) -> None:
    answer = api.call("GET", "/reports/usage", "root", params=OCTOBER | {"wait": "5m"})
    assert answer.status_code == 422 and codes(answer) == {"unknown_wait"}
    assert "1-10m" in answer.json()["detail"] and "not-started" in answer.json()["detail"]


def test_jobs_with_some_gpus_of_a_type_lie_behind_its_line(api: Api) -> None:
    kinds = {"gpu_count": 3, "gpu_type": "v100", "gpu_types": "a100=1,v100=2"}
    with api.ctx.db.write() as session:
        keep(session, job(200, at("2026-10-20T08:00"), **kinds))
        keep(session, job(201, at("2026-10-20T08:00"), **kinds | {"gpu_types": "A100=1,v100=2"}))
    whole = ask(api, "root", "usage")["total"]["values"]
    view = ask(api, "root", "usage", by="gpu_type")
    assert view["total"]["values"] == whole
    hours, jobs = lines(view, "gpu_hours"), lines(view, "jobs")
    assert (hours["a100",], hours["A100",], hours["v100",]) == (4.0 + 1, 1.0, 4.0)
    assert (jobs["a100",], jobs["A100",], jobs["v100",]) == (1, 0, 2), "a job counts once"
    behind = {}
    for line in view["lines"]:
        found = api.http.get(f"{line['jobs_url']}&limit=200", headers=api.headers("root")).json()["items"]
        behind[line["key"]["gpu_type"]] = {one["job_id"] for one in found}
    assert (behind["a100"], behind["A100"]) == ({"2", "200"}, {"201"})
    assert behind["v100"] == {"200", "201"}


def test_how_busy_gpus_of_several_types_were_is_known_of_the_job_and_of_no_type_alone(api: Api) -> None:
    """The lesser type has hours, and no jobs: no efficiency out of nothing, in no form."""
    kinds = {"gpu_count": 3, "gpu_type": "v100", "gpu_types": "h100=1,v100=2", "user": "kim"}
    with api.ctx.db.write() as session:
        keep(session, job(200, at("2026-10-20T08:00"), gpu_util=40.0, **kinds))
    asked = {"user": "kim", "by": "gpu_type"}
    [line] = ask(api, "root", "efficiency", **asked)["lines"]
    assert (line["key"]["gpu_type"], line["values"]["gpu_efficiency"]) == ("v100", 0.4)
    assert line["coverage"]["gpu_efficiency"] == {"with_data": 1, "of": 1, "counted": "jobs"}
    wasted = {line["key"]["gpu_type"]: line for line in ask(api, "root", "waste", **asked)["lines"]}
    for kind, hours, idle, cores, jobs in (("v100", 2.0, 1.8, 2.0, 1), ("h100", 1.0, None, None, 0)):
        values, coverage = wasted[kind]["values"], wasted[kind]["coverage"]["idle_gpu_hours"]
        figures = tuple(values[name] for name in ("gpu_hours", "idle_gpu_hours", "cores_per_gpu"))
        assert figures == (hours, idle, cores)
        assert (coverage["with_data"], coverage["of"]) == (jobs, jobs)
    params = OCTOBER | asked | {"format": "csv"}
    text = api.call("GET", "/reports/waste", "root", params=params).content.decode("utf-8-sig")
    [row] = [one for one in csv.DictReader(io.StringIO(text)) if one["gpu_type"] == "h100"]
    known = [f"idle_gpu_hours{part}" for part in (" (h)", ": jobs with data", ": jobs")]
    assert [row[name] for name in known] == ["", "0", "0"]


def test_a_slowdown_of_each_job_and_of_all_of_them(api: Api) -> None:
    with api.ctx.db.write() as session:
        held = {"eligible_at": at("2026-10-20T09:00"), "user": "kim"}
        keep(session, job(200, at("2026-10-20T08:00"), wait_s=7200, run_s=1800, **held))
        keep(session, job(201, at("2026-10-20T08:00"), wait_s=0, run_s=1, user="kim"))
        running = {"end_at": None, "state": "RUNNING", "user": "kim"}
        keep(session, job(202, at("2026-10-20T08:00"), wait_s=60, run_s=600, **running))
    items = api.call("GET", "/reports/slowdown/jobs", "root", params=OCTOBER | {"user": "kim"}).json()[
        "items"
    ]
    told = {one["job_id"]: (one["slowdown"], one["slowdown_from_submit"], one["hold_s"]) for one in items}
    assert told == {"200": (3.0, 5.0, 3600), "201": (1.0, 1.0, 0), "202": (None, None, 0)}
    (line,) = ask(api, "root", "slowdown", by="user", user="kim")["lines"]
    figures = line["values"]
    assert (figures["slowdown_median"], figures["mean_slowdown"]) == (1.0, 2.0)
    assert figures["slowdown_p95"] == pytest.approx(3.0, rel=ERROR)
    assert (figures["mean_slowdown_from_submit"], figures["waited"]) == (3.0, 3)
    assert line["coverage"]["slowdown_median"] == {"with_data": 2, "of": 3, "counted": "jobs"}


def test_pages_of_jobs_show_each_job_once(api: Api) -> None:
    seen, cursor = [], None
    while True:
        params = OCTOBER | {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = api.call("GET", "/reports/usage/jobs", "root", params=params).json()
        seen += [one["job_id"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == len(made_jobs()) - 1


def test_csv_says_how_many_lines_are_beyond_the_limit(api: Api) -> None:
    asked = OCTOBER | {"by": ["day", "user"], "format": "csv", "limit": 2}
    answer = api.call("GET", "/reports/usage", "root", params=asked)
    heads, *rows = csv.reader(io.StringIO(answer.content.decode("utf-8-sig")))
    left_out = api.call("GET", "/reports/usage", "root", params=asked | {"format": "json"}).json()["left_out"]
    assert left_out > 0 and [row[0] for row in rows][2:] == [f"({left_out} more)", ""]
    assert {len(row) for row in rows} == {len(heads)}


def test_csv_has_the_lines_and_the_total_and_no_formula(api: Api) -> None:
    with api.ctx.db.write() as session:
        keep(session, job(900, at("2026-10-20T00:00"), partition="=1+1", user="ann"))
    answer = api.call("GET", "/reports/usage", "root", params=OCTOBER | {"by": "partition", "format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    view = ask(api, "root", "usage", by="partition")
    assert rows[0][:2] == ["partition", "core_hours (h)"] and rows[-1][0] == ""
    assert {row[0] for row in rows[1:-1]} == {"cpu", "gpu", "'=1+1"}
    assert float(rows[-1][1]) == pytest.approx(view["total"]["values"]["core_hours"], rel=1e-5)


def test_lines_beyond_the_limit_are_counted_and_stay_in_the_total(api: Api) -> None:
    view = ask(api, "root", "top", limit=1, sort="jobs")
    assert (len(view["lines"]), view["left_out"]) == (1, 2)
    assert view["total"]["values"] == ask(api, "root", "top")["total"]["values"]
    assert view["sources"][0]["cluster"] == "main"
    assert api.http.get(view["url"], headers=api.headers("root")).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/reports/nothing", 404, None),
        ("/reports/usage?by=colour", 422, "unknown_dimension"),
        ("/reports/waits?by=outcome", 422, "unknown_dimension"),
        ("/reports/waits?outcome=FAILED", 422, "unknown_dimension"),
        ("/reports/usage?outcome=lost", 422, "unknown_outcome"),
        ("/reports/usage?size=big", 422, "not_a_number"),
        ("/reports/usage?gpu_count=two", 422, "not_a_number"),
        ("/reports/node_downtime?state=broken", 422, "unknown_node_state"),
        ("/reports/usage?outcome=failed", 200, None),
        ("/reports/usage?sort=colour", 422, "unknown_measure"),
        ("/reports/usage?since=2026-11-02&until=2026-11-01", 422, "invalid_period"),
        ("/reports/usage?since=1900-01-01", 422, "invalid_period"),
        ("/reports/usage/jobs?cursor=eA", 422, "invalid_cursor"),
        ("/reports/usage?gpu_count=99999999999999999999", 200, None),
    ],
)
def test_what_is_wrong_is_named(api: Api, path: str, status: int, code: str | None) -> None:
    answer = api.call("GET", path, "root")
    assert answer.status_code == status, answer.text
    if code:
        assert codes(answer) == {code}
