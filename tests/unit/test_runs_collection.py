"""What is believed of a component's metrics, and how long storing its results is tried."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from broker.errors import ConfigurationError, Denied, DiskFull, IntegrityError, OutcomeUnknown, Unreachable
from broker.runs.collection import METRICS_LIMIT, PATIENCE, Collector, Source, storable, worth_trying_again
from broker.runs.schemas import JobView

SOON = timedelta(seconds=5)


class Files:
    """A host that holds one file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, path: str, offset: int = 0, length: int | None = None) -> list[bytes]:
        return [self.data[offset : offset + (length or len(self.data))]]


def metrics_of(data: bytes) -> Any:
    source = Source("/run/outputs/metrics.json", "outputs/metrics.json", len(data), log=False)
    return Collector._metrics(None, Files(data), [source])  # type: ignore[arg-type]


def test_metrics_that_nest_without_end_are_no_metrics_and_end_no_collection() -> None:
    assert metrics_of(b"[" * METRICS_LIMIT) is None
    assert metrics_of(b'{"a":' * 300 + b"1" + b"}" * 300) is None


def test_whatever_is_taken_for_metrics_can_be_shown() -> None:
    deepest: Any = 1
    for _ in range(64):
        deepest = {"a": deepest}
    kept = metrics_of(json.dumps(deepest).encode())
    assert kept == deepest
    JobView.model_construct(metrics=kept).model_dump_json()


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 1e400, "\0", "\ud800", {"\0": 1}, [[{"a": 10**400}]], {"a": ["x\0"]}]
)
def test_a_value_that_no_database_or_gauge_takes_is_not_stored(value: Any) -> None:
    assert not storable({"accuracy": value})


@pytest.mark.parametrize("value", [0.97, 10**18, True, None, "손실", "\\u0000", [1, 2.5], {"a": {"b": "c"}}])
def test_an_ordinary_value_is_stored(value: Any) -> None:
    assert storable({"accuracy": value})


def test_what_time_mends_is_waited_for_without_end() -> None:
    for error in (Unreachable("away"), OutcomeUnknown("cut"), DiskFull("full")):
        assert worth_trying_again(error, 10_000, timedelta(days=365))


def test_results_are_not_given_up_for_a_key_that_an_admin_mends_within_a_day() -> None:
    for error in (Denied("SignatureDoesNotMatch"), ConfigurationError("clock")):
        assert worth_trying_again(error, 500, PATIENCE - SOON)
        assert not worth_trying_again(error, 500, PATIENCE + SOON)


def test_a_checksum_that_keeps_differing_is_a_finding() -> None:
    assert worth_trying_again(IntegrityError("differs"), 4, SOON)
    assert not worth_trying_again(IntegrityError("differs"), 5, SOON)
