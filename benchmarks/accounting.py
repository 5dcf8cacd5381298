"""`python -m benchmarks.accounting [JOBS] [--on sqlite|postgresql]…`: a year of accounting.

Fills a warehouse with JOBS (1,000,000) recorded jobs through the real parser and ingester, on SQLite and on a
PostgreSQL of its own; repeats the ingest; times the reports. Slurm is not here: what sacct would print was
written to a file before, and cutting a window out of it is not counted. Prints

- jobs stored per second, by the clock and by this process's CPU time (the rest is waiting for disks, for
  PostgreSQL, and for what else the machine does), and once more for the repeated ingest;
- this process's memory, the most within the first tenth of the jobs and the most at all;
- whether the repeated ingest left every row and every sum as it was;
- how long it takes to make all sums anew, and the longest transaction of it: others wait for that on SQLite;
- the slowest of all reports, and of costs, among years of node events, prices, shares and charges
  (`beside`): each by its default, in other ways, and by dimensions drawn by lot, four at a time: on a fresh
  connection, repeated (the least of two), and CPU time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from unittest import mock

from sqlalchemy import delete, func, literal, select
from sqlalchemy.orm import Session
from typing_extensions import override

from benchmarks import beside
from benchmarks.workload import Recorded
from broker.accounting.archive import People
from broker.accounting.ingest import Ingester
from broker.accounting.packed import PARTS
from broker.accounting.rebuild import rebuild
from broker.accounting.tables import (
    AccountingCursorRow,
    AccountingDayRow,
    AccountingJobRow,
    AccountingPackedRow,
    AccountingWaitRow,
)
from broker.cli.serving import keep_loaded
from broker.context import Context
from broker.costs.schemas import CostView
from broker.costs.usage import BY, COSTS
from broker.costs.views import view_costs
from broker.db import leases
from broker.db.leases import Lease
from broker.reports.definitions import REPORTS
from broker.reports.measures import Report
from broker.reports.schemas import ReportView
from broker.reports.views import view_report
from broker.reports.wanted import Scope, Wanted, dimensions
from broker.settings import CostSettings
from broker.slurm import SlurmClient
from broker.slurm.sacct import Answer, Window
from tests.accounting_support import NOON
from tests.api_support import context
from tests.postgres import fresh_database, server

JOBS, LIMIT = 1_000_000, 1000
RATE, SECONDS, GROWTH_MIB = 5000, 1.0, 64
"""What is asked for: jobs a second, seconds a report; and by how much memory may grow later."""
TABLES = (AccountingJobRow, AccountingDayRow, AccountingWaitRow)
DRAWN, SHOWN = 3, 10
UNTIL = datetime.fromtimestamp(NOON, UTC).date() + timedelta(days=1)
SINCE = UNTIL - timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Read:
    """What one reading of the year took: jobs stored by clock and CPU, memory in MiB."""

    jobs: int
    wall_s: float
    cpu_s: float
    tenth_mib: float
    most_mib: float

    @property
    def rate(self) -> float:
        """Jobs per second of CPU time."""
        return self.jobs / self.cpu_s

    @property
    def flat(self) -> bool:
        """Whether memory stayed after the first tenth."""
        return self.most_mib - self.tenth_mib <= GROWTH_MIB

    @override
    def __str__(self) -> str:
        return (
            f"{self.jobs:,} jobs: {self.rate:,.0f}/s of CPU time, {self.jobs / self.wall_s:,.0f}/s by the "
            f"clock; memory {self.tenth_mib:.0f} MiB within a tenth of them, {self.most_mib:.0f} MiB at most"
        )


@dataclass(frozen=True, slots=True)
class Timed:
    """A report and what it took, in seconds."""

    what: str
    lines: int
    first_s: float
    again_s: float
    cpu_s: float

    @override
    def __str__(self) -> str:
        return (
            f"{self.what}: first {self.first_s:.2f} s, again {self.again_s:.2f} s "
            f"({self.cpu_s:.2f} s of CPU time), {self.lines:,} groups"
        )


class Watched(Recorded):
    """Notes this process's memory with every window, and how many jobs were shown until then."""

    marks: list[tuple[int, float]]

    @override
    def sacct(self, command: Window, extra_s: float = 0.0) -> Answer:
        answer = super().sacct(command, extra_s)
        shown = self.marks[-1][0] if self.marks else 0
        self.marks.append((shown + len(answer.jobs), _memory_mib()))
        return answer

    def most_mib(self, share: float) -> float:
        """The most memory within this share of the jobs."""
        return max(mib for shown, mib in self.marks if shown <= self.marks[-1][0] * share)


