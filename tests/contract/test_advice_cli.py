"""`broker advice` against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli.advice import _saving
from broker.identity import Role
from tests.advice_support import USED, ended, requested
from tests.api_support import SPEC, Api, context
from tests.serving import Call, caller, signed_on


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        with signed_on(made, "ann", monkeypatch):
            yield made


@pytest.fixture
def call(api: Api, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def lines(text: str, word: str) -> list[str]:
    return [one for one in text.splitlines() if one.startswith(word)]


def test_advice_for_a_run_names_amounts_options_and_reasons_in_both_languages(api: Api, call: Call) -> None:
    run = ended(api, requested(api, document=SPEC), used=USED | {"loader": {"mem_in_tot_mib": None}})
    shown = call("advice", run)
    assert shown.splitlines()[0] == f"By {run}"
    memory = next(one for one in lines(shown, "trainer") if "memory" in one)
    assert all(word in memory for word in ("64GB", "11GB", "--mem=11264M", "low", "26.5 GiB h"))
    assert "trainer memory: The largest peak" in shown and "8.789 GiB" in shown
    assert "loader memory: Nobody measured it in any of 1 jobs: unknown, which is not 0." in shown
    assert "What is asked for fits" not in shown and "gpu_count: What is asked for fits" in call(
        "advice", run, "--all"
    )
    assert "최대 메모리는 64 GiB 중 8.789 GiB입니다" in call("advice", run, "--lang", "ko")
    assert call("advice", run, "--json")["components"][1]["findings"][0]["suggested"] == "11GB"


def test_advice_of_a_pipeline_is_applied_as_a_new_version_as_far_as_it_was_chosen(
    api: Api, call: Call
) -> None:
    ended(api, requested(api, document=SPEC))
    assert "By the last 1 run(s) of digits, for its version 1" in call("advice", "--pipeline", "digits")
    only = ("--apply", "-c", "trainer", "-r", "memory")
    shown = call("advice", "--pipeline", "digits", *only)
    assert "digits has a new version 2" in shown
    assert lines(shown, "trainer")[0].split() == ["trainer", "memory", "64GB", "11GB"]
    rest = call("advice", "--pipeline", "digits", "--apply", "--json")
    assert {(one["component"], one["resource"]) for one in rest["changes"]} == {
        ("loader", "memory"),
        ("loader", "time"),
        ("trainer", "time"),
    }
    assert "Nothing to change" in call("advice", "--pipeline", "digits")
    assert "nothing to apply" in call("advice", "--pipeline", "digits", "--apply", status=75)


def test_a_component_that_is_not_there_is_refused_and_not_taken_for_fine(api: Api, call: Call) -> None:
    run = ended(api, requested(api, document=SPEC))
    for words in ((run,), ("--pipeline", "digits"), ("--pipeline", "digits", "--apply")):
        assert "--component trianer: there are loader, trainer" in call(
            "advice", *words, "-c", "trianer", status=2
        )
    only = ("--pipeline", "digits", "--apply", "-r", "cpus")
    assert "Nothing is advised of that: there is nothing to apply" in call("advice", *only, status=75)


def test_what_was_left_unused_is_a_plain_number() -> None:
    assert _saving({"amount": 25_440.5, "unit": "GiB h"}) == "25,440 GiB h"
    assert (_saving({"amount": 26.5, "unit": "GPU h"}), _saving(None)) == ("26.5 GPU h", "")


def test_a_run_that_has_ended_is_shown_with_its_advice_in_one_line(api: Api, call: Call) -> None:
    run = requested(api, document=SPEC)
    assert "Next time" not in call("run", "show", run)
    ended(api, run)
    [line] = lines(call("run", "show", run), "Next time")
    assert line == (
        "Next time: loader memory 4GB → 640MB, loader time 1h → 40m, trainer memory 64GB → 11GB "
        f"and 1 more. Why: broker advice {run}"
    )
    assert "Next time" not in call("run", "show", requested(api))


def test_what_was_not_read_from_accounting_yet_is_said(api: Api, call: Call) -> None:
    run = ended(api, requested(api, document=SPEC), accounted=False)
    shown = call("advice", run)
    assert f"trainer of {run} is not in accounting yet: that of main was never read yet." in shown
    assert "아직 회계에 없습니다" in call("advice", run, "--lang", "ko")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Name either a run"),
        (("run-1", "--pipeline", "digits"), "Name either a run"),
        (("run-1", "--apply"), "--pipeline"),
        (("--pipeline", "digits", "-r", "disk"), "there are memory, time, gpu_count, cpus"),
    ],
)
def test_what_can_not_be_asked_is_refused_with_a_remedy(
    call: Call, words: tuple[str, ...], says: str
) -> None:
    assert says in call("advice", *words, status=2)
