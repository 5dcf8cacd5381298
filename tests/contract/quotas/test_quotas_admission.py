"""Limits hold however many ask at once: counted in the transaction that lets them in, on both databases."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from broker.context import Context
from broker.db import utcnow
from broker.errors import InvalidRequest, LimitReached
from broker.identity import SYSTEM, Principal, Role
from broker.identity.tables import UserRow
from broker.quotas import accounts
from broker.quotas.accounts import Want
from broker.quotas.limits import UserUse, check_user
from broker.quotas.periods import month_of
from broker.quotas.schemas import QuotaChange
from broker.quotas.service import Resource, count_upload, lock_quota, quota_of, set_quota, used
from broker.quotas.tables import AdmissionRow
from broker.runs.schemas import RunRequest
from broker.runs.service import create_run, retry_run
from broker.runs.states import Phase, RunState
from broker.runs.tables import RunRow
from broker.settings import QuotaSettings
from tests.api_support import Api, context, spec
from tests.harness.processes import until
from tests.harness.product import UNLIMITED

AT_ONCE = 50


@pytest.fixture(params=["sqlite", "postgresql"])
def open_context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Context]]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    made: list[Any] = []

    def open_(**quotas: float) -> Context:
        manager = context(tmp_path, url, quotas=UNLIMITED | quotas)
        made.append(manager)
        return manager.__enter__()

    yield open_
    for manager in made:
        manager.__exit__(None, None, None)


def person(ctx: Context, role: Role = Role.RESEARCHER, **changes: Any) -> Principal:
    """A person with a pipeline, in a tenant of their own: the tests share one PostgreSQL."""
    api, name = Api(ctx), f"ann-{secrets.token_hex(4)}"
    user_id = api.add(name, tenant=name)
    assert api.store(name, spec(**changes)).status_code == 201
    with ctx.db.write() as session:
        session.execute(update(UserRow).where(UserRow.id == user_id).values(role=role))
    return Principal(user_id, name, role, name)


def at_once(do: Callable[[], object]) -> list[BaseException | None]:
    """Do it from many threads, all let go at the same moment; what each raised."""
    gate = threading.Barrier(AT_ONCE)

    def one(_: int) -> BaseException | None:
        gate.wait(60)
        try:
            do()
        except LimitReached as error:
            return error
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(AT_ONCE)))


@pytest.mark.parametrize(
    ("limit", "allowed", "role"),
    [
        ({"active_runs_per_user": 3}, 3, Role.RESEARCHER),
        ({"runs_per_hour": 5}, 5, Role.RESEARCHER),
        ({"runs_per_day": 10}, 10, Role.RESEARCHER),
        ({"runs_per_day": 1, "internal_runs_per_day": 12}, 12, Role.INTERNAL),
    ],
    ids=["active", "hour", "day", "internal"],
)
def test_of_fifty_requests_at_once_as_many_are_let_in_as_the_limit_says(
    open_context: Callable[..., Context], limit: dict[str, int], allowed: int, role: Role
) -> None:
    ctx = open_context(**limit)
    ann = person(ctx, role)
    results = at_once(lambda: create_run(ctx, ann, RunRequest(pipeline="digits")))
    assert results.count(None) == allowed
    refused = [error for error in results if isinstance(error, LimitReached)]
    assert len(refused) == AT_ONCE - allowed
    assert all(error.retry_after_s and error.retry_after_s > 0 for error in refused)
    with ctx.db.read() as session:
        counted = select(func.count()).where(AdmissionRow.user_id == ann.user_id)
        assert session.scalar(counted.select_from(AdmissionRow)) == allowed
        made = select(func.count()).where(RunRow.owner_id == ann.user_id)
        assert session.scalar(made.select_from(RunRow)) == allowed


def test_of_fifty_releases_at_once_only_those_get_gpu_time_that_the_quota_has(
    open_context: Callable[..., Context],
) -> None:
    ctx, tenant = open_context(gpu_hours_per_month=10), f"t-{secrets.token_hex(4)}"
    numbers = iter(range(AT_ONCE))

    def release() -> None:
        number = next(numbers)
        with ctx.db.write() as session:
            reason = accounts.reserve(
                session,
                ctx.settings.quotas,
                tenant=tenant,
                user_id="us-1",
                cluster="main",
                run_id=f"run-{tenant}-{number}",
                wants=[Want(f"job-{tenant}-{number}", gpus=3, limit_s=3600)],
                now=utcnow(),
            )
        if reason is not None:
            raise LimitReached(reason)

    assert at_once(release).count(None) == 3
    with ctx.db.read() as session:
        use = accounts.gpu_use(session, tenant, month_of(utcnow()), utcnow())
    assert use.total == 9 * 3600


def test_of_fifty_uploads_at_once_only_those_are_taken_that_the_quota_has_room_for(
    open_context: Callable[..., Context],
) -> None:
    ctx, tenant = open_context(upload_gb_per_month=1), f"t-{secrets.token_hex(4)}"

    def upload() -> None:
        with ctx.db.write() as session:
            count_upload(session, ctx.settings.quotas, tenant, 100 << 20, utcnow())

    results = at_once(upload)
    assert results.count(None) == 10
    assert "1.00 GiB" in str(next(error for error in results if error))
    with ctx.db.read() as session:
        assert used(session, tenant, Resource.UPLOAD, month_of(utcnow())) == 1000 << 20


def test_of_two_who_saw_the_same_quota_only_the_first_changes_it(
    open_context: Callable[..., Context],
) -> None:
    ctx, tenant = open_context(), f"t-{secrets.token_hex(4)}"
    api = Api(ctx)
    api.add(f"root-{tenant}", Role.ADMIN, tenant)

    def change() -> int:
        seen, body = {"If-Match": '"0"'}, {"max_gpus": 2}
        answer = api.call("PUT", f"/tenants/{tenant}/quota", f"root-{tenant}", seen, json=body)
        return int(answer.status_code)

    with ThreadPoolExecutor(1) as pool:
        with ctx.db.write() as session:
            lock_quota(session, tenant)
            set_quota(session, SYSTEM, tenant, QuotaChange(max_gpus=1))
            second = pool.submit(change)
            if session.get_bind().dialect.name == "postgresql":
                waits = text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
                until(lambda: bool(session.scalar(waits)), 30, "the second one does not wait for the first")
        assert second.result(60) == 412
    with ctx.db.read() as session:
        assert quota_of(session, ctx.settings.quotas, tenant).max_gpus == 1


def test_an_end_makes_room_and_a_retry_counts_like_a_request(open_context: Callable[..., Context]) -> None:
    ctx = open_context(active_runs_per_user=1, runs_per_hour=3)
    ann = person(ctx)
    run = create_run(ctx, ann, RunRequest(pipeline="digits"))
    with pytest.raises(LimitReached, match="may be active"):
        create_run(ctx, ann, RunRequest(pipeline="digits"))
    for _ in range(2):
        with ctx.db.write() as session:
            row = session.get_one(RunRow, run.id)
            row.state, row.phase = RunState.FAILED, Phase.DONE
        retry_run(ctx, ann, run.id, ["trainer"])
    with ctx.db.write() as session:
        row = session.get_one(RunRow, run.id)
        row.state, row.phase = RunState.FAILED, Phase.DONE
    with pytest.raises(LimitReached, match="within an hour"):
        retry_run(ctx, ann, run.id, ["trainer"])
    with ctx.db.read() as session:
        assert session.get_one(RunRow, run.id).attempt == 3


def test_a_run_that_no_month_has_room_for_is_refused_at_once(open_context: Callable[..., Context]) -> None:
    ctx = open_context(gpu_hours_per_month=3)  # the pipeline's trainer wants two GPUs for two hours
    with pytest.raises(InvalidRequest, match=r"4\.0 GPU hours") as refused:
        create_run(ctx, person(ctx), RunRequest(pipeline="digits"))
    assert [problem.code for problem in refused.value.problems] == ["larger_than_quota"]


def test_only_whom_an_admin_allowed_may_ask_for_more_than_thirty_six_hours(
    open_context: Callable[..., Context],
) -> None:
    ctx = open_context()
    components = spec()["components"]
    components[1]["resources"]["time"] = "40h"
    ann = person(ctx, components=components)
    with pytest.raises(InvalidRequest, match="36 h") as refused:
        create_run(ctx, ann, RunRequest(pipeline="digits"))
    assert [problem.code for problem in refused.value.problems] == ["time_limit"]
    with ctx.db.write() as session:
        session.get_one(UserRow, ann.user_id).max_training_hours = 72
    assert create_run(ctx, ann, RunRequest(pipeline="digits")).state == RunState.QUEUED
    inference = RunRequest(pipeline="digits", priority_class="inference")
    assert create_run(ctx, person(ctx, components=components), inference).state == RunState.QUEUED


NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SETTINGS = QuotaSettings()


def wait_of(requested: list[datetime], now: datetime = NOON, role: Role = Role.RESEARCHER) -> float | None:
    try:
        check_user(UserUse(0, requested), SETTINGS, role, now)
    except LimitReached as error:
        return error.retry_after_s
    return None


def test_five_within_an_hour_and_the_first_of_them_says_when_the_next_is_taken() -> None:
    asked = [NOON - timedelta(minutes=minutes) for minutes in (59, 40, 30, 20, 10)]
    assert wait_of(asked[1:]) is None
    assert wait_of(asked) == 60
    assert wait_of(asked, NOON + timedelta(seconds=60)) is None


def test_a_day_begins_at_midnight_utc() -> None:
    late = datetime(2026, 11, 21, 23, 59, 30, tzinfo=UTC)
    asked = [late.replace(hour=hour) for hour in range(10)]
    assert wait_of(asked, late) == 30
    assert wait_of(asked, late + timedelta(seconds=30)) is None
    assert wait_of(asked, late, Role.INTERNAL) is None
