"""Keeping and reading what jobs used: the newest look, each look for days, the hours for a year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broker.resources.usage import Figure, JobUse
from broker.runs.measured import JobUsageRow, JobUsageSampleRow
from broker.runs.tables import JobRow
from broker.settings import ResourceSettings
from broker.slurm import QueueJob

HOUR: Final = 3600
RECENT: Final = timedelta(minutes=5)
"""How long what `sstat` said last is shown."""
FIGURES: Final = {
    "cpu_cores": "cpu_n",
    "memory_mib": "memory_n",
    "gpu_util": "gpu_util_n",
    "gpu_memory_mib": "gpu_memory_n",
}
"""The figures of a sample, and the column that counts the looks which knew each."""
_KEY = [column.name for column in JobUsageSampleRow.__table__.primary_key]


@dataclass(frozen=True, slots=True)
class Taken:
    """A look at a job: what it was given, and what it used."""

    job: JobRow
    entry: QueueJob
    use: JobUse


@dataclass(frozen=True, slots=True)
class Point:
    """Means over a span that begins at `at`; None: nobody knew it then."""

    at: datetime
    cpu_cores: float | None
    memory_mib: float | None
    gpu_util: float | None
    gpu_memory_mib: float | None


def keep_usage(session: Session, cluster: str, now: datetime, taken: Sequence[Taken]) -> None:
    """Store one look at many jobs: as the newest, as a sample, and in its hour."""
    if not taken:
        return
    ids = [one.job.id for one in taken]
    before = {row.job_id: row for row in session.scalars(_rows(ids))}
    for one in taken:
        row = before.get(one.job.id)
        if row is None:
            row = JobUsageRow(job_id=one.job.id)
            session.add(row)
        _renew(row, cluster, now, one)
    dialect = session.get_bind().dialect.name
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    samples = [_sample(now, one) for one in taken]
    hours = [row | {"step_s": HOUR, "at": row["at"] - row["at"] % HOUR} for row in samples]
    for rows in (samples, hours):
        adding = insert(JobUsageSampleRow)
        columns = [*FIGURES, *FIGURES.values()]
        added = {name: getattr(JobUsageSampleRow, name) + adding.excluded[name] for name in columns}
        session.execute(adding.on_conflict_do_update(index_elements=_KEY, set_=added), rows)


def _rows(ids: Sequence[str]) -> Any:
    return select(JobUsageRow).where(JobUsageRow.job_id.in_(ids))


def _renew(row: JobUsageRow, cluster: str, now: datetime, one: Taken) -> None:
    """The row after this look; the sums begin anew with each start of the job."""
    job, entry, use = one.job, one.entry, one.use
    if row.restart != job.restarts or row.slurm_job_id != entry.job_id:
        row.use = {}
        row.first_at, row.gpu_util_sum, row.gpu_util_looks, row.memory_peak_mib = now, 0.0, 0, None
        row.gpu_spans = None
    row.run_id, row.cluster, row.slurm_job_id = job.run_id, cluster, entry.job_id
    row.restart, row.taken_at = job.restarts, now
    row.cpus, row.gpus = entry.tres.cpus or entry.cpus, entry.tres.gpus
    row.memory_mib, row.use = entry.tres.memory_mib, as_json(use) | _kept(row, use, now)
    if use.gpu_util is not None:
        row.gpu_util_sum += use.gpu_util.value
        row.gpu_util_looks += 1
    if use.memory_mib is not None:
        row.memory_peak_mib = max(row.memory_peak_mib or 0.0, use.memory_mib.value)


def _kept(row: JobUsageRow, use: JobUse, now: datetime) -> dict[str, Any]:
    """What sstat said a moment ago, for a job whose turn it was not now; its own time stands with it."""
    return {
        name: old
        for name in ("cpu_cores", "memory_mib")
        if getattr(use, name) is None
        and (old := row.use.get(name)) is not None
        and now - datetime.fromisoformat(old["at"]) <= RECENT
    }


def _sample(now: datetime, one: Taken) -> dict[str, Any]:
    row: dict[str, Any] = {"job_id": one.job.id, "step_s": 0, "at": int(now.timestamp())}
    for name, count in FIGURES.items():
        figure: Figure | None = getattr(one.use, name)
        row |= {name: figure.value if figure else 0.0, count: int(figure is not None)}
    return row


def forget_usage(session: Session, settings: ResourceSettings, now: datetime) -> None:
    """Delete what has been kept long enough."""
    for step, days in ((0, settings.usage_raw_days), (HOUR, settings.hourly_days)):
        before = int((now - timedelta(days=days)).timestamp())
        old = (JobUsageSampleRow.step_s == step, JobUsageSampleRow.at < before)
        session.execute(delete(JobUsageSampleRow).where(*old))


def newest(session: Session, job_ids: Sequence[str]) -> dict[str, JobUsageRow]:
    """The newest look at each of these jobs that was ever looked at."""
    return {row.job_id: row for row in session.scalars(_rows(job_ids))}


def span_for(since: datetime, until: datetime, points: int) -> int:
    """How many seconds a point stands for, so that there are at most `points`: whole minutes."""
    seconds = max(1.0, (until - since).total_seconds())
    return max(60, -(-int(seconds) // (points * 60)) * 60)


def step_and_span(since: datetime, span_s: int, raw_from: datetime) -> tuple[int, int]:
    """(step of samples, seconds that a point stands for): of before `raw_from` there are hours only."""
    if since >= raw_from and span_s < HOUR:
        return 0, span_s
    return HOUR, span_s + -span_s % HOUR


def over_time(
    session: Session, job_id: str, since: datetime, until: datetime, span_s: int, raw_from: datetime
) -> list[Point]:
    """A job's use in the spans of `step_and_span`, oldest first; one in which nobody looked is absent."""
    step, span = step_and_span(since, span_s, raw_from)
    at = JobUsageSampleRow.at - JobUsageSampleRow.at % span
    sums = [func.sum(getattr(JobUsageSampleRow, name)) for name in (*FIGURES, *FIGURES.values())]
    begin = int(since.timestamp())
    query = (
        select(at, *sums)
        .where(
            JobUsageSampleRow.job_id == job_id,
            JobUsageSampleRow.step_s == step,
            JobUsageSampleRow.at >= begin - begin % span,
            JobUsageSampleRow.at < int(until.timestamp()) + 1,
        )
        .group_by(at)
        .order_by(at)
    )
    n = len(FIGURES)
    return [
        Point(
            datetime.fromtimestamp(int(row[0]), UTC),
            *(
                float(value) / int(count) if count else None
                for value, count in zip(row[1 : n + 1], row[n + 1 :], strict=True)
            ),
        )
        for row in session.execute(query)
    ]


def as_json(use: JobUse) -> dict[str, Any]:
    """A look as it is kept: times as ISO 8601."""
    return {name: _plain(value) for name, value in asdict(use).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value
