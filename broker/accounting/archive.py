"""The warehouse's rows: stored once per key, replaced when they changed, their days' sums with them.

Everything here runs within the caller's transaction, so rows, sums and cursor never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cache
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, Protocol

from sqlalchemy import ColumnElement, Table, func, select, tuple_, update
from sqlalchemy.orm import Session

from broker.accounting import packed
from broker.accounting.buckets import SUMS, Sums, Who
from broker.accounting.tables import (
    AccountingCursorRow,
    AccountingDayRow,
    AccountingJobRow,
    AccountingWaitRow,
)
from broker.accounting.windows import Cursor
from broker.db.locks import exclusive
from broker.db.upsert import upsert, upsert_mappings
from broker.identity.tables import UserRow
from broker.runs.measured import MeasuredGpu, measured_gpus
from broker.runs.tables import JobRow, RunRow
from broker.slurm.gpu_use import GpuSource, best
from broker.slurm.sacct import JobRecord

_JOBS: Table = AccountingJobRow.__table__  # type: ignore[assignment]
_DAYS: Table = AccountingDayRow.__table__  # type: ignore[assignment]
_WAITS: Table = AccountingWaitRow.__table__  # type: ignore[assignment]
_COLUMNS = tuple(field.name for field in fields(JobRecord))
_values = attrgetter(*_COLUMNS)
_STORED = tuple(column.name for column in _JOBS.columns)
_stored = itemgetter(*_STORED)
COUNTED = tuple(column for column in _JOBS.columns if column.name != "raw")
"""What the sums are made of, and more: all of a job but what Slurm said word by word."""
_DAY_COLUMNS = ("cluster", "day", *Who._fields, "outcome", *SUMS)
_amounts = itemgetter(*SUMS)
_WAIT_COLUMNS = ("cluster", "day", *Who._fields, "kind", "bucket", "jobs")
_NAMES = 1000
"""Names asked for at once: a queue may have more than a statement may have parameters."""
_KEPT = ("total_cpu_s", "max_rss_mib", "mem_in_tot_mib", "energy_j")
"""What comes from the steps: Slurm purges those earlier than jobs (`PurgeStepAfter`)."""


@dataclass(frozen=True, slots=True)
class People:
    """Whose an account's jobs are: `default_account` is the Slurm account of the tenant `default`."""

    cluster: str
    default_account: str | None


class Owned(Protocol):
    """What a job tells of whose it is."""

    @property
    def job_id(self) -> int:
        """Slurm's raw id."""

    @property
    def array_id(self) -> int | None:
        """The array's."""

    @property
    def name(self) -> str:
        """The job's name."""

    @property
    def account(self) -> str:
        """The Slurm account."""

    @property
    def unix_user(self) -> str:
        """The Unix account."""


class Owner(NamedTuple):
    """Whose a job is, as the warehouse names it (`AccountingJobRow`)."""

    run_id: str | None
    tenant: str
    user: str


def owners(session: Session, people: People, jobs: Iterable[Owned]) -> Callable[[Owned], Owner]:
    """Who owns which of these jobs: asked once for all of them."""
    runs, names = _runs(session, people.cluster, jobs), _names(session)

    @cache
    def account_of(unix_user: str, account: str) -> Owner:
        unix_name = names.get(unix_user, f"{people.cluster}:{unix_user}")
        return Owner(None, _tenant(people, account), unix_name)

    def owner_of(job: Owned) -> Owner:
        run = runs.get(job.name)
        if run is not None and run[0] is not None and run[0] in {job.job_id, job.array_id}:
            return Owner(*run[1:])
        return account_of(job.unix_user, job.account)

    return owner_of


def store(session: Session, people: People, jobs: Sequence[JobRecord]) -> int:
    """Store jobs (none twice) and what they change in the sums; how many were new or different."""
    exclusive(session, f"accounting {people.cluster}")
    seen = _seen(session, people.cluster, jobs)
    owner_of = owners(session, people, jobs)
    owned = ((job, owner_of(job)) for job in jobs)
    fresh = [one for one in owned if _differs(seen.get((one[0].job_id, one[0].submit_at)), *one)]
    if not fresh:
        return 0
    known = _known(session, people.cluster, (job for job, _ in fresh)) if seen else {}
    ours = [job.job_id for job, owner in fresh if job.gpu_count and owner.run_id is not None]
    measured = measured_gpus(session, people.cluster, ours) if ours else {}
    sums, rows = Sums(), []
    for job, owner in fresh:
        before = known.get((job.job_id, job.submit_at))
        row = dict(zip(_COLUMNS, _values(job), strict=True))
        row["cluster"] = people.cluster
        row["runaway"] = job.end_at is None and before is not None and before["runaway"]
        row["run_id"], row["tenant"], row["user"] = owner
        _keep(row, before)
        row |= _gpu_use(job, measured.get(job.job_id), before)
        row["counted_to"] = _counted_to(job, before)
        if before is not None:
            sums.add(before, -1)
        sums.add(row)
        rows.append(_stored(row))
    upsert(session, _JOBS, _STORED, rows, ready=("raw",))
    add_sums(session, people.cluster, sums)
    return len(rows)


