"""`broker queue`, `broker run priority|hold|release` against a real server; without a worker none moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.identity import Role
from broker.runs.tables import RunRow
from tests.api_support import Api, context
from tests.serving import Call, caller, signed_on


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann")
        made.store("ann")
        with signed_on(made, "root", monkeypatch):
            yield made


@pytest.fixture
def call(api: Api, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


@pytest.fixture
def run_id(api: Api) -> str:
    made: str = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
    return made


def test_what_waits_is_listed_with_its_reason_in_either_language(call: Call, run_id: str) -> None:
    shown = call("queue", "--components")
    for words in (run_id, "A100 x 2, 64GB", "ann", "The broker is just submitting it.", "not looked at yet"):
        assert words in shown
    assert "지금 제출하고 있습니다." in call("queue", "--lang", "ko")
    assert call("queue", "--json")["items"][0]["run_id"] == run_id
    assert "no cluster 'nowhere'" in call("queue", "--cluster", "nowhere", status=66)


def test_a_run_is_moved_shown_and_a_wrong_place_refused(call: Call, run_id: str) -> None:
    assert call("run", "priority", run_id, "--json")["change"] is None
    assert "when the run is released" in call("run", "priority", run_id, "high")
    change = call("run", "priority", run_id, "--json")["change"]
    assert (change["wish"], change["level"], change["state"]) == ("level", "high", "pending")
    assert "urgent" in call("run", "priority", run_id, "urgent", status=2)
    assert "one place only" in call("run", "priority", run_id, "low", "--scheduler", status=2)
    assert "no run 'run-none'" in call("run", "priority", run_id, "--before", "run-none", status=2)


def test_waiting_for_a_run_that_ended_ends_with_the_reason(api: Api, call: Call, run_id: str) -> None:
    call("run", "priority", run_id, "500")
    with api.ctx.db.write() as session:
        session.get_one(RunRow, run_id).state = "failed"
    assert "before it could be applied" in call("run", "priority", run_id, "--wait", status=65)


def test_a_run_is_held_and_released_with_a_reason(call: Call, run_id: str) -> None:
    assert "admin" in call("run", "hold", run_id, "--reason", "maintenance")
    assert "No administrator" not in call("run", "release", run_id, "--reason", "done")
    assert "No administrator holds the run" in call("run", "release", run_id, "--reason", "x", status=75)
    assert "--reason" in call("run", "hold", run_id, status=2)
