"""The API's documentation can't drift: every route, error code and permission stands in it."""

import ast
from pathlib import Path

import pytest

from broker.api.app import make_app
from broker.api.openapi import api_routes, as_text
from broker.api.security import declared_permission
from broker.errors import all_errors
from broker.identity import Permission, Role
from broker.spec.codes import Code

ROOT = Path(__file__).resolve().parents[2]
API, ERRORS = (ROOT / "docs/api.md").read_text(), (ROOT / "docs/errors.md").read_text()
APP = make_app()
DOCUMENT = APP.openapi()
ROUTES = [
    (method, route.path, str(declared_permission(route)))
    for route in api_routes(APP)
    for method in sorted(route.methods)
]
OPERATIONS = [
    pytest.param(operation, id=f"{method} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


def problem_codes():
    """Literal codes of `Problem(…)`, of archives' refusals, and `code` of every error class."""
    for path in sorted((ROOT / "broker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                at = {"Problem": 1, "_refuse": 1, "refuse": 1, "_reject": 0}.get(node.func.id)
                if at is not None and len(node.args) > at and isinstance(node.args[at], ast.Constant):
                    yield path.name, node.args[at].value
            if isinstance(node, ast.ClassDef):
                yield from ((path.name, code) for code in _class_code(node))


def _class_code(node):
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Tuple):
            names = [getattr(name, "id", None) for name in statement.targets[0].elts]
            if "code" in names and "title" in names:
                yield statement.value.elts[names.index("code")].value


CODES = sorted(set(problem_codes()))


def test_the_walk_over_the_source_finds_codes():
    found = {code for _, code in CODES}
    assert {"unknown_cluster", "unsafe_path", "image_unavailable", "precondition_failed"} <= found


@pytest.mark.parametrize(("where", "code"), CODES)
def test_every_code_in_the_source_is_documented(where, code):
    assert f"| `{code}` |" in ERRORS, f"{code} of {where} is not in docs/errors.md"


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_every_error_is_documented_with_status_and_exit_code(error):
    assert f"| `{error.code}` | {error.http_status} | {error.exit_code} |" in ERRORS


@pytest.mark.parametrize("code", list(Code))
def test_every_code_of_specs_is_documented(code):
    assert f"| `{code.value}` | {code.description} |" in ERRORS


@pytest.mark.parametrize(("method", "path", "permission"), ROUTES)
def test_every_route_is_documented_with_its_permission(method, path, permission):
    assert f"| `{method} {path}` | `{permission}` |" in API


def test_no_route_is_documented_that_does_not_exist():
    documented = [line.split("`")[1] for line in API.splitlines() if line.startswith("| `") and " /" in line]
    assert sorted(documented) == sorted(f"{method} {path}" for method, path, _ in ROUTES)


@pytest.mark.parametrize("role", list(Role))
def test_every_role_is_documented(role):
    assert f"| `{role}` |" in API


def test_stored_openapi_document_is_current():
    stored = (ROOT / "docs/openapi.json").read_text()
    assert stored == as_text(make_app()), "run `make docs`"


def test_operation_ids_are_unique():
    ids = [param.values[0]["operationId"] for param in OPERATIONS]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_described_in_full(operation):
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    assert operation["summary"].endswith(".") and operation["description"]
    responses = operation["responses"]
    if "x-permission" in operation:
        assert operation["x-permission"] in set(Permission)
        assert operation["security"] == [{"token": []}] and {"401", "403"} <= set(responses)
    assert {"422", "500", "503"} <= set(responses)
    good = [answer for status, answer in responses.items() if status in {"200", "201", "202"}]
    assert all(answer.get("content") for answer in good) and (good or {"204", "303"} & set(responses))
    for status, answer in responses.items():
        if status in {"200", "201", "202"}:
            for content in answer["content"].values():
                assert content["schema"], "an answer without a schema"


def test_every_reference_in_the_document_leads_somewhere():
    def walk(value):
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                target = DOCUMENT
                for part in value["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(DOCUMENT)


def test_problems_and_specs_are_described():
    schemas = DOCUMENT["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert {"pointer", "code", "detail"} == set(schemas["ProblemItem"]["properties"])
    assert {"from", "to"} == set(schemas["Edge"]["properties"])
    assert DOCUMENT["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
