"""Removing run directories from the cluster, long after their results are safe."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import and_, or_, select

from broker.compiler.names import MARKER, run_dir
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError
from broker.runs.events import emit
from broker.runs.journal import concerning
from broker.runs.states import Phase, RunState
from broker.runs.tables import JobRow, RunRow

log = structlog.get_logger("broker.cleanup")


def due_for_removal(ctx: Context, cluster: str, limit: int = 20) -> list[str]:
    """Runs whose directory has served its time. A run with results that are not stored is never due."""
    settings = ctx.cluster(cluster)
    now = utcnow()
    unsafe = select(JobRow.run_id).where(JobRow.storing.in_(["pending", "failed"]))
    good = and_(
        RunRow.state == RunState.SUCCEEDED,
        RunRow.ended_at < now - timedelta(days=settings.keep_succeeded_days),
    )
    bad = and_(
        RunRow.state.in_([RunState.FAILED, RunState.CANCELLED, RunState.REJECTED]),
        RunRow.ended_at < now - timedelta(days=settings.keep_failed_days),
    )
    query = select(RunRow.id).where(
        RunRow.cluster == cluster,
        RunRow.phase == Phase.DONE,
        RunRow.removed_at.is_(None),
        RunRow.id.not_in(unsafe),
        or_(good, bad),
    )
    with ctx.db.read() as session:
        return list(session.scalars(query.order_by(RunRow.ended_at).limit(limit)))


def remove_run_files(ctx: Context, cluster: str, lease: Lease, run_id: str) -> None:
    """Remove one run's directory, if it carries our marker; a failure is logged and tried again.

    The row says so first: from then on the run can't be retried, and nothing is taken from a new attempt.
    """
    with ctx.db.write() as session:
        lease.confirm(session)
        run = session.get_one(RunRow, run_id, with_for_update=True)
        if run.phase != Phase.DONE or run.removed_at is not None:
            return
        run.removed_at = utcnow()
    with concerning(run):
        removed = _removed(ctx, cluster, run)
    with ctx.db.write() as session:
        lease.confirm(session)
        run = session.get_one(RunRow, run_id, with_for_update=True)
        if removed:
            emit(session, run, "run_files_removed")
        else:
            run.removed_at = None


def _removed(ctx: Context, cluster: str, run: RunRow) -> bool:
    try:
        directory = run_dir(ctx.profile(cluster), run.id)
        host = ctx.host_for(cluster, run.unix_account)
        if host.stat(directory) is not None:
            host.remove_tree(directory, MARKER)
    except BrokerError as error:
        log.warning("run_files_not_removed", detail=error.detail)
        return False
    return True
