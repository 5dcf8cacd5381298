"""Jobs that came into being after all.

An sbatch whose answer was lost may take effect later than the look that came after it (a slurmctld that was
frozen). When its run was cancelled or failed in between, nobody waits for it any more. It is held, so it
does nothing; but it must not stay.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Collection, Iterable, Mapping

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.context import Context
from broker.db.leases import Lease
from broker.runs.observation import job_state
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow
from broker.slurm import QueueJob

log = structlog.get_logger("broker.strays")

ENDED = [state for state in JobState if state.ended]
OUR_NAME = re.compile(r"[a-z0-9.-]+\.[0-9a-f]{16}")
"""What `compiler.names.job_name` makes."""


def adopt_strays(
    ctx: Context, cluster: str, lease: Lease, watched: Collection[str], queue: Iterable[QueueJob]
) -> None:
    """Give such jobs back to their rows, marked to be ended: the tracker's next tick sees to it.

    `watched`: names of jobs that have their ids. Only jobs of the run's own account: anyone may use a name.
    """
    settings = ctx.cluster(cluster)
    owner = settings.ssh_user if settings.transport == "ssh" else getpass.getuser()
    live = {
        (entry.user, entry.name): entry.job_id
        for entry in queue
        if entry.name not in watched and OUR_NAME.fullmatch(entry.name) and not job_state(entry.state).ended
    }
    if not live:
        return
    with ctx.db.read() as session:
        if not _given_up(session, cluster, owner, live):
            return
    with ctx.db.write() as session:
        lease.confirm(session)
        for job, number in _given_up(session, cluster, owner, live):
            job.slurm_job_id, job.reap = number, True
            log.warning("stray_job_found", run_id=job.run_id, name=job.name, job_id=job.slurm_job_id)


def _given_up(
    session: Session, cluster: str, service: str, live: Mapping[tuple[str, str], int]
) -> list[tuple[JobRow, int]]:
    query = (
        select(JobRow, RunRow.unix_account)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .where(RunRow.cluster == cluster, JobRow.slurm_job_id.is_(None), JobRow.state.in_(ENDED))
    )
    rows = session.execute(query.where(JobRow.name.in_({name for _, name in live}))).all()
    found = ((job, live.get((account or service, job.name))) for job, account in rows)
    return [(job, number) for job, number in found if number is not None]