def _memory_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def read_year(ctx: Context, slurm: Watched, lease: Lease) -> Read:
    """One tick over all of the past, reports' columns packed at its end."""
    slurm.marks, slurm.wall_s, slurm.cpu_s = [], 0.0, 0.0
    wall, cpu = time.monotonic(), time.process_time()
    now = datetime.fromtimestamp(NOON, UTC)
    Ingester(ctx, "main", lease, slurm=cast(SlurmClient, slurm), clock=lambda: now).tick()
    wall, cpu = time.monotonic() - wall - slurm.wall_s, time.process_time() - cpu - slurm.cpu_s
    slurm.marks.append((slurm.marks[-1][0], _memory_mib()))
    return Read(jobs_in(ctx), wall, cpu, slurm.most_mib(0.1), slurm.most_mib(1))


def digest(ctx: Context) -> tuple[Any, ...]:
    """Every row of the warehouse in a few numbers: how many there are, and one over all of their values."""
    found: list[Any] = []
    for table in TABLES:
        columns = [column for column in table.__table__.columns if column.name != "raw"]
        total, count = 0, 0
        with ctx.db.read() as session:
            for row in session.execute(select(*columns).execution_options(yield_per=5000)):
                total ^= int.from_bytes(hashlib.blake2b(repr(tuple(row)).encode(), digest_size=16).digest())
                count += 1
        found.append((count, total))
    return tuple(found)


def repeated(ctx: Context, slurm: Watched, lease: Lease) -> tuple[Read, bool]:
    """The year read once more from its beginning; whether everything stayed as it was."""
    before = digest(ctx)
    with ctx.db.write() as session:
        session.execute(delete(AccountingCursorRow))
    again = read_year(ctx, slurm, lease)
    return again, digest(ctx) == before


def wanted(report: Report, chance: random.Random) -> Iterator[Wanted]:
    """A year of a report: as it is by default, in other ways it is read, and split four times by lot."""
    known = dimensions(report)
    for by in dict.fromkeys((report.by, known[:1], known[-4:])):
        yield Wanted(report, SINCE, UNTIL, by)
    if report.source == "days":
        for by in (("user", "month"), ("tenant", "day"), ("day", "user", "partition", "qos")):
            yield Wanted(report, SINCE, UNTIL, by)
        yield Wanted(report, SINCE, UNTIL, ("user", "partition"), {"tenant": "team-07"})
    for _ in range(DRAWN):
        yield Wanted(report, SINCE, UNTIL, tuple(chance.sample(known, min(4, len(known)))))


def wanted_costs(chance: random.Random) -> Iterator[Wanted]:
    """A year of costs; runs have no periods."""
    for by in ((), ("user", "month"), ("day", "user", "partition", "qos"), ("run",), ("run", "user", "qos")):
        yield Wanted(COSTS, SINCE, UNTIL, by or COSTS.by)
    for _ in range(DRAWN):
        yield Wanted(COSTS, SINCE, UNTIL, tuple(chance.sample([name for name in BY if name != "run"], 4)))


def timed(ctx: Context, asked: Wanted) -> Timed:
    """A report, or costs, from the question to the lines that the API shows."""
    ctx.db.engine.dispose()  # SQLite's cache goes with the connection; the system's stays
    settings = CostSettings(currency=beside.CURRENCY)
    took: list[tuple[float, float]] = []
    for _ in range(3):
        wall, cpu = time.monotonic(), time.process_time()
        with ctx.db.read() as session:
            view: ReportView | CostView
            if asked.report is COSTS:
                view = view_costs(session, asked, Scope(), settings, LIMIT)
            else:
                view = view_report(session, asked, Scope(), LIMIT)
        took.append((time.monotonic() - wall, time.process_time() - cpu))
    again, used = min(took[1:])
    named = "".join(f", {name}={value}" for name, value in asked.filters.items())
    what = f"{asked.report.name} by {' × '.join(asked.by)}{named}"
    return Timed(what, len(view.lines) + view.left_out, took[0][0], again, used)


def reports(ctx: Context, seed: int = 1) -> list[Timed]:
    """Every report, and costs, in many ways, the slowest first; what they are of beside jobs is made."""
    beside.fill(ctx.db, People("main", None))
    chance = random.Random(seed)
    asked = [one for report in REPORTS.values() for one in wanted(report, chance)]
    found = [timed(ctx, one) for one in (*asked, *wanted_costs(chance))]
    return sorted(found, key=lambda one: -one.again_s)


