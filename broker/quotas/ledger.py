"""What GPU time a job has used, in which month, and what it may still use. Pure: rows in, seconds out.

The source is accounting (`sacct -D`): one row for each attempt of a job; a requeue submits the job anew, so
an attempt is known by cluster, job id and submit time. GPU-seconds are `ElapsedRaw` × GPUs of `AllocTRES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.quotas.periods import bounds, month_of, next_month
from broker.slurm import AccountingJob

HOUR_S = 3600


@dataclass(frozen=True, slots=True)
class Charge:
    """What one attempt of a job used in one month. Elapsed time in seconds, without suspensions."""

    submitted_at: datetime
    month: str
    gpus: int
    elapsed_s: int
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def gpu_seconds(self) -> int:
        """The amount."""
        return self.gpus * self.elapsed_s


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a job that has not been settled may use yet: GPUs for so many seconds from its start.

    `started_at` is None while it waits (again).
    """

    gpus: int
    limit_s: int
    started_at: datetime | None


def by_month(start: datetime, end: datetime, elapsed_s: int) -> dict[str, int]:
    """Elapsed seconds of what ran from `start` to `end`, cut at the ends of months; they add up exactly.

    Accounting says how long a job was suspended, not when: suspensions are spread evenly over its time.

    >>> from datetime import UTC
    >>> by_month(datetime(2026, 11, 30, 22, tzinfo=UTC), datetime(2026, 12, 1, 1, tzinfo=UTC), 3 * 3600)
    {'2026-11': 7200, '2026-12': 3600}
    """
    wall = int((end - start).total_seconds())
    if wall <= 0:
        return {month_of(end): max(0, elapsed_s)}
    parts: dict[str, int] = {}
    done, month = 0, month_of(start)
    while True:
        _, over = bounds(month)
        upto = elapsed_s * int((min(over, end) - start).total_seconds()) // wall
        parts[month] = upto - done
        if over >= end:
            return parts
        done, month = upto, month_of(over)


def charges(attempt: AccountingJob, requested_gpus: int) -> list[Charge]:
    """What an attempt that is over used, by month; nothing for one that goes on or has no submit time.

    An attempt that never ran gives one charge of nothing: it is settled, once, like any other. Where
    accounting does not track GPUs (`AccountingStorageTRES`), those that were asked for count.
    """
    end = attempt.end
    if attempt.submit is None or end is None or not over(attempt):
        return []
    gpus = attempt.alloc_tres.gpus or requested_gpus
    parts = by_month(attempt.start or end, end, attempt.elapsed_s)
    return [
        Charge(attempt.submit, month, gpus, seconds, attempt.start, end) for month, seconds in parts.items()
    ]


def over(attempt: AccountingJob) -> bool:
    """Whether an attempt is over. One that was put back into the queue (`REQUEUED`) is, although its job goes
    on: it has an end, and the next attempt a row of its own.
    """
    return attempt.end is not None and (attempt.state.pending or not attempt.state.active)


def knows_end(attempts: Iterable[AccountingJob], began: datetime | None) -> bool:
    """Whether accounting has the end of what began then."""
    return any(began is None or (attempt.end is not None and attempt.end >= began) for attempt in attempts)


def observed(
    submitted_at: datetime, started_at: datetime | None, ended_at: datetime, gpus: int, limit_s: int
) -> list[Charge]:
    """What a job used as far as the broker has seen. It may see an end late: at most the time limit."""
    if started_at is None:
        return []
    wall = int((ended_at - started_at).total_seconds())
    end = started_at + timedelta(seconds=max(0, min(wall, limit_s)))
    parts = by_month(started_at, end, int((end - started_at).total_seconds()))
    return [Charge(submitted_at, month, gpus, seconds, started_at, end) for month, seconds in parts.items()]


def attempts_of(rows: Iterable[AccountingJob], job_id: int, since: datetime) -> list[AccountingJob]:
    """The attempts of one job, oldest first. Ids are recycled: older jobs of this id are left out."""
    own = {row.submit: row for row in rows if row.job_id == job_id and row.submit and row.submit >= since}
    return [own[submit] for submit in sorted(own)]


def committed(reserved: Iterable[Reserved], month: str, now: datetime) -> int:
    """GPU-seconds of a month that are spoken for: all of what waits, and of what runs the part in the month.

    What waits counts in the present month: nobody knows yet when it starts. A job that is over its limit has
    not been seen to end yet; it goes on counting to its limit.
    """
    first, after = bounds(month)
    total = 0
    for job in reserved:
        if job.started_at is None:
            total += job.gpus * job.limit_s if month == month_of(now) else 0
        else:
            limit = job.started_at + timedelta(seconds=job.limit_s)
            begin, end = max(job.started_at, first), min(limit, after)
            total += job.gpus * max(0, int((end - begin).total_seconds()))
    return total


def carried(reserved: Iterable[Reserved], now: datetime) -> int:
    """GPU-seconds that may fall into the month after this one: of what runs its part, of what waits all."""
    after = month_of(next_month(now))
    return sum(
        job.gpus * job.limit_s if job.started_at is None else committed([job], after, now) for job in reserved
    )


def hours(gpu_seconds: int) -> float:
    """GPU-hours to two digits, for people."""
    return round(gpu_seconds / HOUR_S, 2)
