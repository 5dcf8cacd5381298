"""Identifiers sort by the time at which they were made."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from broker.db import first_id, new_id


def test_what_one_process_makes_in_one_millisecond_sorts_in_the_order_of_its_making(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    made = [new_id("run") for _ in range(5_000)]
    assert made == sorted(set(made))


def test_threads_make_no_identifier_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one millisecond, without chance, and with another thread's turn in the midst of each."""

    def none(_bits: int) -> int:
        time.sleep(0)
        return 0

    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    monkeypatch.setattr(secrets, "randbits", none)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_id("run"), range(4_000)))
    assert len(set(made)) == 4_000


def test_a_clock_that_was_set_back_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An identifier from years ahead, once, must not keep all later ones there."""
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for year in (10, 0):
        monkeypatch.setattr(time, "time", (now + timedelta(days=365 * year)).timestamp)
        last = new_id("run")
    assert first_id("run", now) <= last < first_id("run", now + timedelta(milliseconds=1))
