"""What is seen of a run that is watched."""

from __future__ import annotations

from typing import Any, cast

import pytest

from broker.cli import following
from broker.cli.client import Api


class _Clock:
    """Time that passes only while nobody does anything."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Server:
    """A run that never changes, until it has been looked at often enough."""

    def __init__(self, looks: int) -> None:
        self.tags: list[str | None] = []
        self._looks = looks

    def get_if_changed(self, _path: str, tag: str | None) -> tuple[dict[str, Any] | None, str]:
        self.tags.append(tag)
        if len(self.tags) == self._looks:
            return {"state": "succeeded"}, "new"
        return ({"state": "running"} if tag is None else None), "same"


def test_a_run_is_read_whole_now_and_then_because_its_expected_end_moves_without_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, shown = _Server(looks=15), list[str]()
    monkeypatch.setattr(following, "time", _Clock())
    following.wait(
        cast(Api, server), "run-1", interval_s=10, show=lambda _before, now: shown.append(now["state"])
    )
    assert [number for number, tag in enumerate(server.tags) if tag is None] == [0, 6, 12]
    assert shown == ["running"] * 3 + ["succeeded"]
