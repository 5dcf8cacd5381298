"""Lines of reports that are not added up by the database. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from broker.reports.measures import Sums
from broker.reports.wanted import Group


def merged(groups: Iterable[Group]) -> list[Group]:
    """One group per key: numbers are added; a text stays where all of them say the same."""
    found: dict[tuple[str, ...], Group] = {}
    for group in groups:
        key = tuple(group.key.values())
        found[key] = _both(found[key], group) if key in found else group
    return list(found.values())


def _both(one: Group, other: Group) -> Group:
    numbers = dict(one.sums.numbers)
    for name, value in other.sums.numbers.items():
        numbers[name] = numbers.get(name, 0) + value
    texts = {name: value for name, value in one.sums.texts.items() if other.sums.texts.get(name) == value}
    return Group(one.key, Sums(numbers, one.sums.histograms, texts))
