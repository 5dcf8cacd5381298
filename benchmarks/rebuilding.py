"""`python -m benchmarks.rebuilding [JOBS] [--on sqlite|postgresql]…`: sums made anew, of ever more years.

Fills a warehouse with a year of JOBS (100,000) and makes all sums anew out of nothing; then of two years, and
of four: the same year again, earlier. Every hundredth job waited for three weeks (`LASTING`). Prints of each

- jobs made anew per second of CPU time and by the clock, and the longest write transaction of it;
- this process's memory, the most until then;

and at the end how many times as long a job takes among four years as among one.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import insert, select, update

from benchmarks.accounting import Remade, Watched, jobs_in, read_year, remade, warehouse
from benchmarks.workload import YEAR
from broker.accounting.tables import AccountingJobRow
from broker.context import Context

JOBS, YEARS = 100_000, (1, 2, 4)
WAITED_S, EACH = 21 * 86_400, 100
_TIMES = ("submit_at", "eligible_at", "start_at", "end_at", "counted_to")
_APART = 1 << 40
"""Between the ids of one year and those of the year before."""


def wait(ctx: Context) -> None:
    """Let some jobs have been submitted long before they began."""
    row = AccountingJobRow
    with ctx.db.write() as session:
        some = update(row).where(row.job_id % EACH == 0).values(submit_at=row.submit_at - WAITED_S)
        session.execute(some)


def repeat(ctx: Context, since: int, until: int) -> None:
    """The first year's jobs once more, as those of `since`, …, `until` - 1 years before."""
    columns = AccountingJobRow.__table__.columns
    for years in range(since, until):
        moved = {name: columns[name] - years * YEAR for name in _TIMES}
        moved["job_id"] = columns.job_id + years * _APART
        values = [moved.get(column.name, column) for column in columns]
        first = select(*values).where(columns.job_id < _APART)
        with ctx.db.write() as session:
            session.execute(insert(AccountingJobRow).from_select([c.name for c in columns], first))


def histories(ctx: Context) -> list[Remade]:
    """All sums made anew, of a year and then of more."""
    wait(ctx)
    found: list[Remade] = []
    for before, years in zip((1, *YEARS), YEARS, strict=False):
        repeat(ctx, before, years)
        found.append(remade(ctx))
        most_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{years} years: {found[-1]}; memory {most_mib:.0f} MiB at most so far", flush=True)
        assert found[-1].jobs == jobs_in(ctx)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Fill, make anew, make the history longer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuilding")
    parser.add_argument("jobs", nargs="?", type=int, default=JOBS)
    parser.add_argument("--on", action="append", choices=("sqlite", "postgresql"), help="repeatable")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as home:
        slurm = Watched(options.jobs, Path(home, "sacct.txt"))
        for kind in options.on or ("sqlite", "postgresql"):
            with warehouse(kind, Path(home)) as (ctx, lease):
                read_year(ctx, slurm, lease)
                print(f"\n{kind}:", flush=True)
                first, *_, last = histories(ctx)
            cpu = last.cpu_s / last.jobs / (first.cpu_s / first.jobs)
            wall = last.wall_s / last.jobs / (first.wall_s / first.jobs)
            print(f"a job among {YEARS[-1]} years: {cpu:.2f} times the CPU time, {wall:.2f} by the clock")


if __name__ == "__main__":
    main()
