"""Advice from one job of the cluster, whoever submitted it, as options of sbatch(1). Pure."""

from __future__ import annotations

from broker.accounting.tables import AccountingJobRow
from broker.advice.rules import Asked, Attempt, advise
from broker.advice.texts import for_sbatch
from broker.slurm.gpu_types import MIXED

SAMPLE_S = 30
"""Slurm's default `JobAcctGatherFrequency` (slurm.conf(5)), unless a caller knows better."""


def options_for(row: AccountingJobRow, sample_s: int = SAMPLE_S) -> str:
    """The options to submit it with next time, "" where nothing is advised.

    Cores are left out: of others' jobs it is not known how they are split into tasks. So is what the job had
    no limit of.
    """
    if row.end_at is None or not row.elapsed_s:
        return ""
    asked = Asked(row.mem_mib, row.timelimit_s, row.gpu_count, row.gpu_type or None, None, max(row.nodes, 1))
    attempt = Attempt(
        run_id=row.run_id or "",
        state=row.state,
        asked=asked,
        elapsed_s=row.elapsed_s,
        peak_mib=peak_of(row.mem_in_tot_mib, row.max_rss_mib, row.nodes),
        gpu_util=None if row.gpu_util is None else min(1.0, row.gpu_util / 100),
    )
    several = row.gpu_types or row.gpu_type == MIXED  # how busy these were says nothing of each type
    kind = "" if several else row.gpu_type
    limited = {"memory": row.mem_mib > 0, "time": row.timelimit_s is not None, "gpu_count": True}
    return " ".join(
        for_sbatch(one.resource, one.suggested, asked.nodes, kind)
        for one in advise(asked, [attempt], sample_s)
        if one.suggested is not None and limited.get(one.resource)
    )


def peak_of(in_total_mib: int | None, largest_task_mib: int | None, nodes: int) -> int | None:
    """MiB over all nodes, an upper bound: the largest step's sum over tasks, and its largest task (a run's
    job has one on each node) on every node. None: nobody measured it.
    """
    found = [in_total_mib, None if largest_task_mib is None else largest_task_mib * max(nodes, 1)]
    return max((peak for peak in found if peak is not None), default=None)
