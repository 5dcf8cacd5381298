"""What reports and costs are both asked for: a period, and whose jobs, where, and how they ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Annotated, Final, NamedTuple, NoReturn

from fastapi import Depends, Query

from broker.db import utcnow
from broker.errors import InvalidRequest, Problem
from broker.reports.wanted import EARLIEST, LATEST
from broker.slurm import SlurmState

MAX_LINES: Final = 10_000
MAX_BY: Final = 4
"""Dimensions at once."""
_DAYS: Final = 30
Filter = Annotated[str | None, Query(max_length=255)]
Since = Annotated[date | None, Query(description="First day (UTC); unset: 30 days before `until`")]
Until = Annotated[
    date | None, Query(description="First day (UTC) not in it; unset: tomorrow, so today is in it")
]


class Common(NamedTuple):
    """A period (`until` not in it), and the filters that were given, by dimension."""

    since: date
    until: date
    filters: Mapping[str, str]


async def common(
    since: Since = None,
    until: Until = None,
    cluster: Filter = None,
    tenant: Filter = None,
    user: Filter = None,
    partition: Filter = None,
    qos: Filter = None,
    gpu_type: Filter = None,
    outcome: Annotated[str | None, Query(max_length=32, description="Slurm's state")] = None,
) -> Common:
    """What a request asks for of this; the period is the last 30 days unless it says so. Raises
    `InvalidRequest`.
    """
    after = until or utcnow().date() + timedelta(days=1)
    first = since or after - timedelta(days=_DAYS)
    if not EARLIEST <= first < after <= LATEST:
        refuse("?since", "invalid_period", _no_period(first, after))
    given = {"cluster": cluster, "tenant": tenant, "user": user, "partition": partition, "qos": qos}
    given |= {"gpu_type": gpu_type, "outcome": _outcome(outcome)}
    return Common(first, after, named(given))


Narrowed = Annotated[Common, Depends(common)]


def named(filters: Mapping[str, str | None]) -> dict[str, str]:
    """The filters that a request names."""
    return {name: value for name, value in filters.items() if value is not None}


def _outcome(given: str | None) -> str | None:
    """The state that a filter means, in Slurm's spelling."""
    if given is None:
        return None
    if (state := given.upper()) not in SlurmState.__members__:
        ends = ", ".join(state for state in SlurmState if state.finished)
        refuse("?outcome", "unknown_outcome", f"Slurm has no state {given!r}; jobs end as: {ends}")
    return state


def _no_period(first: date, after: date) -> str:
    said = f"{first} to {after} is no period"
    if first < after:
        return f"{said}: it begins on {EARLIEST} or later and ends by {LATEST}"
    return f"{said}: name a since before until"


def refuse(pointer: str, code: str, detail: str) -> NoReturn:
    """Say what is wrong with a request, and where."""
    raise InvalidRequest(detail, problems=[Problem(pointer, code, detail)])
