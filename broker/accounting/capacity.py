"""What the clusters had and what of it was down, out of node events; with what jobs were given, utilisation.

Capacity and down time are slurmdbd's events (`accounting_events`), to the second; what was allocated is the
jobs' (the sums of the days). Both end where both were read. A period before the first registration that was
read has no capacity: its figures are unknown, and coverage says for how many hours they are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any, Final

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from broker.accounting import days
from broker.accounting.definitions import CORE_HOURS, GPU_HOURS
from broker.accounting.definitions_cluster import PERIODS
from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow
from broker.accounting.looks import EVENTS
from broker.accounting.measures import HOUR, Sums
from broker.accounting.reports import Group, Scope, Wanted, period_name
from broker.accounting.schemas import Source
from broker.accounting.spans import Span, by_day, cut, merged, without
from broker.accounting.tables import AccountingCursorRow
from broker.slurm.events import Lack

CORES: Final = ""
"""Stands where a GPU type stands, for cores."""
Amounts = Mapping[str, int]
"""Of a node, or of the cluster: by GPU type, and `CORES`."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of one node, within the period; `unused`: the part of it that counts."""

    node: str
    lack: Lack
    span: Span
    amounts: Amounts
    unused: float
    row: AccountingEventRow


@dataclass(frozen=True, slots=True)
class Seen:
    """The part of the period in which a cluster's events and jobs were both read, and its events."""

    cluster: str
    period: Span
    read: Span | None
    events: Sequence[Event]


def gpu_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """Utilisation of GPUs, by the dimensions asked for; the same for everybody."""
    return _utilisation(session, wanted, cores=False)


def core_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """Utilisation of cores, by the dimensions asked for; the same for everybody."""
    return _utilisation(session, wanted, cores=True)


def _utilisation(session: Session, wanted: Wanted, *, cores: bool) -> list[Group]:
    """Capacity, its lacks and what was allocated."""
    only = wanted.filters.get("gpu_type")
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for seen in look_back(session, wanted):
        for kind, day, name, seconds in _amounts(seen):
            if (kind == CORES) == cores and (only is None or kind == only):
                found[_key(wanted.by, seen.cluster, kind, day)][name] += seconds
    for key, seconds in _allocated(session, wanted, cores=cores):
        found[key]["allocated_s"] += seconds
    return [Group(dict(zip(wanted.by, key, strict=True)), Sums(sums)) for key, sums in found.items()]


def downtime_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """Down, drained and maintained nodes by the dimensions asked for. Who it was is told to admins."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    texts: dict[tuple[str, ...], dict[str, str]] = {}
    whole = scope == Scope()
    for seen in look_back(session, wanted):
        for event in seen.events:
            facts = _facts(seen, event)
            if event.lack in (Lack.CAPACITY, Lack.RESERVED) or not _fits(facts, wanted.filters):
                continue
            for place, (day, seconds) in enumerate(by_day(event.span)):
                key = tuple(period_name(name, day) if name in PERIODS else facts[name] for name in wanted.by)
                sums = found[key]
                sums["node_s"] += seconds
                sums["core_s"] += seconds * event.amounts[CORES]
                sums["gpu_s"] += seconds * sum(n for kind, n in event.amounts.items() if kind != CORES)
                sums["events"] += not place
                same = texts.setdefault(key, _words(event, whole=whole))
                if same != _words(event, whole=whole):  # of several, no one's words are the line's
                    texts[key] = {}
    return [
        Group(dict(zip(wanted.by, key, strict=True)), Sums(sums, texts=texts[key]))
        for key, sums in found.items()
    ]


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


# ---- events -----------------------------------------------------------------------------------------


def look_back(session: Session, wanted: Wanted) -> Iterator[Seen]:
    """What each cluster's events say of the period."""
    period = (_epoch(wanted.since), _epoch(wanted.until))
    jobs = {row.cluster: row for row in session.scalars(select(AccountingCursorRow))}
    for look in session.scalars(select(AccountingLookRow).where(AccountingLookRow.what == EVENTS)):
        if wanted.filters.get("cluster") not in (None, look.cluster):
            continue
        end = _read_to(look, jobs)
        read = cut((look.since, end), period)
        past = cut((period[0], max(period[0], end)), period) or (period[0], period[0])
        events = list(_events(session, look.cluster, read)) if read else []
        yield Seen(look.cluster, past, read, events)