@dataclass(frozen=True, slots=True)
class Remade:
    """Sums made anew: jobs by clock and CPU, and the longest time that others on SQLite had to wait."""

    jobs: int
    wall_s: float
    cpu_s: float
    longest_s: float

    @override
    def __str__(self) -> str:
        return (
            f"{self.jobs:,} jobs in {self.wall_s:.0f} s, {self.jobs / self.cpu_s:,.0f}/s of CPU time; the "
            f"longest write transaction {self.longest_s:.2f} s"
        )


def remade(ctx: Context) -> Remade:
    """The sums made anew out of nothing: the most there can be to correct."""
    with ctx.db.write() as session:
        for table in (AccountingDayRow, AccountingWaitRow):
            session.execute(delete(table))
    write, longest = ctx.db.write, 0.0

    @contextmanager
    def watched() -> Iterator[Session]:
        nonlocal longest
        with write() as session:
            session.connection()  # begun: on SQLite nobody else writes from here on
            began = time.monotonic()
            yield session
        longest = max(longest, time.monotonic() - began)

    wall, cpu = time.monotonic(), time.process_time()
    with mock.patch.object(ctx.db, "write", watched):
        done = rebuild(ctx.db, "main", "benchmark")
    return Remade(done.jobs, time.monotonic() - wall, time.process_time() - cpu, longest)


def jobs_in(ctx: Context) -> int:
    """How many jobs the warehouse has."""
    with ctx.db.read() as session:
        return session.scalar(select(func.count()).select_from(AccountingJobRow)) or 0


def rows_of(ctx: Context) -> str:
    """How large the warehouse is."""
    with ctx.db.read() as session:
        counts = {
            table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
            for table in TABLES
        }
        packed = AccountingPackedRow
        parts = (func.length(getattr(packed, part)) for part in PARTS)
        size = session.scalar(select(func.sum(sum(parts, literal(0))))) or 0
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"{told} rows; packed columns {size / 2**20:.0f} MiB"


@contextmanager
def warehouse(kind: str, folder: Path) -> Iterator[tuple[Context, Lease]]:
    """An empty warehouse on `sqlite` or `postgresql`; on SQLite the one in the folder where there is one. The
    process is as the worker's is at its start.
    """
    keep_loaded()
    if kind == "sqlite":
        there = folder / "sqlite" / "broker.sqlite3"
        with context(folder / "sqlite", f"sqlite:///{there}" if there.exists() else None) as ctx:
            yield ctx, _lease(ctx)
        return
    with server() as url, context(folder / "postgresql", fresh_database(url, "warehouse")) as ctx:
        yield ctx, _lease(ctx)


def _lease(ctx: Context) -> Lease:
    lease = leases.acquire(ctx.db, "worker:main", "benchmark", 36_000)
    assert lease is not None
    return lease


def main(words: Sequence[str] | None = None) -> None:
    """Fill, repeat, read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accounting")
    parser.add_argument("jobs", nargs="?", type=int, default=JOBS)
    parser.add_argument("--on", action="append", choices=("sqlite", "postgresql"), help="repeatable")
    parser.add_argument("--folder", type=Path, help="where SQLite's database stays afterwards")
    options = parser.parse_args(words)
    print("load average: {:.1f} {:.1f} {:.1f}, {} CPUs".format(*os.getloadavg(), os.cpu_count()), flush=True)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as home:
        began = time.process_time()
        slurm = Watched(options.jobs, Path(home, "sacct.txt"))
        size = Path(home, "sacct.txt").stat().st_size
        print(
            f"sacct's text: {size / 2**30:.1f} GiB, made in {time.process_time() - began:.0f} s of CPU time"
        )
        for kind in options.on or ("sqlite", "postgresql"):
            with warehouse(kind, options.folder or Path(home)) as (ctx, lease):
                print(f"\n{kind}: {read_year(ctx, slurm, lease)}", flush=True)
                print(rows_of(ctx), flush=True)
                again, same = repeated(ctx, slurm, lease)
                print(f"repeated: {again}; {'nothing changed' if same else 'IT CHANGED'}", flush=True)
                before = digest(ctx)
                print(f"made anew: {remade(ctx)}; {'the same' if digest(ctx) == before else 'NOT THE SAME'}")
                print("\n".join(map(str, reports(ctx)[:SHOWN])), flush=True)


if __name__ == "__main__":
    main()
