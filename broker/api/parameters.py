"""Query parameters that a route does not know are refused: a misspelt filter must not answer with everything.

Every route asks for it with its permission (`broker.api.security`), every WebSocket with its greeting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from fastapi import Request

from broker.errors import InvalidRequest, Problem
from broker.spec.text import printable

_ANY = "broker_any_parameters"
_SHOWN = 64
"""Characters of an unknown name that are repeated."""
_MOST = 20
"""Unknown names that are told of at once."""


async def any_parameters() -> None:
    """Marks a route that lets parameters pass that it does not know (and ignores them)."""


setattr(any_parameters, _ANY, True)


def parameters_of(dependant: Any) -> frozenset[str] | None:
    """The query parameters that a route and what it depends on declare; None: any (`any_parameters`)."""
    if getattr(dependant.call, _ANY, False):
        return None
    own = frozenset(field.alias for field in dependant.query_params)
    found = [parameters_of(child) for child in dependant.dependencies]
    return None if None in found else own.union(*(names for names in found if names is not None))


def refuse_undeclared(request: Request) -> None:
    """Raise `InvalidRequest` when the request's query has a parameter that its route does not declare."""
    if not request.scope["query_string"]:
        return
    known = parameters_of(request.scope["route"].dependant)
    if known is not None:
        refuse_unknown(request.query_params, known)


def refuse_unknown(given: Iterable[str], known: Collection[str]) -> None:
    """Raise `InvalidRequest` naming each of `given` that is not `known`, and what is."""
    unknown = [printable(name[:_SHOWN]) for name in dict.fromkeys(given) if name not in known][:_MOST]
    if not unknown:
        return
    remedy = f"known are {', '.join(sorted(known))}" if known else "none is taken"
    problems = [
        Problem(f"?{name}", "unknown_parameter", f"There is no parameter `{name}` here: {remedy}")
        for name in unknown
    ]
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    raise InvalidRequest(f"There is no parameter `{unknown[0]}`{more} here: {remedy}", problems=problems)
