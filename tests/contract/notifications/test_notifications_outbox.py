"""The outbox: numbered without gaps, told once, kept as long as it says."""

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from broker.db import leases, utcnow
from broker.db.leases import LeaseLost
from broker.notifications import courier as courier_module
from broker.notifications import outbox
from broker.notifications.courier import LEASE
from broker.notifications.outbox import distribute, purge
from broker.notifications.tables import AttemptRow, DeliveryRow, NotificationRow
from tests.telling import add_hook, ended, running, service, tell


def test_notices_are_numbered_without_gap_in_the_order_of_commits(tmp_path, url):
    with service(tmp_path, url) as api:
        lease = leases.acquire(api.ctx.db, LEASE, "only", 3600)

        def write(_):
            for _ in range(10):
                tell(api.ctx)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        seen = []
        while any(thread.is_alive() for thread in threads) or len(seen) < 40:
            distribute(api.ctx.db, lease, api.ctx.settings.notifications)
            with api.ctx.db.read() as session:
                above = NotificationRow.seq > (seen[-1] if seen else 0)
                seen += session.scalars(
                    select(NotificationRow.seq).where(above).order_by(NotificationRow.seq)
                ).all()
        assert seen == list(range(1, 41))


def test_a_worker_that_lost_its_lease_numbers_nothing(tmp_path, url):
    with service(tmp_path, url) as api:
        stale = leases.acquire(api.ctx.db, LEASE, "stale", 0.001)
        time.sleep(0.01)
        assert leases.acquire(api.ctx.db, LEASE, "fresh", 3600)
        tell(api.ctx)
        with pytest.raises(LeaseLost):
            distribute(api.ctx.db, stale, api.ctx.settings.notifications)
        with api.ctx.db.read() as session:
            assert session.scalar(select(NotificationRow.seq)) is None


def test_old_notices_go_with_their_log_but_nothing_that_is_still_to_be_sent(tmp_path, url, receiver):
    with service(tmp_path, url) as api:
        hook = add_hook(api, receiver)
        with running(api.ctx):
            tell(api.ctx)
            tell(api.ctx)
            ended(api.ctx, 2)
        lease = leases.acquire(api.ctx.db, LEASE, "cleaner", 3600)
        tell(api.ctx)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)
        tell(api.ctx)
        with api.ctx.db.write() as session:
            session.execute(update(NotificationRow).values(created_at=utcnow() - timedelta(days=60)))
        assert purge(api.ctx.db, lease, 30) == 2
        with api.ctx.db.read() as session:
            assert session.scalar(select(func.count()).select_from(NotificationRow)) == 2
            rows = session.scalars(select(DeliveryRow)).all()
            assert [(row.state, row.target) for row in rows] == [("pending", hook)]
            assert session.scalar(select(func.count()).select_from(AttemptRow)) == 0


def test_a_quota_is_told_of_once_in_a_month_though_notices_are_kept_a_week(tmp_path, url):
    with service(tmp_path, url) as api:
        tell(api.ctx, "quota_80", once="quota 80 of November")
        tell(api.ctx)
        tell(api.ctx)
        lease = leases.acquire(api.ctx.db, LEASE, "cleaner", 3600)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)

        def kinds_after(days):
            with api.ctx.db.write() as session:
                session.execute(update(NotificationRow).values(created_at=utcnow() - timedelta(days=days)))
            purge(api.ctx.db, lease, 7)
            with api.ctx.db.read() as session:
                return sorted(session.scalars(select(NotificationRow.kind)))

        assert kinds_after(30) == ["quota_80", "run_failed"]  # the newest stays
        tell(api.ctx, "quota_80", once="quota 80 of November")
        assert kinds_after(32) == ["run_failed"]


def test_more_old_notices_than_go_at_once_go_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "PURGED_AT_ONCE", 1)
    monkeypatch.setattr(courier_module, "PURGED_AT_ONCE", 1)
    with service(tmp_path) as api:
        for _ in range(4):
            tell(api.ctx)
        lease = leases.acquire(api.ctx.db, LEASE, "first", 3600)
        distribute(api.ctx.db, lease, api.ctx.settings.notifications)
        leases.release(api.ctx.db, lease)
        with api.ctx.db.write() as session:
            session.execute(update(NotificationRow).values(created_at=utcnow() - timedelta(days=60)))
        deadline = time.monotonic() + 20
        left = 4
        with running(api.ctx) as courier:
            while left > 1 and time.monotonic() < deadline:
                courier.wake()
                with api.ctx.db.read() as session:
                    left = session.scalar(select(func.count()).select_from(NotificationRow))
                time.sleep(0.02)
        assert left == 1  # the newest: the next number is made from it
