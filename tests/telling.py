"""What tests of notices share: people, things to tell them, a service with a courier, and receivers."""

import threading
import time
from contextlib import contextmanager

from sqlalchemy import select

from broker.db import leases
from broker.identity import Role
from broker.notifications import notify
from broker.notifications.courier import LEASE, Courier
from broker.notifications.outbox import distribute
from broker.notifications.tables import DeliveryRow, NotificationRow
from tests.api_support import Api, context

NUMBER = iter(range(1000))

FAST = {
    "allowed_networks": ["127.0.0.0/8"],
    "first_pause_s": 0.01,
    "longest_pause_s": 0.01,
    "max_tries": 3,
    "timeout_s": 5,
}

PEOPLE = {
    "root": (Role.ADMIN, "default"),
    "lead": (Role.TENANT_ADMIN, "vision"),
    "ann": (Role.RESEARCHER, "vision"),
    "bob": (Role.RESEARCHER, "vision"),
    "other": (Role.TENANT_ADMIN, "speech"),
}


@contextmanager
def running(ctx):
    """A worker's courier, until the block ends."""
    stop = threading.Event()
    courier = Courier(ctx, f"courier-{next(NUMBER)}", stop)
    thread = threading.Thread(target=courier.run)
    thread.start()
    try:
        yield courier
    finally:
        stop.set()
        courier.wake()
        thread.join(30)
        assert not thread.is_alive()


def tell(ctx, kind="run_failed", tenant="default", **more):
    with ctx.db.write() as session:
        notify(session, kind, tenant, subject="digits #7", data={"run_id": "run-7"}, **more)


def announce(api, kind="run_failed", tenant="vision", who="ann", **more):
    """A notice for one of `PEOPLE`, numbered as the worker does it without sending anything; its number."""
    with api.ctx.db.write() as session:
        notify(session, kind, tenant, subject="digits #7", data={}, user_id=api.ids.get(who), **more)
    lease = leases.acquire(api.ctx.db, LEASE, "test", 300)
    distribute(api.ctx.db, lease, api.ctx.settings.notifications)
    with api.ctx.db.read() as session:
        return session.scalar(select(NotificationRow.seq).order_by(NotificationRow.seq.desc()).limit(1))


def add_hook(api, receiver, **body):
    answer = api.call("POST", "/webhooks", "root", json={"url": receiver.url, **body})
    assert answer.status_code == 201, answer.text
    receiver.secrets = [answer.json()["secret"]]
    return answer.json()["id"]


def ended(ctx, count=1):
    """The deliveries once `count` of them have ended; the worker writes the end after the receiver saw it."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with ctx.db.read() as session:
            rows = session.scalars(select(DeliveryRow).order_by(DeliveryRow.id)).all()
        if sum(row.ended_at is not None for row in rows) >= count:
            return rows
        time.sleep(0.02)
    raise AssertionError([(row.state, row.last_error) for row in rows])


@contextmanager
def service(tmp_path, url=None, **more):
    with context(tmp_path / "data", url, notifications={**FAST, **more}) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        with api.http:
            yield api
