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
from typing import Any, Final, NamedTuple

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow
from broker.accounting.looks import EVENTS, UNTYPED
from broker.accounting.schemas import Source
from broker.accounting.tables import AccountingCursorRow
from broker.reports import days
from broker.reports.definitions import CORE_HOURS, GPU_HOURS
from broker.reports.definitions_cluster import PERIODS
from broker.reports.measures import HOUR, Sums
from broker.reports.spans import Span, by_day, cut, merged, without
from broker.reports.wanted import Group, Scope, Wanted, period_name
from broker.slurm.events import Lack

CORES: Final = ""
"""Stands where a GPU type stands, for cores."""
Amounts = Mapping[str, int]
"""Of a node, or of the cluster: by GPU type, and `CORES`."""


class Event(NamedTuple):
    """An event of one node, within the period, and its row; `unused`: the part of it that counts."""

    node: str
    lack: str
    span: Span
    amounts: Amounts
    unused: float
    row: Any


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
    """Capacity, its lacks and what was allocated; `known_allocated_s`: on days whose capacity is known."""
    only = wanted.filters.get("gpu_type")
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    known: set[tuple[str, date]] = set()
    for seen in look_back(session, wanted):
        for (kind, day, name), amount in _amounts(seen, cores=cores).items():
            if name == "total_s":
                known.add((seen.cluster, day))
            if only is None or kind == only:
                found[_key(wanted.by, seen.cluster, kind, day)][name] += amount
    for cluster, kind, day, seconds in _allocated(session, wanted, cores=cores):
        if only is None or kind == only:
            sums = found[_key(wanted.by, cluster, kind, day)]
            sums["allocated_s"] += seconds
            sums["known_allocated_s"] += seconds if (cluster, day) in known else 0
    return [Group(dict(zip(wanted.by, key, strict=True)), Sums(sums)) for key, sums in found.items()]


