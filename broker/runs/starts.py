"""When waiting jobs start, as the last look at a cluster's queue has it.

A look is one row with all that waits, thousands of jobs: what it says of starts is read once, and kept in
the process until there is another look. (What a change has shown meanwhile, `queueing.snapshot.note_change`,
is no new look, and changes no start.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Pool, select
from sqlalchemy.orm import Session

from broker.runs.expected import Start
from broker.runs.tables import JobRow, QueueRow

_NO_ESTIMATE: Final = "BeginTime"
"""Slurm's reason for a job that may not start before a moment, as a requeued one for a while: that moment is
what it shows as the start."""


@dataclass(frozen=True, slots=True)
class _Look:
    """`starts`: by Slurm job id, each with how often the job had been started again."""

    taken_at: datetime
    starts: Mapping[int, tuple[int, Start]]


_LOOKS: Final[WeakKeyDictionary[Pool, dict[str, _Look]]] = WeakKeyDictionary()
"""The last look at each cluster, by the connections of the database that has it."""
_READING: Final = Lock()
"""Who asks while a look is being read waits for it, instead of reading it as well."""


def starts_of(session: Session, cluster: str, jobs: Iterable[JobRow]) -> dict[str, Start]:
    """When jobs of a cluster start, by row id; those of which nothing is told, or nothing since they were
    started last, are left out.
    """
    waiting = {job.slurm_job_id: job for job in jobs if job.slurm_job_id is not None}
    told = _last_look(session, cluster) if waiting else {}
    return {
        job.id: told[number][1]
        for number, job in waiting.items()
        if number in told and told[number][0] == job.restarts
    }


def _last_look(session: Session, cluster: str) -> Mapping[int, tuple[int, Start]]:
    here = QueueRow.cluster == cluster
    taken_at = session.scalar(select(QueueRow.taken_at).where(here))
    if taken_at is None:
        return {}
    with _READING:
        looks = _LOOKS.setdefault(session.get_bind().engine.pool, {})
        if (known := looks.get(cluster)) is None or known.taken_at != taken_at:
            taken_at, jobs = session.execute(select(QueueRow.taken_at, QueueRow.jobs).where(here)).one()
            looks[cluster] = known = _Look(taken_at, _starts(jobs))
        return known.starts


def _starts(jobs: Mapping[str, Mapping[str, Any]]) -> dict[int, tuple[int, Start]]:
    """The starts that a look tells of, from jobs as `queueing.snapshot.Seen`; Slurm estimates none of what it
    holds (priority 0), though an estimate from before may stand there.
    """
    found: dict[int, tuple[int, Start]] = {}
    for number, job in jobs.items():
        earliest = job["reason"] == _NO_ESTIMATE
        if job["start"] and (job["priority"] or earliest):
            start = Start(datetime.fromtimestamp(job["start"], UTC), "retry" if earliest else "slurm")
            found[int(number)] = job["restarts"], start
    return found
