"""What is not as it was tested: two documents compared, components by name. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from broker.spec.text import pointer

_ABSENT = object()
_OWN = frozenset({"created_at", "test_run_ref"})
"""Fields of a spec that say nothing of what runs."""


def changed(tested: Mapping[str, Any], requested: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(JSON pointer, as tested, as requested) of every value that differs; None: not there.

    Lists of named things (components) and of edges are sets: an order that says nothing is no change.
    """
    return list(_walk((), _by_name(tested), _by_name(requested)))


def _walk(place: tuple[str, ...], before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if not (place == () and key in _OWN):
                yield from _walk((*place, key), before.get(key, _ABSENT), after.get(key, _ABSENT))
    elif before != after:
        yield (
            pointer(place),
            None if before is _ABSENT else before,
            None if after is _ABSENT else after,
        )


def _by_name(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _by_name(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
        if all("name" in one for one in value):
            return {str(one["name"]): _by_name(one) for one in value}
        if all(set(one) == {"from", "to"} for one in value):
            return {f"{one['from']} → {one['to']}": True for one in value}
    return list(value) if isinstance(value, tuple) else value
