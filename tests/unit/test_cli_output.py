"""Text for people, JSON for programs, and nothing that steers a terminal."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from broker.cli import output
from broker.cli.fitting import BAR, Bar
from broker.cli.run_records import files_table
from broker.cli.run_views import summary_table
from broker.errors import Denied, InvalidSpec, LimitReached, Problem, Unauthenticated

HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\x00\u202eb"


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = output.harmless(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert output.harmless(text) == text


def test_logs_keep_colours_and_carriage_returns_only() -> None:
    assert output.harmless_log("\x1b[31mred\x1b[0m 50%\r100%\n") == "\x1b[31mred\x1b[0m 50%\r100%\n"
    assert "\x1b" not in output.harmless_log("\x1b[2J\x1b]0;t\x07")


def test_markup_in_names_is_text() -> None:
    console = Console(width=80, record=True, markup=False)
    console.print(output.table(("NAME",), [("[red]x[/red] :smile: " + HOSTILE,)], empty=""))
    assert "[red]x[/red] :smile:" in console.export_text()


def test_a_table_in_a_pipe_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    name = "n" * 150
    output.emit([], lambda: output.table(("A", "B"), [(name, "x" * 60)], empty=""), as_json=False)
    assert name in capsys.readouterr().out


@given(st.integers(40, 140))
def test_a_table_in_a_terminal_gives_each_bar_one_row_and_keeps_to_the_width(width: int) -> None:
    bars = [Bar("█".__mul__), Bar(lambda cells: "█" * (cells // 2))]
    rows = [("자연어처리연구실", bars[0], "98.7 %", "x"), ("kim", bars[1], "1.2 % (of 87/125)", "y")]
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(output.table(("TENANT", "", "EFFICIENCY>", "WHY"), rows, empty=""))
    lines = console.export_text().splitlines()
    drawn = [line.count("█") for line in lines if "█" in line]
    assert len(drawn) == 2 and drawn[1] == drawn[0] // 2 and 3 < drawn[0] <= BAR
    assert all(cell_len(line) <= width for line in lines)
    assert any("EFFICIENCY" in line for line in lines), "a word breaks last"
    assert width < 80 or (len(lines) == 3 and drawn[0] == BAR)


RUN = "run_0123456789abcdef"


def runs_at(width: int) -> list[str]:
    """A list of runs as a terminal of that width shows it."""
    run = {
        "id": RUN,
        "number": 12,
        "name": "segmentation-transformer-pretraining",
        "kind": "normal",
        "state": "pending_approval",
        "components": 12,
        "completed": 3,
        "owner": "kim",
        "cluster": "main",
        "created_at": "2026-05-01T12:00:00+00:00",
        "started_at": "2026-05-01T12:00:00+00:00",
        "ended_at": "2026-05-01T13:00:00+00:00",
    }
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(summary_table([run]))
    return console.export_text().splitlines()


def test_a_table_that_is_too_wide_leaves_columns_out_and_says_which_rather_than_break_words() -> None:
    lines = runs_at(80)
    assert all(cell_len(line) <= 80 for line in lines)
    assert lines[0].split() == ["RUN", "NAME", "STATE", "DONE", "CREATED", "TIME"]
    assert lines[-1].strip() == "Left out for want of width: NO, KIND, OWNER, CLUSTER"
    words = {word for line in lines for word in line.split()}
    assert {RUN, "pending_approval", "3/12", "01:00:00"} <= words
    assert "kim" in {word for line in runs_at(160) for word in line.split()} and len(runs_at(200)) == 2


@given(st.integers(72, 140))
def test_an_id_a_state_and_a_number_stay_whole_where_another_word_can_be_cut(width: int) -> None:
    words = {word for line in runs_at(width) for word in line.split()}
    assert {RUN, "pending_approval", "01:00:00", "3/12"} <= words
    assert [word for word in words if word.startswith("segm") and word.endswith("…")]


@given(st.integers(26, 60))
def test_a_number_and_its_unit_stand_in_one_row(width: int) -> None:
    heads = ("JOB", "WAITED>", "CPU>", "WHY")
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(output.table(heads, [("1", "1.5 h", "11.5 %", "as long as the others do")], empty=""))
    first = console.export_text().splitlines()[1]
    assert "1.5 h" in first and "11.5 %" in first


@given(st.integers(60, 100))
def test_what_people_copy_from_a_table_is_broken_where_it_must_be_and_never_cut(width: int) -> None:
    path, sha256 = "checkpoints/epoch-000123/segmentation-transformer.safetensors", "ab" * 32
    file = {"component": "trainer", "path": path, "size": 123456, "sha256": sha256}
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(files_table([file]))
    heads, *lines = console.export_text().splitlines()
    at, end = heads.index("PATH"), heads.index("SHA-256")
    assert "".join(line[at:].split(" ")[0] for line in lines) == path
    assert "".join(line[end:].strip() for line in lines) == sha256


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit({"at": datetime(2024, 1, 1, tzinfo=UTC), "name": "한"}, lambda: "text", as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out)["name"] == "한" and "한" in out


def test_an_error_says_every_problem_and_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [Problem("/name", "missing_field", "name it"), Problem("", "not_json", "mend the text")]
    output.report(InvalidSpec("two problems", problems=problems), as_json=False)
    told = capsys.readouterr().err
    for part in ("Invalid pipeline spec: two problems", "/name", "missing_field", "name it", "mend the text"):
        assert part in told


def test_an_error_for_a_program_is_a_problem_document(capsys: pytest.CaptureFixture[str]) -> None:
    output.report(InvalidSpec("bad", problems=[Problem("/a", "c", "d")]), as_json=True)
    document = json.loads(capsys.readouterr().err)
    assert document == {
        "title": "Invalid pipeline spec",
        "status": 422,
        "detail": "bad",
        "code": "invalid_spec",
        "errors": [{"pointer": "/a", "code": "c", "detail": "d"}],
    }


def test_each_error_names_who_can_mend_it() -> None:
    assert "broker login" in output.remedy_for(Unauthenticated("no token"))
    assert "in 7 s" in output.remedy_for(LimitReached("slow down", retry_after_s=7))
    assert "administrator" in output.remedy_for(Denied("not yours"))


def test_durations_of_what_goes_on_count_to_now() -> None:
    now = datetime(2024, 1, 1, 1, 0, 5, tzinfo=UTC)
    assert output.duration("2024-01-01T00:00:00Z", None, now) == "01:00:05"
    assert output.duration(None, None) == ""


def test_every_failed_state_is_coloured() -> None:
    for state in ("TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "FAILED", "DEADLINE"):
        assert output.state_style(state) == "red"
    assert output.state_style("v100-1") == ""