def _seen(
    session: Session, cluster: str, jobs: Iterable[JobRecord]
) -> dict[tuple[int, int], tuple[str, str | None]]:
    """What tells whether a job that is there differs, by its key: its digest and its run."""
    row = _JOBS.c
    query = select(row.job_id, row.submit_at, row.digest, row.run_id).where(*_of_ids(cluster, jobs))
    return {(number, submit): (digest, run) for number, submit, digest, run in session.execute(query)}


def _known(
    session: Session, cluster: str, jobs: Iterable[JobRecord]
) -> dict[tuple[int, int], dict[str, Any]]:
    query = select(*COUNTED).where(*_of_ids(cluster, jobs))
    return {(row["job_id"], row["submit_at"]): dict(row) for row in session.execute(query).mappings()}


def _of_ids(cluster: str, jobs: Iterable[JobRecord]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return _JOBS.c.cluster == cluster, _JOBS.c.job_id.in_(sorted({job.job_id for job in jobs}))


def _differs(before: tuple[str, str | None] | None, job: JobRecord, owner: Owner) -> bool:
    """Whether Slurm says something else than before, or the broker learned only now that it is a run's."""
    if before is None:
        return True
    digest, run_id = before
    return digest != job.digest or (owner.run_id is not None and run_id is None)


def _tenant(people: People, account: str) -> str:
    return "default" if account == people.default_account else account


def _keep(row: dict[str, Any], before: Mapping[str, Any] | None) -> None:
    """What Slurm has purged since stays."""
    for name in _KEPT if before is not None else ():
        if row[name] is None:
            row[name] = before[name] if before else None


def _gpu_use(
    job: JobRecord, measured: MeasuredGpu | None, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """How busy the GPUs were, by whom we believe most; what was known stays where nobody knows better."""
    if not job.gpu_count:
        return {"gpu_util": None, "gpu_util_by": None}
    ours = measured.of_attempt(job.start_at, job.end_at) if measured else None
    util, source = best(
        (job.gpu_util, job.gpu_util_by),
        (ours, GpuSource.MEASURED),
        (before["gpu_util"], before["gpu_util_by"]) if before else (None, None),
    )
    return {"gpu_util": util, "gpu_util_by": source and str(source)}


def _counted_to(job: JobRecord, before: Mapping[str, Any] | None) -> int | None:
    """Up to where a job's use counts: its end; while it has none, up to when it was last seen to run."""
    if job.start_at is None:
        return None
    if job.end_at is not None:
        return max(job.end_at, job.start_at)
    seen = before["counted_to"] if before and before["start_at"] == job.start_at else None
    return max(seen or job.start_at, job.start_at)


def _runs(
    session: Session, cluster: str, jobs: Iterable[Owned]
) -> dict[str, tuple[int | None, str, str, str]]:
    """(Slurm id, run, tenant, user name) by job name: the broker's own jobs. Anyone may use their names:
    the id has to fit as well.
    """
    names = sorted({job.name for job in jobs})
    query = (
        select(JobRow.name, JobRow.slurm_job_id, RunRow.id, RunRow.tenant, UserRow.username)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .join(UserRow, UserRow.id == RunRow.owner_id)
        .where(RunRow.cluster == cluster)
    )
    found: dict[str, tuple[int | None, str, str, str]] = {}
    for first in range(0, len(names), _NAMES):
        part = query.where(JobRow.name.in_(names[first : first + _NAMES]))
        found |= {
            name: (number, run, tenant, user) for name, number, run, tenant, user in session.execute(part)
        }
    return found


def _names(session: Session) -> dict[str, str]:
    """Unix account to person's name."""
    query = select(UserRow.unix_account, UserRow.username).where(UserRow.unix_account.is_not(None))
    return {str(account): name for account, name in session.execute(query)}


def count_up_to(session: Session, cluster: str, keys: Sequence[tuple[int, int]], now: int) -> None:
    """Count the use of running jobs that are in the queue up to `now`; they are no runaways."""
    exclusive(session, f"accounting {cluster}")
    sums, changed = Sums(), []
    for before in _open_rows(session, cluster, keys):
        counted = max(before["counted_to"] or 0, now) if before["start_at"] is not None else None
        row = before | {"counted_to": counted, "runaway": False}
        sums.add(before, -1)
        sums.add(row)
        changed.append(
            {name: row[name] for name in ("cluster", "job_id", "submit_at", "counted_to", "runaway")}
        )
    if changed:
        session.execute(update(AccountingJobRow), changed)
        add_sums(session, cluster, sums)


def flag_runaways(session: Session, cluster: str, keys: Sequence[tuple[int, int]]) -> int:
    """Flag those of `keys` that still have no end; how many the cluster has in all. Their use stays where it
    was when they were last seen.
    """
    for before in _open_rows(session, cluster, keys):
        key = (before["cluster"], before["job_id"], before["submit_at"])
        session.execute(
            update(_JOBS)
            .where(tuple_(_JOBS.c.cluster, _JOBS.c.job_id, _JOBS.c.submit_at) == key)
            .values(runaway=True)
        )
    counted = select(func.count()).where(
        _JOBS.c.cluster == cluster, _JOBS.c.end_at.is_(None), _JOBS.c.runaway
    )
    return session.scalar(counted) or 0


def _open_rows(session: Session, cluster: str, keys: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    wanted, ids = set(keys), sorted({job_id for job_id, _ in keys})
    query = select(*COUNTED).where(
        _JOBS.c.cluster == cluster, _JOBS.c.job_id.in_(ids), _JOBS.c.end_at.is_(None)
    )
    for row in session.execute(query).mappings().all():
        if (row["job_id"], row["submit_at"]) in wanted:
            yield dict(row)


# ---- sums -------------------------------------------------------------------------------------------


def add_sums(session: Session, cluster: str, sums: Sums) -> None:
    """Add to the days' sums and histograms (negative amounts take away)."""
    sums.settle()
    lessened = {key[0] for key, amounts in sums.days.items() if min(amounts.values()) < 0}
    lessened |= {place[0] for place, jobs in sums.waits.items() if jobs < 0}
    changed = {key[0] for key in sums.days} | {place[0] for place in sums.waits}
    packed.stale(session, cluster, changed, lessened)
    days = (
        (cluster, day, *who, outcome, *_amounts(amounts))
        for (day, who, outcome), amounts in sorted(sums.days.items())
    )
    waits = (
        (cluster, day, *who, kind, number, jobs)
        for (day, who, kind, number), jobs in sorted(sums.waits.items())
    )
    upsert(session, _DAYS, _DAY_COLUMNS, days, adding=SUMS)
    upsert(session, _WAITS, _WAIT_COLUMNS, waits, adding=("jobs",))


# ---- the cursor -------------------------------------------------------------------------------------


def cursor_of(row: AccountingCursorRow) -> Cursor:
    """The cursor as the arithmetic takes it."""
    return Cursor(**{field.name: getattr(row, field.name) for field in fields(Cursor)})


def save_cursor(session: Session, cluster: str, cursor: Cursor, at: datetime) -> None:
    """Write down how far was read."""
    row = {"cluster": cluster, "updated_at": at, **asdict(cursor)}
    upsert_mappings(session, AccountingCursorRow, [row])


def statuses(session: Session) -> list[dict[str, Any]]:
    """Per cluster: how far was read (epoch seconds), jobs kept, without an end, runaways, rows not
    understood, trouble.
    """
    found = []
    for row in session.scalars(select(AccountingCursorRow).order_by(AccountingCursorRow.cluster)):
        counts = select(func.count()).where(_JOBS.c.cluster == row.cluster)
        found.append(
            {
                "cluster": row.cluster,
                "read_to": row.read_to,
                "settled_to": row.settled_to,
                "jobs": session.scalar(counts),
                "open": session.scalar(counts.where(_JOBS.c.end_at.is_(None))),
                "runaways": session.scalar(counts.where(_JOBS.c.runaway)),
                "bad_rows": row.bad_rows,
                "trouble": row.trouble,
            }
        )
    return found
