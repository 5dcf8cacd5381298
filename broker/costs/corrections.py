"""Prices that were corrected after they had begun to hold: what earlier answers went by. Pure.

Costs are computed when they are asked for, so a correction changes those of days that have passed. Whoever
compares with an older invoice must find the reason: every answer names the corrections that touch it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from broker.costs.pricing import Place, Price


@dataclass(frozen=True, slots=True)
class Entry:
    """A price with its history. `corrects`: the id of the one that it stands in the place of."""

    price: Price
    entered_at: datetime
    withdrawn_at: datetime | None = None
    withdrawn_by: str = ""
    why: str = ""
    corrects: str | None = None

    def stood(self, moment: datetime) -> bool:
        """Whether it was in the price list right before a moment."""
        return self.entered_at < moment and (self.withdrawn_at is None or self.withdrawn_at >= moment)


@dataclass(frozen=True, slots=True)
class Correction:
    """A price that had begun to hold and was withdrawn. `now`: what was entered in its place; None: nothing.

    `until`: the first day for which nobody can have been told this price: another one held for the same
    place, or the correction had been made.
    """

    was: Price
    until: date
    now: Price | None
    at: datetime
    by: str
    why: str

    def touches(self, since: date, until: date, place: Place | None = None) -> bool:
        """Whether use between two days (`until` not in it), at a place (None: anywhere), may cost something
        else than was told before.
        """
        return (
            self.was.valid_from < until
            and self.until > since
            and (place is None or self.was.place.overlaps(place))
        )


def corrections(entries: Iterable[Entry]) -> list[Correction]:
    """The corrections that a price list of one currency has seen, in the order in which they were made."""
    known = list(entries)
    instead = {one.corrects: one.price for one in known if one.corrects is not None}
    found = []
    for one in known:
        at, was = one.withdrawn_at, one.price
        if at is None or at.date() < was.valid_from:
            continue
        ends = [
            other.price.valid_from
            for other in known
            if (other.price.resource, other.price.place) == (was.resource, was.place)
            and other.price.valid_from > was.valid_from
            and other.stood(at)
        ]
        until = min([at.date() + timedelta(days=1), *ends])
        found.append(Correction(was, until, instead.get(was.id), at, one.withdrawn_by, one.why))
    return sorted(found, key=lambda correction: (correction.at, correction.was.id))
