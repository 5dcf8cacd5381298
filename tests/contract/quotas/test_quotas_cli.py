"""`broker quota` and `broker limits` against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.identity import Role
from tests.api_support import Api, context
from tests.serving import Call, caller, signed_on


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with context(tmp_path / "data", quotas={"runs_per_day": 7, "api_calls_per_day": 10**6}) as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann", tenant="team-a")
        with signed_on(made, "root", monkeypatch):
            yield made


@pytest.fixture
def call(api: Api, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def test_one_number_is_set_the_others_stay_and_a_default_comes_back(call: Call) -> None:
    call("quota", "set", "team-a", "--gpu-hours", "12.5", "--max-gpus", "4")
    view = call("quota", "set", "team-a", "--upload-gb", "3", "--json")
    own = {name: value for name, value in view["own"].items() if value is not None}
    assert own == {"gpu_hours_per_month": 12.5, "max_gpus": 4, "upload_gb_per_month": 3}
    view = call("quota", "set", "team-a", "--default", "gpu-hours", "--json")
    assert (view["gpu_hours"]["limit"], view["own"]["gpu_hours_per_month"]) == (100, None)
    assert "0 of 3 (0 %)" in call("quota", "show", "team-a")
    listed = call("quota", "list")
    assert "team-a" in listed and "default" in listed


def test_what_can_not_be_set_is_told(call: Call) -> None:
    assert "Nothing to set" in call("quota", "set", "team-a", status=2)
    assert "there are: api-calls" in call("quota", "set", "team-a", "--default", "hours", status=2)
    assert "no tenant 'team-z'" in call("quota", "set", "team-z", "--max-gpus", "1", status=66)


def test_a_person_sees_the_own_limits_and_use(call: Call, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_TOKEN", api.tokens["ann"])
    api.store("ann")
    api.call("POST", "/runs", "ann", json={"pipeline": "digits"})
    shown = call("limits")
    assert "1 of 7" in shown and "36 h" in shown and "team-a" in shown
    assert "team-a in 2026-10: 0.0 GPU hours" in call("quota", "usage", "team-a", "--month", "2026-10")
    call("quota", "usage", "default", status=66)
    call("quota", "set", "team-a", "--max-gpus", "1", status=77)
