"""Node events of a period as columns: tens of thousands a year, so there is no object for each.

Events are slurmdbd's (`accounting_events`), to the second; what jobs were given is the jobs'. Both end where
both were read.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any, Final

from sqlalchemy import Text, cast, or_, select
from sqlalchemy.orm import Session

from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow
from broker.accounting.looks import EVENTS
from broker.accounting.schemas import Source
from broker.accounting.tables import AccountingCursorRow
from broker.reports.spans import Span, cut, merged, without
from broker.reports.wanted import Wanted
from broker.slurm.events import Lack

CORES: Final = ""
"""Stands where a GPU type stands, for cores."""
Amounts = Mapping[str, int]
"""Of a node, or of the cluster: by GPU type, and `CORES`."""
_PERIODS: Final = ("start_at", "end_at", "seen_at", "lack", "unused")
WORDS: Final = ("name", "state", "reason", "who")
"""Columns of an event that only those ask for who show them."""


@dataclass(slots=True)
class Events:
    """One entry per event and node. `begin`, `end`: within the period; `unused`: the part of it that counts;
    `row`: the event's place in `rows`.
    """

    rows: Sequence[Any] = ()
    node: list[str] = field(default_factory=list)
    lack: list[str] = field(default_factory=list)
    begin: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    amounts: list[Amounts] = field(default_factory=list)
    unused: list[float] = field(default_factory=list)
    row: list[int] = field(default_factory=list)

    def of(self, *lacks: Lack) -> list[int]:
        """The entries that are of one of these."""
        return [at for at, lack in enumerate(self.lack) if lack in lacks]

    def span(self, at: int) -> Span:
        """From when to when an entry goes."""
        return self.begin[at], self.end[at]


@dataclass(frozen=True, slots=True)
class Seen:
    """The part of the period in which a cluster's events and jobs were both read, and its events."""

    cluster: str
    period: Span
    events: Events


def look_back(session: Session, wanted: Wanted, words: Sequence[str] = ()) -> Iterator[Seen]:
    """What each cluster's events say of the period; `words`: the columns of `WORDS` that are read, too."""
    period = (_epoch(wanted.since), _epoch(wanted.until))
    jobs = {row.cluster: row for row in session.scalars(select(AccountingCursorRow))}
    looks = select(AccountingLookRow).where(AccountingLookRow.what == EVENTS)
    for look in session.scalars(looks.order_by(AccountingLookRow.cluster)).all():
        if wanted.filters.get("cluster") not in (None, look.cluster):
            continue
        end = _read_to(look, jobs)
        read = cut((look.since, end), period)
        past = cut((period[0], max(period[0], end)), period) or (period[0], period[0])
        yield Seen(look.cluster, past, _events(session, look.cluster, read, words) if read else Events())


def events_ages(session: Session) -> list[Source]:
    """How far events were read, by cluster; jobs may have been read less far: the earlier counts."""
    jobs = {row.cluster: row for row in session.scalars(select(AccountingCursorRow))}
    looks = select(AccountingLookRow).where(AccountingLookRow.what == EVENTS)
    return [
        Source(
            cluster=row.cluster,
            complete_until=datetime.fromtimestamp(_read_to(row, jobs), UTC),
            read_until=datetime.fromtimestamp(row.read_to, UTC),
            trouble=row.trouble is not None,
        )
        for row in session.scalars(looks.order_by(AccountingLookRow.cluster))
    ]


def counted_once(events: Events) -> Iterator[tuple[int, int, int]]:
    """What was down, drained or maintained: entry, begin and end of the time of it that no other event has.

    A node under maintenance is that and nothing else, by however many reservations. Every entry comes at
    least once: what has no time left (all of it under maintenance) as (entry, begin, begin).
    """
    planned: dict[str, list[Span]] = defaultdict(list)
    for at in events.of(Lack.PLANNED):
        before = planned[events.node[at]]
        yield from _left(events, at, merged(before) if before else ())
        before.append(events.span(at))
    maintained = {node: merged(spans) for node, spans in planned.items()}
    for at in events.of(Lack.DOWN, Lack.DRAINED):
        yield from _left(events, at, maintained.get(events.node[at], ()))


def _left(events: Events, at: int, others: Sequence[Span]) -> Iterator[tuple[int, int, int]]:
    span = events.span(at)
    left = list(without(span, others)) if others else [span]
    for begin, end in left or [(span[0], span[0])]:
        yield at, begin, end


def _read_to(look: AccountingLookRow, jobs: Mapping[str, AccountingCursorRow]) -> int:
    cursor = jobs.get(look.cluster)
    return min(look.read_to, cursor.read_to) if cursor is not None else look.read_to


def _events(session: Session, cluster: str, read: Span, words: Sequence[str]) -> Events:
    table = AccountingEventRow.__table__.c
    query = select(*(table[name] for name in (*_PERIODS, *words)), cast(table.parts, Text).label("parts"))
    rows = session.execute(
        query.where(
            table.cluster == cluster,
            table.start_at < read[1],
            or_(table.end_at.is_(None), table.end_at > read[0]),
        ).order_by(table.start_at, table.name)
    ).all()
    found = Events(rows)
    parts_of: dict[str, list[tuple[str, Amounts]]] = {}  # what a node has is told with each of its events
    for row, (start, end, seen, lack, unused, *_, parts) in enumerate(rows):
        span = cut((start, seen if end is None else end), read)
        if span is None:
            continue
        if parts not in parts_of:
            parts_of[parts] = [(node, {CORES: cores, **gpus}) for node, cores, gpus in json.loads(parts)]
        for node, amounts in parts_of[parts]:
            found.node.append(node)
            found.lack.append(lack)
            found.begin.append(span[0])
            found.end.append(span[1])
            found.amounts.append(amounts)
            found.unused.append(unused)
            found.row.append(row)
    return found


def _epoch(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
