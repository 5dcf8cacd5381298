"""Hostile text in every place of every request, on both databases: refused or carried, no error of ours."""

import json
import re
from urllib.parse import quote

import pytest

from broker.api.app import make_app
from broker.identity import Role
from tests.api_support import Api, context, spec

DOCUMENT = make_app().openapi()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
    if not path.endswith("/stream")
}
HOSTILE = [
    "$(touch /tmp/owned)",
    "`id`",
    "'; drop table users; --",
    '" or 1=1 --',
    "../../../etc/passwd",
    "a\nb",
    "a\r\nX-Injected: 1",
    "#SBATCH --uid=0",
    "a|b",
    "%",
    "\u202etxt",
    "😀" * 50,
    "ａ" * 130,
    "x" * 5000,
    "-1",
    str(10**30),
    "NaN",
    "\ufffe",
]
ODD = [["$(id)"], {"$(id)": "$(id)"}, {"all": {"`id`": 1}}, 10**30, -(2**63) - 1, -1, None, 1e308, True, ""]


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    with context(tmp_path_factory.mktemp("hostile")) as ctx:
        yield _with_root(ctx)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory, postgres_url):
    with context(tmp_path_factory.mktemp("hostile"), postgres_url) as ctx:
        yield _with_root(ctx)


def _with_root(ctx):
    api = Api(ctx)
    api.add("root", Role.ADMIN)
    api.add("victim")
    assert api.store("root", spec(pipeline_id="real")).status_code == 201
    return api


@pytest.fixture(params=["sqlite", "postgres"])
def api(request):
    found = request.getfixturevalue(request.param)
    with found.http:
        yield found


def ask(api, method, url, **more):
    headers = api.headers("root") | {"Content-Type": "application/json"}
    response = api.http.request(method, url, headers=headers, **more)
    assert response.status_code < 500, (url, more, response.text)
    assert "X-Injected" not in response.headers
    return response


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_hostile_text_in_the_address_never_breaks_a_route(api, method, path):
    query = [p["name"] for p in OPERATIONS[method, path].get("parameters", ()) if p["in"] == "query"]
    for text in HOSTILE:
        ask(api, method, re.sub(r"{\w+}", quote(text, safe=""), path))
        for name in query:
            ask(api, method, re.sub(r"{\w+}", "real", path), params={name: text})


def bodies(schema):
    """Bodies with one hostile field each, the other needed ones as they should be."""
    if "anyOf" in schema:
        schema = schema["anyOf"][0]
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    needed = dict.fromkeys(schema.get("required", ()), "real")
    for name in schema.get("properties", {}):
        for value in (*HOSTILE, *ODD):
            if name not in {"password", "old", "new"} or not isinstance(value, str):  # no hashing here
                yield needed | {name: value}


WITH_BODY = {
    at: operation["requestBody"]["content"]["application/json"]["schema"]
    for at, operation in OPERATIONS.items()
    if "application/json" in operation.get("requestBody", {}).get("content", {})
    and at[1] not in {"/api/v1/auth/login", "/api/v1/auth/password"}
}


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
def test_hostile_text_in_bodies_never_breaks_a_route(api, method, path):
    url = re.sub(r"{\w+}", "victim" if "/users" in path else "real", path.replace("{version}", "latest"))
    for body in bodies(WITH_BODY[method, path]):
        if path == "/api/v1/users" and "password" not in body:
            body["password"] = 1  # accounts are made elsewhere: no hashing here
        ask(api, method, url, content=json.dumps(body))


def test_text_with_quotes_and_dollars_is_carried_as_data(api):
    hostile = "a'b\"c $(id) `id` | ; \\ %s {{7*7}} 한글 😀"
    document = spec(pipeline_id="carried", env_vars={"TEXT": hostile + "\nline two"})
    document["components"][0]["params"] = {"text": hostile}
    assert api.store("root", document).status_code in {200, 201}
    assert api.call("GET", "/pipelines/carried/versions/latest", "root").json()["spec"] == document


def test_a_mebibyte_in_one_field_is_refused_by_name(api):
    document = spec(name="x" * (1 << 19))
    answer = api.store("root", document)
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/name"
    assert api.store("root", spec(name="x" * (1 << 20))).status_code == 422
    assert (
        api.call("POST", "/auth/login", json={"username": "x" * (1 << 20), "password": "x"}).status_code
        == 422
    )
