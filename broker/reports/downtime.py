"""The report `node_downtime`: down, drained and maintained nodes. Who it was is told to admins.

A line may be of one event: there are tens of thousands a year. Its words (a reason, an end) are looked up
where the line is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.orm import Session
from typing_extensions import override

from broker.reports.days import Lines, period_place
from broker.reports.definitions_cluster import PERIODS
from broker.reports.grouping import Grouped, keyed
from broker.reports.measures import TEXTS, Measure, Sums
from broker.reports.node_events import CORES, WORDS, Events, counted_once, look_back
from broker.reports.spans import DAY_S, day_numbered, seconds_by_day
from broker.reports.wanted import Group, Groups, Scope, Wanted, rank

_SUMS: Final = ("node_s", "core_s", "gpu_s", "events")
_ROW: Final = "event"


def downtime_groups(session: Session, wanted: Wanted, scope: Scope) -> Groups:
    """The lines of the report, by the dimensions asked for."""
    found = _Columns(wanted)
    for seen in look_back(session, wanted, WORDS):
        found.add(seen.cluster, seen.events)
    table = found.table()
    if "began" in wanted.filters:
        known = _seconds(wanted.filters["began"])
        table = table.filter(pc.equal(table["began"], -1 if known is None else known))
    for name in ("cluster", "node", "state", "reason"):
        if name in wanted.filters:
            table = table.filter(pc.equal(table[name].cast(pa.string()), wanted.filters[name]))
    return _grouped(table, wanted, found.rows, whole=scope == Scope())


class _Columns:
    """What is counted once of all clusters' events, as columns: per event and node, or per day of these where
    a period is asked for.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.rows: list[Any] = []
        self._periods = [name for name in dict.fromkeys(wanted.by) if name in PERIODS]
        names = ("cluster", "node", "state", "reason", "began", _ROW, "day", *_SUMS)
        self._values: dict[str, list[Any]] = {name: [] for name in names}

    def add(self, cluster: str, events: Events) -> None:
        """Add one cluster's."""
        values, first = self._values, len(self.rows)
        at: list[int] = []
        for entry, day, seconds in self._parts(events):
            at.append(entry)
            values["day"].append(day)
            values["node_s"].append(seconds)
        rows = [events.row[entry] for entry in at]
        amounts = [events.amounts[entry] for entry in at]
        values["cluster"] += [cluster] * len(at)
        values["node"] += [events.node[entry] or "(all)" for entry in at]
        values["state"] += [events.lack[entry] for entry in at]
        values["reason"] += [events.rows[row].reason for row in rows]
        values["began"] += [events.rows[row].start_at for row in rows]
        values[_ROW] += [first + row for row in rows]
        values["core_s"] += [one[CORES] for one in amounts]
        values["gpu_s"] += [sum(one.values()) - one[CORES] for one in amounts]
        values["events"] += [int(n == 0 or entry != at[n - 1]) for n, entry in enumerate(at)]
        self.rows += events.rows

    def _parts(self, events: Events) -> Iterator[tuple[int, int, int]]:
        """Entry, day, seconds; an entry of which no time is left, on its first day."""
        for at, begin, end in counted_once(events):
            if not self._periods:
                yield at, 0, end - begin
                continue
            for day, seconds in seconds_by_day(begin, end) or [(begin // DAY_S, 0)]:
                yield at, day, seconds

    def table(self) -> pa.Table:
        """All of it; amounts times seconds."""
        values = self._values
        texts = {
            name: pa.array(values[name], pa.string()).dictionary_encode()
            for name in ("cluster", "node", "state", "reason")
        }
        numbers = {name: pa.array(values[name], pa.int64()) for name in ("began", _ROW, *_SUMS)}
        for name in ("core_s", "gpu_s"):
            numbers[name] = pc.multiply(numbers[name], numbers["node_s"])
        places = {}
        for name in self._periods:
            place = period_place(name)
            of_day = {day: place(day_numbered(day)) for day in dict.fromkeys(values["day"])}
            places[name] = pa.array([of_day[day] for day in values["day"]], pa.int64())
        return pa.table(texts | numbers | places)


def _grouped(table: pa.Table, wanted: Wanted, rows: Sequence[Any], *, whole: bool) -> DownTimes:
    """The lines; each knows its event where it is of one alone."""
    labels, keys = keyed(table, wanted.by)
    of_lines = (
        pa.table({"line": keys, **{name: table[name] for name in (_ROW, *_SUMS)}})
        .group_by("line")
        .aggregate([*((name, "sum") for name in _SUMS), (_ROW, "min"), (_ROW, "max")])
        .sort_by("line")
        .combine_chunks()
    )
    alone = pc.equal(of_lines[f"{_ROW}_min"], of_lines[f"{_ROW}_max"])
    of_event = pc.if_else(alone, of_lines[f"{_ROW}_min"], None).to_pylist()
    grouped = Grouped(labels, of_lines["line"], {name: of_lines[f"{name}_sum"] for name in _SUMS}, {})
    return DownTimes(wanted, grouped, None, [None if at is None else rows[at] for at in of_event], whole)


@dataclass(frozen=True)
class DownTimes(Lines):
    """Lines, each with its event (columns of `AccountingEventRow`), or None where it is of several: then no
    one's words are the line's. `whole`: who it was is told.
    """

    event: Sequence[Any] = ()
    whole_told: bool = False

    @override
    def _made(self, places: Sequence[int]) -> list[Group]:
        return [
            Group(_named(one.key), Sums(one.sums.numbers, texts=self._words(place)))
            for place, one in zip(places, super()._made(places), strict=True)
        ]

    def _words(self, place: int) -> dict[str, str]:
        row = self.event[place]
        if row is None:
            return {}
        words = {
            "slurm_state": row.state,
            "reason": row.reason,
            "ended": _moment(row.end_at) if row.end_at is not None and row.end_at <= row.seen_at else "",
            "who": row.who if self.whole_told else "",
        }
        return {name: word for name, word in words.items() if word}

    @override
    def ordered(self, measure: Measure | None) -> Lines:
        order: Sequence[int] | None = None
        if measure is not None and measure.unit in TEXTS:
            places, total = range(len(self)), self.whole()
            values = [measure.compute(Sums({}, texts=self._words(place)), total) for place in places]
            order = sorted(places, key=lambda place: rank(values[place]))
        elif measure is not None:
            order = super().ordered(measure).order
        return replace(self, order=order)


def _named(key: Mapping[str, str]) -> Mapping[str, str]:
    """A line's key; the beginning of an event as a moment."""
    return {name: _moment(int(value)) if name == "began" else value for name, value in key.items()}


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _seconds(moment: str) -> int | None:
    """The beginning that a filter names, spelled as lines have it; None: it is of no event."""
    try:
        seconds = int(datetime.fromisoformat(moment).timestamp())
    except (ValueError, OverflowError):
        return None
    return seconds if _moment(seconds) == moment else None
