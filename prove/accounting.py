"""A million recorded jobs: read, read once more, and reported on. No cluster has had them: what sacct would
print is made from a seed (`benchmarks.workload`); parser, ingester, databases and reports are the product's.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import accounting


def read_twice(home: Path) -> tuple[str, bool]:
    """Fill SQLite, and again; what was measured, and whether it is what was asked for."""
    slurm = accounting.Watched(accounting.JOBS, home / "sacct.txt")
    with accounting.warehouse("sqlite", home) as (ctx, lease):
        once = accounting.read_year(ctx, slurm, lease)
        again, same = accounting.repeated(ctx, slurm, lease)
    told = f"{once}; repeated: {again.rate:,.0f}/s, {'nothing changed' if same else 'the rows CHANGED'}"
    return told, once.rate >= accounting.RATE and once.flat and same


def report(home: Path) -> tuple[str, bool]:
    """Time every report and costs on both databases (SQLite as `read_twice` left it), with node events,
    prices, shares, charges and a queue beside the jobs; the slowest of each.
    """
    told, holds = [], True
    for kind in ("sqlite", "postgresql"):
        with accounting.warehouse(kind, home) as (ctx, lease):
            if not accounting.jobs_in(ctx):
                slurm = accounting.Watched(accounting.JOBS, home / "sacct.txt")
                accounting.read_year(ctx, slurm, lease)
            found = accounting.reports(ctx)
        told.append(f"{kind}: of {len(found)} the slowest {found[0]}")
        holds = holds and found[0].again_s < accounting.SECONDS
    return "; ".join(told), holds
