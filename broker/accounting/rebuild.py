"""The sums of the days made anew from the jobs, while the worker goes on adding to them.

Part by part, a fortnight each, or as many as have few jobs together (only jobs near a part are read for it):
what the days' sums should be and what they are is read at one moment (a snapshot, which holds up
nobody), and the difference is added to each day in a short transaction of its own. A job that is stored or
changes meanwhile adds its own difference; sums commute, so neither has to know of the other. Readers see a
day as it was or as it should be, nothing in between. Where it ends early, some days are right and the others
as they were; made anew once more, only these change.

Two at once would both add the same difference: whoever holds the lease `rebuild:CLUSTER` works, the other
waits for its end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Final

from sqlalchemy import ColumnElement, Table, TextClause, and_, func, or_, select, text, true
from sqlalchemy.orm import Session

from broker.accounting import packed
from broker.accounting.archive import COUNTED, add_sums
from broker.accounting.buckets import DAY_S, SUMS, DayKey, Sums, WaitKey, Who
from broker.accounting.tables import (
    LASTING,
    LASTING_S,
    AccountingDayRow,
    AccountingJobRow,
    AccountingPackedRow,
    AccountingWaitRow,
)
from broker.db import Database
from broker.db.leases import Lease, LeaseRow, acquire, release, renew
from broker.db.locks import exclusive

FORTNIGHT: Final = 14
"""Days that are made at a time at least."""
MOST_JOBS = 20_000
"""Jobs of a part of several fortnights, at most: their sums are in memory, a few KiB each."""
_WAITS_OF_A_JOB: Final = 4
"""Rows of waits that take as much memory as what a job adds to the days."""
PACKED_DAYS: Final = 5
TTL_S: Final = 30.0
"""How long one that was killed keeps others from beginning."""
_PAGE: Final = 1000
_EPOCH: Final = date(1970, 1, 1).toordinal()
_JOBS: Table = AccountingJobRow.__table__  # type: ignore[assignment]
_DAYS: Table = AccountingDayRow.__table__  # type: ignore[assignment]
_WAITS: Table = AccountingWaitRow.__table__  # type: ignore[assignment]
_PACKED: Table = AccountingPackedRow.__table__  # type: ignore[assignment]
_NOT_LASTING: Final = text(f"{LASTING} is not true")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. `jobs`: those submitted in the days that are done; `changed`: days that were not right;
    `seconds`: since it began.
    """

    days: int
    of: int
    jobs: int
    changed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Part:
    """Days that are made at a time: from `first` on, before `after` (since the epoch). `fortnights`: those of
    them that have anything.
    """

    first: int
    after: int
    fortnights: int

    @property
    def days(self) -> tuple[date, date]:
        """Its first day, and the first after it."""
        return date.fromordinal(_EPOCH + self.first), date.fromordinal(_EPOCH + self.after)


@dataclass(slots=True)
class Errors:
    """What the sums of some days lack (negative: have too much), and days that keep rows of nothing."""

    sums: Sums
    empty: set[date]
    jobs: int

    def by_day(self) -> Iterator[tuple[date, Sums]]:
        """Each day of which anything is wrong."""
        self.sums.settle()
        found: dict[date, Sums] = {day: Sums() for day in self.empty}
        for key, amounts in self.sums.days.items():
            found.setdefault(key[0], Sums()).days[key] = amounts
        for place, jobs in self.sums.waits.items():
            found.setdefault(place[0], Sums()).waits[place] = jobs
        yield from sorted(found.items(), key=lambda one: one[0])


class _Kept:
    """The lease, renewed as the work goes on."""

    def __init__(self, db: Database, lease: Lease) -> None:
        self._db, self.lease, self._renewed = db, lease, time.monotonic()

    def keep(self) -> None:
        """Renew it where that is due."""
        if time.monotonic() - self._renewed > TTL_S / 3:
            renew(self._db, self.lease, TTL_S)
            self._renewed = time.monotonic()


