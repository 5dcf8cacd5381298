"""The report `waiting`: the jobs that wait longest, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.accounting.schemas import Source
from broker.accounting.tables import AccountingJobRow
from broker.accounting.waiting import Pending, load, waited
from broker.accounting.waiting_tables import AccountingQueueRow
from broker.advice.texts import span
from broker.db import utcnow
from broker.queueing.listing import explanations
from broker.queueing.order import in_words
from broker.queueing.slurm_reasons import Why, of_slurm
from broker.reports.measures import Sums
from broker.reports.merging import merged
from broker.reports.wanted import Group, Scope, Wanted


def waiting_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """The lines of the report: a job each, or as many as share what it is split by."""
    made: list[Group] = []
    now = int(utcnow().timestamp())
    for cluster in session.scalars(select(AccountingQueueRow.cluster).order_by(AccountingQueueRow.cluster)):
        look = load(session, cluster)
        jobs = [job for job in look[1] if _visible(job, scope)] if look else []
        if jobs:
            made += _lines(session, cluster, jobs, wanted, now)
    return merged(made)


def looked_at(session: Session) -> list[Source]:
    """How old the looks at the queues are."""
    rows = session.execute(
        select(AccountingQueueRow.cluster, AccountingQueueRow.taken_at).order_by(AccountingQueueRow.cluster)
    )
    found = []
    for cluster, taken_at in rows:
        at = datetime.fromtimestamp(taken_at, UTC)
        found.append(Source(cluster=cluster, complete_until=at, read_until=at, trouble=False))
    return found


def _visible(job: Pending, scope: Scope) -> bool:
    return scope.tenant in (None, job.tenant) and scope.user in (None, job.user)


def _keys(cluster: str, job: Pending) -> dict[str, str]:
    return {
        "job": job.job,
        "cluster": cluster,
        "tenant": job.tenant,
        "user": job.user,
        "partition": job.partition,
        "qos": job.qos,
        "gpu_type": job.gpu_type,
        "gpu_count": str(job.gpu_count),
    }


def _lines(
    session: Session, cluster: str, jobs: Sequence[Pending], wanted: Wanted, now: int
) -> Iterator[Group]:
    eligible = _eligible(session, cluster)
    ours = explanations(session, cluster) if any(job.run_id for job in jobs) else {}
    for job in jobs:
        why = ours.get(job.job_id) if job.run_id else None
        why = why or of_slurm(job.reason)
        keys = _keys(cluster, job) | {"reason": why.code}
        if all(keys[name] == value for name, value in wanted.filters.items()):
            key = {name: keys[name] for name in wanted.by}
            yield Group(key, _sums(job, eligible.get(job.job_id), why, now))


def _eligible(session: Session, cluster: str) -> dict[int, int]:
    """When the jobs that have not begun could be started at all, by Slurm's id: the youngest submission's."""
    rows = session.execute(
        select(AccountingJobRow.job_id, AccountingJobRow.eligible_at)
        .where(
            AccountingJobRow.cluster == cluster,
            AccountingJobRow.start_at.is_(None),
            AccountingJobRow.end_at.is_(None),
            AccountingJobRow.eligible_at.is_not(None),
        )
        .order_by(AccountingJobRow.submit_at)
    )
    return {job_id: at for job_id, at in rows if at is not None}


def _sums(job: Pending, eligible_at: int | None, why: Why, now: int) -> Sums:
    time = waited(job, eligible_at, now)
    known = time.to_eligible is not None
    numbers = {
        "jobs": 1,
        "waited_s": time.total,
        "to_eligible_s": time.to_eligible or 0,
        "since_eligible_s": time.since_eligible or 0,
        "eligible_known": int(known),
        "gpus": job.gpu_count * job.tasks,
        "cpus": job.cpus * job.tasks,
    }
    texts = {"asks_for": asks_for(job), "why": why.en, "why_ko": why.ko}
    if job.start_at is not None and job.start_at > now:
        texts["expected_start"] = datetime.fromtimestamp(job.start_at, UTC).isoformat()
    return Sums(numbers, texts=texts)


def asks_for(job: Pending) -> str:
    """What a job asks for, in words: `4 tasks of a100 x 2, 64GB, 2h`."""
    wanted = in_words(
        {
            "gpu_type": job.gpu_type,
            "gpu_count": job.gpu_count,
            "cpus": job.cpus,
            "memory_mib": job.mem_mib,
        }
    )
    limit = "no time limit" if job.timelimit_s is None else span(job.timelimit_s)
    return f"{f'{job.tasks} tasks of ' if job.tasks > 1 else ''}{wanted}, {limit}"
