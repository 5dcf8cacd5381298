"""Quotas over HTTP: who sees and sets them, and what is refused when one is used up, and until when."""

from __future__ import annotations

import io
import secrets
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from broker.context import Context
from broker.db import Database, utcnow
from broker.errors import LimitReached
from broker.identity import Role
from broker.notifications.tables import NotificationRow
from broker.quotas.meter import ApiMeter
from broker.quotas.periods import bounds, day_of, month_of, next_month
from broker.quotas.service import Resource, used
from broker.quotas.tables import ChargeRow, UseRow
from broker.settings import QuotaSettings
from tests.api_support import Api, codes, context
from tests.harness.product import UNLIMITED


@pytest.fixture
def open_api(tmp_path: Path) -> Iterator[Callable[..., Api]]:
    made: list[Any] = []

    def open_(**quotas: float) -> Api:
        manager = context(tmp_path / str(len(made)), quotas=UNLIMITED | quotas)
        made.append(manager)
        api = Api(manager.__enter__())
        api.add("root", Role.ADMIN)
        api.add("ann", tenant="team-a")
        api.add("vic", Role.VIEWER, tenant="team-a")
        api.add("bob", tenant="team-b")
        return api

    yield open_
    for manager in made:
        manager.__exit__(None, None, None)


def told(ctx: Context) -> list[tuple[str, str, str]]:
    """What tenants' admins were told: kind, tenant, resource."""
    with ctx.db.read() as session:
        rows = session.scalars(select(NotificationRow).order_by(NotificationRow.id)).all()
    return [(str(row.kind), str(row.tenant), row.data["resource"]) for row in rows if "quota" in row.kind]


def test_everybody_sees_the_own_tenants_quota_and_admins_set_it(open_api: Callable[..., Api]) -> None:
    api = open_api(gpu_hours_per_month=100)
    assert [one["tenant"] for one in api.call("GET", "/quotas", "vic").json()["items"]] == ["team-a"]
    everything = {one["tenant"] for one in api.call("GET", "/quotas", "root").json()["items"]}
    assert everything == {"default", "team-a", "team-b"}
    assert api.call("GET", "/tenants/team-a/quota", "bob").status_code == 404
    assert api.call("GET", "/tenants/team-a/usage", "bob").status_code == 404
    assert api.call("PUT", "/tenants/team-a/quota", "ann", json={}).status_code == 403
    seen = api.call("GET", "/tenants/team-a/quota", "ann")
    assert seen.json()["gpu_hours"]["limit"] == 100
    body = {"gpu_hours_per_month": 12.5, "max_gpus": 4}
    wrong = api.call("PUT", "/tenants/team-a/quota", "root", {"If-Match": '"7"'}, json=body)
    assert wrong.status_code == 412
    done = api.call("PUT", "/tenants/team-a/quota", "root", {"If-Match": seen.headers["ETag"]}, json=body)
    assert done.status_code == 200, done.text
    view = done.json()
    assert (view["gpu_hours"]["limit"], view["max_gpus"], view["version"]) == (12.5, 4, 1)
    assert view["own"] == {**dict.fromkeys(view["own"]), **body}
    assert view["upload_gb"]["limit"] == 10**6
    again = api.call("PUT", "/tenants/team-a/quota", "root", json={}).json()
    assert again["gpu_hours"]["limit"] == 100
    trail = api.call("GET", "/audit?action=quota.set", "root").json()["items"]
    assert [row["object_id"] for row in trail] == ["team-a", "team-a"]
    assert trail[0]["before"]["gpu_hours_per_month"] == 12.5


@pytest.mark.parametrize("body", [{"gpu_hours_per_month": -1}, {"hours": 1}, {"api_calls_per_day": 1.5}])
def test_a_quota_that_is_none_is_refused(open_api: Callable[..., Api], body: dict[str, Any]) -> None:
    assert open_api().call("PUT", "/tenants/team-a/quota", "root", json=body).status_code == 422


