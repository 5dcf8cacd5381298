"""Exports that come to an end otherwise: a worker that is told to stop, a setting that is gone, a defect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from broker import metrics
from broker.audit.tables import AuditRow
from broker.db.leases import LeaseLost
from broker.objects import ObjectStore
from broker.reports import export_routes
from broker.reports.exporter import Exporter
from broker.reports.schemas import ReportView
from tests.api_support import NOBODY
from tests.exports import BOTH, NOVEMBER, Place

ON_EITHER = pytest.mark.parametrize(
    "place", [{}, {"postgres": True}], indirect=True, ids=["sqlite", "postgres"]
)
SPRING = datetime(2027, 3, 1, 7, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _november(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_routes, "utcnow", lambda: NOVEMBER)


def listed(place: Place, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = place.api.call("GET", f"/report-exports{query}", "root").json()["items"]
    return found


def ask(place: Place, period: str) -> None:
    answer = place.api.call("POST", "/report-exports", "root", json={"name": "monthly", "period": period})
    assert answer.status_code == 202, answer.text


# ---- told to stop -----------------------------------------------------------------------------------


def test_a_worker_that_is_told_to_stop_ends_between_two_periods(place: Place) -> None:
    place.tick()
    place.read_to("2027-03-01T05:00")
    stored = iter(range(3))  # asked before each period: goes on for two of four
    Exporter(place.ctx, goes_on=lambda: next(stored) < 2).tick(place.lease, SPRING)
    assert [(row.period, row.state) for row in place.rows()] == [
        ("2026-10", "stored"),
        ("2026-11", "stored"),
        ("2026-12", "stored"),
    ]
    place.tick(SPRING)
    assert [row.period for row in place.rows()][3:] == ["2027-01", "2027-02"], "the next one does the rest"


# ---- a setting that is gone -------------------------------------------------------------------------


@ON_EITHER
def test_a_wish_whose_setting_is_gone_ends_and_says_what_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(place, "2026-10")
    with monkeypatch.context() as gone:
        gone.delitem(place.ctx.settings.reports.exports, "monthly")
        place.tick()
        [row] = listed(place)
        assert (row["state"], row["asked_at"], row["next_try_at"]) == ("dropped", None, None)
        assert "no `reports.exports.monthly`" in row["trouble"] and "ask for it again" in row["trouble"]
        assert listed(place, "?asked=true") == []
        place.tick()  # and that is that
    with place.ctx.db.read() as session:
        query = select(AuditRow).where(AuditRow.action == "report.export_drop")
        [told] = session.scalars(query).all()
    assert (told.object_id, told.actor_name) == ("monthly/2026-10/v1", "system")
    ask(place, "2026-10")
    assert [(one["state"], one["trouble"]) for one in listed(place)] == [("waiting", None)]
    place.tick()
    assert [(one["state"], one["trouble"]) for one in listed(place)] == [("stored", None)]


def test_a_wish_to_compare_what_is_stored_ends_too_and_what_is_stored_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.tick()
    ask(place, "2026-10")
    with monkeypatch.context() as gone:
        gone.delitem(place.ctx.settings.reports.exports, "monthly")
        place.tick()
    [row] = listed(place)
    assert (row["state"], row["asked_at"]) == ("stored", None) and "ask for it again" in row["trouble"]
    ask(place, "2026-10")
    place.tick()
    assert [(one["state"], one["trouble"]) for one in listed(place)] == [("stored", None)]


def test_a_period_of_another_kind_than_the_setting_has_now_ends(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(place, "2026-10")
    weekly = BOTH.model_copy(update={"period": "week"})
    with monkeypatch.context() as changed:
        changed.setitem(place.ctx.settings.reports.exports, "monthly", weekly)
        place.tick()
    found = {row["period"]: row for row in listed(place)}
    assert found["2026-10"]["state"] == "dropped" and "each week" in found["2026-10"]["trouble"]
    assert found["2026-W43"]["state"] == "stored"


def test_what_the_schedule_could_not_write_ends_with_its_setting_and_goes_on_with_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(place.ctx, "objects", ObjectStore(NOBODY))
        place.tick()
    with monkeypatch.context() as gone:
        gone.delitem(place.ctx.settings.reports.exports, "monthly")
        place.tick()
        assert [row.state for row in place.rows()] == ["dropped"]
    place.read_to("2026-10-31T05:00")
    place.tick()
    [row] = place.rows()
    assert row.state == "waiting" and "has not been read" in (row.trouble or "")
    place.read_to("2026-11-01T05:00")
    place.tick()
    assert [(row.state, row.trouble) for row in place.rows()] == [("stored", None)]


# ---- a defect ---------------------------------------------------------------------------------------


@ON_EITHER
def test_a_defect_is_told_without_its_words_counted_and_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(view: ReportView, format: str) -> bytes:
        raise ArithmeticError("postgresql://broker:s3cret@db/broker")

    failures, defects = metrics.REPORT_EXPORT_FAILURES.labels("monthly", "internal"), metrics.WORKER_DEFECTS
    before = failures._value.get(), defects._value.get()
    with monkeypatch.context() as patch:
        patch.setattr("broker.reports.exporter.rendered", broken)
        place.tick()
        [row] = listed(place)
        assert (row["state"], row["tries"]) == ("intended", 1)
        assert "ArithmeticError" in row["trouble"] and "log" in row["trouble"]
        assert "s3cret" not in row["trouble"] and "Traceback" not in row["trouble"]
        assert (failures._value.get(), defects._value.get()) == (before[0] + 1, before[1] + 1)
        place.tick(NOVEMBER + timedelta(seconds=30))
        assert place.rows()[0].tries == 1, "it has a pause like others"
    place.tick(NOVEMBER + timedelta(minutes=1))
    assert [(row.state, row.trouble, row.tries) for row in place.rows()] == [("stored", None, 0)]


def test_a_lost_lease_is_no_defect_and_leaves_no_trouble(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise LeaseLost("reports")

    monkeypatch.setattr(Exporter, "_write", lost)
    with pytest.raises(LeaseLost):
        place.tick()
    assert place.rows() == []
