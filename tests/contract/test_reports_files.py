"""Reports and the jobs behind them as files: Parquet with real types, streams that do not grow in memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from broker.cli import main
from broker.identity import Role
from broker.reports.jobs import behind, pages_of
from broker.reports.parquet import jobs_parquet
from broker.reports.wanted import Scope
from tests.accounting import at, job, keep
from tests.api_support import Api, context
from tests.serving import served

OCTOBER = {"since": "2026-10-01", "until": "2026-11-01"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        with ctx.db.write() as session:
            keep(
                session,
                job(1, at("2026-10-05T10:00"), wait_s=60),
                job(2, at("2026-10-06T11:00"), user="bob", gpu_count=2, gpu_type="a100", total_cpu_s=None),
                job(3, at("2026-10-06T22:00"), user="eve", tenant="=team-b", name='"quoted"\n=1+1'),
            )
        yield made


def table(api: Api, path: str, who: str = "root", **params: object) -> pa.Table:
    answer = api.call("GET", f"/reports/{path}", who, params=OCTOBER | {"format": "parquet"} | params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert answer.headers["content-disposition"].endswith('.parquet"')
    return pq.read_table(io.BytesIO(answer.content))


def test_a_report_has_a_type_for_every_column_and_the_lines_of_the_api(api: Api) -> None:
    found = table(api, "usage", by=["day", "gpu_count", "tenant"])
    types = {field.name: field.type for field in found.schema}
    assert (types["day"], types["gpu_count"], types["tenant"]) == (pa.date32(), pa.int64(), pa.string())
    assert (types["core_hours"], types["jobs"]) == (pa.float64(), pa.int64())
    view = api.call(
        "GET", "/reports/usage", "root", params=OCTOBER | {"by": ["day", "gpu_count", "tenant"]}
    ).json()
    rows = found.to_pylist()
    assert [row["core_hours"] for row in rows] == [line["values"]["core_hours"] for line in view["lines"]]
    assert rows[0]["day"] == date(2026, 10, 5) and {row["gpu_count"] for row in rows} == {0, 2}
    assert "=team-b" in {row["tenant"] for row in rows}, "no apostrophe: Parquet has no formulas"


def test_what_the_figures_mean_and_of_how_many_jobs_they_are_known_stands_in_the_file(api: Api) -> None:
    found = table(api, "efficiency", by="user")
    about = json.loads(found.schema.metadata[b"report"])
    assert (about["since"], about["until"], about["scope"]) == ("2026-10-01", "2026-11-01", "all")
    assert about["sources"][0]["cluster"] == "main" and about["total"]["values"]["jobs"] == 3
    meaning = {name: text.decode() for name, text in _metadata(found, "cpu_efficiency").items()}
    assert "ratio of sums" in meaning["definition"] and "비율" in meaning["definition_ko"]
    known = {
        row["user"]: (row["cpu_efficiency"], row["cpu_efficiency_with_data"]) for row in found.to_pylist()
    }
    assert known["bob"] == (None, 0), "unknown is null, never 0"
    assert known["ann"] == (0.5, 1)


def _metadata(found: pa.Table, column: str) -> dict[str, bytes]:
    return {name.decode(): text for name, text in found.schema.field(column).metadata.items()}


def test_texts_and_moments_have_types_too(api: Api) -> None:
    types = {field.name: field.type for field in table(api, "waiting").schema}
    assert types["expected_start"] == pa.timestamp("us", "UTC") and types["why"] == pa.string()


def test_the_same_report_gives_the_same_bytes(api: Api) -> None:
    one, other = (
        api.call("GET", "/reports/usage", "root", params=OCTOBER | {"format": "parquet"}).content
        for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize(("who", "ids"), [("root", {"1", "2", "3"}), ("ann", {"1"})])
def test_the_jobs_behind_a_report_are_those_one_may_see(api: Api, who: str, ids: set[str]) -> None:
    found = table(api, "usage/jobs", who)
    assert set(found["job_id"].to_pylist()) == ids
    row = next(row for row in found.to_pylist() if row["job_id"] == "1")
    assert row["submitted_at"] == datetime(2026, 10, 5, 10, tzinfo=UTC)
    assert (row["wait_s"], row["gpu_efficiency"], row["runaway"]) == (60, None, False)
    answer = api.call("GET", "/reports/usage/jobs", who, params=OCTOBER | {"format": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert {one["job_id"] for one in rows} == ids and rows[-1]["gpu_efficiency"] == ""
    listed = api.call("GET", "/reports/usage/jobs", who, params=OCTOBER).json()["items"]
    assert [float(one["core_hours"]) for one in rows] == [one["core_hours"] for one in listed]


def test_jobs_are_streamed_page_by_page_each_job_once(api: Api) -> None:
    with api.ctx.db.write() as session:
        keep(session, *(job(100 + n, at("2026-10-10T00:00") + n // 3) for n in range(60)))
    query = behind(date(2026, 10, 1), date(2026, 11, 1), {}, Scope(), began=False)
    pages = [[one.job_id for one in page] for page in pages_of(api.ctx.db, query, 7)]
    assert [len(page) for page in pages] == [7] * 9
    assert len({number for page in pages for number in page}) == 63


def test_memory_does_not_grow_with_the_number_of_jobs(api: Api) -> None:
    query = behind(date(2026, 10, 1), date(2026, 11, 1), {}, Scope(), began=False)
    [page] = pages_of(api.ctx.db, query)
    held = [pa.total_allocated_bytes() for _ in jobs_parquet(page * 300 for _ in range(60))]
    assert max(held[30:]) <= max(held[:30]) + 1024, "54,000 jobs later as much as at the beginning"


def test_the_command_line_writes_files_and_names_what_it_can_not(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    period = ("--since", OCTOBER["since"], "--until", OCTOBER["until"])
    with served(api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", api.tokens["root"])
        report, jobs = tmp_path / "usage.parquet", tmp_path / "jobs.csv"
        assert main(["report", "usage", *period, "--by", "user", "-o", str(report)]) == 0
        assert main(["report", "usage", *period, "--jobs", "--format", "csv", "-o", str(jobs), "--json"]) == 0
        capsys.readouterr()
        assert main(["report", "usage", *period, "--format", "xlsx", "-o", str(report)]) == 2
        assert "there are: csv, json, parquet" in capsys.readouterr().err
        assert main(["report", "usage", *period, "--jobs", "-o", str(tmp_path / "jobs.json")]) == 2
        assert main(["report", "nothing", "-o", str(tmp_path / "none.csv")]) == 66
    assert set(pq.read_table(report)["user"].to_pylist()) == {"ann", "bob", "eve"}
    assert len(list(csv.DictReader(io.StringIO(jobs.read_text(encoding="utf-8-sig"))))) == 3
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["jobs.csv", "usage.parquet"]
