"""Filling the warehouse from `sacct`: bounded windows one after the other, each stored with its end.

The cursor moves with the rows, in one transaction: a crash repeats a part at most, and repeating changes
nothing. Near the present it stays `overlap_s` behind, so that every look begins with what the look before has
seen; what slurmdbd was told later than that (it had been away) is found by reading once more, and jobs that
we believe to be running are compared with the queue and asked for by id. Absence deletes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

import structlog
from sqlalchemy import select

from broker import metrics
from broker.accounting import archive, packed, waiting
from broker.accounting.tables import AccountingCursorRow, AccountingJobRow
from broker.accounting.windows import Cursor, adapted, after, interrupted, started, too_wide
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.db.locks import exclusive
from broker.errors import BrokerError, SlurmRefused, Unreachable
from broker.settings import AccountingSettings
from broker.slurm import SlurmClient, gpu_types
from broker.slurm.nodelist import expand
from broker.slurm.sacct import Answer, JobRecord, Window, warehouse_fields

log = structlog.get_logger("broker.accounting")

BATCH = 1000
"""Jobs stored in one transaction: others wait for it on SQLite."""
EXTRA_S = 30.0
"""How much longer than other queries a window may take."""
PACKED_DAYS = 5
"""Days packed in one transaction."""
YOUNG_S = 600
"""A job this young may be in accounting and not yet in the queue we saw, or the other way round."""
ASKED_BY_ID = 500
"""Jobs asked for by id in one sacct, and at most so many a tick: the rest have their turn in the next."""


class Ingester:
    """Keeps the warehouse of one cluster. `goes_on` says whether to go on with the next window."""

    def __init__(
        self,
        ctx: Context,
        cluster: str,
        lease: Lease,
        *,
        slurm: SlurmClient | None = None,
        goes_on: Callable[[], bool] = lambda: True,
        clock: Callable[[], datetime] = utcnow,
    ) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease
        self._given, self._goes_on, self._clock = slurm, goes_on, clock
        self._settings: AccountingSettings = ctx.settings.accounting
        self._people = archive.People(cluster, ctx.cluster(cluster).account)

    def tick(self) -> None:
        """Read up to now. What goes wrong is written down, and raised; the next tick goes on from there."""
        if not self._slurm().capabilities().config.has_accounting:
            return
        now = int(self._clock().timestamp())
        cursor = started(self._load(), now, self._settings)
        try:
            at = cursor.settled_to
            while at < now and self._goes_on():
                at, cursor = self._window(at, now, cursor)
            if at >= now:
                self._follow(now)
            self._pack()
        except BrokerError as error:
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                archive.save_cursor(session, self._cluster, interrupted(cursor, now, error.detail), utcnow())
            metrics.ACCOUNTING_FAILURES.labels(self._cluster, error.code).inc()
            raise

    def _slurm(self) -> SlurmClient:
        return self._given or self._ctx.slurm(self._cluster)

    def _load(self) -> Cursor | None:
        with self._ctx.db.read() as session:
            row = session.get(AccountingCursorRow, self._cluster)
            return None if row is None else archive.cursor_of(row)

    def _window(self, at: int, now: int, cursor: Cursor) -> tuple[int, Cursor]:
        """Read one window; the place reached. A window that is too much is tried again at half its width."""
        end = min(at + cursor.window_s, now)
        began = time.monotonic()
        try:
            answer = self._ask(since=at, until=end)
        except (Unreachable, SlurmRefused) as error:
            narrower = too_wide(cursor, error)
            if narrower is None:
                raise
            log.info("accounting_window_halved", cluster=self._cluster, window_s=narrower.window_s)
            return at, narrower
        moved = after(cursor, end, now, self._settings)
        moved = adapted(moved, len(answer.jobs), time.monotonic() - began)
        moved = replace(moved, bad_rows=moved.bad_rows + len(answer.bad_rows))
        self._store(answer.jobs, moved)
        self._tell(answer)
        metrics.ACCOUNTING_READ_TO.labels(self._cluster).set(end)
        return end, moved

    def _ask(self, *, since: int = 0, until: int = 0, ids: Sequence[int] = ()) -> Answer:
        able = self._slurm().capabilities()
        fields = warehouse_fields(able.accounting_fields)
        return self._slurm().sacct(Window(fields, able.version, since, until, tuple(ids)), EXTRA_S)

    def _tell(self, answer: Answer) -> None:
        metrics.ACCOUNTING_JOBS.labels(self._cluster).inc(len(answer.jobs))
        if answer.bad_rows:
            metrics.ACCOUNTING_BAD_ROWS.labels(self._cluster).inc(len(answer.bad_rows))
            log.warning(
                "accounting_rows_not_understood", cluster=self._cluster, first=answer.bad_rows[0][:300]
            )

    def _store(self, jobs: Sequence[JobRecord], cursor: Cursor | None) -> None:
        """Store in batches; the cursor moves with the last of them."""
        self._name_gpus(jobs)
        for first in range(0, max(len(jobs), 1), BATCH):
            part, last = jobs[first : first + BATCH], first + BATCH >= len(jobs)
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                archive.store(session, self._people, part)
                if last and cursor is not None:
                    archive.save_cursor(session, self._cluster, cursor, utcnow())

    def _name_gpus(self, jobs: Sequence[JobRecord]) -> None:
        """Name the types of GPUs by their nodes where the job's own TRES do not name all (`gres/gpu` alone is
        tracked, or only some of the types).
        """
        wanted = [
            job
            for job in jobs
            if job.gpu_count and job.start_at and (not job.gpu_type or job.gpu_types.startswith("="))
        ]
        if not wanted:
            return
        inventory = {node.name: node.total for node in self._slurm().nodes()}
        found: dict[tuple[str, int, str, str], tuple[str, str]] = {}
        for job in wanted:
            key = (job.node_list, job.gpu_count, job.gpu_type, job.gpu_types)
            if key not in found:
                typed = {name: n for name, n in gpu_types.parts(*key[2:], key[1]) if name}
                nodes = [inventory.get(name) for name in expand(job.node_list)]
                types = gpu_types.on_nodes(job.gpu_count, typed, nodes)
                none = (gpu_types.MIXED, "")
                found[key] = none if types is None else gpu_types.named(types, job.gpu_count)
            job.gpu_type, job.gpu_types = found[key]

    def _pack(self) -> None:
        """Pack the days whose sums have changed, few at a time: others wait for it on SQLite."""
        packed_days = PACKED_DAYS
        while packed_days == PACKED_DAYS:
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                exclusive(session, f"accounting {self._cluster}")
                packed_days = packed.pack(session, self._cluster, PACKED_DAYS)

    # ---- jobs that have not ended -------------------------------------------------------------------

    def _follow(self, now: int) -> None:
        """Compare what has not ended with the queue: keep what waits, count what runs up to now, ask for what
        is not there.
        """
        columns = (AccountingJobRow.job_id, AccountingJobRow.submit_at, AccountingJobRow.runaway)
        query = select(*columns).where(
            AccountingJobRow.cluster == self._cluster, AccountingJobRow.end_at.is_(None)
        )
        with self._ctx.db.read() as session:
            flags = {
                (row.job_id, row.submit_at): row.runaway
                for row in session.execute(query.order_by("submit_at"))
            }
        keys = list(flags)
        look = self._slurm().jobs().jobs
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            waiting.keep(session, self._people, look, now)
        queue = {job.job_id for job in look if not job.state.finished}
        newest = dict(keys)  # of several attempts without an end, only the last can be in the queue
        there = [key for key in keys if key[0] in queue and newest[key[0]] == key[1]]
        for first in range(0, len(there), BATCH):
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                archive.count_up_to(session, self._cluster, there[first : first + BATCH], now)
        seen = set(there)
        missing = [key for key in keys if key not in seen and key[1] < now - YOUNG_S]
        missing.sort(key=lambda key: (flags[key], -key[1]))  # what is no known runaway comes first
        missing = missing[:ASKED_BY_ID]
        if missing:
            self._store(self._ask(ids=sorted({job_id for job_id, _ in missing})).jobs, None)
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                flagged = archive.flag_runaways(session, self._cluster, missing)
            metrics.ACCOUNTING_RUNAWAYS.labels(self._cluster).set(flagged)
        else:
            metrics.ACCOUNTING_RUNAWAYS.labels(self._cluster).set(0)
