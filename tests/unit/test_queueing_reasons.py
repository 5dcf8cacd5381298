"""Why a job waits: a sentence for every word of every release, and the broker's own knowledge first."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from broker.queueing.reasons import Waiting, explain
from broker.queueing.slurm_reasons import Why, of_slurm, reason_word

# The words that each release's own library can print for a job's reason (job_state_reason_string).
RELEASES: dict[str, list[str]] = json.loads((Path(__file__).parent / "slurm_reasons.json").read_text())
EVERY = sorted({word for words in RELEASES.values() for word in words})


def test_the_releases_have_as_many_reasons_as_they_should() -> None:
    assert {release: len(words) > 180 for release, words in RELEASES.items()} == dict.fromkeys(
        ("22.05", "24.11", "26.05"), True
    )


@pytest.mark.parametrize("word", EVERY)
def test_every_reason_of_every_release_has_a_sentence_in_both_languages(word: str) -> None:
    why = of_slurm(word)
    assert why.code != "other", f"{word} is not known"
    assert re.fullmatch(r"[A-Z][^\n]*[.]", why.en)
    assert re.search(r"[가-힣]", why.ko) and why.ko.endswith(".")
    assert word in {"Priority"} or word not in why.en  # a sentence, not Slurm's word again


def test_a_reason_that_nobody_knows_is_shown_as_it_is() -> None:
    why = of_slurm("MoonPhase, waning")
    assert why.code == "other"
    assert "MoonPhase, waning" in why.en and "MoonPhase, waning" in why.ko


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ReqNodeNotAvail, UnavailableNodes:a100-[1-4]", "ReqNodeNotAvail"),
        ("(Resources)", "Resources"),
        ("None", "None"),
        ("", "None"),
        (None, "None"),
    ],
)
def test_a_reason_is_read_without_what_slurm_adds(text: str | None, word: str) -> None:
    assert reason_word(text) == word


def limits(word: str) -> tuple[str, str]:
    why = of_slurm(word)
    return why.code, why.en


def test_whose_limit_it_is_and_of_what_is_said() -> None:
    assert limits("QOSGrpGRES") == (
        "limit_class",
        "The limit of the priority class on GPUs is reached; it starts when there is room.",
    )
    assert limits("AssocGrpMemRunMinutes") == (
        "limit_tenant",
        "The limit of the tenant on memory promised to running jobs is reached; it starts when there is "
        "room.",
    )
    assert limits("MaxGRESPerAccount")[0] == "limit_tenant"
    assert limits("QOSMaxJobsPerUserLimit")[0] == "limit_user"
    assert limits("QOSMaxGRESPerJob") == (
        "never",
        "It asks for more GPUs than the priority class allows one job: ask for less.",
    )
    assert limits("QOSMaxWallDurationPerJobLimit")[0] == limits("QOSMinGRES")[0] == "never"


def why(**about: object) -> Why:
    return explain(Waiting(**({"reason": "Resources"} | about)))  # type: ignore[arg-type]


def test_a_hold_of_the_broker_is_told_before_slurms_reason_and_approval_before_all() -> None:
    assert why(reason="JobHeldAdmin", holds={"admin": "maintenance"}) == Why(
        "admin", "An administrator holds it: maintenance.", "관리자가 보류했습니다: maintenance."
    )
    holds = {"admin": "x", "quota": "", "approval": "GPU 8 ≥ 4", "submission": ""}
    assert why(holds=holds).code == "approval"
    assert why(holds={"quota": "", "admin": "x"}).code == "quota"
    assert why(reason="JobHeldAdmin").code == "held"


def test_the_components_before_it_are_named_and_many_are_counted() -> None:
    assert why(reason="Dependency", waits_for=["load", "clean"]).en == "It waits for load, clean to complete."
    assert "a, b, c and 2 more" in why(reason="Dependency", waits_for=list("abcde")).en
    assert "a, b, c 외 2개" in why(reason="Dependency", waits_for=list("abcde")).ko
    assert why(reason="DependencyNeverSatisfied", waits_for=["load"]).code == "dependency_failed"
    assert why(reason="Dependency").code == "dependency"


def test_what_is_not_in_slurm_yet_says_what_stands_in_the_way() -> None:
    assert why(in_slurm=False, holds={"approval": "x"}).code == "submitting"
    assert why(in_slurm=False, trouble="login node down").en.endswith("login node down")


def test_how_many_come_before_it_and_that_it_was_put_back_are_told() -> None:
    assert "3 job(s)" in why(reason="Priority", ahead=3).en and "3개" in why(reason="Priority", ahead=3).ko
    assert why(reason="Priority").code == "priority"
    assert why(reason="BeginTime", restarts=1).code == "requeued"
    assert why(reason="BeginTime").code == "begin_time"
