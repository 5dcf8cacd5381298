"""`broker costs` and `broker prices` against a real server."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli import periods
from broker.identity import Role
from tests.accounting import at, job, keep
from tests.api_support import Api, context, spec
from tests.serving import Call, caller, signed_on

TODAY = periods.today()
FIRST, AFTER = periods.last_whole("month", TODAY)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(periods, "today", lambda: TODAY)  # no month ends meanwhile
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        with ctx.db.write() as session:
            keep(
                session,
                job(1, at(f"{FIRST}T10:00"), run_s=7200),
                job(
                    2, at(f"{FIRST}T10:00"), user="bob\x1b[2J", tenant="team-b", gpu_count=1, gpu_type="a100"
                ),
            )
        with signed_on(made, "root", monkeypatch):
            yield made


@pytest.fixture
def call(api: Api, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def line(text: str, word: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(word))


def test_prices_are_entered_listed_and_withdrawn_and_costs_follow(call: Call, tmp_path: Path) -> None:
    assert "No prices: all use is unpriced" in call("prices", "list")
    assert "단가 없음" in call("prices", "list", "--lang", "ko")
    assert "?" in line(call("costs", "--last", "month"), "team-a")
    call("prices", "set", "core_hour", "1500.5", "--from", f"{FIRST}")
    told = call("prices", "set", "core_hour", "2000", "--from", "2999-01-01", "--partition", "gpu")
    assert "2,000 KRW from 2999-01-01 on, partition gpu" in told
    later = told.split(":")[0]
    assert "1,500.5 KRW" in call("prices", "list")
    call("prices", "withdraw", later)
    assert [one["state"] for one in call("prices", "list", "--all", "--json")["items"]] == [
        "holds",
        "withdrawn",
    ]

    shown = call("costs", "--last", "month", "--by", "tenant", "--by", "user")
    assert "12,004" in line(shown, "team-a") and "6,002" in line(shown, "team-b")
    assert "18,006" in line(shown, "total") and "1.0 GPU h" in line(shown, "total")
    assert "\x1b[2J" not in shown and "broker prices set" in shown

    target = tmp_path / "invoice.csv"
    call("costs", "--last", "month", "--invoice", str(target), "--no-bom")
    rows = list(csv.DictReader(target.open(encoding="utf-8", newline="")))
    assert (
        rows[-1]["amount"] == "18006" and rows[-1]["since"] == f"{FIRST}" and rows[-1]["until"] == f"{AFTER}"
    )


def test_a_wrong_price_is_corrected_and_costs_say_what_they_were(call: Call) -> None:
    wrong = call("prices", "set", "core_hour", "15000", "--from", f"{FIRST}").split(":")[0]
    assert "Corrected" not in call("costs", "--last", "month")
    said = call("prices", "correct", wrong, "--amount", "1500", "--why", "한 자리 더 쳤음")
    assert (
        said.startswith(f"Withdrew {wrong}. price-") and f"core_hour 1,500 KRW from {FIRST} on, every" in said
    )
    right = said.split()[2].rstrip(":")
    shown = call("costs", "--last", "month")
    told = line(shown, "Corrected")
    assert f"by root: core_hour, everywhere, {FIRST} to " in told
    assert told.endswith(f": 15,000 KRW → 1,500 KRW ({wrong} → {right}): 한 자리 더 쳤음")
    assert "18,000" in line(shown, "total")
    assert [one["corrected_by"] for one in call("costs", "--last", "month", "--json")["corrections"]] == [
        right
    ]
    listed = call("prices", "list", "--all")
    assert "한 자리 더 쳤음" in line(listed, wrong) and right in line(listed, wrong)
    assert "withdrawn" not in call("prices", "list"), "only what holds"
    korean = call("prices", "list", "--all", "--lang", "ko")
    assert "적용 범위" in korean and "RESOURCE" not in korean
    assert (
        "전체" in line(korean, wrong) and "철회" in line(korean, wrong) and "적용 중" in line(korean, right)
    )

    assert "say why" in call("prices", "withdraw", right, status=2)
    assert f"Withdrew {right}" in call("prices", "withdraw", right, "--why", "never agreed")
    shown = call("costs", "--last", "month")
    assert f"1,500 KRW → withdrawn ({right}): never agreed" in shown
    assert "?" in line(shown, "total")
    said = call("prices", "correct", wrong, "--amount", "2", "--why", "again", status=75)
    assert f"{right}, which stood in its place, was withdrawn already" in said


def counted_run(api: Api) -> str:
    """Ann's run with one job in the warehouse."""
    made = api.call("POST", "/pipelines", "ann", json=spec()).json()["pipeline"]["id"]
    run: str = api.call("POST", "/runs", "ann", json={"pipeline": made}).json()["id"]
    with api.ctx.db.write() as session:
        keep(session, job(3, at(f"{FIRST}T10:00"), run_id=run))
    return run


