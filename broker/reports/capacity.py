"""What the clusters had and what of it was down, out of node events; with what jobs were given, utilisation.

A period before the first registration that was read has no capacity: its figures are unknown, and coverage
says for how many hours they are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date

from sqlalchemy.orm import Session

from broker.accounting.looks import UNTYPED
from broker.reports import days
from broker.reports.definitions import CORE_HOURS, GPU_HOURS
from broker.reports.definitions_cluster import PERIODS
from broker.reports.measures import HOUR, Sums
from broker.reports.node_events import CORES, Events, Seen, counted_once, look_back
from broker.reports.spans import by_day, day_numbered, merged, seconds_by_day
from broker.reports.wanted import Group, Scope, Wanted, period_name
from broker.slurm.events import Lack


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


class _Amounts(dict[tuple[str, date, str], float]):
    """By (GPU type or `CORES`, day, sum's name): seconds × amount."""

    def count(self, kind: str, day: date, name: str, amount: float) -> None:
        key = kind, day, name
        self[key] = self.get(key, 0.0) + amount


class _Spread:
    """Seconds of entries on each day, added up over those that lack the same amounts: few, however many
    events there are.
    """

    def __init__(self, events: Events, *, cores: bool) -> None:
        self._events = events
        distinct = {id(amounts): amounts for amounts in events.amounts}
        self._kinds = {
            one: [(kind, n) for kind, n in amounts.items() if (kind == CORES) == cores and n]
            for one, amounts in distinct.items()
        }
        """What of these amounts is counted, and how much of it one second is."""
        self._seconds: dict[tuple[int, str], dict[int, float]] = {}

    def kinds(self, at: int) -> list[tuple[str, int]]:
        """What an entry has of what is counted."""
        return self._kinds[id(self._events.amounts[at])]

    def add(self, at: int, name: str, begin: int, end: int) -> None:
        """Count a part of an entry."""
        events = self._events
        key, unused = (id(events.amounts[at]), name), events.unused[at]
        of_days = self._seconds.get(key)
        if of_days is None:
            of_days = self._seconds[key] = {}
        for day, seconds in seconds_by_day(begin, end):
            of_days[day] = of_days.get(day, 0.0) + seconds * unused

    def into(self, found: _Amounts) -> None:
        """Add what was counted, times how much it is of each."""
        for (amounts, name), of_days in self._seconds.items():
            for number, seconds in of_days.items():
                day = day_numbered(number)
                for kind, count in self._kinds[amounts]:
                    found.count(kind, day, name, seconds * count)


def _amounts(seen: Seen, *, cores: bool) -> _Amounts:
    """What one cluster had and lacked, day by day."""
    found, events = _Amounts(), seen.events
    spread = _Spread(events, cores=cores)
    capacity = events.of(Lack.CAPACITY)
    for at in capacity:
        spread.add(at, "total_s", *events.span(at))
    known = merged(map(events.span, capacity))
    for kind in {kind for at in capacity for kind, _ in spread.kinds(at)}:
        for name, spans in (("period_h", [seen.period]), ("known_h", known)):
            for span in spans:
                for day, seconds in by_day(span):
                    found.count(kind, day, name, seconds / HOUR)
    for at, begin, end in counted_once(events):
        spread.add(at, f"{events.lack[at]}_s", begin, end)
    for at in events.of(Lack.RESERVED):
        spread.add(at, "reserved_s", *events.span(at))
    spread.into(found)
    return found


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
