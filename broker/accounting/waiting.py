"""Jobs that wait, how long, and what for. Pure, but for `keep` and `load`, which store the last look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Final

from sqlalchemy.orm import Session

from broker.accounting.archive import Owned, Owner, People, owners
from broker.accounting.waiting_tables import AccountingQueueRow
from broker.queueing.slurm_reasons import reason_word
from broker.slurm import QueueJob
from broker.slurm.gpu_types import MIXED
from broker.slurm.sacct import count_tasks

MOST: Final = 50_000
"""Jobs of one cluster that are kept, those that wait longest: five times Slurm's own `MaxJobCount`."""
_NOT_ELIGIBLE: Final = frozenset({"Dependency", "DependencyNeverSatisfied", "BeginTime"})


@dataclass(frozen=True, slots=True)
class Pending:
    """A job that waits, as squeue shows it. Times are seconds since the epoch.

    `job`: the id people know (`123_[8-5000]`); `tasks`: elements of an array that wait in this row, else 1.
    `tenant`, `user`, `run_id` as in `AccountingJobRow`. What is asked for is over all nodes of one element.
    `start_at`: Slurm's estimate. `held`: Slurm holds it.
    """

    job_id: int
    job: str
    name: str
    tasks: int
    tenant: str
    user: str
    run_id: str | None
    partition: str
    qos: str
    reason: str
    held: bool
    submit_at: int
    start_at: int | None
    timelimit_s: int | None
    cpus: int
    nodes: int
    gpu_count: int
    gpu_type: str
    mem_mib: int


@dataclass(frozen=True, slots=True)
class Waited:
    """How long a job has waited, in seconds. `to_eligible`: until it could be started at all (approval,
    dependency, hold); `since_eligible`: since then (contention). None: nobody knows when that was.
    """

    total: int
    to_eligible: int | None
    since_eligible: int | None


def waited(job: Pending, eligible_at: int | None, now: int) -> Waited:
    """How long a job has waited up to `now`; `eligible_at` as accounting has it, None where it has not.

    What is held, or waits for another job or a time, can't be started yet, whatever it could be before.
    """
    total = max(0, now - job.submit_at)
    if eligible_at is not None and eligible_at < job.submit_at:  # of an older job: ids are recycled
        eligible_at = None
    if job.held or reason_word(job.reason) in _NOT_ELIGIBLE:
        return Waited(total, total, 0)
    if eligible_at is None:
        return Waited(total, None, None)
    before = min(eligible_at - job.submit_at, total)
    return Waited(total, before, total - before)


def pending(job: QueueJob, owner: Owner) -> Pending:
    """A row of squeue as it is kept."""
    types = sorted(job.tres.gpu_types)
    return Pending(
        job_id=job.job_id,
        job=str(job.job_id) if job.array_id is None else f"{job.array_id}_{_task(job)}",
        name=job.name,
        tasks=count_tasks(job.array_task) if job.array_task else 1,
        tenant=owner.tenant,
        user=owner.user,
        run_id=owner.run_id,
        partition=job.partition,
        qos=job.qos,
        reason=job.reason,
        held=job.priority == 0,
        submit_at=int(job.submit.timestamp()) if job.submit else 0,
        start_at=int(job.start.timestamp()) if job.start else None,
        timelimit_s=job.time_limit_s,
        cpus=job.tres.cpus or job.cpus,
        nodes=job.tres.nodes or job.node_count,
        gpu_count=job.tres.gpus,
        gpu_type="" if not job.tres.gpus or not types else types[0] if len(types) == 1 else MIXED,
        mem_mib=job.tres.memory_mib,
    )


def _task(job: QueueJob) -> str:
    """An element's number, or in brackets the expression of those that wait together, as sacct shows them."""
    task = job.array_task or ""
    return task if task.isdecimal() else f"[{task}]"


@dataclass(frozen=True, slots=True)
class _Named:
    """A row of squeue as its owner is looked up."""

    job_id: int
    array_id: int | None
    name: str
    account: str
    unix_user: str


def keep(session: Session, people: People, jobs: Iterable[QueueJob], now: int) -> None:
    """Store which jobs wait, of a whole look at the queue, as the last look."""
    waits = [(job.submit, job.job_id, job) for job in jobs if job.state.pending and job.submit is not None]
    waiting = [job for _, _, job in sorted(waits, key=itemgetter(0, 1))[:MOST]]
    named: list[Owned] = [
        _Named(job.job_id, job.array_id, job.name, job.account, job.user) for job in waiting
    ]
    owner_of = owners(session, people, named)
    found = [pending(job, owner_of(known)) for job, known in zip(waiting, named, strict=True)]
    row = session.get(AccountingQueueRow, people.cluster) or AccountingQueueRow(cluster=people.cluster)
    row.taken_at, row.jobs = now, [asdict(one) for one in found]
    session.add(row)


def load(session: Session, cluster: str) -> tuple[int, list[Pending]] | None:
    """The last look: when it was taken, and what waited, longest first; None before the first."""
    row = session.get(AccountingQueueRow, cluster)
    return None if row is None else (row.taken_at, [Pending(**one) for one in row.jobs])
