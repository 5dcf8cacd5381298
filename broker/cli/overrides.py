"""`--set [COMPONENT.]FIELD=VALUE`: resources for one run, as the API takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.errors import InvalidRequest, Problem

_NUMBERS = ("gpu_count", "cpus")
_FIELDS = ("gpu_type", *_NUMBERS, "memory", "time")


def parse_settings(settings: Sequence[str]) -> dict[str, Any] | None:
    """The overrides, or None for none; raises `InvalidRequest` with everything that is wrong.

    >>> parse_settings(["time=2h", "trainer.gpu_count=2"])
    {'all': {'time': '2h'}, 'components': {'trainer': {'gpu_count': 2}}}
    """
    every: dict[str, Any] = {}
    components: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        component, _, field = path.rpartition(".")
        if not equals or field not in _FIELDS:
            known = ", ".join(_FIELDS)
            wrong = f"{setting!r} is not [COMPONENT.]FIELD=VALUE with one of the fields {known}"
            problems.append(Problem("--set", "bad_option", wrong))
        elif field in _NUMBERS and not text.isdecimal():
            problems.append(Problem("--set", "bad_option", f"{setting!r}: {field} is a whole number"))
        else:
            target = components.setdefault(component, {}) if component else every
            target[field] = int(text) if field in _NUMBERS else text
    if problems:
        raise InvalidRequest("Options that can't be used", problems=problems)
    given = {"all": every, "components": components}
    return {name: value for name, value in given.items() if value} or None
