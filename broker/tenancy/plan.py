"""What `broker cluster sync` would do, and what it leaves alone. Pure.

Three states are compared: what there should be, what there is, and what the broker set last. What is there
and was not set by the broker was set by somebody else, who had a reason: it is shown, and changed only when
it is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from broker.tenancy.objects import Fields, Key, add_words, modify_words

ALL = "all"
"""To be named where everything that was changed by hand is meant."""


class Action(StrEnum):
    """What is to be done with an object."""

    SAME = "same"
    CREATE = "create"
    CHANGE = "change"
    FOREIGN = "foreign"
    """It was there before the broker and is otherwise than wanted: only shown."""
    DRIFT = "drift"
    """Somebody changed by hand what the broker had set: only shown."""
    REMOVED = "removed"
    """Somebody removed by hand what the broker had made: only shown."""
    EXTRA = "extra"
    """A person in a tenant's account whom the broker does not know: only shown."""

    @property
    def applies(self) -> bool:
        """Whether it changes something in Slurm."""
        return self in {Action.CREATE, Action.CHANGE}

    @property
    def needs_word(self) -> bool:
        """Whether it waits for somebody to say that the broker may overwrite it."""
        return self in {Action.FOREIGN, Action.DRIFT, Action.REMOVED}


@dataclass(frozen=True, slots=True)
class Difference:
    """One field: what it is, what it should be, and what the broker set last (None: nothing)."""

    field: str
    now: str
    wanted: str
    ours: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """One object of the plan. `words` is what sacctmgr is told: now, or once the object is adopted."""

    key: Key
    action: Action
    wanted: Fields
    now: Fields | None
    differences: tuple[Difference, ...] = ()
    words: tuple[str, ...] = field(default=())


def plan(
    wanted: Mapping[Key, Fields],
    seen: Mapping[Key, Fields],
    ours: Mapping[Key, Fields],
    cluster: str,
    adopt: Collection[str] = (),
) -> tuple[Line, ...]:
    """Compare; `adopt` names objects (`team-a`, `account team-a`, or `all`) that may be overwritten."""
    lines = [
        _line(key, fields, seen.get(key), ours.get(key), cluster, adopt) for key, fields in wanted.items()
    ]
    return (*lines, *_extra(wanted, seen))


def named(key: Key, adopt: Collection[str]) -> bool:
    """Whether somebody named this object."""
    return bool({ALL, key.name, str(key)} & set(adopt))


def _line(
    key: Key,
    wanted: Fields,
    now: Fields | None,
    ours: Fields | None,
    cluster: str,
    adopt: Collection[str],
) -> Line:
    allowed = named(key, adopt)
    if now is None:
        action = Action.REMOVED if ours is not None and not allowed else Action.CREATE
        return Line(key, action, wanted, None, (), add_words(key, wanted, cluster))
    now = {name: now.get(name, "") for name in wanted}
    differences = tuple(
        Difference(name, now[name], value, None if ours is None else ours.get(name))
        for name, value in wanted.items()
        if now[name] != value
    )
    if not differences:
        return Line(key, Action.SAME, wanted, now)
    by_hand = any(map(_by_hand, differences))
    action = Action.FOREIGN if ours is None else Action.DRIFT if by_hand else Action.CHANGE
    words = modify_words(key, {one.field: one.wanted for one in differences}, now, cluster)
    return Line(key, Action.CHANGE if allowed else action, wanted, now, differences, words)


def _by_hand(one: Difference) -> bool:
    """Whether somebody else set what would be lost, perhaps before the broker managed that field."""
    if one.ours is not None:
        return one.now != one.ours
    return not set(filter(None, one.now.split(","))) <= set(one.wanted.split(","))


def _extra(wanted: Mapping[Key, Fields], seen: Mapping[Key, Fields]) -> Iterator[Line]:
    accounts = {key.name for key in wanted if key.kind == "account"}
    for key, now in seen.items():
        if key.kind == "user" and key not in wanted and key.name.partition("/")[0] in accounts:
            yield Line(key, Action.EXTRA, now, now)


def pending(lines: Sequence[Line]) -> list[Line]:
    """The lines that change something, in the order in which they are applied."""
    return [line for line in lines if line.action.applies]
