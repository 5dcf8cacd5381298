"""Options of what is added up: how it is split, what of it counts, how many lines are shown."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broker.errors import InvalidRequest

Lines = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Show at most this many.")]


def by_option(like: str) -> Any:
    """`--by DIMENSION`; `like`: a few of them."""
    return typer.Option("--by", metavar="DIMENSION", help=f"How to split it: {like}, …; repeatable.")


def where_option(what: str, names: str) -> Any:
    """`--where NAME=VALUE`, of `what` is counted; `names` as `chosen_filters` takes them."""
    return typer.Option("--where", metavar="NAME=VALUE", help=f"Only {what}; repeatable. {names}.")


def chosen_filters(words: list[str] | None, names: str) -> dict[str, str]:
    """`--where NAME=VALUE`, each of the `names` that are listed for people."""
    found = {}
    for word in words or []:
        name, sign, value = word.partition("=")
        if not sign or name not in {one.split()[0] for one in names.split(", ")}:
            raise InvalidRequest(f"--where {word}: write NAME=VALUE; names are: {names}")
        found[name] = value
    return found
