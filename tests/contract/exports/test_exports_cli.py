"""`broker exports` against a real server, a worker and an object store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from broker.cli import exports
from broker.objects import ObjectStore
from broker.reports import export_routes
from broker.reports.export_tables import ReportExportRow
from tests.api_support import NOBODY
from tests.exports import NOVEMBER, TO_OCTOBER, Place, ask
from tests.serving import Call, caller, signed_on


@pytest.fixture(autouse=True)
def _november(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_routes, "utcnow", lambda: NOVEMBER)
    monkeypatch.setattr(exports, "LOOK_S", 0.05)


@pytest.fixture
def call(
    summer: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    with signed_on(summer.api, "root", monkeypatch):
        yield caller(capsys)


@contextmanager
def working(place: Place) -> Iterator[None]:
    """A worker that goes on for as long as a command waits for it."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            place.tick()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def test_the_command_asks_and_waits_until_the_worker_has_written(summer: Place, call: Call) -> None:
    with working(summer):
        shown = call("exports", "ask", "monthly", "--since", "2026-07-15", "--until", "2026-10-01", "--wait")
    lines = [line.split() for line in shown.splitlines() if line.startswith("monthly")]
    assert [(line[1], line[4]) for line in lines] == [("2026-09", "stored"), ("2026-08", "stored")]
    told = call("exports", "ask", "monthly", "--period", "2026-09", "--json")
    assert [(one["period"], one["state"]) for one in told["items"]] == [("2026-09", "stored")]
    assert "2026-08" in call("exports", "list", "monthly")


def test_a_command_that_waits_for_what_fails_says_so(
    summer: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summer.ctx, "objects", ObjectStore(NOBODY))
    ask(summer, name="monthly", period="2026-09")
    with working(summer):
        shown = call("exports", "ask", "monthly", "--period", "2026-09", "--wait", status=1)
    assert "1 period could not be written yet" in shown


def test_a_command_waits_for_what_it_asked_for_and_for_nothing_else(summer: Place, call: Call) -> None:
    ask(summer, name="monthly", period="2026-08")
    with summer.ctx.db.write() as session:  # of another wish: stuck, and tried again much later
        row = session.get_one(ReportExportRow, ("monthly", "2026-08", 1))
        row.trouble, row.next_try_at = "The object store does not answer", NOVEMBER + timedelta(days=1)
    with working(summer):
        shown = call("exports", "ask", "monthly", "--period", "2026-09", "--wait")
    assert "2026-09" in shown and "could not be written" not in shown


def test_the_command_lists_the_exports_of_some_days(summer: Place, call: Call) -> None:
    ask(summer, **TO_OCTOBER)
    shown = call("exports", "list", "monthly", "--since", "2026-09-01", "--until", "2026-10-01")
    assert "2026-09" in shown and "2026-08" not in shown
