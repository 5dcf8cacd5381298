"""`ETag`, `If-Match`, `If-None-Match` (RFC 9110, 13.1)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from broker.errors import PreconditionFailed

IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", max_length=500, description="Change only if the `ETag` is still this one"),
]
IfNoneMatch = Annotated[
    str | None,
    Header(alias="If-None-Match", max_length=500, description="304 if the `ETag` is still this one"),
]


def etag(version: int | str) -> str:
    """The strong entity tag of a version."""
    return f'"{version}"'


def matches(header: str | None, tag: str) -> bool:
    """Whether a header's list of tags has `tag`, or is `*`; weak tags compare by what they quote."""
    tags = {item.strip().removeprefix("W/") for item in (header or "").split(",")}
    return tag in tags or "*" in tags


def check_if_match(header: str | None, tag: str) -> None:
    """Raise `PreconditionFailed` when `If-Match` was sent and names another version."""
    if header is not None and not matches(header, tag):
        raise PreconditionFailed("It changed since you read it: read it again, then decide")
