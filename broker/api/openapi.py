"""The API's description (OpenAPI). `python -m broker.api.openapi` prints it; `docs/openapi.json` keeps it.

FastAPI describes what goes well; here every operation gets the problems it may answer with, its stable id,
and the spec's schema, which no handler takes as a model (it is parsed by its own reader).
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts

from broker.api.problems import MEDIA_TYPE, ProblemView
from broker.api.security import PUBLIC, declared_permission
from broker.spec import PipelineSpec

DESCRIPTION: Final = """\
Pipelines of containers, run by Slurm, their results kept in S3.

Log in (`POST /api/v1/auth/login`) and send the token as `Authorization: Bearer …`. Lists are read page by
page (`limit`, `cursor`). A `POST` that makes something takes an `Idempotency-Key` and may then be repeated.
Whatever goes wrong is answered as `application/problem+json` (RFC 9457): `code` is for programs, `errors`
name each place that is wrong, `Retry-After` says when to come back. Every answer carries `X-Request-ID`.
"""
TAGS: Final = [
    {"name": "auth", "description": "Logging in and one's own account"},
    {"name": "pipelines", "description": "Specs and their immutable versions"},
    {"name": "uploads", "description": "Code that a component runs"},
    {"name": "runs", "description": "The life of a run"},
    {"name": "approvals", "description": "Requests that somebody has to decide about (admins decide)"},
    {"name": "queue", "description": "What waits, in which order and why; moving it (admins)"},
    {"name": "models", "description": "Results: versions, metrics, downloads"},
    {"name": "gpu-jobs", "description": "The one-job form of a run"},
    {"name": "clusters", "description": "Where runs go"},
    {"name": "advice", "description": "What to ask for next time, by what was used; applied to a pipeline"},
    {"name": "reports", "description": "What was used, how long it waited, how it ended; down to the jobs"},
    {"name": "costs", "description": "Prices, and what use costs; invoices"},
    {"name": "resources", "description": "What the clusters have, what is used of it, now and over time"},
    {"name": "keys", "description": "API keys: for programs, instead of a password"},
    {"name": "users", "description": "Accounts (admins; a tenant's admin: the tenant's)"},
    {"name": "tenants", "description": "Who shares work, a quota and a part of the cluster"},
    {"name": "audit", "description": "Who changed what (admins)"},
    {"name": "notifications", "description": "What one is told, and how"},
    {"name": "webhooks", "description": "Programs that are told (admins, tenant admins)"},
    {"name": "quotas", "description": "What tenants and people may use, and what they have used"},
    {"name": "health", "description": "For load balancers and Prometheus"},
]
_MEANINGS: Final = {
    401: "No valid token",
    403: "The role, or the owner, does not allow it",
    404: "It does not exist, or may not be known to you",
    409: "Its state does not allow this, or it changed meanwhile",
    412: "It is not the version that `If-Match` names",
    413: "The body is too large",
    422: "Something in the request is wrong; `errors` says what and where",
    429: "Too much in too little time; see `Retry-After`",
    500: "The broker failed; its log has the cause under `request_id`",
    503: "Something the broker needs does not answer; see `Retry-After`",
}


def install(app: FastAPI) -> None:
    """Make `app.openapi()` give the completed description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application."""
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        tags=app.openapi_tags,
        routes=app.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (ProblemView, PipelineSpec):
        made = model.model_json_schema(ref_template="#/components/schemas/{model}", by_alias=True)
        schemas |= made.pop("$defs", {}) | {model.__name__: made}
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemView"}}}
    document["components"]["responses"] = {
        f"Problem{status}": {"description": meaning, "headers": _headers(status), "content": content}
        for status, meaning in _MEANINGS.items()
    }
    for route in api_routes(app):
        for method in route.methods or ():
            operation = document["paths"].get(route.path_format or "", {}).get(method.lower())
            if operation is not None:
                _complete(operation, route, method)
    return document


def _headers(status: int) -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    headers = {"X-Request-ID": {"description": "Id of the request in the broker's log", **text}}
    if status in {429, 503}:
        headers["Retry-After"] = {"description": "Seconds to wait", "schema": {"type": "integer"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"description": "`Bearer`", **text}
    return headers


def api_routes(app: FastAPI) -> list[RouteContext]:
    """Every route of the application, with its whole path."""
    return [route for route in iter_route_contexts(app.routes) if isinstance(route.original_route, APIRoute)]


def _complete(operation: dict[str, Any], route: RouteContext, method: str) -> None:
    tag = str(operation["tags"][0]).replace("-", "_")
    operation["operationId"] = f"{tag}_{route.name}"
    operation["summary"] = operation["description"].split("\n\n")[0].replace("\n", " ")
    responses = operation["responses"]
    if any(parameter["name"] == "If-None-Match" for parameter in operation.get("parameters", ())):
        responses["304"] = {"description": "Not changed since the `ETag` that was sent"}
    responses.pop("422", None)
    for status in _statuses(operation, route, method):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})
    permission = declared_permission(route)
    if permission != PUBLIC:
        operation["x-permission"] = str(permission)


def _statuses(operation: dict[str, Any], route: RouteContext, method: str) -> list[int]:
    statuses = {422, 500, 503}  # 422: an unknown parameter, at the least
    if declared_permission(route) != PUBLIC:
        statuses |= {401, 403}
    if "{" in (route.path_format or ""):
        statuses.add(404)
    if "requestBody" in operation:
        statuses.add(413)
    if method not in {"GET", "HEAD"}:
        statuses |= {409, 429}
    if any(parameter["name"] == "If-Match" for parameter in operation.get("parameters", ())):
        statuses.add(412)
    return sorted(statuses)


def as_text(app: FastAPI) -> str:
    """The document as it is kept: stable, one change one line."""
    return json.dumps(app.openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    """Print the document."""
    from broker.api.app import make_app

    sys.stdout.write(as_text(make_app()))


if __name__ == "__main__":
    main()
