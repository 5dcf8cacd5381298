"""What tests of deliveries share: a service with a courier, things to tell, and receivers."""

import threading
import time
from contextlib import contextmanager

from sqlalchemy import select

from broker.identity import Role
from broker.notifications import notify
from broker.notifications.courier import Courier
from broker.notifications.tables import DeliveryRow
from tests.api_support import Api, context

NUMBER = iter(range(1000))

FAST = {
    "allowed_networks": ["127.0.0.0/8"],
    "first_pause_s": 0.01,
    "longest_pause_s": 0.01,
    "max_tries": 3,
    "timeout_s": 5,
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
