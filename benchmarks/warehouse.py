"""`python -m benchmarks.warehouse [JOBS]`: fill an accounting warehouse (SQLite) with a year of jobs.

Prints jobs per second (parsing sacct's text, storing rows and sums) by the clock and by the CPU time of this
process, what a repeated ingest changes, the time of a rebuild, and how much memory grew from the first tenth
to the end. Slurm is not here: its answers are made as they are asked for (their making is not counted); a
tenth of the jobs run for 11 hours, each has three steps.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from sqlalchemy import func, select

from broker.accounting import archive
from broker.accounting.ingest import Ingester
from broker.accounting.tables import AccountingDayRow, AccountingJobRow
from broker.context import Context
from broker.db import leases
from broker.hosts import Completed
from broker.slurm import SlurmClient
from broker.slurm.sacct import Answer, Window
from tests.accounting_support import DAY, NOON, Row, Slurmdbd, job, printed, step
from tests.api_support import context

YEAR = 365 * DAY
LONG_S, SHORT_S = 40_000, 1800
STATES = ("COMPLETED", "COMPLETED", "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED by 1000")


class Recorded(Slurmdbd):
    """A year of `jobs` jobs, evenly spread."""

    def __init__(self, jobs: int) -> None:
        super().__init__()
        self.count, self.made_s, self.made_cpu_s = jobs, 0.0, 0.0
        self.rss_mib = [0.0]

    def sacct(self, command: Window, extra_s: float = 0.0) -> Answer:
        began, cpu = time.monotonic(), time.process_time()
        first, last = (
            (at - NOON + YEAR) * self.count // YEAR for at in (command.since - LONG_S, command.until)
        )
        rows: list[Row] = []
        for number in range(max(first, 0), min(last, self.count)):
            rows += self._rows(number, command.since, command.until)
        text = printed(rows, command.delimiter).encode()
        self.made_s += time.monotonic() - began
        self.made_cpu_s += time.process_time() - cpu
        self.rss_mib.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return command.parse(Completed(0, text, b""))

    def _rows(self, number: int, since: int, until: int) -> list[Row]:
        run = LONG_S - 60 if number % 10 == 0 else SHORT_S
        submit = NOON - YEAR + number * YEAR // self.count
        if not since < submit + 60 + run <= until:
            return []
        row = job(
            number + 1,
            submit,
            run,
            User=f"user{number % 80}",
            Account=f"team-{number % 12}",
            Partition=("gpu", "cpu", "long")[number % 3],
            State=STATES[number % 6],
            JobName=f"train-{number % 500}",
            NCPUS=2 ** (number % 5),
        )
        used = {
            "TotalCPU": "00:25:10",
            "MaxRSS": "1073741824",
            "TRESUsageInTot": "cpu=00:25:10,mem=2147483648",
        }
        return [row, step(row, "batch", **used), step(row, "extern"), step(row, "0", **used)]


def fill(ctx: Context, slurm: Recorded) -> None:
    """One tick over all of the past; only what making the answers took is not counted."""
    lease = leases.acquire(ctx.db, "worker:main", "benchmark", 36_000)
    assert lease is not None
    slurm.made_s, slurm.made_cpu_s = 0.0, 0.0
    began, cpu = time.monotonic(), time.process_time()
    now = datetime.fromtimestamp(NOON, UTC)
    Ingester(ctx, "main", lease, slurm=cast(SlurmClient, slurm), clock=lambda: now).tick()
    spent = time.monotonic() - began - slurm.made_s
    used = time.process_time() - cpu - slurm.made_cpu_s
    with ctx.db.read() as session:
        stored = session.scalar(select(func.count()).select_from(AccountingJobRow)) or 0
    print(
        f"{stored} jobs: {stored / spent:.0f}/s by the clock, {stored / used:.0f}/s of CPU time", flush=True
    )


def sums(ctx: Context) -> tuple[int, ...]:
    """Rows and sums, to see that nothing changed."""
    row = AccountingDayRow
    columns = (func.count(), func.sum(row.ended), func.sum(row.core_s), func.sum(row.gpu_s))
    with ctx.db.read() as session:
        return tuple(session.execute(select(*columns)).one())


def main(jobs: int) -> None:
    """Fill, repeat, rebuild."""
    slurm = Recorded(jobs)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as home, context(Path(home)) as ctx:
        fill(ctx, slurm)
        marks, before = slurm.rss_mib, sums(ctx)
        print(f"memory: {marks[len(marks) // 10 + 1]:.0f} MiB after a tenth, {marks[-1]:.0f} MiB at the end")
        with ctx.db.write() as session:
            session.execute(archive.AccountingCursorRow.__table__.delete())  # type: ignore[attr-defined]
        fill(ctx, slurm)
        print(f"repeated: the sums are {'the same' if sums(ctx) == before else 'DIFFERENT'}")
        began = time.monotonic()
        with ctx.db.write() as session:
            archive.rebuild(session, "main")
        same = "the same" if sums(ctx) == before else "DIFFERENT"
        print(f"rebuilt in {time.monotonic() - began:.1f} s: the sums are {same}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
