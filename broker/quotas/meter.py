"""API calls of a day: counted in memory, written once a second, never a write per call.

Within one process the count is exact. Several processes see each other's calls, and a changed quota, when
they write their own, so together they may let through what they were asked within that second.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.exc import SQLAlchemyError

from broker.db import Database, utcnow
from broker.quotas.periods import day_of
from broker.quotas.service import Resource, calls_exceeded, count_calls, quota_of, used
from broker.settings import QuotaSettings

log = structlog.get_logger("broker.quotas")
FLUSH_S = 1.0


@dataclass(slots=True)
class _Day:
    """One tenant's calls: `written` as the database has them, `pending` of this process."""

    day: str
    limit: int
    written: int
    read_at: datetime
    pending: int = 0


class ApiMeter:
    """Counts the calls of every tenant. Every method may be called from any thread."""

    def __init__(self, db: Database, settings: QuotaSettings, clock: Callable[[], datetime] = utcnow) -> None:
        self._db, self._settings, self._clock = db, settings, clock
        self._days: dict[str, _Day] = {}
        self._late: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def knows(self, tenant: str) -> bool:
        """Whether a call can be judged by what is remembered; else `load` first (it reads the database).

        A tenant that has used up its quota is read anew each second: an admin may have raised it.
        """
        now = self._clock()
        with self._lock:
            known = self._days.get(tenant)
            if known is None or known.day != day_of(now):
                return False
            full = known.written + known.pending >= known.limit
            return not full or (now - known.read_at).total_seconds() < FLUSH_S

    def load(self, tenant: str) -> None:
        """Read what is used, and the quota."""
        now = self._clock()
        day = day_of(now)
        with self._db.read() as session:
            limit = quota_of(session, self._settings, tenant).api_calls
            written = used(session, tenant, Resource.API_CALLS, day)
        with self._lock:
            known = self._days.get(tenant)
            if known is not None and known.day == day:
                known.limit, known.read_at = limit, now
                known.written = max(known.written, written)
            else:
                if known is not None and known.pending:
                    self._late[tenant, known.day] += known.pending
                self._days[tenant] = _Day(day, limit, written, now)

    def count(self, tenant: str, *, always: bool) -> None:
        """Count one call of a tenant that `knows` knows; raises `LimitReached` when the day's are used up.

        `always`: let it pass nevertheless (an admin's, or one that only asks about the quota).
        """
        now = self._clock()
        with self._lock:
            known = self._days[tenant]
            if known.written + known.pending >= known.limit and not always:
                raise calls_exceeded(tenant, known.limit, now)
            known.pending += 1

    def flush(self) -> None:
        """Write what was counted since the last time; a database in trouble gets it the next time."""
        with self._lock:
            taken, self._late = self._late, Counter()
            for tenant, known in self._days.items():
                if known.pending:
                    taken[tenant, known.day] += known.pending
                    known.written, known.pending = known.written + known.pending, 0
        if not taken:
            return
        try:
            with self._db.write() as session:
                sums = {
                    (tenant, day): count_calls(session, self._settings, tenant, day, calls)
                    for (tenant, day), calls in sorted(taken.items())
                }
        except Exception as error:
            with self._lock:
                self._late.update(taken)
            if not isinstance(error, SQLAlchemyError):
                raise
            log.warning("calls_not_written", detail=str(error))
            return
        with self._lock:
            for (tenant, day), (total, limit) in sums.items():
                if (entry := self._days.get(tenant)) is not None and entry.day == day:
                    entry.written, entry.limit = total, limit
