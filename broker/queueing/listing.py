"""The queue as people see it, made of the database alone: as many queries, however long it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from broker.context import Context
from broker.db import utcnow
from broker.identity import Principal
from broker.identity.tables import UserRow
from broker.queueing.order import Candidate, Rank, in_order, in_words, largest, rank_of, unmet
from broker.queueing.reasons import Waiting, explain
from broker.queueing.schemas import (
    PriorityParts,
    QueueEntry,
    QueueSource,
    QueueView,
    WaitingJobView,
    WhyView,
)
from broker.queueing.service import change_view
from broker.queueing.slurm_reasons import Why, reason_word
from broker.queueing.snapshot import WAITING, Seen, stored
from broker.queueing.tables import PriorityRow
from broker.runs.priority import LEVEL_KO, Level
from broker.runs.states import RUN_STATE_KO, JobState, RunState
from broker.runs.tables import ClusterRow, JobRow, RunHoldRow, RunRow
from broker.runs.views import may_see

_NEEDED = (
    *(JobRow.run_id, JobRow.component, JobRow.position, JobRow.slurm_job_id, JobRow.state, JobRow.reason),
    *(JobRow.restarts, JobRow.resources, JobRow.submitted_at),
)
FINAL = [state for state in RunState if state.final]


@dataclass(frozen=True, slots=True)
class _Job:
    """A waiting job with all that is known of it."""

    row: JobRow
    run: RunRow
    seen: Seen | None
    rank: Rank
    waits_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the runs of one cluster share: read once."""

    holds: Mapping[str, Mapping[str, str]]
    wishes: Mapping[str, PriorityRow]
    owners: Mapping[str, str]
    default_cpus: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A run's place in the queue; `positions` are those of all waiting jobs, by row id."""

    number: int
    jobs: Sequence[_Job]
    positions: Mapping[str, int]
    facts: _Facts


def list_queue(
    ctx: Context, principal: Principal, cluster: str | None = None, limit: int = 200, offset: int = 0
) -> QueueView:
    """What waits on every cluster, or on one; positions count all runs, shown are those one may see."""
    names = [cluster] if cluster else list(ctx.settings.clusters)
    visible: list[_Place] = []
    sources: list[QueueSource] = []
    with ctx.db.read() as session:
        for name in names:
            taken_at, queue = stored(session, name)
            sources.append(_source(session, name, taken_at))
            places = _of_cluster(session, name, queue, ctx.cluster(name).default_cpus)
            visible += [place for place in places if may_see(principal, place.jobs[0].run)]
    shown = [_entry(place) for place in visible[offset : offset + limit]]
    return QueueView(items=shown, total=len(visible), sources=sources)


def explanations(session: Session, cluster: str) -> dict[int, Why]:
    """Why each of the broker's own jobs waits, by Slurm's job id: the same that `list_queue` says of it."""
    _, queue = stored(session, cluster)
    jobs, facts = _read(session, cluster, queue, default_cpus=1)
    return {
        job.row.slurm_job_id: _why(job, position, facts.holds.get(job.run.id, {}))
        for position, job in enumerate(jobs, 1)
        if job.row.slurm_job_id is not None
    }


def _source(session: Session, cluster: str, taken_at: datetime | None) -> QueueSource:
    row = session.get(ClusterRow, cluster)
    return QueueSource(
        cluster=cluster,
        observed_at=taken_at,
        age_s=round((utcnow() - taken_at).total_seconds(), 1) if taken_at else None,
        trouble=row.trouble if row else None,
    )


def _of_cluster(session: Session, cluster: str, queue: Mapping[int, Seen], default_cpus: int) -> list[_Place]:
    """The runs of which something waits: each stands where its first waiting job does."""
    jobs, facts = _read(session, cluster, queue, default_cpus)
    by_run: dict[str, list[_Job]] = defaultdict(list)
    positions: dict[str, int] = {}
    for job in jobs:
        by_run[job.run.id].append(job)
        positions[job.row.id] = len(positions) + 1
    return [_Place(number, waiting, positions, facts) for number, waiting in enumerate(by_run.values(), 1)]


def _read(
    session: Session, cluster: str, queue: Mapping[int, Seen], default_cpus: int
) -> tuple[list[_Job], _Facts]:
    """The waiting jobs of a cluster in the order in which Slurm would start them."""
    live = select(JobRow, RunRow).join(RunRow, RunRow.id == JobRow.run_id).options(load_only(*_NEEDED))
    rows = session.execute(
        live.where(
            RunRow.cluster == cluster,
            RunRow.state.not_in(FINAL),
            RunRow.cancel_requested_at.is_(None),
            JobRow.attempt == RunRow.attempt,
            JobRow.state.in_([*WAITING, JobState.INTENDED]),
        )
    ).all()
    runs = {run.id: run for _, run in rows}
    holds: dict[str, dict[str, str]] = defaultdict(dict)
    for hold in session.scalars(select(RunHoldRow).join(RunRow).where(RunRow.cluster == cluster)):
        holds[hold.run_id][hold.kind] = hold.reason
    numbers = {number for seen in queue.values() for number in unmet(seen.dependency)}
    names = _components(session, numbers)
    found = {row.id: _job(row, run, queue, holds[run.id], names) for row, run in rows}
    order = in_order(
        Candidate(
            key=job.row.id,
            rank=job.rank,
            priority=job.seen.priority if job.seen else 0,
            submit=_submit(job),
            slurm_job_id=job.row.slurm_job_id or 0,
            position=job.row.position,
        )
        for job in found.values()
    )
    wishes = select(PriorityRow).join(RunRow, RunRow.id == PriorityRow.run_id)
    standing = session.scalars(
        wishes.where(
            RunRow.cluster == cluster, PriorityRow.attempt == RunRow.attempt, RunRow.state.not_in(FINAL)
        )
    )
    owners = session.execute(
        select(UserRow.id, UserRow.username).where(UserRow.id.in_({run.owner_id for run in runs.values()}))
    )
    facts = _Facts(
        holds, {row.run_id: row for row in standing}, {row.id: row.username for row in owners}, default_cpus
    )
    return [found[key] for key in order], facts


