"""Jobs in the accounting warehouse, as an ingest leaves them: rows, and the sums made of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.orm import Session

from broker.accounting.archive import add_sums
from broker.accounting.buckets import Sums
from broker.accounting.tables import AccountingCursorRow, AccountingJobRow
from broker.context import Context
from broker.identity import Role
from tests.api_support import Api


def at(text: str) -> int:
    """`2026-10-31T23:00` (UTC) in seconds since the epoch."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def job(job_id: int, submit: int, wait_s: int = 0, run_s: int = 3600, **changes: Any) -> dict[str, Any]:
    """A job that waited, ran and ended well; four cores, 8 GiB of which half was used, no GPU."""
    start = submit + wait_s
    row: dict[str, Any] = {
        "cluster": "main",
        "job_id": job_id,
        "submit_at": submit,
        "array_id": None,
        "array_task": None,
        "tasks": 1,
        "name": f"job-{job_id}",
        "unix_user": "kim",
        "account": "team-a",
        "user": "ann",
        "tenant": "team-a",
        "qos": "normal",
        "partition": "gpu",
        "state": "COMPLETED",
        "exit_code": 0,
        "signal": 0,
        "cancelled_by": None,
        "reason": "None",
        "eligible_at": submit,
        "start_at": start,
        "end_at": start + run_s,
        "elapsed_s": run_s,
        "timelimit_s": 7200,
        "cpus": 4,
        "nodes": 1,
        "node_list": "node1",
        "gpu_count": 0,
        "gpu_type": "",
        "gpu_types": "",
        "mem_mib": 8192,
        "billing": 4,
        "total_cpu_s": 2 * run_s,
        "cpu_partial": False,
        "max_rss_mib": 2048,
        "mem_in_tot_mib": 4096,
        "gpu_util": None,
        "gpu_util_by": None,
        "energy_j": None,
        "run_id": None,
        "counted_to": start + run_s,
        "runaway": False,
        "digest": "",
        "raw": {},
    }
    assert not changes.keys() - row.keys(), changes.keys() - row.keys()
    return row | changes


def keep(session: Session, *jobs: dict[str, Any], read_to: int | None = None) -> None:
    """Put jobs into the warehouse, and note how far it was read."""
    sums = Sums()
    for one in jobs:
        session.add(AccountingJobRow(**one))
        sums.add(one)
    session.flush()
    add_sums(session, "main", sums)
    if session.get(AccountingCursorRow, "main") is None:
        until = read_to or max(one["end_at"] or one["submit_at"] for one in jobs)
        session.add(
            AccountingCursorRow(
                cluster="main",
                settled_to=until,
                read_to=until,
                window_s=3600,
                jobs=len(jobs),
                bad_rows=0,
                updated_at=datetime.now(UTC),
            )
        )


def two_tenants(ctx: Context, jobs: Iterable[dict[str, Any]]) -> Api:
    """An admin; `team-a` with its admin, a viewer, ann and bob; eve of `team-b`; and the jobs."""
    made = Api(ctx)
    made.add("root", Role.ADMIN)
    made.add("boss", Role.TENANT_ADMIN, "team-a")
    made.add("eye", Role.VIEWER, "team-a")
    for name, tenant in (("ann", "team-a"), ("bob", "team-a"), ("eve", "team-b")):
        made.add(name, tenant=tenant)
    with ctx.db.write() as session:
        keep(session, *jobs)
    return made
