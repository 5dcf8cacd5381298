"""Answers of a server as the broker's errors; patience; pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from broker.cli.client import Api, error_of, patiently
from broker.errors import (
    BrokerError,
    InvalidRequest,
    LimitReached,
    NotFound,
    OutcomeUnknown,
    Unreachable,
    all_errors,
)


def _answer(status: int, body: Any = None, headers: dict[str, str] | None = None) -> httpx.Response:
    request = httpx.Request("GET", "http://broker.test/api/v1/x")
    return httpx.Response(status, json=body, headers=headers, request=request)


@pytest.mark.parametrize("cls", [cls for cls in all_errors() if cls is not BrokerError])
def test_every_error_of_the_broker_survives_the_wire(cls: type[BrokerError]) -> None:
    error = error_of(_answer(cls.http_status, {"code": cls.code, "detail": "the sentence"}))
    assert type(error) is cls and error.detail == "the sentence" and error.exit_code == cls.exit_code


def test_an_unknown_code_is_told_by_its_status() -> None:
    assert type(error_of(_answer(422, {"code": "of_a_newer_broker", "detail": "x"}))) is InvalidRequest
    assert type(error_of(_answer(404, {}))) is NotFound
    assert type(error_of(_answer(502, {}))) is not BrokerError


def test_an_answer_that_is_no_json_names_who_gave_it() -> None:
    request = httpx.Request("GET", "http://proxy.test/")
    error = error_of(httpx.Response(503, text="<html>", request=request))
    assert type(error) is Unreachable and "proxy.test answered 503" in error.detail


def test_problems_and_waiting_time_are_kept() -> None:
    body = {"code": "limit_reached", "errors": [{"pointer": "/a", "code": "b", "detail": "c"}, "junk"]}
    error = error_of(_answer(429, body, {"Retry-After": "12"}))
    assert isinstance(error, LimitReached) and error.retry_after_s == 12
    assert [problem.pointer for problem in error.problems] == ["/a"]


def test_a_defect_names_the_request_for_the_admin() -> None:
    assert "request abc" in error_of(_answer(500, {"code": "internal", "request_id": "abc"})).detail


def test_patience_waits_as_long_as_the_server_wishes() -> None:
    slept: list[float] = []
    left = [Unreachable("a", retry_after_s=9), Unreachable("b")]

    def act() -> str:
        if left:
            raise left.pop(0)
        return "done"

    assert patiently(act, pauses_s=(1, 2, 3), sleep=slept.append) == "done"
    assert slept == [9, 2]


def test_patience_ends() -> None:
    def act() -> None:
        raise Unreachable("away")

    with pytest.raises(Unreachable):
        patiently(act, pauses_s=(0, 0), sleep=lambda _: None)


def test_an_error_of_the_caller_is_not_repeated() -> None:
    tries: list[int] = []

    def act() -> None:
        tries.append(1)
        raise NotFound("no")

    with pytest.raises(NotFound):
        patiently(act, sleep=lambda _: None)
    assert len(tries) == 1


def _api(handler: Callable[[httpx.Request], httpx.Response]) -> Api:
    return Api("http://broker.test", "token", transport=httpx.MockTransport(handler))


def test_a_lost_answer_to_a_post_without_key_is_an_unknown_outcome_and_not_repeated() -> None:
    tries: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        raise httpx.ReadError("reset")

    with pytest.raises(OutcomeUnknown):
        _api(handler).post("/runs/r/cancel")
    assert len(tries) == 1


def test_a_lost_answer_to_a_post_with_key_is_asked_for_again_with_the_same_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Api, "pauses_s", (0.0, 0.0))
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadError("reset")
        return httpx.Response(201, json={"id": "run-1"})

    assert _api(handler).post("/runs", {}, key="k1") == {"id": "run-1"}
    assert keys == ["k1", "k1"]


def test_pages_are_read_to_the_limit_and_no_further() -> None:
    asked: list[dict[str, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        start = int(request.url.params.get("cursor", 0))
        count = int(request.url.params["limit"])
        return httpx.Response(
            200, json={"items": [{"n": start + i} for i in range(count)], "next_cursor": str(start + count)}
        )

    found = list(_api(handler).pages("/runs", 250, kind="test", state=None))
    assert [item["n"] for item in found] == list(range(250))
    assert asked == [{"limit": "200", "kind": "test"}, {"limit": "50", "cursor": "200", "kind": "test"}]
