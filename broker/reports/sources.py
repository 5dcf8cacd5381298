"""Where the lines of reports come from. Most are made of the days' sums; a report that is of something else
(`Report.source`) names its own reader here, and where its age can be read.

A reader gives the groups of lines in any order, by `wanted.by`; it narrows them by `wanted.filters` and to
what `scope` may see (a `public` report is the same for everybody). Figures are computed, ordered, cut to the
limit and added up by `views`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.accounting.schemas import Source
from broker.accounting.tables import AccountingCursorRow
from broker.reports import days
from broker.reports import wanted as reports
from broker.reports.capacity import core_groups, gpu_groups
from broker.reports.downtime import downtime_groups
from broker.reports.fair_share import share_groups, shares_ages
from broker.reports.node_events import events_ages
from broker.reports.quota_report import quota_groups, settled_at
from broker.reports.waiting_report import looked_at, waiting_groups
from broker.reports.wanted import Group, Scope, Wanted

Reader = Callable[[Session, Wanted, Scope], Sequence[Group]]
Ages = Callable[[Session], list[Source]]


def read_up_to(session: Session) -> list[Source]:
    """How far each cluster's accounting was read."""
    cursors = session.scalars(select(AccountingCursorRow).order_by(AccountingCursorRow.cluster))
    return [
        Source(
            cluster=row.cluster,
            complete_until=datetime.fromtimestamp(row.settled_to, UTC),
            read_until=datetime.fromtimestamp(row.read_to, UTC),
            trouble=row.trouble is not None,
        )
        for row in cursors
    ]


SOURCES: Final[dict[str, Reader]] = {
    "days": days.groups,
    "gpu_capacity": gpu_groups,
    "core_capacity": core_groups,
    "node_events": downtime_groups,
    "shares": share_groups,
    "quotas": quota_groups,
    "waiting": waiting_groups,
}
"""Readers by the name in `Report.source`."""
AGES: Final[dict[str, Ages]] = {
    "gpu_capacity": events_ages,
    "core_capacity": events_ages,
    "node_events": events_ages,
    "shares": shares_ages,
    "quotas": settled_at,
    "waiting": looked_at,
}
"""How old the data of a source is, where that is not the age of the jobs (`read_up_to`)."""


def groups(session: Session, wanted: Wanted, scope: Scope) -> Sequence[Group]:
    """The groups of a report, in the order of its lines."""
    return reports.ordered(SOURCES[wanted.report.source](session, wanted, scope), wanted)


def ages(session: Session, wanted: Wanted) -> list[Source]:
    """How old the data of a report is, by cluster."""
    return AGES.get(wanted.report.source, read_up_to)(session)
