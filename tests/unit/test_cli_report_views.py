"""Reports in a terminal: each figure once, in one language, and headings that can be read at 80 columns."""

from __future__ import annotations

import io
import re
from typing import Any, get_args

import pytest
from rich.console import Console
from rich.text import Text

from broker.cli.cost_words import (
    COST_WORDS,
    HEADS,
    PRICE_HEADS,
    PRICE_STATES,
    RESOURCES,
    RUN_HEADS,
    WITHDRAWN_HEADS,
)
from broker.cli.fitting import Fitted
from broker.cli.report_views import report_view
from broker.cli.report_words import JOB_HEADS, WORDS, Language
from broker.costs.schemas import PriceView
from broker.reports.definitions import REPORTS
from broker.reports.views import describe

AN_HOUR = {"s": 4000.0, "ratio": 0.5, "jobs": 3.0, "count": 3.0, "date": "2026-11-30"}


def shown(
    name: str,
    width: int = 80,
    lang: Language = "en",
    scope: str = "all",
    sort: str | None = None,
    key: str = "2026-11-21",
    **figures: float | str,
) -> str:
    """A report of two lines as a terminal of that width shows it."""
    report = describe(REPORTS[name]).model_dump(mode="json")
    texts = {"why": "Nodes are down.", "why_ko": "노드가 고장입니다.", "asks_for": "a100 x 16, 64GB, 1h"}
    values = {
        one["name"]: texts.get(one["name"], AN_HOUR.get(one["unit"], 1.5)) for one in report["measures"]
    }
    values |= figures
    by = report["default_by"]
    keys = [dict.fromkeys(by, "a100") | {"began" if "began" in by else by[0]: one} for one in ("a100", key)]
    lines = [{"key": one, "values": values, "coverage": {}} for one in keys]
    found: dict[str, Any] = {"report": report, "by": by, "lines": lines, "total": lines[0], "scope": scope}
    found |= {"since": "2026-11-01", "until": "2026-12-01", "sources": [], "left_out": 0}
    out = io.StringIO()
    Console(width=width, file=out).print(report_view(found, sort, False, lang))
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["utilisation", "core_utilisation", "usage", "outcomes", "efficiency", "quotas"]
)
def test_at_80_columns_no_heading_is_cut_and_what_gives_way_is_named(name: str) -> None:
    text = shown(name)
    assert "…" not in text.partition("Left out")[0] and "2026-11-21" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    wide = shown(name, width=250)
    assert "Left out" not in wide
    if name == "utilisation":
        assert re.search(r"Left out for want of width: .*PLANNED\s+DOWN", text)


def test_the_figure_that_orders_the_lines_never_gives_way() -> None:
    assert "PLANNED" not in shown("utilisation").partition("Left out")[0]
    assert "PLANNED" in shown("utilisation", sort="planned_hours").partition("Left out")[0]


def test_a_reason_is_told_once_in_the_language_asked_for() -> None:
    english, korean = shown("waiting", 140), shown("waiting", 140, "ko")
    assert "Nodes are" in english and "노드가" not in english
    assert "노드가" in korean and "Nodes" not in korean
    assert "WHY" in shown("waiting"), "why is what one asks for: other figures give way"


def test_whose_it_is_stands_in_the_readers_language() -> None:
    assert ", tenant team-a" in shown("usage", scope="tenant team-a")
    assert ", 테넌트 team-a" in shown("usage", lang="ko", scope="tenant team-a")
    assert ", 전체" in shown("usage", lang="ko")


def test_the_moment_that_a_filter_takes_is_never_cut() -> None:
    text = shown("node_downtime", key="2026-11-21T21:29:45Z")
    assert "2026-1" in text and "…" not in text.partition("Left out")[0]


def test_headings_fold_before_a_reason_does() -> None:
    rows = [[Text("1"), Text("Nodes that it needs are down.")]]
    out = io.StringIO()
    Console(width=45, file=out).print(Fitted(("TIME UNTIL ELIGIBLE>", "WHY"), rows))
    assert "Nodes that it needs are down." in out.getvalue(), "a heading took the room of the reason"
    wide = io.StringIO()
    Console(width=80, file=wide).print(Fitted(("TIME UNTIL ELIGIBLE>", "WHY"), rows))
    assert "TIME UNTIL ELIGIBLE" in wide.getvalue(), "where there is room, a heading has one row"


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_who_has_shares_and_used_nothing_is_due_without_end(lang: Language) -> None:
    text = shown("fairshare", 120, lang, level_fs="Infinity")
    rows = [line for line in text.splitlines() if "∞" in line]
    assert len(rows) == 3 and "Infinity" not in text and "?" not in text
    assert len({line.count("█") for line in rows[:2]} - {0}) == 1, "it has the longest bar there is"


def test_both_languages_have_the_same_words_and_headings_that_behave_alike() -> None:
    for table in (WORDS, COST_WORDS, RESOURCES, PRICE_STATES):
        assert table["en"].keys() == table["ko"].keys()
    for heads in (HEADS, RUN_HEADS, JOB_HEADS, PRICE_HEADS, WITHDRAWN_HEADS):
        marks = [[head[-1] if head[-1] in ">?!=" else "" for head in heads[lang]] for lang in ("en", "ko")]
        assert marks[0] == marks[1]
    assert set(get_args(PriceView.model_fields["state"].annotation)) == PRICE_STATES["en"].keys()