def test_when_the_calls_of_a_day_are_used_up_the_rest_is_refused_until_midnight(
    open_api: Callable[..., Api],
) -> None:
    api = open_api(api_calls_per_day=5)
    answers = [api.call("GET", "/runs", "ann") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert codes(refused) == {"api_calls"}
    assert "team-a" in refused.json()["detail"] and " 5 API calls" in refused.json()["detail"]
    midnight = datetime.combine(utcnow().date() + timedelta(days=1), datetime.min.time(), UTC)
    assert f"{midnight:%Y-%m-%d} 00:00 UTC" in refused.json()["detail"]
    assert abs((midnight - utcnow()).total_seconds() - int(refused.headers["Retry-After"])) < 60
    assert api.call("GET", "/runs", "vic").status_code == 429, "the quota is the tenant's"
    assert api.call("GET", "/runs", "bob").status_code == 200
    for path in ("/limits", "/tenants/team-a/quota", "/auth/me"):
        assert api.call("GET", path, "ann").status_code == 200, "what one can still do is to look why"
    assert api.call("GET", "/runs", "root").status_code == 200


def test_an_admin_is_never_locked_out_and_what_is_raised_holds_at_once(open_api: Callable[..., Api]) -> None:
    api = open_api(api_calls_per_day=1)
    clock = Clock()
    api.app.state.meter = ApiMeter(api.ctx.db, api.ctx.settings.quotas, clock)
    assert [api.call("GET", "/runs", "ann").status_code for _ in range(2)] == [200, 429]
    assert api.call("PUT", "/tenants/team-a/quota", "root", json={"api_calls_per_day": 3}).status_code == 200
    clock.now += timedelta(seconds=1)
    assert [api.call("GET", "/runs", "ann").status_code for _ in range(3)] == [200, 200, 429]


def test_what_is_lowered_holds_once_the_calls_since_then_are_written(open_api: Callable[..., Api]) -> None:
    api = open_api(api_calls_per_day=100)
    assert api.call("GET", "/runs", "ann").status_code == 200
    assert api.call("PUT", "/tenants/team-a/quota", "root", json={"api_calls_per_day": 2}).status_code == 200
    assert api.call("GET", "/runs", "ann").status_code == 200
    api.app.state.meter.flush()
    assert api.call("GET", "/runs", "ann").status_code == 429


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: datetime | None = None) -> None:
        self.now = now or utcnow().replace(hour=12)

    def __call__(self) -> datetime:
        return self.now


NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def calls_in(db: Database, tenant: str, at: datetime) -> int:
    with db.read() as session:
        return used(session, tenant, Resource.API_CALLS, day_of(at))


def test_calls_are_written_once_a_second_and_not_with_each(open_api: Callable[..., Api]) -> None:
    ctx = open_api().ctx
    clock, quotas = Clock(NOON), QuotaSettings(api_calls_per_day=10)
    meter = ApiMeter(ctx.db, quotas, clock)
    meter.load("t")
    for _ in range(7):
        meter.count("t", always=False)
    assert calls_in(ctx.db, "t", NOON) == 0
    meter.flush()
    meter.flush()
    assert calls_in(ctx.db, "t", NOON) == 7
    assert told(ctx) == []
    meter.count("t", always=False)
    meter.flush()
    meter.flush()
    assert told(ctx) == [("quota_80", "t", "api_calls")]
    other = ApiMeter(ctx.db, quotas, clock)  # another process
    assert not other.knows("t")
    other.load("t")
    other.count("t", always=False)
    other.count("t", always=False)
    with pytest.raises(LimitReached):
        other.count("t", always=False)
    other.flush()
    meter.count("t", always=False)  # does not know yet what the other let through
    meter.flush()
    with pytest.raises(LimitReached):
        meter.count("t", always=False)
    assert calls_in(ctx.db, "t", NOON) == 11
    assert told(ctx) == [("quota_80", "t", "api_calls"), ("quota_100", "t", "api_calls")]


def test_of_fifty_calls_at_once_as_many_pass_as_are_left(open_api: Callable[..., Api]) -> None:
    ctx = open_api().ctx
    meter = ApiMeter(ctx.db, QuotaSettings(api_calls_per_day=20), Clock(NOON))
    gate = threading.Barrier(50)

    def call(_: int) -> bool:
        gate.wait(30)
        try:
            if not meter.knows("t"):
                meter.load("t")
            meter.count("t", always=False)
        except LimitReached:
            return False
        return True

    with ThreadPoolExecutor(51) as pool:
        flushing = [pool.submit(meter.flush) for _ in range(20)]
        passed = sum(pool.map(call, range(50)))
        for flush in flushing:
            flush.result(30)
    meter.flush()
    assert (passed, calls_in(ctx.db, "t", NOON)) == (20, 20)


def test_a_new_day_begins_at_nothing_and_calls_of_the_old_one_are_not_lost(
    open_api: Callable[..., Api],
) -> None:
    ctx, clock = open_api().ctx, Clock(NOON.replace(hour=23, minute=59))
    meter = ApiMeter(ctx.db, QuotaSettings(api_calls_per_day=2), clock)
    before = clock.now
    meter.load("t")
    meter.count("t", always=False)
    meter.count("t", always=False)
    clock.now += timedelta(minutes=2)
    assert not meter.knows("t")
    meter.load("t")
    meter.count("t", always=False)
    meter.flush()
    assert (calls_in(ctx.db, "t", before), calls_in(ctx.db, "t", clock.now)) == (2, 1)


