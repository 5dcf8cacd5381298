"""Scheduled exports into a real S3 server: once, found before repeated, versions when data came late."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from broker import metrics
from broker.accounting.event_tables import AccountingLookRow
from broker.audit.tables import AuditRow
from broker.cli import main
from broker.db.leases import LeaseLost
from broker.db.upsert import upsert_mappings
from broker.errors import Unreachable
from broker.objects import ObjectStore
from broker.reports.exporter import check_exports
from broker.settings import ReportExportSettings, ReportSettings
from tests.accounting import at
from tests.api_support import NOBODY
from tests.exports import NOVEMBER, Place
from tests.serving import served


def test_a_finished_month_is_written_once_under_its_keys_the_manifest_last(place: Place) -> None:
    place.tick(NOVEMBER - timedelta(hours=2))
    assert [row.period for row in place.rows()] == ["2026-09"], "October is due at six"
    place.tick()
    [row] = [one for one in place.rows() if one.period == "2026-10"]
    assert (row.state, row.version, row.trouble) == ("stored", 1, None)
    prefix = f"{place.ctx.settings.reports.prefix}/monthly/2026-10"
    october = [key for key in place.stored() if "/2026-10/" in key]
    assert october == [
        f"{prefix}/manifest.json",
        f"{prefix}/v1/usage.csv",
        f"{prefix}/v1/usage.parquet",
    ]
    manifest = place.manifest()
    assert (manifest["current"], manifest["since"], manifest["until"]) == (1, "2026-10-01", "2026-11-01")
    for file in manifest["versions"][0]["files"]:
        assert place.objects.verify(file["key"], file["sha256"]) == file["size"]
    table = pq.read_table(io.BytesIO(place.objects.get_bytes(f"{prefix}/v1/usage.parquet", 1 << 20)))
    assert {(row["tenant"], row["core_hours"]) for row in table.to_pylist()} == {
        ("team-a", 4.0),
        ("team-b", 4.0),
    }
    text = place.objects.get_bytes(f"{prefix}/v1/usage.csv", 1 << 20).decode("utf-8-sig")
    assert [line["user"] for line in csv.DictReader(io.StringIO(text))] == ["ann", "bob", ""]
    with place.ctx.db.read() as session:
        audit = session.scalars(select(AuditRow).where(AuditRow.action == "report.export")).all()
    assert [one.object_id for one in audit if "2026-10" in one.object_id] == ["monthly/2026-10/v1"]


def test_repeating_it_sends_nothing(place: Place) -> None:
    place.tick()
    before = {key: place.objects.head(key) for key in place.stored()}
    for hours in (0, 1, 25, 49):
        place.tick(NOVEMBER + timedelta(hours=hours))
    after = {key: place.objects.head(key) for key in place.stored()}
    assert {key: one and one.last_modified for key, one in after.items()} == {
        key: one and one.last_modified for key, one in before.items()
    }
    assert [row.version for row in place.rows()] == [1]


@pytest.mark.parametrize("place", [{}, {"postgres": True}], indirect=True, ids=["sqlite", "postgres"])
def test_figures_that_came_late_are_a_new_version_beside_the_old_one(place: Place) -> None:
    place.tick()
    place.add(3, user="eve", tenant="team-b")
    place.tick(NOVEMBER + timedelta(hours=5))
    assert [row.version for row in place.rows()] == [1], "compared once a day"
    place.tick(NOVEMBER + timedelta(days=1))
    assert [(row.version, row.state) for row in place.rows()] == [(1, "stored"), (2, "stored")]
    manifest = place.manifest()
    assert manifest["current"] == 2 and [one["version"] for one in manifest["versions"]] == [1, 2]
    for version in manifest["versions"]:
        for file in version["files"]:
            place.objects.verify(file["key"], file["sha256"])
    place.add(4, user="eve", tenant="team-b")
    place.tick(NOVEMBER + timedelta(days=9))
    assert [row.version for row in place.rows()] == [1, 2], "after `revise_days` it stays as it is"


def test_it_waits_until_accounting_was_read_to_the_end_of_the_period(place: Place) -> None:
    place.read_to("2026-10-31T23:00")
    place.tick()
    [row] = place.rows()
    assert row.state == "waiting" and "main has not been read up to 2026-11-01" in (row.trouble or "")
    assert place.stored() == []
    place.read_to("2026-11-01T00:00")
    place.tick(NOVEMBER + timedelta(minutes=1))
    assert [one.state for one in place.rows()] == ["stored"] and place.rows()[0].trouble is None


EVENTS = {"exports": {"monthly": ReportExportSettings(report="core_utilisation")}}


@pytest.mark.parametrize("place", [EVENTS], indirect=True)
def test_it_waits_for_node_events_too_where_it_is_made_of_them(place: Place) -> None:
    look = {"cluster": "main", "what": "events", "since": at("2026-01-01T00:00"), "trouble": None}
    place.read_to("2026-11-01T05:00")
    for read_to, state in (("2026-10-31T20:00", "waiting"), ("2026-11-01T01:00", "stored")):
        with place.ctx.db.write() as session:
            upsert_mappings(session, AccountingLookRow, [look | {"read_to": at(read_to)}])
        place.tick()
        assert [row.state for row in place.rows()] == [state]


def test_what_was_begun_and_killed_goes_on_under_its_number_and_is_not_sent_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sent = ObjectStore.put_bytes, []

    def killed(store: ObjectStore, key: str, data: bytes, **more: Any) -> Any:
        if key.endswith("manifest.json"):
            raise LeaseLost("killed here")
        return real(store, key, data, **more)

    def counted(store: ObjectStore, key: str, data: bytes, **more: Any) -> Any:
        sent.append(key.rpartition("/")[2])
        return real(store, key, data, **more)

    monkeypatch.setattr(ObjectStore, "put_bytes", killed)
    with pytest.raises(LeaseLost):
        place.tick()
    assert [(row.version, row.state) for row in place.rows()] == [(1, "intended")]
    place.read_to("2026-11-01T06:30")  # the data are younger by now, the figures the same
    monkeypatch.setattr(ObjectStore, "put_bytes", counted)
    place.tick(NOVEMBER + timedelta(hours=1))
    assert sent == ["manifest.json"], "the files were found"
    assert [(row.version, row.state) for row in place.rows()] == [(1, "stored")]
    for file in place.manifest()["versions"][0]["files"]:
        place.objects.verify(file["key"], file["sha256"])


def test_a_worker_that_lost_its_lease_writes_down_nothing(place: Place) -> None:
    place.lease.lost.set()
    with pytest.raises(LeaseLost):
        place.tick()
    assert place.rows() == [] and place.stored() == []


def test_a_store_that_is_away_is_noted_counted_and_asked_again_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = metrics.REPORT_EXPORT_FAILURES.labels("monthly", Unreachable.code)
    before = counter._value.get()
    with monkeypatch.context() as away:
        away.setattr(place.ctx, "objects", ObjectStore(NOBODY))
        place.tick()
        place.tick(NOVEMBER + timedelta(seconds=30))  # it has a pause
    [row] = place.rows()
    assert (row.state, row.tries) == ("intended", 1) and row.trouble
    assert row.next_try_at == NOVEMBER + timedelta(minutes=1)
    assert counter._value.get() == before + 1
    place.tick(NOVEMBER + timedelta(minutes=1))
    assert (place.rows()[0].state, place.rows()[0].tries, place.rows()[0].trouble) == ("stored", 0, None)


def test_months_without_a_worker_are_caught_up_on(place: Place) -> None:
    place.tick()
    place.read_to("2027-02-01T05:00")
    place.tick(datetime(2027, 2, 1, 7, tzinfo=UTC))
    assert [row.period for row in place.rows()] == ["2026-10", "2026-11", "2026-12", "2027-01"]
    assert {row.state for row in place.rows()} == {"stored"}


WRONG = {
    "a": ReportExportSettings(report="usgae"),
    "b": ReportExportSettings(report="waiting"),
    "c": ReportExportSettings(report="usage", by=("colour",)),
    "d": ReportExportSettings(report="usage", period="day", formats=("json",)),
}


@pytest.mark.parametrize("place", [{"exports": WRONG}], indirect=True)
def test_what_is_set_wrongly_is_named_and_the_rest_is_written(place: Place) -> None:
    place.tick()
    rows = {row.name: row for row in place.rows()}
    assert "no report 'usgae'" in (rows["a"].trouble or "")
    assert "how things stand now" in (rows["b"].trouble or "")
    assert "no dimension 'colour'" in (rows["c"].trouble or "")
    assert (rows["d"].state, rows["d"].period) == ("stored", "2026-10-31")
    [key] = [key for key in place.stored() if key.endswith("usage.json")]
    assert json.loads(place.objects.get_bytes(key, 1 << 20))["report"]["name"] == "usage"


def test_the_doctor_names_it_before_the_first_period_is_over() -> None:
    found = {check.name: check for check in check_exports(ReportSettings(exports=WRONG))}
    assert [check.status for check in found.values()] == ["fail", "fail", "fail", "ok"]
    assert "no report 'usgae'" in found["export a"].detail
    assert found["export d"].detail == "usage by tenant, each day, as json"


@pytest.mark.parametrize("place", [{"bucket": "archive"}], indirect=True)
def test_another_bucket_has_to_exist(place: Place) -> None:
    place.tick()
    assert place.rows()[0].state == "intended" and place.rows()[0].tries == 1
    other = ObjectStore(replace(place.objects.config, bucket="archive"))
    other.ensure_bucket()
    place.tick(NOVEMBER + timedelta(hours=1))
    assert place.rows()[0].state == "stored"
    assert [one.key for one in other.list("reports/")] and not place.stored()


def test_admins_see_what_became_of_them(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.tick()
    found = place.api.call("GET", "/report-exports", "root").json()
    assert found["bucket"] == "models"
    assert [(one["name"], one["period"], one["state"]) for one in found["items"]] == [
        ("monthly", "2026-10", "stored")
    ]
    assert place.api.call("GET", "/report-exports", "boss").status_code == 403
    with served(place.api) as port:
        monkeypatch.setenv("BROKER_SERVER", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("BROKER_TOKEN", place.api.tokens["root"])
        assert main(["exports", "list"]) == 0
    shown = capsys.readouterr().out
    assert "monthly" in shown and "2026-10" in shown and "stored" in shown
