"""The worker's loops: one `ClusterWorker` per cluster, each behind a lease.

Everything it does is decided from the database, so a worker may be killed at any moment and the next one
goes on. Work on runs and collections happens in a bounded pool, at most one task per run and per job;
looking at the queue is a thread of its own, so that a long upload does not make the picture old.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import structlog
from sqlalchemy import Select, bindparam, or_, select
from sqlalchemy.exc import SQLAlchemyError

from broker import metrics
from broker.accounting.ingest import Ingester
from broker.accounting.looks import Looker
from broker.approvals.service import expire
from broker.audit import sealing
from broker.context import Context
from broker.db import leases, utcnow
from broker.db.leases import Lease, LeaseLost
from broker.db.wake import listen
from broker.errors import BrokerError
from broker.models.service import register_model
from broker.notifications.courier import Courier
from broker.queueing.changing import PriorityChanger
from broker.queueing.snapshot import QueueKeeper
from broker.reports.exporter import Exporter
from broker.resources.gauge import Gauge
from broker.resources.keeper import ResourceKeeper
from broker.runs.cleanup import due_for_removal, remove_run_files
from broker.runs.collection import Collector
from broker.runs.heartbeat import Watcher
from broker.runs.ledger import Bookkeeper
from broker.runs.states import Gate, Phase
from broker.runs.submission import Submitter
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.tracking import Tracker
from broker.slurm import QueueSnapshot
from broker.worker.periodic import Periodic

log = structlog.get_logger("broker.worker")

IDLE_TICK_S = 1.0
"""How often the database is looked at when nobody wakes us: the bound on a lost wake-up."""
JANITOR_S = 300.0
EXPIRE_S = 60.0
EXPORT_S = 60.0
SEAL_S = 5.0
"""How long a row of the audit trail may be without its seal."""


def run(ctx: Context, stop: threading.Event) -> None:
    """Work for every configured cluster until `stop` is set."""
    holder = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}"
    woken = threading.Event()
    workers = [ClusterWorker(ctx, name, holder, stop) for name in ctx.settings.clusters]
    if not workers:
        log.warning("no_cluster_configured", remedy="set `clusters`; see docs/operations.md")
    courier = Courier(ctx, holder, stop)

    def wake_all() -> None:
        for worker in workers:
            worker.wake()
        courier.wake()

    with listen(ctx.db, ctx.settings.data_dir, woken):
        threads = [threading.Thread(target=worker.run, name=f"worker-{worker.cluster}") for worker in workers]
        threads.append(threading.Thread(target=courier.run, name="courier"))
        threads += [
            threading.Thread(target=task.run, args=(ctx, holder, stop), name=task.name)
            for task in periodic(ctx, stop)
        ]
        for thread in threads:
            thread.start()
        while not stop.is_set():
            woken.wait(timeout=0.5)
            if woken.is_set():
                woken.clear()
                wake_all()
        wake_all()
        for thread in threads:
            thread.join()


def periodic(ctx: Context, stop: threading.Event) -> list[Periodic]:
    """What one process of all does again and again, whatever the clusters do."""
    return [
        Periodic(sealing.LEASE, SEAL_S, lambda lease: sealing.seal(ctx.db, lease, ctx.settings.data_dir)),
        Periodic("approvals", EXPIRE_S, lambda lease: expire(ctx, lease)),
        Periodic("reports", EXPORT_S, Exporter(ctx, goes_on=lambda: not stop.is_set()).tick),
    ]


class ClusterWorker:
    """Takes the lease of a cluster and works while it holds it."""

    def __init__(self, ctx: Context, cluster: str, holder: str, stop: threading.Event) -> None:
        self.cluster = cluster
        self._ctx, self._holder, self._stop = ctx, holder, stop
        self._woken = threading.Event()
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    def run(self) -> None:
        """Until stopped: get the lease, work, and begin again if it is lost."""
        ttl = self._ctx.settings.lease_s
        while not self._stop.is_set():
            try:
                lease = leases.acquire(self._ctx.db, f"worker:{self.cluster}", self._holder, ttl)
                if lease is None:
                    self._stop.wait(min(ttl / 3, 2.0))
                    continue
                log.info("lease_taken", cluster=self.cluster, token=lease.token)
                metrics.begin(self.cluster)
                self._work(lease)
                leases.release(self._ctx.db, lease)
            except SQLAlchemyError as error:
                log.error("database_trouble", cluster=self.cluster, detail=str(error))
                self._stop.wait(2.0)

    def _work(self, lease: Lease) -> None:
        queue = QueueKeeper(self._ctx, self.cluster, lease)
        gauge = Gauge(self._ctx, self.cluster, lease)
        resources = ResourceKeeper(self._ctx, self.cluster, lease, gauge)

        def keep(snapshot: QueueSnapshot) -> None:
            resources.see(snapshot)
            gauge.see(snapshot)
            queue.keep(snapshot)

        tracker = Tracker(self._ctx, self.cluster, lease, keep)
        changer = PriorityChanger(self._ctx, self.cluster, lease)
        submitter = Submitter(self._ctx, self.cluster, lease)
        collector = Collector(self._ctx, self.cluster, lease, register_model)
        ingester = Ingester(self._ctx, self.cluster, lease, goes_on=lambda: self._holds(lease))
        looker = Looker(self._ctx, self.cluster, lease)
        interval = self._ctx.cluster(self.cluster).poll_interval_s
        watching = self._ctx.cluster(self.cluster).watch_interval_s
        self._busy.clear()  # tasks of an earlier lease that were still queued never ran
        with ExitStack() as stack:
            submitting, collecting = (self._pool(stack, name) for name in ("submit", "collect"))
            for name, every, what in (
                ("lease", self._ctx.settings.lease_s / 3, lambda: self._renew(lease)),
                ("poll", interval, lambda: self._poll(tracker, resources)),
                ("ledger", interval, Bookkeeper(self._ctx, self.cluster, lease).tick),
                ("watch", watching, Watcher(self._ctx, self.cluster, lease).tick),
                ("usage", self._ctx.cluster(self.cluster).usage_interval_s, gauge.tick),
                ("accounting", self._ctx.settings.accounting.interval_s, ingester.tick),
                ("looks", self._ctx.settings.accounting.interval_s, looker.tick),
                ("janitor", JANITOR_S, lambda: self._clean(lease)),
            ):
                thread = threading.Thread(
                    target=self._repeat, args=(lease, every, what), name=f"{self.cluster}-{name}"
                )
                thread.start()
                stack.callback(thread.join)
            while self._holds(lease):
                self._dispatch(lease, self._due_runs, submitting, submitter.advance)
                self._dispatch(lease, changer.due, submitting, changer.apply)
                self._dispatch(lease, self._due_jobs, collecting, collector.collect)
                self._woken.wait(timeout=IDLE_TICK_S)
                self._woken.clear()

    def _pool(self, stack: ExitStack, name: str) -> ThreadPoolExecutor:
        """Threads of their own for each kind of work: a thousand results to fetch hold up no submission."""
        pool = ThreadPoolExecutor(
            self._ctx.settings.max_concurrent_runs, thread_name_prefix=f"{self.cluster}-{name}"
        )
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool

    def _holds(self, lease: Lease) -> bool:
        return not self._stop.is_set() and not lease.lost.is_set()

    def _repeat(self, lease: Lease, every_s: float, what: Callable[[], None]) -> None:
        """Call `what` at a steady rhythm while the lease holds; a slow call delays, never doubles."""
        while self._holds(lease):
            began = time.monotonic()
            self._guarded(lease, what)
            rest = every_s - (time.monotonic() - began)
            if lease.lost.wait(max(0.05, min(rest, 1.0))):
                return
            while self._holds(lease) and time.monotonic() - began < every_s:
                lease.lost.wait(min(0.5, max(0.01, every_s - (time.monotonic() - began))))

    def _guarded(self, lease: Lease, what: Callable[[], None]) -> None:
        try:
            what()
        except LeaseLost:
            metrics.LEASES_LOST.labels(self.cluster).inc()
            log.warning("lease_lost", cluster=self.cluster)
        except SQLAlchemyError as error:
            log.error("database_trouble", cluster=self.cluster, detail=str(error))
        except BrokerError as error:
            log.warning(error.code, cluster=self.cluster, detail=error.detail)
        except Exception:  # a defect must not end the loop that everybody's runs depend on
            log.exception("worker_defect", cluster=self.cluster)
            metrics.WORKER_DEFECTS.inc()

    def _renew(self, lease: Lease) -> None:
        if not leases.renew(self._ctx.db, lease, self._ctx.settings.lease_s):
            self._woken.set()

    def _poll(self, tracker: Tracker, resources: ResourceKeeper) -> None:
        tracker.tick()
        self._woken.set()  # what was seen to end is collected at once
        resources.tick()

    def _clean(self, lease: Lease) -> None:
        """What is due now and then, and at the beginning: the bucket is there, what has had its time goes."""
        for run_id in due_for_removal(self._ctx, self.cluster):
            remove_run_files(self._ctx, self.cluster, lease, run_id)
        s3 = self._ctx.settings.s3
        self._ctx.objects.ensure_bucket(s3.cors_origins)
        self._ctx.objects.abort_stale_uploads(timedelta(hours=s3.stale_upload_hours))

    # ---- dispatching ---------------------------------------------------------------------------------

    def _dispatch(
        self,
        lease: Lease,
        due: Callable[[], list[str]],
        pool: ThreadPoolExecutor,
        what: Callable[[str], None],
    ) -> None:
        try:
            keys = due()
        except SQLAlchemyError as error:
            log.error("database_trouble", cluster=self.cluster, detail=str(error))
            return
        for key in keys:
            self._start(pool, lease, key, what)

    def _start(self, pool: ThreadPoolExecutor, lease: Lease, key: str, what: Callable[[str], None]) -> None:
        with self._lock:
            if key in self._busy:
                return
            self._busy.add(key)

        def task() -> None:
            try:
                if self._holds(lease):
                    self._guarded(lease, lambda: what(key))
            finally:
                with self._lock:
                    self._busy.discard(key)

        pool.submit(task)

    def _due_runs(self) -> list[str]:
        """Runs that need something done on the cluster now."""
        with self._ctx.db.read() as session:
            return list(session.scalars(_DUE_RUNS, {"cluster": self.cluster, "now": utcnow()}))

    def _due_jobs(self) -> list[str]:
        """Ended jobs whose results are still on the cluster only."""
        due = or_(JobRow.store_next_try_at.is_(None), JobRow.store_next_try_at <= utcnow())
        query = (
            select(JobRow.id)
            .join(RunRow, RunRow.id == JobRow.run_id)
            .where(RunRow.cluster == self.cluster, JobRow.storing == "pending", due)
        )
        with self._ctx.db.read() as session:
            return list(session.scalars(query.order_by(JobRow.ended_at).limit(200)))


def _due_runs_query() -> Select[str]:
    ready = or_(
        RunRow.phase.in_([Phase.PREPARING, Phase.SUBMITTING]),
        (RunRow.phase == Phase.RELEASING) & RunRow.id.not_in(select(RunHoldRow.run_id)),
        (RunRow.phase == Phase.RELEASING) & (RunRow.gate == Gate.CLOSING),
        (RunRow.phase == Phase.ACTIVE) & RunRow.gate.in_([Gate.CLOSING, Gate.OPENING]),
        RunRow.cancel_requested_at.is_not(None)
        & RunRow.phase.in_([Phase.PREPARING, Phase.SUBMITTING, Phase.RELEASING, Phase.ACTIVE]),
    )
    due = or_(RunRow.next_try_at.is_(None), RunRow.next_try_at <= bindparam("now"))
    query = select(RunRow.id).where(RunRow.cluster == bindparam("cluster"), ready, due)
    return query.order_by(RunRow.id).limit(200)


_DUE_RUNS = _due_runs_query()
"""Built once: it is asked whenever the worker wakes, and a submission waits for it."""
