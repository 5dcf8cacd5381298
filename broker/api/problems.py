"""Errors as problem+json (RFC 9457): one shape for everything that goes wrong, with what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from broker.errors import (
    BodyTooLarge,
    BrokerError,
    Conflict,
    Denied,
    InvalidRequest,
    MediaTypeRefused,
    MethodNotAllowed,
    NotFound,
    Problem,
    Unauthenticated,
    Unreachable,
)
from broker.text import UNSTORABLE, escape_pointer

log = structlog.get_logger("broker.api")
MEDIA_TYPE = "application/problem+json"
_HTTP: dict[int, type[BrokerError]] = {
    401: Unauthenticated,
    403: Denied,
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: MediaTypeRefused,
}


class ProblemItem(BaseModel):
    """One thing wrong in one place of the request."""

    pointer: str = Field(description="JSON pointer into the body; `?name` a query, `:name` a header field")
    code: str
    detail: str


class ProblemView(BaseModel):
    """What went wrong, and who can mend it."""

    type: str = Field(description="`urn:broker:problem:` and the code")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; every code stands in docs/errors.md")
    mender: str = Field(description="Who can mend it: `caller`, `admin`, or `time` (try again later)")
    errors: list[ProblemItem]
    request_id: str | None


def problem_response(error: BrokerError, request_id: str | None) -> JSONResponse:
    """An error as its response, with `Retry-After` where time mends it."""
    view = ProblemView(
        type=f"urn:broker:problem:{error.code}",
        title=error.title,
        status=error.http_status,
        detail=error.detail,
        code=error.code,
        mender=error.mender,
        errors=[ProblemItem(pointer=p.pointer, code=p.code, detail=p.detail) for p in error.problems],
        request_id=request_id,
    )
    headers = {}
    if error.retry_after_s is not None or error.http_status in {429, 503}:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or 5)))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(view.model_dump(), error.http_status, headers, media_type=MEDIA_TYPE)


def as_broker_error(error: Exception) -> BrokerError | None:
    """An exception as one of ours; None when nobody foresaw it (a bug: 500)."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid_request(error.errors())
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, StaleDataError | IntegrityError):
        return Conflict("It changed while the request was under way: read it again, then decide")
    if isinstance(error, DataError):
        return InvalidRequest(
            "A value in the request does not fit: it is too long, too large or can't be stored"
        )
    if isinstance(error, OperationalError | PoolTimeout) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    ):
        return Unreachable("The database does not answer; nothing was done", retry_after_s=2)
    return None


def _of_http(error: HTTPException) -> BrokerError:
    detail = {
        404: "There is nothing at this address: see /api/v1/docs",
        405: "This address does not take that method: see /api/v1/docs",
        413: "The request's body is larger than this address takes",
    }.get(error.status_code, str(error.detail))
    cls = _HTTP.get(error.status_code) or (InvalidRequest if error.status_code < 500 else BrokerError)
    return cls(detail)


def invalid_request(errors: Sequence[Any]) -> InvalidRequest:
    """What pydantic found, with JSON pointers; the values are not repeated (they may be secrets)."""
    problems = [problem for error in errors for problem in _problems(error)][:100]
    where = ", ".join(problem.pointer or "the body" for problem in problems[:3])
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return InvalidRequest(f"The request is not valid: see {where}{more}", problems=problems)


def _problems(error: Mapping[str, Any]) -> list[Problem]:
    place, *parts = error["loc"]
    code, detail = str(error["type"]), str(error["msg"])
    if place == "body":
        base = "".join("/" + escape_pointer(str(part)) for part in parts)
    else:
        base = {"query": "?", "header": ":", "path": "{}"}.get(str(place), "") + "".join(map(str, parts))
    if code == "json_invalid":
        base, detail = "", f"The body is not JSON: {error['ctx']['error']} at character {parts[0]}"
    if code == UNSTORABLE:
        return [Problem(base + pointer, code, detail) for pointer in error["ctx"]["pointers"]]
    return [Problem(base, code, detail)]


def request_id(request: Request) -> str | None:
    """The id of a request, as the middleware set it."""
    value: str | None = request.scope.get("state", {}).get("request_id")
    return value


def install(app: FastAPI) -> None:
    """Make every foreseen exception a problem; the unforeseen ones are the middleware's."""

    def handler() -> Callable[[Request, Exception], Any]:
        async def respond(request: Request, error: Exception) -> JSONResponse:
            known = as_broker_error(error)
            if known is None:
                raise error
            if known.http_status >= 500:
                log.warning("request_failed", code=known.code, detail=known.detail, exc_info=error)
            return problem_response(known, request_id(request))

        return respond

    for cls in (
        BrokerError,
        RequestValidationError,
        HTTPException,
        StaleDataError,
        IntegrityError,
        DBAPIError,
        PoolTimeout,
    ):
        app.add_exception_handler(cls, handler())
