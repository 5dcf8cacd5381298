"""Fair shares as they were at the last look within a period, for whom one may see."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from broker.accounting.event_tables import AccountingLookRow, AccountingShareRow
from broker.accounting.looks import SHARES
from broker.accounting.schemas import Source
from broker.reports.definitions_cluster import LINE
from broker.reports.measures import Sums
from broker.reports.wanted import Group, Scope, Wanted

_NUMBERS = ("level_fs", "fair_share", "norm_shares", "effective_usage", "raw_usage")
Row = AccountingShareRow


def share_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """People's associations where people are asked for, or may be seen alone; else the accounts'."""
    last = (
        select(Row.cluster, func.max(Row.day))
        .where(Row.day >= wanted.since, Row.day < wanted.until)
        .group_by(Row.cluster)
    )
    query = select(Row).where(tuple_(Row.cluster, Row.day).in_(last))
    people = "user" in {*wanted.by, *wanted.filters} or scope.user is not None
    query = query.where(Row.unix_user != "" if people else Row.unix_user == "")
    for name, value in wanted.filters.items():
        query = query.where(getattr(Row, name) == value)
    if scope.tenant is not None:
        query = query.where(Row.tenant == scope.tenant)
    if scope.user is not None:
        query = query.where(Row.user == scope.user)
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in session.scalars(query):
        found[tuple(getattr(row, name) for name in wanted.by)].append(row)
    return [Group(dict(zip(wanted.by, key, strict=True)), _sums(rows)) for key, rows in found.items()]


def _sums(rows: list[Row]) -> Sums:
    """The numbers of one association; of several there are none, but that they are several."""
    numbers: dict[str, float] = {LINE: len(rows)}
    if len(rows) == 1:
        numbers |= {name: value for name in _NUMBERS if (value := getattr(rows[0], name)) is not None}
    seen = datetime.fromtimestamp(max(row.taken_at for row in rows), UTC)
    return Sums(numbers, texts={"seen": seen.isoformat().replace("+00:00", "Z")})


def shares_ages(session: Session) -> list[Source]:
    """When each cluster's shares were looked at last."""
    looks = select(AccountingLookRow).where(AccountingLookRow.what == SHARES)
    return [
        Source(
            cluster=row.cluster,
            complete_until=datetime.fromtimestamp(row.read_to, UTC),
            read_until=datetime.fromtimestamp(row.read_to, UTC),
            trouble=row.trouble is not None,
        )
        for row in session.scalars(looks.order_by(AccountingLookRow.cluster))
    ]
