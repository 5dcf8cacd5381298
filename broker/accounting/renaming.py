"""Jobs of accounts that nobody had get their names of today: only where an admin asks for it.

History stays as it was charged: an account that is linked to a person gives that person the jobs from then
on. Asked for explicitly, the jobs from before go to whom the account belongs now, and those of the Slurm
account that became that of the tenant `default` to this tenant. Never those that stand under a person, or
under a tenant that there is; nor runs, which know whose they are.

Jobs and what they are in the sums change together, some hundreds in a transaction with its audit row: where
it ends early, the rest is as it was, and asking again goes on there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker.accounting.archive import COUNTED, People, add_sums
from broker.accounting.buckets import Sums
from broker.accounting.tables import AccountingJobRow
from broker.audit import record
from broker.db import Database
from broker.db.locks import exclusive
from broker.identity import SYSTEM
from broker.identity.tables import TenantRow, UserRow

BATCH: Final = 500
"""Jobs that get their name in one transaction: others wait for it on SQLite."""


@dataclass(frozen=True, slots=True)
class Renaming:
    """`before` becomes `after`, for the jobs of an `account` (a Unix account, or of Slurm for tenants)."""

    what: Literal["user", "tenant"]
    account: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Renamed:
    """What was renamed, and how many jobs it was."""

    renaming: Renaming
    jobs: int


def rename(db: Database, people: People, note: str) -> Iterator[Renamed]:
    """Give a cluster's jobs of accounts that had nobody the names of today; `note`: who asked, for the audit
    trail. Gives what was renamed, as it goes.
    """
    with db.read() as session:
        wanted = list(_wanted(session, people))
    for one in wanted:
        jobs, last = 0, BATCH
        while last == BATCH:
            with db.write() as session:
                last = _some(session, people, one, note)
            jobs += last
        if jobs:
            yield Renamed(one, jobs)


def _wanted(session: Session, people: People) -> Iterator[Renaming]:
    """Every account that somebody has by now, and what its jobs are called while nobody has it."""
    linked = select(UserRow.unix_account, UserRow.username).where(UserRow.unix_account.is_not(None))
    for account, name in session.execute(linked.order_by(UserRow.username)):
        yield Renaming("user", str(account), f"{people.cluster}:{account}", name)
    default = people.default_account
    if default not in (None, "default") and session.get(TenantRow, default) is None:
        yield Renaming("tenant", default, default, "default")


def _some(session: Session, people: People, one: Renaming, note: str) -> int:
    """Rename a batch; how many jobs it was: none where the account has passed to somebody else meanwhile."""
    cluster = people.cluster
    exclusive(session, f"accounting {cluster}")
    if one not in _wanted(session, people):
        return 0
    row = AccountingJobRow
    account = row.unix_user if one.what == "user" else row.account
    name = row.user if one.what == "user" else row.tenant
    query = select(*COUNTED).where(
        name == one.before, account == one.account, row.cluster == cluster, row.run_id.is_(None)
    )
    found = [dict(job) for job in session.execute(query.limit(BATCH)).mappings()]
    if not found:
        return 0
    sums = Sums()
    for job in found:
        sums.add(job, -1)
        sums.add(job | {one.what: one.after})
    keys = ("cluster", "job_id", "submit_at")
    session.execute(update(row), [{**{key: job[key] for key in keys}, one.what: one.after} for job in found])
    add_sums(session, cluster, sums)
    after = {one.what: one.after, "jobs": len(found)}
    which = f"{cluster}/{one.account}"
    record(session, SYSTEM, "accounting.rename", "account", which, {one.what: one.before}, after, note)
    return len(found)