def downtime_groups(session: Session, wanted: Wanted, scope: Scope) -> list[Group]:
    """Down, drained and maintained nodes by the dimensions asked for. Who it was is told to admins."""
    found: dict[tuple[str, ...], _Down] = defaultdict(_Down)
    periods = any(name in PERIODS for name in wanted.by)
    for seen in look_back(session, wanted):
        for event, spans in _counted_once(seen.events):
            if not _fits(seen, event, wanted.filters):
                continue
            parts = [part for span in spans for part in by_day(span)]
            if not periods or not parts:  # all of it under maintenance: it happened, and took no hour
                day = next(by_day(event.span))[0]
                parts = [(day, sum(seconds for _, seconds in parts))]
            for place, (day, seconds) in enumerate(parts):
                key = tuple(_label(name, seen, event, day) for name in wanted.by)
                found[key].add(event, seconds, begins=not place)
    whole = scope == Scope()
    return [
        Group(dict(zip(wanted.by, key, strict=True)), down.sums(whole=whole)) for key, down in found.items()
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
    query = select(*table.__table__.columns).where(
        table.cluster == cluster,
        table.start_at < read[1],
        or_(table.end_at.is_(None), table.end_at > read[0]),
    )
    for row in session.execute(query):
        span = cut((row.start_at, row.seen_at if row.end_at is None else row.end_at), read)
        if span is not None:
            for node, cores, gpus in row.parts:
                yield Event(node, row.lack, span, {CORES: cores, **gpus}, row.unused, row)


# ---- utilisation ------------------------------------------------------------------------------------


class _Amounts(dict[tuple[str, date, str], float]):
    """By (GPU type or `CORES`, day, sum's name): seconds × amount."""

    def __init__(self, *, cores: bool) -> None:
        self._cores = cores

    def kinds(self, event: Event) -> list[tuple[str, int]]:
        return [(kind, n) for kind, n in event.amounts.items() if (kind == CORES) == self._cores and n]

    def spread(self, event: Event, name: str, span: Span) -> None:
        kinds = self.kinds(event)
        for day, seconds in by_day(span):
            for kind, count in kinds:
                self.count(kind, day, name, seconds * count * event.unused)

    def count(self, kind: str, day: date, name: str, amount: float) -> None:
        key = kind, day, name
        self[key] = self.get(key, 0.0) + amount


def _amounts(seen: Seen, *, cores: bool) -> _Amounts:
    """What one cluster had and lacked, day by day."""
    found = _Amounts(cores=cores)
    capacity = [event for event in seen.events if event.lack == Lack.CAPACITY]
    for event in capacity:
        found.spread(event, "total_s", event.span)
    known = merged(event.span for event in capacity)
    for kind in {kind for event in capacity for kind, _ in found.kinds(event)}:
        for name, spans in (("period_h", [seen.period]), ("known_h", known)):
            for span in spans:
                for day, seconds in by_day(span):
                    found.count(kind, day, name, seconds / HOUR)
    for event, spans in _counted_once(seen.events):
        for span in spans:
            found.spread(event, f"{event.lack}_s", span)
    for event in seen.events:
        if event.lack == Lack.RESERVED:
            found.spread(event, "reserved_s", event.span)
    return found


def _counted_once(events: Sequence[Event]) -> Iterator[tuple[Event, list[Span]]]:
    """What was down, drained or maintained, with the time of it that no other event has: a node under
    maintenance is that and nothing else, by however many reservations.
    """
    planned: dict[str, list[Span]] = defaultdict(list)
    for event in events:
        if event.lack == Lack.PLANNED:
            yield event, list(without(event.span, merged(planned[event.node])))
            planned[event.node].append(event.span)
    maintained = {node: merged(spans) for node, spans in planned.items()}
    for event in events:
        if event.lack in (Lack.DOWN, Lack.DRAINED):
            yield event, list(without(event.span, maintained.get(event.node, ())))


def _allocated(session: Session, wanted: Wanted, *, cores: bool) -> Iterator[tuple[str, str, date, float]]:
    """What all jobs were given, from the sums of the days: cluster, GPU type or `CORES`, day, seconds."""
    measure = CORE_HOURS if cores else GPU_HOURS
    cluster = {name: value for name, value in wanted.filters.items() if name == "cluster"}
    jobs = replace(
        wanted,
        report=replace(wanted.report, measures=(measure,), dimensions=()),
        by=("cluster", "day") if cores else ("cluster", "day", "gpu_type"),
        filters=cluster,
        sort=None,
    )
    for group in days.groups(session, jobs, Scope()):
        if seconds := group.sums[measure.numbers[0]]:
            kind = CORES if cores else group.key["gpu_type"] or UNTYPED
            yield group.key["cluster"], kind, date.fromisoformat(group.key["day"]), seconds


def _key(by: Sequence[str], cluster: str, kind: str, day: date) -> tuple[str, ...]:
    facts = {"cluster": cluster, "gpu_type": kind}
    return tuple(period_name(name, day) if name in PERIODS else facts[name] for name in by)


# ---- down time --------------------------------------------------------------------------------------


class _Down:
    """The events of one line."""

    def __init__(self) -> None:
        self._numbers = dict.fromkeys(("node_s", "core_s", "gpu_s", "events"), 0)
        self._row: Any = None
        self._several = False

    def add(self, event: Event, seconds: int, *, begins: bool) -> None:
        """Count a part of an event."""
        numbers, cores = self._numbers, event.amounts[CORES]
        numbers["node_s"] += seconds
        numbers["core_s"] += seconds * cores
        numbers["gpu_s"] += seconds * (sum(event.amounts.values()) - cores)
        numbers["events"] += begins
        self._several = self._several or self._row not in (None, event.row)
        self._row = event.row

    def sums(self, *, whole: bool) -> Sums:
        """Its sums; of several events no one's words are the line's."""
        row = self._row
        if self._several:
            return Sums(self._numbers)
        words = {
            "slurm_state": row.state,
            "reason": row.reason,
            "ended": _moment(row.end_at) if row.end_at is not None and row.end_at <= row.seen_at else "",
            "who": row.who if whole else "",
        }
        return Sums(self._numbers, texts={name: word for name, word in words.items() if word})


def _label(name: str, seen: Seen, event: Event, day: date) -> str:
    """What an event is called in a dimension."""
    match name:
        case "cluster":
            return seen.cluster
        case "node":
            return event.node or "(all)"
        case "began":
            return _moment(event.row.start_at)
        case "state":
            return event.lack
        case "reason":
            return str(event.row.reason)
    return period_name(name, day)


def _fits(seen: Seen, event: Event, filters: Mapping[str, str]) -> bool:
    """Whether it is what filters name; no period is one of them."""
    day = next(by_day(event.span))[0]
    return all(_label(name, seen, event, day) == value for name, value in filters.items())


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _epoch(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
