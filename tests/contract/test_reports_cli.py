"""`broker report` against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker.cli import periods
from broker.cli.fitting import BAR
from broker.identity import Role
from tests.accounting import at, job, keep
from tests.api_support import Api, context
from tests.serving import Call, caller, signed_on

TODAY = periods.today()
FIRST, _ = periods.last_whole("month", TODAY)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(periods, "today", lambda: TODAY)  # no month ends meanwhile
    begun = at(f"{FIRST}T10:00")
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        with ctx.db.write() as session:
            keep(
                session,
                job(1, begun, wait_s=90),
                job(2, begun, user="bob", tenant="team-b", cpus=8, gpu_count=1),
                job(3, begun, total_cpu_s=None, name="evil\x1b[2J", partition="\x1b[2J"),
                job(4, begun - 86_400 * 40, user="bob", tenant="team-b"),
            )
        with signed_on(made, "root", monkeypatch):
            yield made


@pytest.fixture
def call(api: Api, capsys: pytest.CaptureFixture[str]) -> Call:
    run = caller(capsys)
    return lambda *words, status=0: run("report", *words, status=status)


def line(text: str, word: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(word))


def test_a_report_has_bars_in_proportion_a_total_and_its_age(call: Call) -> None:
    shown = call("usage", "--by", "tenant", "--by", "user", "--last", "month")
    assert line(shown, "team-b").count("█") == BAR == line(shown, "team-a").count("█")  # 8 core hours each
    assert "16.0" in line(shown, "total") and "ago" in line(shown, "main: complete up to")
    half = call("usage", "--by", "tenant", "--by", "partition", "--last", "month")
    assert line(half, "team-a").count("█") == BAR // 2
    assert "\x1b[2J" not in half, "what others named must not steer a terminal"


def test_what_the_figures_mean_and_of_how_many_jobs_they_are_known_is_told(call: Call) -> None:
    shown = call("efficiency", "--by", "tenant", "--last", "month", "--explain")
    assert "(of 1/2)" in line(shown, "team-a") and "?" in line(shown, "team-b")
    assert "a ratio of sums" in shown


def test_the_reports_and_the_jobs_behind_one_are_listed(call: Call) -> None:
    listed = call()
    assert all(name in listed for name in ("usage", "waits", "outcomes", "efficiency"))
    assert {one["job_id"] for one in call("usage", "--last", "month", "--jobs", "--json")} == {"1", "2", "3"}
    shown = call("usage", "--last", "month", "--where", "tenant=team-b", "--jobs")
    assert shown.count("bob") == 1 and "there are more" not in shown
    few = call("usage", "--last", "month", "--jobs", "--limit", "2")
    assert "The newest 2; there are more" in few and len(few.splitlines()) == 4
    korean = call("usage", "--last", "month", "--jobs", "--limit", "2", "--lang", "ko")
    assert "가장 최근 2개" in korean and "사용자" in korean and "USER" not in korean
    nobody = ("usage", "--last", "month", "--where", "user=nobody", "--jobs")
    assert "No jobs" in call(*nobody) and "작업 없음" in call(*nobody, "--lang", "ko")
    assert len(call("usage", "--last", "month", "--jobs", "--limit", "2", "--json")) == 2


def test_csv_goes_to_a_file_and_to_standard_output(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "usage.csv"
    assert call("usage", "--last", "month", "--csv", str(target), "--json")["bytes"] == target.stat().st_size
    assert target.read_text(encoding="utf-8-sig").startswith('"tenant","core_hours (h)"')
    assert '"team-b"' in call("usage", "--last", "month", "--csv", "-")


def test_a_place_that_takes_no_file_is_named_and_nothing_is_left_there(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "files" / "notes.txt"
    file.parent.mkdir()
    file.write_text("mine")
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(file.parent)
    for target in (".", str(file.parent), str(file / "usage.csv"), str(file.parent / "no" / "usage.csv")):
        assert f"{target} can't be written: " in call("usage", "--format", "csv", "-o", target, status=2)
    assert set(tmp_path.iterdir()) == before and list(file.parent.iterdir()) == [file]
    assert file.read_text() == "mine"


def test_a_researcher_sees_only_the_own_jobs(call: Call, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TOKEN", api.tokens["ann"])
    shown = call("top", "--last", "month")
    assert "user ann" in shown and "bob" not in shown


def test_what_can_not_be_asked_is_told(call: Call) -> None:
    assert "there are: day" in call("usage", "--last", "decade", status=2)
    assert "leave out --since" in call("usage", "--last", "month", "--since", "2026-01-01", status=2)
    assert "NAME=VALUE" in call("usage", "--where", "colour=red", status=2)
    assert "it has: cluster" in call("usage", "--by", "colour", status=2)
    assert "There is no report" in call("nothing", status=66)
    for option in ("--since", "--until"):
        assert f"{option} 2026-13-01: write a day" in call("usage", option, "2026-13-01", status=2)


def test_options_that_say_different_things_are_refused_not_ignored(call: Call, tmp_path: Path) -> None:
    assert "leave --by and --sort out" in call("usage", "--jobs", "--by", "tenant", status=2)
    assert "leave one of them out" in call("usage", "--csv", "a.csv", "--output", "b.csv", status=2)
    assert "how things stand now" in call("quotas", "--last", "month", status=2)
    target = tmp_path / "usage.xlsx"
    assert "csv, json, parquet" in call("usage", "--output", str(target), status=2) and not target.exists()


def test_the_jobs_behind_a_report_are_written_as_csv_too(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "jobs.csv"
    call("usage", "--last", "month", "--jobs", "--csv", str(target))
    lines = target.read_text(encoding="utf-8-sig").splitlines()
    assert "job_id" in lines[0] and len(lines) == 4


def test_sizes_are_told_in_cpus_and_hours_as_hours(call: Call) -> None:
    shown = call("sizes", "--last", "month")
    assert "2 (4–7 CPUs)" in shown and "3 (8–15 CPUs)" in shown
    assert "MEMORY NEVER TOUCHED (GiB h)" in call("waste", "--last", "month")


def test_classes_of_waits_are_told_in_words_and_taken_as_filters(call: Call) -> None:
    shown = call("usage", "--by", "wait", "--last", "month")
    assert "0-1m (under a minute)" in shown and "1-10m (1 to 10 minutes)" in shown
    assert "1-10m (1분~10분)" in call("usage", "--by", "wait", "--last", "month", "--lang", "ko")
    found = call("slowdown", "--where", "wait=1-10m", "--last", "month", "--jobs", "--json")
    assert [(one["job_id"], one["wait_s"], one["slowdown"]) for one in found] == [("1", 90, 1.025)]
    assert "there are: 0-1m, 1-10m" in call("usage", "--where", "wait=soon", status=2)
    told = call("slowdown", "--last", "month", "--explain", "--lang", "ko")
    assert "지연 배율 중앙값" in told and "max(1, (대기 + 경과) / max(경과, 10초))" in told


def test_a_report_of_which_nothing_was_read_says_so_even_when_lines_are_left_out(call: Call) -> None:
    shown = call("core_utilisation", "--since", f"{FIRST - timedelta(days=60)}", "--limit", "1")
    assert "see --limit" in shown and "nothing was read from Slurm yet" in shown


def test_a_report_speaks_korean_where_it_is_asked_to(call: Call) -> None:
    shown = call("usage", "--last", "month", "--explain", "--lang", "ko")
    for words in ("사용량", "코어 시간", "합계", "뜻", "할당된 코어 수"):
        assert words in shown
    assert "CORE HOURS" not in shown and "Allocated cores" not in shown
    assert "현재" in call("waiting", "--lang", "ko")