def _submit(job: _Job) -> float:
    if job.seen is not None and job.seen.submit is not None:
        return job.seen.submit
    return (job.row.submitted_at or job.run.created_at).timestamp()


def _components(session: Session, numbers: Collection[int]) -> dict[tuple[str, int], str]:
    """Components by run and Slurm job id, of jobs that others wait for. Ids are recycled, and an owner may
    let a job wait for somebody else's: what that is called is nobody's to read.
    """
    query = select(JobRow.run_id, JobRow.slurm_job_id, JobRow.component)
    rows = session.execute(query.where(JobRow.slurm_job_id.in_(numbers)))
    return {(row.run_id, row.slurm_job_id): row.component for row in rows}


def _job(
    row: JobRow,
    run: RunRow,
    queue: Mapping[int, Seen],
    holds: Mapping[str, str],
    names: Mapping[tuple[str, int], str],
) -> _Job:
    seen = queue.get(row.slurm_job_id or 0)
    held = any(kind != "submission" for kind in holds) or (seen is not None and seen.held)
    reason = reason_word(seen.reason if seen else row.reason)
    rank = rank_of(in_slurm=row.slurm_job_id is not None, held=held, reason=reason)
    parents = [names.get((run.id, number)) for number in unmet(seen.dependency)] if seen else []
    return _Job(row, run, seen, rank, tuple(filter(None, parents)))


def _entry(place: _Place) -> QueueEntry:
    waiting, facts, run = place.jobs, place.facts, place.jobs[0].run
    jobs = [_job_view(job, place.positions[job.row.id], facts) for job in waiting]
    requested = largest([job.row.resources for job in waiting])
    submitted = [job.row.submitted_at for job in waiting if job.row.submitted_at]
    level, wish = Level(run.priority), facts.wishes.get(run.id)
    return QueueEntry(
        position=place.number,
        run_id=run.id,
        number=run.number,
        name=run.name,
        kind="test" if run.kind == "test" else "normal",
        cluster=run.cluster,
        state=RunState(run.state),
        state_ko=RUN_STATE_KO[RunState(run.state)],
        owner=facts.owners.get(run.owner_id, run.owner_id),
        tenant=run.tenant,
        priority_class=run.priority_class,
        level=level,
        level_ko=LEVEL_KO[level],
        priority=jobs[0].priority,
        parts=jobs[0].parts,
        frozen=jobs[0].frozen,
        resources=in_words(requested, facts.default_cpus),
        requested=requested,
        holds=sorted(facts.holds.get(run.id, ())),
        requested_at=run.created_at,
        submitted_at=min(submitted, default=None),
        expected_start=jobs[0].expected_start,
        why=jobs[0].why,
        change=change_view(wish) if wish is not None else None,
        waiting=len(waiting),
        jobs=jobs,
    )


def _job_view(job: _Job, position: int, facts: _Facts) -> WaitingJobView:
    seen = job.seen
    wish = facts.wishes.get(job.run.id)
    explicit = wish is not None and wish.frozen and seen is not None and seen.priority == wish.number
    frozen = seen is not None and not seen.held and (seen.frozen or explicit)
    why = _why(job, position, facts.holds.get(job.run.id, {}))
    parts = seen.parts if seen and not frozen else None
    return WaitingJobView(
        position=position,
        component=job.row.component,
        state=JobState(job.row.state),
        slurm_job_id=job.row.slurm_job_id,
        resources=in_words(job.row.resources, facts.default_cpus),
        requested=job.row.resources,
        priority=seen.priority if seen else None,
        parts=PriorityParts(**parts) if parts else None,
        frozen=frozen,
        nice=seen.nice if seen else None,
        submitted_at=job.row.submitted_at,
        expected_start=datetime.fromtimestamp(seen.start, UTC) if seen and seen.start else None,
        why=WhyView(**asdict(why)),
    )


def _why(job: _Job, position: int, holds: Mapping[str, str]) -> Why:
    reason = job.seen.reason if job.seen else job.row.reason
    return explain(
        Waiting(
            reason=reason,
            waits_for=job.waits_for,
            holds=holds,
            in_slurm=job.row.slurm_job_id is not None,
            trouble=job.run.trouble,
            ahead=position - 1 if job.rank is Rank.READY else 0,
            restarts=job.seen.restarts if job.seen else job.row.restarts,
        )
    )