def test_calls_that_a_database_in_trouble_did_not_take_are_written_later(
    open_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = open_api().ctx
    meter = ApiMeter(ctx.db, QuotaSettings(), Clock(NOON))
    meter.load("t")
    meter.count("t", always=False)
    with monkeypatch.context() as patch:
        broken = Database(f"sqlite:///{ctx.settings.data_dir}/empty.sqlite3")
        patch.setattr(meter, "_db", broken)
        meter.flush()
        broken.close()
    assert calls_in(ctx.db, "t", NOON) == 0
    meter.flush()
    assert calls_in(ctx.db, "t", NOON) == 1


def test_the_server_writes_its_calls_at_the_latest_when_it_ends(open_api: Callable[..., Api]) -> None:
    api = open_api()
    with api.http:
        for _ in range(3):
            assert api.call("GET", "/runs", "ann").status_code == 200
    assert calls_in(api.ctx.db, "team-a", utcnow()) == 3


def archive(size: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("train.py")
        member.size = size
        tar.addfile(member, io.BytesIO(secrets.token_bytes(size)))
    return packed.getvalue()


def test_an_upload_beyond_the_quota_is_refused_until_the_next_month(open_api: Callable[..., Api]) -> None:
    api = open_api(upload_gb_per_month=1 / 1024)
    with api.ctx.db.write() as session:
        month = month_of(utcnow())
        session.add(UseRow(tenant="team-a", resource="upload_gb", period=month, amount=1_000_000))
    refused = api.call("POST", "/uploads", "ann", content=archive(100_000))
    assert (refused.status_code, codes(refused)) == (429, {"upload_gb"})
    first = next_month(utcnow())
    assert f"{first:%Y-%m}-01 00:00 UTC" in refused.json()["detail"]
    assert abs((first - utcnow()).total_seconds() - int(refused.headers["Retry-After"])) < 60
    with api.ctx.db.write() as session:
        session.execute(update(UseRow).values(amount=1 << 20))
    assert api.call("POST", "/uploads", "ann", content=archive(1)).status_code == 429


def test_an_upload_that_could_not_be_stored_counts_for_nothing(open_api: Callable[..., Api]) -> None:
    api = open_api()  # nobody listens where the object store should be
    assert api.call("POST", "/uploads", "ann", content=archive(5000)).status_code == 503
    with api.ctx.db.read() as session:
        assert used(session, "team-a", Resource.UPLOAD, month_of(utcnow())) == 0


def test_use_of_a_month_is_shown_by_person(open_api: Callable[..., Api]) -> None:
    api = open_api()
    ann, vic = (api.call("GET", "/auth/me", name).json()["id"] for name in ("ann", "vic"))
    begin, _ = bounds("2026-10")
    with api.ctx.db.write() as session:
        for number, (user, hours) in enumerate([(ann, 3), (ann, 1), (vic, 7)]):
            session.add(
                ChargeRow(
                    cluster="main", slurm_job_id=number, submitted_at=begin, month="2026-10", tenant="team-a",
                    user_id=user, run_id="r", job_id="j", gpus=1, elapsed_s=hours * 3600,
                    gpu_seconds=hours * 3600, started_at=begin, ended_at=begin, source="sacct",
                    charged_at=begin,
                )
            )  # fmt: skip
        session.add(UseRow(tenant="team-a", resource="api_calls", period="2026-10-05", amount=12))
    seen = api.call("GET", "/tenants/team-a/usage?month=2026-10", "ann").json()
    assert (seen["gpu_hours"], seen["gpu_seconds"], seen["api_calls"]) == (11.0, 39600, {"2026-10-05": 12})
    assert [(one["username"], one["gpu_hours"], one["attempts"]) for one in seen["users"]] == [
        ("vic", 7.0, 1),
        ("ann", 4.0, 2),
    ]
    for month in ("2026-13", "9999-12", "next"):
        wrong = api.call("GET", f"/tenants/team-a/usage?month={month}", "ann")
        assert (wrong.status_code, codes(wrong)) == (422, {"bad_month"}), month
    long_ago = api.call("GET", "/tenants/team-a/usage?month=0001-01", "ann")
    assert (long_ago.status_code, long_ago.json()["month"]) == (200, "0001-01")


def test_one_sees_how_many_runs_one_may_still_ask_for(open_api: Callable[..., Api]) -> None:
    api = open_api(runs_per_hour=1, runs_per_day=9)
    api.store("ann")
    assert api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).status_code == 201
    refused = api.call("POST", "/runs", "ann", json={"pipeline": "digits"})
    assert (refused.status_code, codes(refused)) == (429, {"runs_per_hour"})
    assert 3500 < int(refused.headers["Retry-After"]) <= 3600
    seen = api.call("GET", "/limits", "ann").json()
    assert seen["active_runs"]["used"] == 1
    assert seen["runs_last_hour"] == {"limit": 1, "used": 1}
    assert seen["runs_today"] == {"limit": 9, "used": 1}
    assert (seen["max_run_hours"], seen["tenant"]["tenant"]) == (36, "team-a")


def test_a_request_that_is_repeated_under_its_key_counts_once(open_api: Callable[..., Api]) -> None:
    api = open_api(runs_per_day=1)
    api.store("ann")
    ask = [
        api.call("POST", "/runs", "ann", {"Idempotency-Key": "k"}, json={"pipeline": "digits"}) for _ in "ab"
    ]
    assert [answer.status_code for answer in ask] == [201, 201]
    assert ask[0].json()["id"] == ask[1].json()["id"]
