"""Reports whose lines do not come from the days' sums: figures that are texts or days; cluster-wide."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from broker.accounting.schemas import Source
from broker.cli import main
from broker.identity import Role
from broker.reports import sources
from broker.reports.definitions import REPORTS
from broker.reports.measures import Measure, Report, Sums, ratio, text
from broker.reports.wanted import Group, Scope, Wanted
from tests.api_support import Api, codes, context
from tests.serving import served

UNUSED = ("title_ko", "definition", "definition_ko")
FULL = Measure(
    "full",
    "ratio",
    "Full",
    *UNUSED,
    lambda sums, _: ratio(sums["used"], sums["all"]),
    covered="seen",
    of="hours",
    counted="hours",
)
OUT = Measure("out_on", "date", "Out on", *UNUSED, text("out_on"))
WHY = Measure("why", "text", "Why", *UNUSED, text("why"))
LOOK = Report(
    "look", "Look", "보기", ("rack",), (FULL, OUT, WHY), "racks", ("rack",), jobs=False, now=True, public=True
)


def read(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """Three racks as somebody else's reader would tell them (the dispatch is what is tried here)."""
    made = [
        ("r1", {"used": 1, "all": 4, "seen": 1, "hours": 2}, {"out_on": "2026-12-24", "why": "=cold"}),
        ("r2", {"used": 3, "all": 4, "seen": 2, "hours": 2}, {"out_on": "2026-12-01"}),
        ("r3", {}, {"why": f"\x1b[2J{scope}"}),
    ]
    return [Group({"rack": rack}, Sums(numbers, texts=texts)) for rack, numbers, texts in made]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setitem(REPORTS, "look", LOOK)
    monkeypatch.setitem(sources.SOURCES, "racks", read)
    ages = lambda session: [Source.model_validate(AGE)]  # noqa: E731
    monkeypatch.setitem(sources.AGES, "racks", ages)
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        yield made


AGE = {
    "cluster": "main",
    "complete_until": "2026-11-01T00:00:00Z",
    "read_until": "2026-11-01T00:00:00Z",
    "trouble": False,
}


def test_its_lines_are_ordered_and_added_up_like_all_others(api: Api) -> None:
    view = api.call("GET", "/reports/look", "root").json()
    assert [one["key"]["rack"] for one in view["lines"]] == ["r2", "r1", "r3"], "most first, the unknown last"
    assert view["lines"][1]["values"] == {"full": 0.25, "out_on": "2026-12-24", "why": "=cold"}
    assert view["total"]["values"] == {"full": 0.5, "out_on": None, "why": None}
    assert view["total"]["coverage"] == {"full": {"with_data": 3, "of": 4, "counted": "hours"}}
    assert view["report"]["now"] and not view["report"]["jobs"] and view["sources"] == [AGE]
    by_day = api.call("GET", "/reports/look", "root", params={"sort": "out_on"}).json()
    assert [one["key"]["rack"] for one in by_day["lines"]] == ["r2", "r1", "r3"], "the first day first"


def test_a_report_that_is_not_made_of_jobs_leads_to_none(api: Api) -> None:
    view = api.call("GET", "/reports/look", "root").json()
    assert {one["jobs_url"] for one in view["lines"]} == {None}
    assert api.call("GET", "/reports/look/jobs", "root").status_code == 404
    assert codes(api.call("GET", "/reports/look?by=tenant", "root")) == {"unknown_dimension"}
    assert codes(api.call("GET", "/reports/look?tenant=a", "root")) == {"unknown_dimension"}


def test_what_is_of_the_cluster_says_so_to_everybody(api: Api) -> None:
    for who in ("root", "ann"):
        assert api.call("GET", "/reports/look", who).json()["scope"] == "all"


def test_texts_stand_in_csv_and_are_no_formulas(api: Api) -> None:
    answer = api.call("GET", "/reports/look?format=csv", "root")
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert rows[0][-2:] == ["full: hours with data", "full: hours"]
    assert rows[2][:4] == ["r1", "0.25", "2026-12-24", "'=cold"] and rows[3][1] == ""


def test_texts_stand_in_a_terminal_and_do_not_steer_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", api.tokens["root"])
        assert main(["report", "look"]) == 0
        shown = capsys.readouterr().out
        assert main(["report", "look", "--sort", "why", "--json"]) == 0
    assert "Look, as it is now, all" in shown and "25.0 % (of 1/2 h)" in shown and "2026-12-01" in shown
    assert "\x1b[2J" not in shown
    assert len(json.loads(capsys.readouterr().out)["lines"]) == 3


def test_it_is_known_by_its_source(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPORTS, "look", replace(LOOK, source="days", dimensions=()))
    assert api.call("GET", "/reports/look?by=tenant", "root").json()["lines"] == []