def rebuild(
    db: Database,
    cluster: str,
    holder: str,
    tell: Callable[[Progress], None] = lambda _: None,
    waits: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Make the cluster's sums anew; `tell` hears of each part. `holder`: who does it (leases); `waits` hears
    of each other holder that it waits for.

    Raises `LeaseLost` where it was away for so long that another one took over.
    """
    began = time.monotonic()
    with _alone(db, cluster, holder, waits) as kept:
        with _snapshot(db) as session:
            parts = _parts(session, cluster)
        done = Progress(0, sum(part.fortnights for part in parts) * FORTNIGHT, 0, 0, 0.0)
        for part in parts:
            with _snapshot(db) as session:
                errors = _errors(session, cluster, part, kept)
            changed = 0
            for day, sums in errors.by_day():
                kept.keep()
                with db.write() as session:
                    kept.lease.confirm(session)
                    _correct(session, cluster, day, sums)
                changed += 1
            _pack(db, cluster, part, kept)
            days = done.days + part.fortnights * FORTNIGHT
            jobs, wrong = done.jobs + errors.jobs, done.changed + changed
            done = Progress(days, done.of, jobs, wrong, time.monotonic() - began)
            tell(done)
    return done


@contextmanager
def _alone(db: Database, cluster: str, holder: str, waits: Callable[[str], None]) -> Iterator[_Kept]:
    """The lease, waited for: another one works, or was killed less than `TTL_S` ago."""
    name, told = f"rebuild:{cluster}", holder
    while (lease := acquire(db, name, holder, TTL_S)) is None:
        with db.read() as session:
            other = session.get_one(LeaseRow, name).holder
        if other != told:
            waits(other)
            told = other
        time.sleep(1)
    try:
        yield _Kept(db, lease)
    finally:
        release(db, lease)


@contextmanager
def _snapshot(db: Database) -> Iterator[Session]:
    """All that is read in it is of one moment."""
    with db.read() as session:
        if not db.is_sqlite:  # there every transaction is
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


def _parts(session: Session, cluster: str) -> list[Part]:
    """The days that any job touches, or that have sums, in order."""
    parts: list[Part] = []
    room = 0
    for number, jobs in sorted(_fortnights(session, cluster).items()):
        begin = number * FORTNIGHT
        if parts and jobs <= room:
            room -= jobs
            parts[-1] = Part(parts[-1].first, begin + FORTNIGHT, parts[-1].fortnights + 1)
        else:
            room = MOST_JOBS - jobs
            parts.append(Part(begin, begin + FORTNIGHT, 1))
    return parts


def _fortnights(session: Session, cluster: str) -> Counter[int]:
    """The fortnights (since the epoch) that any job touches, or that have sums, with how many jobs do; where
    there are more sums than jobs that make them, as many as fill as much memory.
    """
    row, width = AccountingJobRow, FORTNIGHT * DAY_S
    query = select(
        (row.submit_at // width).label("of_submit"),
        (row.end_at // width).label("of_end"),
        (row.start_at // width).label("of_start"),
        (row.counted_to // width).label("of_counted"),
        func.count(),
    ).where(row.cluster == cluster)
    query = query.group_by("of_submit", "of_end", "of_start", "of_counted")
    found: Counter[int] = Counter()
    for submit, end, start, counted, jobs in session.execute(query):
        touched = {number for number in (submit, end) if number is not None}
        if start is not None:
            touched |= set(range(start, (counted if counted is not None else start) + 1))
        found.update(dict.fromkeys(touched, jobs))
    for table, of_a_job in ((_DAYS, 1), (_WAITS, _WAITS_OF_A_JOB)):
        of_days = select(table.c.day, func.count()).where(table.c.cluster == cluster).group_by(table.c.day)
        sums: Counter[int] = Counter()
        for day, rows in session.execute(of_days):
            sums[(day.toordinal() - _EPOCH) // FORTNIGHT] += rows
        for number, rows in sums.items():
            found[number] = max(found[number], rows // of_a_job)
    return found


def _errors(session: Session, cluster: str, part: Part, kept: _Kept) -> Errors:
    """What is wrong with the sums of a part's days at one moment."""
    begin, end = part.first * DAY_S, part.after * DAY_S
    sums, jobs = Sums(), 0
    for touching in _touching(begin, end):
        query = select(*COUNTED).where(_JOBS.c.cluster == cluster, *touching)
        for page in session.execute(query, execution_options={"yield_per": _PAGE}).mappings().partitions():
            kept.keep()
            for job in page:
                sums.add(dict(job))
                jobs += begin <= job["submit_at"] < end
    first, after = part.days
    sums.days = {key: amounts for key, amounts in sums.days.items() if first <= key[0] < after}
    sums.waits = {place: count for place, count in sums.waits.items() if first <= place[0] < after}
    return Errors(sums, _less(session, cluster, first, after, sums), jobs)


def _touching(begin: int, end: int) -> Iterator[tuple[ColumnElement[bool] | TextClause, ...]]:
    """The jobs that touch a time, in ways of which each job has one and each way an index: only what lies
    around that time is read, however long the history.
    """
    row = _JOBS.c
    # "is true": no way for an index; by half of the condition, databases would read all of the past
    touching = or_(
        and_(row.submit_at >= begin, row.submit_at < end),
        and_(row.end_at >= begin, row.end_at < end),
        and_(row.start_at < end, or_(row.counted_to >= begin, row.start_at >= begin)),
    ).is_(true())
    never = row.start_at.is_(None).is_(true())
    before, after = begin - LASTING_S, end + LASTING_S
    # any time is: to SQLite, this makes their index better than others of a cluster, which have all jobs
    yield touching, text(LASTING), row.submit_at >= 0
    yield touching, _NOT_LASTING, row.start_at >= before, row.start_at < after
    yield touching, _NOT_LASTING, never, row.end_at >= before, row.end_at < after
    yield touching, never, row.end_at.is_(None)


def _less(session: Session, cluster: str, first: date, after: date, sums: Sums) -> set[date]:
    """Take what there is off the sums; the days that keep rows of nothing."""
    empty: set[date] = set()
    query = select(_DAYS).where(_DAYS.c.cluster == cluster, _DAYS.c.day >= first, _DAYS.c.day < after)
    for row in session.execute(query, execution_options={"yield_per": _PAGE}).mappings():
        key: DayKey = (row["day"], Who(*(row[name] for name in Who._fields)), row["outcome"])
        due = sums.days.get(key)
        sums.days[key] = {name: (due[name] if due else 0) - row[name] for name in SUMS}
        if due is None or not any(due.values()):
            empty.add(row["day"])
    query = select(_WAITS).where(_WAITS.c.cluster == cluster, _WAITS.c.day >= first, _WAITS.c.day < after)
    for row in session.execute(query, execution_options={"yield_per": _PAGE}).mappings():
        who = Who(*(row[name] for name in Who._fields))
        place: WaitKey = (row["day"], who, row["kind"], row["bucket"])
        due_jobs = sums.waits.get(place, 0)
        sums.waits[place] = due_jobs - row["jobs"]
        if not due_jobs:
            empty.add(row["day"])
    return empty


def _correct(session: Session, cluster: str, day: date, sums: Sums) -> None:
    """Add to a day what it lacks, and leave no row of nothing."""
    exclusive(session, f"accounting {cluster}")
    add_sums(session, cluster, sums)
    packed.drop_nothing(session, cluster, day)


def _pack(db: Database, cluster: str, part: Part, kept: _Kept) -> None:
    """Pack the part's days anew, few at a time: reports read the rows of those that are not."""
    first, after = part.days
    days = PACKED_DAYS
    with db.write() as session:
        kept.lease.confirm(session)
        exclusive(session, f"accounting {cluster}")
        found: set[date] = set()
        for table in (_DAYS, _WAITS, _PACKED):
            rows = table.c
            of_part = and_(rows.cluster == cluster, rows.day >= first, rows.day < after)
            found |= set(session.scalars(select(rows.day).where(of_part).distinct()))
        packed.stale(session, cluster, found)
    while days == PACKED_DAYS:
        kept.keep()
        with db.write() as session:
            kept.lease.confirm(session)
            exclusive(session, f"accounting {cluster}")
            days = packed.pack(session, cluster, PACKED_DAYS)