def _read_to(look: AccountingLookRow, jobs: Mapping[str, AccountingCursorRow]) -> int:
    cursor = jobs.get(look.cluster)
    return min(look.read_to, cursor.read_to) if cursor is not None else look.read_to


def _events(session: Session, cluster: str, read: Span) -> Iterator[Event]:
    table = AccountingEventRow
    query = select(table).where(
        table.cluster == cluster,
        table.start_at < read[1],
        or_(table.end_at.is_(None), table.end_at > read[0]),
    )
    for row in session.scalars(query):
        span = cut((row.start_at, row.seen_at if row.end_at is None else row.end_at), read)
        for node, cores, gpus in row.parts if span else ():
            amounts = {CORES: int(cores), **{str(kind): int(count) for kind, count in gpus.items()}}
            yield Event(str(node), Lack(row.lack), span, amounts, row.unused, row)  # type: ignore[arg-type]


# ---- utilisation ------------------------------------------------------------------------------------


def _amounts(seen: Seen) -> Iterator[tuple[str, date, str, float]]:
    """(GPU type or `CORES`, day, sum's name, seconds × amount) of one cluster."""
    capacity = [event for event in seen.events if event.lack is Lack.CAPACITY]
    known = merged(event.span for event in capacity)
    kinds = {kind for event in capacity for kind in event.amounts}
    for kind in kinds:
        for day, seconds in by_day(seen.period):
            yield kind, day, "period_h", seconds / HOUR
        for span in known:
            for day, seconds in by_day(span):
                yield kind, day, "known_h", seconds / HOUR
    for event in capacity:
        yield from _spread(event, "total_s", event.span)
    planned = _planned(seen.events)
    for event in seen.events:
        if event.lack is Lack.PLANNED:
            continue
        if event.lack in (Lack.DOWN, Lack.DRAINED):
            for span in without(event.span, merged(span for span, _ in planned.get(event.node, ()))):
                yield from _spread(event, f"{event.lack}_s", span)
        elif event.lack is Lack.RESERVED:
            yield from _spread(event, "reserved_s", event.span)
    for spans in planned.values():
        done: list[Span] = []
        for span, event in sorted(spans, key=lambda pair: pair[0]):
            for rest in without(span, merged(done)):
                yield from _spread(event, "planned_s", rest)
            done.append(span)


def _planned(events: Sequence[Event]) -> dict[str, list[tuple[Span, Event]]]:
    """When each node was under maintenance."""
    found: dict[str, list[tuple[Span, Event]]] = defaultdict(list)
    for event in events:
        if event.lack is Lack.PLANNED:
            found[event.node].append((event.span, event))
    return found


def _spread(event: Event, name: str, span: Span) -> Iterator[tuple[str, date, str, float]]:
    for day, seconds in by_day(span):
        for kind, count in event.amounts.items():
            if count:
                yield kind, day, name, seconds * count * event.unused


def _allocated(session: Session, wanted: Wanted, *, cores: bool) -> Iterator[tuple[tuple[str, ...], float]]:
    """What all jobs were given, by key, from the sums of the days."""
    measure = CORE_HOURS if cores else GPU_HOURS
    jobs = replace(wanted, report=replace(wanted.report, measures=(measure,), dimensions=()), sort=None)
    for group in days.groups(session, jobs, Scope()):
        if seconds := group.sums[measure.numbers[0]]:
            yield tuple(group.key[name] for name in wanted.by), seconds


def _key(by: Sequence[str], cluster: str, kind: str, day: date) -> tuple[str, ...]:
    facts = {"cluster": cluster, "gpu_type": kind}
    return tuple(period_name(name, day) if name in PERIODS else facts[name] for name in by)


# ---- down time --------------------------------------------------------------------------------------


def _facts(seen: Seen, event: Event) -> dict[str, str]:
    return {
        "cluster": seen.cluster,
        "node": event.node or "(all)",
        "began": _moment(event.row.start_at),
        "state": str(event.lack),
        "reason": event.row.reason,
    }


def _fits(facts: Mapping[str, str], filters: Mapping[str, str]) -> bool:
    return all(facts[name] == value for name, value in filters.items())


def _words(event: Event, *, whole: bool) -> dict[str, str]:
    row = event.row
    words: dict[str, Any] = {
        "slurm_state": row.state,
        "reason": row.reason,
        "ended": _moment(row.end_at) if row.end_at is not None and row.end_at <= row.seen_at else None,
        "who": row.who if whole else None,
    }
    return {name: word for name, word in words.items() if word}


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _epoch(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