def test_a_run_that_a_correction_touches_says_so(call: Call, api: Api) -> None:
    run = counted_run(api)
    wide = call("prices", "set", "core_hour", "5", "--from", f"{FIRST}").split(":")[0]
    wrong = call("prices", "set", "core_hour", "9", "--from", "2999-01-01", "--partition", "gpu").split(":")[
        0
    ]
    call("prices", "correct", wrong, "--amount", "8", "--why", "before it held")
    assert "Corrected" not in call("costs", "--run", run)
    call("prices", "correct", wide, "--amount", "6", "--why", "as agreed")
    shown = call("costs", "--run", run)
    assert "5 KRW → 6 KRW" in line(shown, "Corrected") and "Not all of it is counted yet" in shown


def test_costs_are_told_in_one_language(call: Call, api: Api) -> None:
    run = counted_run(api)
    wrong = call("prices", "set", "core_hour", "5", "--from", f"{FIRST}").split(":")[0]
    call("prices", "correct", wrong, "--amount", "6", "--why", "as agreed")
    for words in (("--last", "month"), ("--run", run)):
        english = call("costs", *words)
        assert not re.search("[가-힣]", english), english
        assert "FAULTS" in english and "complete up to" in english and "6 KRW" in line(english, "Corrected")
        korean = call("costs", *words, "--lang", "ko")
        for word in ("FAULTS", "HOURS", "UNPRICED", "total", "Corrected", "complete up to", "core h"):
            assert word not in korean, korean
        assert "금액(KRW)" in korean and "단가 없음" in korean and "코어 시간" in line(korean, "합계")
        assert f"{FIRST}부터" in line(korean, "정정") and "전체" in line(korean, "정정")
    assert line(call("costs", "--last", "month", "--lang", "ko"), "비용").endswith("(UTC), 전체")


def test_what_rounding_each_line_leaves_out_is_a_line_of_its_own(call: Call) -> None:
    price = call("prices", "set", "core_hour", "0.05", "--from", f"{FIRST}").split(":")[0]
    shown = call("costs", "--last", "month", "--by", "user")  # 8 and 4 core hours: 0.4 and 0.2
    assert line(shown, "rounding").split() == ["rounding", "1"]
    assert line(shown, "total").split()[:2] == ["total", "1"]
    korean = call("costs", "--last", "month", "--by", "user", "--lang", "ko")
    assert line(korean, "반올림 차이").split()[-1] == "1"
    call("prices", "correct", price, "--amount", "5", "--why", "not in cents")
    assert "rounding" not in call("costs", "--last", "month", "--by", "user")


def test_what_can_not_be_asked_is_told(call: Call) -> None:
    assert "leave --by out" in call("costs", "--by", "user", "--invoice", "-", status=2)
    for option, *value in (["--by", "user"], ["--limit", "20"], ["--no-bom"], ["--bom"], ["--last", "month"]):
        name = "--bom/--no-bom" if "bom" in option else option
        assert f"leave {name} out" in call("costs", "--run", "run-1", option, *value, status=2)
    assert "leave --by, --limit out" in call(
        *("costs", "--run", "run-1", "--limit", "3", "--by", "user"), status=2
    )
    assert "leave --limit out" in call("costs", "--invoice", "-", "--limit", "3", status=2)
    assert "leave --bom/--no-bom out" in call("costs", "--no-bom", status=2)
    assert "There is no run" in call("costs", "--run", "run-1", status=66)
    assert "names are: cluster" in call("costs", "--where", "size=3", status=2)
    assert "one of them" in call("prices", "set", "core_hour", "--from", "2999-01-01", status=2)
    assert "withdrawn" not in call("prices", "withdraw", "price-0", status=66)
    for amount in ("cheap", "12,5", "nan"):
        said = call("prices", "set", "core_hour", amount, "--from", "2999-01-01", status=2)
        assert f"AMOUNT {amount}: write a number" in said
    for words in (("--why", "x"), ("--amount", "1", "--end", "--why", "x")):
        assert "one of them" in call("prices", "correct", "price-0", *words, status=2)
    said = call("prices", "correct", "price-0", "--amount", "1,5", "--why", "x", status=2)
    assert "--amount 1,5: write a number" in said
    assert "There is no price" in call(
        "prices", "correct", "price-0", "--amount", "1", "--why", "x", status=66
    )
    assert "--why" in call("prices", "correct", "price-0", "--amount", "1", status=2)
    assert "--from soon: write a day" in call("prices", "set", "core_hour", "1", "--from", "soon", status=2)
