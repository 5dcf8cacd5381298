"""Exports of earlier periods that an admin asks for: the same keys and manifest, written once, then found."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from broker.audit.tables import AuditRow
from broker.errors import InvalidRequest
from broker.identity import SYSTEM
from broker.objects import ObjectStore
from broker.reports import export_routes
from broker.reports.export_plan import rendered
from broker.reports.export_requests import ExportRequest, ask_for_exports, asked_periods
from broker.reports.exporter import Exporter
from broker.reports.schemas import ReportView
from tests.api_support import NOBODY, codes
from tests.exports import BOTH, NOVEMBER, TO_OCTOBER, Place, ask
from tests.harness.processes import until

ON_EITHER = pytest.mark.parametrize(
    "place", [{}, {"postgres": True}], indirect=True, ids=["sqlite", "postgres"]
)


@pytest.fixture(autouse=True)
def _november(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_routes, "utcnow", lambda: NOVEMBER)


def states(place: Place) -> list[tuple[str, int, str, bool]]:
    return [(row.period, row.version, row.state, row.asked_at is not None) for row in place.rows()]


@ON_EITHER
def test_an_earlier_period_lies_under_the_same_keys_as_one_of_the_schedule(summer: Place) -> None:
    assert ask(summer, name="monthly", period="2026-09") == [("2026-09", "waiting")]
    assert summer.stored() == [], "the worker writes"
    summer.tick()
    assert states(summer) == [("2026-09", 1, "stored", False), ("2026-10", 1, "stored", False)]
    folders = {key.rpartition("/monthly/")[2] for key in summer.stored()}
    names = ("manifest.json", "v1/usage.csv", "v1/usage.parquet")
    assert folders == {f"{month}/{name}" for month in ("2026-09", "2026-10") for name in names}
    asked, scheduled = summer.manifest("2026-09"), summer.manifest("2026-10")
    assert asked.keys() == scheduled.keys() and asked["by"] == scheduled["by"]
    assert (asked["period"], asked["since"], asked["until"]) == ("2026-09", "2026-09-01", "2026-10-01")
    for file in asked["versions"][0]["files"]:
        assert summer.objects.verify(file["key"], file["sha256"]) == file["size"]
    with summer.ctx.db.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.object_type == "report_export"))
        told = {(row.action, row.actor_name, row.object_id): row.after for row in rows}
    assert told["report.export_ask", "root", "monthly"] == {"report": "usage", "periods": ["2026-09"]}
    assert ("report.export", "system", "monthly/2026-09/v1") in told


def test_asked_for_again_it_is_compared_and_what_holds_is_not_sent_again(
    summer: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(summer, name="monthly", period="2026-09")
    summer.tick()
    sent: list[str] = []
    real = ObjectStore.put_bytes

    def counted(store: ObjectStore, key: str, data: bytes, **more: Any) -> Any:
        sent.append(key.rpartition("/monthly/")[2])
        return real(store, key, data, **more)

    monkeypatch.setattr(ObjectStore, "put_bytes", counted)
    later = NOVEMBER + timedelta(hours=2)
    for _ in range(2):  # one wish, however often it is said
        assert ask(summer, name="monthly", period="2026-09") == [("2026-09", "stored")]
    summer.tick(later)
    assert sent == [] and summer.rows()[0].checked_at == later and not summer.rows()[0].asked_at
    summer.add(30, user="late")  # of October: compared tomorrow, unless somebody asks
    ask(summer, name="monthly", period="2026-10")
    summer.tick(later)
    assert sent == ["2026-10/v2/usage.parquet", "2026-10/v2/usage.csv", "2026-10/manifest.json"]
    assert states(summer)[1:] == [("2026-10", 1, "stored", False), ("2026-10", 2, "stored", False)]


def test_the_schedule_catches_up_on_nothing_because_of_what_was_asked_for(summer: Place) -> None:
    ask(summer, name="monthly", period="2026-07")
    summer.tick()
    assert [one[0] for one in states(summer)] == ["2026-07", "2026-10"]
    summer.read_to("2027-01-01T05:00")
    summer.tick(datetime(2027, 1, 1, 7, tzinfo=UTC))
    assert [one[0] for one in states(summer)] == ["2026-07", "2026-10", "2026-11", "2026-12"]


def test_all_whole_periods_of_some_days_are_asked_for_at_once(summer: Place) -> None:
    assert [period for period, _ in ask(summer, **TO_OCTOBER)] == ["2026-09", "2026-08"]
    left = summer.api.call("GET", "/report-exports?asked=true", "root").json()["items"]
    assert {one["period"] for one in left} == {"2026-08", "2026-09"}
    summer.tick()
    assert summer.api.call("GET", "/report-exports?asked=true", "root").json()["items"] == []
    assert summer.manifest("2026-08")["current"] == 1, "nobody used anything in August, and that is known"


def test_a_worker_that_ends_midway_goes_on_with_the_rest(
    summer: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(summer, **TO_OCTOBER)
    real = Exporter._write

    def ended(self: Exporter, lease: Any, name: str, export: Any, period: str, now: datetime) -> None:
        if period == "2026-09":
            raise KeyboardInterrupt
        real(self, lease, name, export, period, now)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Exporter, "_write", ended)
        summer.tick()
    assert states(summer)[:2] == [("2026-08", 1, "stored", False), ("2026-09", 1, "waiting", True)]
    summer.tick()
    assert states(summer)[1] == ("2026-09", 1, "stored", False)


def test_what_can_not_be_asked_for_is_named(place: Place) -> None:
    for body, pointer, code in (
        ({"name": "weekly", "period": "2026-W40"}, "/name", "unknown_export"),
        ({"name": "monthly"}, "/period", "period_or_days"),
        ({"name": "monthly", "period": "2026-09", "since": "2026-01-01"}, "/period", "period_or_days"),
        ({"name": "monthly", "period": "2026-W40"}, "/period", "invalid_period"),
        ({"name": "monthly", "period": "2026-9"}, "/period", "invalid_period"),
        ({"name": "monthly", "period": "2026-11"}, "/period", "period_not_over"),
        ({"name": "monthly", "since": "2026-10-01", "until": "2026-12-01"}, "/until", "period_not_over"),
        ({"name": "monthly", "since": "2026-10-02", "until": "2026-10-31"}, "/since", "no_whole_period"),
        ({"name": "monthly", "since": "1990-01-01"}, "/since", "too_many_periods"),
        ({"name": "monthly", "since": "0001-01-01"}, "/since", "invalid_period"),
        ({"name": "monthly", "since": "9999-12-31"}, "/since", "invalid_period"),
        ({"name": "monthly", "since": "2026-09-01", "until": "2026-09-01"}, "/since", "invalid_period"),
        ({"name": "monthly", "period": "2026-09"}, "/period", "nothing_known"),
        ({"name": "monthly", "since": "2026-08-10"}, "/since", "nothing_known"),
    ):
        answer = place.api.call("POST", "/report-exports", "root", json=body)
        assert (answer.status_code, codes(answer)) == (422, {code}), body
        assert answer.json()["errors"][0]["pointer"] == pointer
    assert place.rows() == []
    assert place.api.call("POST", "/report-exports", "boss", json=TO_OCTOBER).status_code == 403


def test_where_what_is_known_begins_is_told_as_the_day_to_ask_from(place: Place) -> None:
    body = {"name": "monthly", "since": "2026-08-10"}
    detail = place.api.call("POST", "/report-exports", "root", json=body).json()["detail"]
    assert "Of 2026-09 nothing is known" in detail and "ask from 2026-10-01 on" in detail
    assert ask(place, name="monthly", since="2026-10-01") == [("2026-10", "waiting")]


@pytest.mark.parametrize(
    ("kind", "last"), [("day", "9999-12-31"), ("week", "9999-W52"), ("month", "9999-12")]
)
def test_the_calendars_last_period_is_no_defect(kind: str, last: str) -> None:
    with pytest.raises(InvalidRequest, match=r"name one like|is not over"):
        asked_periods(kind, ExportRequest(name="x", period=last), NOVEMBER.date())


@ON_EITHER
def test_two_who_ask_for_the_same_at_once_have_one_wish(place: Place) -> None:
    ctx, request = place.ctx, ExportRequest(name="monthly", period="2026-10")
    reports, clusters = ctx.settings.reports, ctx.settings.clusters
    with ThreadPoolExecutor(1) as pool:
        with ctx.db.write() as session:
            ask_for_exports(session, SYSTEM, request, reports, clusters, NOVEMBER)
            session.flush()
            second = pool.submit(ask, place, name="monthly", period="2026-10")
            if session.get_bind().dialect.name == "postgresql":
                waits = text("select count(*) from pg_locks where not granted")
                until(lambda: bool(session.scalar(waits)), 30, "the second one does not wait for the first")
        assert second.result(60) == [("2026-10", "waiting")]
    assert states(place) == [("2026-10", 1, "waiting", True)]


def test_a_failure_is_told_and_asking_again_tries_at_once(
    summer: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(summer, name="monthly", period="2026-09")
    with monkeypatch.context() as away:
        away.setattr(summer.ctx, "objects", ObjectStore(NOBODY))
        summer.tick()
    [left] = summer.api.call("GET", "/report-exports?asked=true", "root").json()["items"]
    assert left["state"] == "intended" and left["trouble"] and left["next_try_at"]
    ask(summer, name="monthly", period="2026-09")
    summer.tick()
    assert states(summer)[0] == ("2026-09", 1, "stored", False)


def test_a_period_that_meets_a_defect_holds_up_no_other(
    summer: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(view: ReportView, format: str) -> bytes:
        if f"{view.since}" == "2026-08-01":
            raise ArithmeticError("a figure that no format can hold")
        return rendered(view, format)

    ask(summer, **TO_OCTOBER)
    with monkeypatch.context() as patch:
        patch.setattr("broker.reports.exporter.rendered", broken)
        summer.tick()
    found = [(period, state) for period, _, state, _ in states(summer)]
    assert found == [("2026-08", "intended"), ("2026-09", "stored"), ("2026-10", "stored")]
    summer.tick(NOVEMBER + timedelta(minutes=1))
    assert states(summer)[0] == ("2026-08", 1, "stored", False)


def test_what_was_compared_at_last_begins_its_pauses_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.tick()
    ask(place, name="monthly", period="2026-10")
    with monkeypatch.context() as broken:
        wrong = BOTH.model_copy(update={"report": "usages"})
        broken.setitem(place.ctx.settings.reports.exports, "monthly", wrong)
        place.tick()
    [row] = place.rows()
    assert (row.tries, row.trouble is not None) == (1, True)
    place.tick(NOVEMBER + timedelta(hours=1))
    [row] = place.rows()
    assert (row.state, row.tries, row.trouble, row.asked_at) == ("stored", 0, None, None)


def test_exports_are_listed_by_the_days_of_their_periods(summer: Place) -> None:
    ask(summer, **TO_OCTOBER)
    for query, periods in (
        ("since=2026-09-01", ["2026-09"]),
        ("until=2026-09-01", ["2026-08"]),
        ("since=2026-08-02&until=2026-09-30", []),
    ):
        found = summer.api.call("GET", f"/report-exports?{query}", "root").json()["items"]
        assert [one["period"] for one in found] == periods, query
