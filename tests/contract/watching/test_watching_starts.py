"""When waiting jobs start by the last look at the queue, which is read once, however many ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import event

from broker.db import utcnow
from broker.runs.states import JobState
from tests.watching import Desk


def _waits(desk: Desk) -> None:
    def change(_run: object, job: Any) -> None:
        job.state, job.started_at = JobState.PENDING, None

    desk.change(change)


@contextmanager
def _readings(desk: Desk) -> Iterator[list[str]]:
    """The statements that read a whole queue."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "queue_snapshots.jobs" in statement:
            found.append(statement)

    event.listen(desk.ctx.db.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(desk.ctx.db.engine, "before_cursor_execute", note)


def test_a_look_at_the_queue_is_read_once_for_all_who_ask_for_their_runs(desk: Desk) -> None:
    now = utcnow().replace(microsecond=0)
    first, second = now + timedelta(hours=1), now + timedelta(hours=2)
    _waits(desk)
    desk.queue_shows(first)
    with _readings(desk) as readings, ThreadPoolExecutor(8) as pool:
        views = list(pool.map(lambda _: desk.view()["expected_end"]["starts_at"], range(24)))
        assert {datetime.fromisoformat(start) for start in views} == {first}
        assert len(readings) == 1

        desk.queue_shows(second)
        readings.clear()  # to be replaced, it was read
        views = list(pool.map(lambda _: desk.view()["expected_end"]["starts_at"], range(24)))
        assert {datetime.fromisoformat(start) for start in views} == {second}
        assert len(readings) == 1


def test_no_queue_is_read_for_what_does_not_wait_in_it(desk: Desk) -> None:
    desk.queue_shows(utcnow() + timedelta(hours=1))
    with _readings(desk) as readings:
        assert desk.view()["expected_end"]["kind"] == "at_latest"
    assert readings == []


def test_what_slurm_holds_has_no_estimate(desk: Desk) -> None:
    """Its priority is 0 then; the start that was estimated before may still stand beside it."""
    start = utcnow().replace(microsecond=0) + timedelta(hours=1)
    _waits(desk)
    desk.queue_shows(start, priority=0, reason="JobHeldAdmin")
    assert desk.view()["expected_end"]["start_source"] is None
    desk.queue_shows(start, priority=0, reason="BeginTime")
    assert desk.view()["expected_end"]["start_source"] == "retry"
