"""`--set`: from words to the API's overrides."""

from __future__ import annotations

import pytest

from broker.cli.overrides import parse_settings
from broker.errors import InvalidRequest
from broker.spec import parse_overrides


def test_settings_are_for_all_components_or_for_one() -> None:
    given = parse_settings(["time=2h", "trainer.gpu_count=2", "trainer.memory=64GB", "my-loader.cpus=8"])
    assert given == {
        "all": {"time": "2h"},
        "components": {"trainer": {"gpu_count": 2, "memory": "64GB"}, "my-loader": {"cpus": 8}},
    }
    parsed = parse_overrides(given)
    assert parsed.all.time == 7200 and parsed.components["trainer"].gpu_count == 2


def test_none_are_none() -> None:
    assert parse_settings([]) is None


def test_the_last_of_two_wins() -> None:
    assert parse_settings(["cpus=1", "cpus=2"]) == {"all": {"cpus": 2}}


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_settings(["gpus=2", "cpus=many", "memory", "trainer.cpus=1"])
    told = [problem.detail for problem in caught.value.problems]
    assert len(told) == 3 and all(word in " ".join(told) for word in ("'gpus=2'", "'cpus=many'", "'memory'"))
    assert "gpu_type, gpu_count, cpus, memory, time" in told[0]


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse_settings(["gpu_type=a=b"]) == {"all": {"gpu_type": "a=b"}}
