"""Runs that wait for room in a quota: who goes on, and when."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select

from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.identity import SYSTEM, Principal
from broker.notifications.tables import NotificationRow
from broker.quotas import accounts
from broker.quotas.accounts import Want
from broker.quotas.periods import month_of, next_month
from broker.quotas.schemas import QuotaChange
from broker.quotas.service import set_quota
from broker.quotas.tables import ChargeRow, ReservationRow
from broker.runs.events import events_after
from broker.runs.ledger import Bookkeeper
from broker.runs.states import Gate, Phase
from broker.runs.tables import RunHoldRow, RunRow
from tests.ledger import END, MONTH, NUMBERS, Clock, asked


def holds(ctx: Context, run_id: str) -> list[str]:
    with ctx.db.read() as session:
        return list(session.scalars(select(RunHoldRow.kind).where(RunHoldRow.run_id == run_id)))


def events(ctx: Context, run_id: str) -> list[str]:
    with ctx.db.read() as session:
        return [event.type for event in events_after(session, run_id, 0)]


def set_hours(ctx: Context, tenant: str, hours: float) -> None:
    with ctx.db.write() as session:
        set_quota(session, SYSTEM, tenant, QuotaChange(gpu_hours_per_month=hours))


def test_runs_without_room_wait_and_the_oldest_that_fits_goes_on_first(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 6)
    keeper = Bookkeeper(ctx, "main", lease)
    runs, waits = asked(ctx, ann), asked(ctx, ann, gpu_count=3)
    small, smaller = asked(ctx, ann, gpu_count=2), asked(ctx, ann, gpu_count=1)
    assert [holds(ctx, run) for run in (runs, waits, small, smaller)] == [[], ["quota"], ["quota"], []]
    assert events(ctx, waits)[-1] == "run_waits_for_quota"
    keeper.tick()
    assert [holds(ctx, run) for run in (waits, small)] == [["quota"], ["quota"]]
    with ctx.db.write() as session:  # what is over gives its room back
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == runs)):
            row.settled_at = utcnow()
    keeper.tick()
    assert [holds(ctx, run) for run in (waits, small)] == [["quota"], []], (
        "too large yet, but holds up nobody"
    )
    keeper.tick()
    set_hours(ctx, ann.tenant, 12)
    keeper.tick()
    assert holds(ctx, waits) == []
    with ctx.db.read() as session:
        assert session.get_one(RunRow, waits).gate == Gate.OPENING
        use = accounts.gpu_use(session, ann.tenant, month_of(utcnow()), utcnow())
    assert use.reserved == (3 + 2 + 1) * 7200


def test_what_has_ended_while_it_waited_takes_no_room(ctx: Context, lease: Lease, ann: Principal) -> None:
    set_hours(ctx, ann.tenant, 4)
    keeper = Bookkeeper(ctx, "main", lease)
    runs, ended = asked(ctx, ann), asked(ctx, ann)
    assert [holds(ctx, run) for run in (runs, ended)] == [[], ["quota"]]
    with ctx.db.write() as session:  # its jobs were ended in Slurm
        session.get_one(RunRow, ended).phase = Phase.DONE
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == runs)):
            row.settled_at = utcnow()
    keeper.tick()
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, month_of(utcnow()), utcnow()).reserved == 0


def test_a_new_month_lets_go_on_what_waited_for_the_old_one(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 4)
    clock = Clock(utcnow())
    keeper, run_id = Bookkeeper(ctx, "main", lease, clock), asked(ctx, ann)
    with ctx.db.write() as session:
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == run_id)):
            row.settled_at = utcnow()
            session.add(
                ChargeRow(
                    cluster="main", slurm_job_id=next(NUMBERS), submitted_at=utcnow(), tenant=ann.tenant,
                    month=month_of(utcnow()), user_id=ann.user_id, run_id=run_id, job_id=row.job_id, gpus=2,
                    elapsed_s=7200, gpu_seconds=14400, source="sacct", charged_at=utcnow(),
                )
            )  # fmt: skip
    waits = asked(ctx, ann)
    keeper.tick()
    assert holds(ctx, waits) == ["quota"]
    clock.now = next_month(clock.now)
    keeper.tick()
    assert holds(ctx, waits) == []


def test_what_is_begun_at_the_end_of_a_month_takes_no_more_of_the_next_than_there_is(
    ctx: Context, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 6)
    now = END - timedelta(minutes=1)

    def fits(name: str, gpus: int) -> bool:
        with ctx.db.write() as session:
            reason = accounts.reserve(
                session,
                ctx.settings.quotas,
                tenant=ann.tenant,
                user_id=ann.user_id,
                cluster="main",
                run_id=name,
                wants=[Want(f"{ann.tenant}-{name}", gpus, 7200)],
                now=now,
            )
            if reason is None:  # and it starts at once
                session.get_one(ReservationRow, f"{ann.tenant}-{name}").started_at = now
        return reason is None

    assert [fits("a", 2), fits("b", 2), fits("c", 1)] == [True, False, True]
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, MONTH, now).total == 3 * 60
        assert accounts.gpu_use(session, ann.tenant, month_of(END), END).total == 3 * 7140


def test_what_waits_for_a_decision_as_well_takes_no_room_yet(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 4)
    first = asked(ctx, ann)
    waits = asked(ctx, ann)
    with ctx.db.write() as session:
        session.add(RunHoldRow(run_id=waits, kind="admin", reason="not today", since=utcnow()))
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == first)):
            row.settled_at = utcnow()
    Bookkeeper(ctx, "main", lease).tick()
    assert sorted(holds(ctx, waits)) == ["admin", "quota"]
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, month_of(utcnow()), utcnow()).total == 0


def test_a_tenants_admin_is_told_once_at_each_level_and_again_after_a_change_of_quota(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    def told() -> list[str]:
        query = select(NotificationRow).where(NotificationRow.tenant == ann.tenant)
        with ctx.db.read() as session:
            rows = session.scalars(query.order_by(NotificationRow.created_at, NotificationRow.kind))
            return [
                f"{row.kind}: {row.data['used']:g} of {row.data['limit']:g}"
                for row in rows
                if "quota" in row.kind
            ]

    set_hours(ctx, ann.tenant, 9)
    asked(ctx, ann, gpu_count=3)
    assert told() == []
    asked(ctx, ann, gpu_count=1)
    assert told() == ["quota_80: 8 of 9"]
    asked(ctx, ann)
    asked(ctx, ann)
    known = ["quota_80: 8 of 9", "quota_100: 8 of 9"]  # a run that needs four has no room any more
    assert told() == known
    set_hours(ctx, ann.tenant, 12)
    Bookkeeper(ctx, "main", lease).tick()
    assert told() == [*known, "quota_80: 12 of 12", "quota_100: 12 of 12"]
