"""Work that belongs to no cluster: one process of all does it, behind a lease, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from broker import metrics
from broker.context import Context
from broker.db import leases
from broker.db.leases import Lease, LeaseLost
from broker.errors import BrokerError

log = structlog.get_logger("broker.worker")


@dataclass(frozen=True, slots=True)
class Periodic:
    """A task: its name (also the lease's), seconds from one end to the next beginning, what to do.

    `what` confirms the lease in each of its transactions (`Lease.confirm`); if it takes longer than the
    lease lasts, the lease is renewed meanwhile.
    """

    name: str
    every_s: float
    what: Callable[[Lease], object]

    def run(self, ctx: Context, holder: str, stop: threading.Event) -> None:
        """Until `stop`: get the lease, work, and begin again if it is lost."""
        ttl = ctx.settings.lease_s
        while not stop.is_set():
            try:
                lease = leases.acquire(ctx.db, self.name, holder, ttl)
                if lease is None:
                    stop.wait(min(ttl / 3, 2.0))
                    continue
                log.info("lease_taken", task=self.name, token=lease.token)
                self._work(ctx, lease, stop)
                leases.release(ctx.db, lease)
            except SQLAlchemyError as error:
                log.error("database_trouble", task=self.name, detail=str(error))
                stop.wait(2.0)

    def _work(self, ctx: Context, lease: Lease, stop: threading.Event) -> None:
        renewing = threading.Thread(target=self._renew, args=(ctx, lease), name=f"{self.name}-lease")
        renewing.start()
        try:
            while not stop.is_set() and not lease.lost.is_set():
                self._guarded(lease)
                stop.wait(self.every_s)
        finally:
            lease.lost.set()
            renewing.join()

    def _renew(self, ctx: Context, lease: Lease) -> None:
        while not lease.lost.wait(ctx.settings.lease_s / 3):
            try:
                leases.renew(ctx.db, lease, ctx.settings.lease_s)
            except SQLAlchemyError as error:
                log.error("database_trouble", task=self.name, detail=str(error))

    def _guarded(self, lease: Lease) -> None:
        try:
            self.what(lease)
        except LeaseLost:
            log.warning("lease_lost", task=self.name)
        except SQLAlchemyError as error:
            log.error("database_trouble", task=self.name, detail=str(error))
        except BrokerError as error:
            log.warning(error.code, task=self.name, detail=error.detail)
        except Exception:  # a defect must not end what everybody depends on
            log.exception("worker_defect", task=self.name)
            metrics.WORKER_DEFECTS.inc()
