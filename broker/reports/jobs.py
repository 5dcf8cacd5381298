"""The jobs behind a line of a report, newest submission first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, case, false, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session, defer

from broker.accounting import wait_classes
from broker.accounting.buckets import slowdown, waits
from broker.accounting.looks import UNTYPED
from broker.accounting.tables import AccountingJobRow as Job
from broker.advice.jobs import SAMPLE_S, options_for
from broker.api.pagination import PageRequest, decode, encode
from broker.db import Database
from broker.errors import InvalidRequest, Problem
from broker.reports.measures import HOUR, ratio
from broker.reports.schemas import JobFacts
from broker.reports.wanted import Scope, same

_COLUMNS: Final[Mapping[str, Any]] = {
    "cluster": Job.cluster,
    "tenant": Job.tenant,
    "user": Job.user,
    "partition": Job.partition,
    "qos": Job.qos,
    "gpu_count": Job.gpu_count,
    "outcome": Job.state,
}
_MAX_SIZE: Final = 30


def behind(
    since: date, until: date, filters: Mapping[str, str], scope: Scope, *, began: bool, gpus: bool = False
) -> Select[Job]:
    """The jobs of a period (days, UTC; `until` is not in it).

    `began`: those that began in it (waits are theirs); else those that ran, or ended, in it. `gpus`: only
    those that had some; GPUs whose type nobody tells are `looks.UNTYPED` there.
    """
    first, after = _epoch(since), _epoch(until)
    if began:
        conditions: list[ColumnElement[bool]] = [Job.start_at >= first, Job.start_at < after]
    else:
        last_seen = func.coalesce(Job.end_at, Job.counted_to)
        conditions = [last_seen >= first, func.coalesce(Job.start_at, Job.end_at) < after]
        conditions.append(or_(Job.start_at.is_not(None), Job.end_at.is_not(None)))
    if gpus:
        conditions.append(Job.gpu_count > 0)
        filters = {**filters, "gpu_type": ""} if filters.get("gpu_type") == UNTYPED else filters
    conditions += [_filter(name, value) for name, value in filters.items()]
    if scope.tenant is not None:
        conditions.append(Job.tenant == scope.tenant)
    if scope.user is not None:
        conditions.append(Job.user == scope.user)
    return select(Job).where(and_(*conditions))


def page_of(
    session: Session, query: Select[Job], page: PageRequest, sample_s: int = SAMPLE_S
) -> tuple[list[JobFacts], str | None]:
    """A page of jobs, and the next cursor. `sample_s`: time between two looks at what jobs use."""
    key = tuple_(Job.submit_at, Job.job_id, Job.cluster)
    if page.after is not None:
        query = query.where(key < _place(page.after))
    order = (Job.submit_at.desc(), Job.job_id.desc(), Job.cluster.desc())
    rows = session.scalars(query.order_by(*order).limit(page.limit + 1)).all()
    shown = rows[: page.limit]
    more = len(rows) > page.limit
    last = shown[-1] if shown else None
    cursor = encode(f"{last.submit_at}:{last.job_id}:{last.cluster}") if more and last else None
    return [job_facts(row, sample_s) for row in shown], cursor


def pages_of(
    db: Database, query: Select[Job], size: int = 5000, sample_s: int = SAMPLE_S
) -> Iterator[list[JobFacts]]:
    """All the jobs, page by page, each a short reading of its own: a slow reader holds up nothing."""
    place: str | None = None
    while True:
        with db.read() as session:
            page = PageRequest(size, place)
            jobs, cursor = page_of(session, query.options(defer(Job.raw, raiseload=True)), page, sample_s)
        if jobs:
            yield jobs
        if cursor is None:
            return
        place = decode(cursor)


def _elapsed_s(row: Job) -> int:
    """How long a job ran, as the days count it: one without an end up to when it was last seen to run."""
    if row.end_at is not None or row.start_at is None:
        return row.elapsed_s
    return min(row.elapsed_s, max(0, (row.counted_to or row.start_at) - row.start_at))


def job_facts(row: Job, sample_s: int = SAMPLE_S) -> JobFacts:
    """A job as it is shown; what was not measured is null."""
    elapsed_s, waited = _elapsed_s(row), waits(row.submit_at, row.eligible_at, row.start_at)
    return JobFacts(
        cluster=row.cluster,
        job_id=str(row.job_id) if row.array_id is None else f"{row.array_id}_{row.array_task}",
        name=row.name,
        tenant=row.tenant,
        user=row.user,
        partition=row.partition,
        qos=row.qos,
        state=row.state,
        reason=row.reason,
        submitted_at=_moment(row.submit_at),
        started_at=None if row.start_at is None else _moment(row.start_at),
        ended_at=None if row.end_at is None else _moment(row.end_at),
        wait_s=waited and waited.wait_s,
        hold_s=waited and waited.hold_s,
        slowdown=_slowdown(row, waited and waited.wait_s),
        slowdown_from_submit=_slowdown(row, waited and sum(waited)),
        elapsed_s=elapsed_s,
        cpus=row.cpus,
        nodes=row.nodes,
        gpus=row.gpu_count,
        gpu_type=row.gpu_type,
        gpu_types=row.gpu_types,
        memory_mib=row.mem_mib,
        core_hours=round(row.cpus * elapsed_s / HOUR, 4),
        gpu_hours=round(row.gpu_count * elapsed_s / HOUR, 4),
        cpu_efficiency=_share(None if row.cpu_partial else row.total_cpu_s, row.cpus * row.elapsed_s),
        memory_efficiency=_share(row.mem_in_tot_mib, row.mem_mib),
        gpu_efficiency=_share(row.gpu_util, 100),
        gpu_measured_by=row.gpu_util_by,
        time_accuracy=_share(row.elapsed_s if row.end_at else None, row.timelimit_s),
        runaway=row.runaway,
        run_id=row.run_id,
        advice=options_for(row, sample_s),
    )


def has_type(value: str) -> ColumnElement[bool]:
    """Jobs that have GPUs of a type, among others or alone."""
    named = literal(",").concat(Job.gpu_types)
    return or_(Job.gpu_type == value, func.replace(named, f",{value}=", "") != named)


def _waited(value: str) -> ColumnElement[bool]:
    """Jobs of a class of waits (`wait_classes`), by the wait that their sums have (`buckets.waits`)."""
    if value not in wait_classes.NAMES:
        return false()
    bounds = wait_classes.bounds_of(value)
    if bounds is None:
        return Job.start_at.is_(None)
    least, below = bounds
    ready = case(
        (Job.eligible_at.is_(None), Job.submit_at),
        (Job.eligible_at > Job.start_at, Job.start_at),
        else_=Job.eligible_at,
    )
    waited = Job.start_at - ready
    known = [waited >= least] if least else [Job.start_at.is_not(None)]  # none waits less than not at all
    return and_(*known, *([waited < below] if below is not None else []))


def _filter(name: str, value: str) -> ColumnElement[bool]:
    if name == "gpu_type":
        return has_type(value)
    if name == "wait":
        return _waited(value)
    if name != "size":
        return same(_COLUMNS[name], value)
    if not (value.isascii() and value.isdecimal() and len(value) <= 2 and int(value) <= _MAX_SIZE):
        return false()
    least = 2 ** int(value) if int(value) else 0  # with those of one CPU stand those that were given none
    return and_(Job.cpus >= least, Job.cpus < 2 ** (int(value) + 1))


def _slowdown(row: Job, wait_s: int | None) -> float | None:
    return None if wait_s is None or row.end_at is None else round(slowdown(wait_s, row.elapsed_s), 4)


def _share(above: float | None, below: float | None) -> float | None:
    value = None if above is None or below is None else ratio(above, below)
    return None if value is None else round(value, 4)


def _place(text: str) -> tuple[int, int, str]:
    """The place in the list that a cursor names."""
    submitted, _, rest = text.partition(":")
    job, _, cluster = rest.partition(":")
    if not (submitted.isdecimal() and job.isdecimal() and cluster):
        detail = "The cursor is none of this list's: leave it out to begin at the first page"
        raise InvalidRequest(detail, problems=[Problem("?cursor", "invalid_cursor", detail)])
    return int(submitted), int(job), cluster


def _epoch(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
