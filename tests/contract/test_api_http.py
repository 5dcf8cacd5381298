"""What surrounds every request: problems, ids, limits, hostile text, health, metrics."""

import json
import re

import pytest

from broker.errors import NotFound
from broker.identity import Role
from tests.api_support import PASSWORD, SPEC, Api, codes, context, spec

FIELDS = {"type", "title", "status", "detail", "code", "mender", "errors", "request_id"}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with context(tmp_path_factory.mktemp("http"), api={"max_body_mib": 8}) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        with api.http:
            yield api


def is_problem(response, status, code):
    body = response.json()
    assert response.status_code == status == body["status"], response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert set(body) == FIELDS
    assert (body["code"], body["type"]) == (code, f"urn:broker:problem:{code}")
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def test_unknown_address_is_a_problem(api):
    is_problem(api.call("GET", "/nothing", "ann"), 404, "not_found")


def test_wrong_method_is_a_problem(api):
    is_problem(api.call("PUT", "/users", "root"), 405, "method_not_allowed")


def test_body_that_is_no_json_is_a_problem_with_its_place(api):
    response = api.call("POST", "/auth/login", content="{,", headers={"Content-Type": "application/json"})
    body = is_problem(response, 422, "invalid_request")
    assert "at character 1" in body["errors"][0]["detail"]


def test_every_wrong_field_is_named_at_once(api):
    response = api.call("POST", "/users", "root", json={"username": "A B", "role": "boss", "x": 1})
    assert {e["pointer"] for e in is_problem(response, 422, "invalid_request")["errors"]} == {
        "/username",
        "/role",
        "/x",
    }


def test_error_of_a_service_keeps_its_code(api):
    is_problem(api.call("GET", "/pipelines/none", "ann"), NotFound.http_status, NotFound.code)


def test_unforeseen_error_tells_nothing_of_the_inside(api, monkeypatch, caplog):
    def explode(*_):
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(api.app.state.throttle, "attempt", explode)
    response = api.call("POST", "/auth/login", json={"username": "ann", "password": PASSWORD})
    body = is_problem(response, 500, "internal")
    assert "secret" not in response.text and body["request_id"] in body["detail"]


def test_database_that_does_not_answer_is_503_with_retry_after(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("ann")
        with ctx.db.write() as session:
            session.connection().exec_driver_sql("alter table users rename to gone")
        with api.http:
            response = api.call("POST", "/auth/login", json={"username": "ann", "password": PASSWORD})
            is_problem(response, 503, "unreachable")
            assert int(response.headers["Retry-After"]) >= 1
            assert api.call("GET", "/healthz").status_code == 200


def test_request_id_is_taken_over_when_it_is_harmless(api):
    assert (
        api.call("GET", "/healthz", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    )
    for odd in ("a b", "x" * 65, "a\tb", 'a"b'):
        given = api.call("GET", "/healthz", headers={"X-Request-ID": odd}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{16}", given)


def test_answers_are_neither_cached_nor_guessed_at(api):
    headers = api.call("GET", "/users", "root").headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


def test_address_with_a_slash_too_many_is_not_found_rather_than_redirected(api):
    assert api.call("GET", "/users/", "root", follow_redirects=False).status_code in {404, 405}


def test_declared_length_over_the_limit_is_refused_before_it_is_read(api):
    sent = []

    def body():
        sent.append(1)
        yield b"x"

    headers = {"Content-Length": str(1 << 40)}
    response = api.call("POST", "/pipelines", "ann", headers, content=body())
    is_problem(response, 413, "body_too_large")


def test_endless_body_is_cut_off_at_the_limit(api):
    sent = []

    def body():
        for _ in range(64):
            sent.append(1)
            yield b" " * (1 << 20)

    response = api.call("POST", "/pipelines", "ann", content=body())
    is_problem(response, 413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "abc", "1e9", "9" * 5000])
def test_odd_content_length_is_refused(api, length):
    response = api.call("POST", "/pipelines", "ann", {"Content-Length": length}, content=iter([b"{}"]))
    assert response.status_code == 413


def test_nul_in_the_address_is_refused(api):
    for path in ("/pipelines/a%00b", "/pipelines?cursor=%00", "/audit?actor=a%00"):
        is_problem(api.call("GET", path, "root"), 422, "invalid_request")


@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b"])
def test_nul_and_half_surrogates_are_refused_in_any_field(api, text):
    for body in (
        {"username": "ann", "password": text},
        {"username": text, "password": "x"},
        {"username": "ann", "password": {"deep": [{"er": text}]}},
        {"username": "ann", "password": "x", text: 1},
    ):
        response = api.call(
            "POST", "/auth/login", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        is_problem(response, 422, "invalid_request")
        assert "unstorable_text" in codes(response)


def test_nul_and_half_surrogates_are_refused_in_specs(api):
    for text in ("a\x00b", "a\ud800b"):
        response = api.store("ann", spec(name=text))
        body = is_problem(response, 422, "invalid_spec")
        assert body["errors"][0]["pointer"] == "/name"


def test_nesting_bomb_is_refused(api):
    for document in ("[" * 100_000, '{"a":' * 50_000, '{"username":' + "[" * 900 + "]" * 900 + "}"):
        for path in ("/pipelines", "/auth/login"):
            headers = {"Content-Type": "application/json"}
            response = api.call("POST", path, "ann", headers, content=document)
            assert response.status_code == 422, response.text


def test_health_is_open_and_metrics_are_not(api):
    assert api.call("GET", "/healthz").json() == {"status": "ok"}
    ready = api.call("GET", "/readyz").json()
    assert ready["ready"] and ready["checks"]["database"]["ok"] and "cluster:main" in ready["checks"]
    assert api.call("GET", "/metrics").status_code == 401
    assert api.call("GET", "/metrics", "ann").status_code == 403
    text = api.call("GET", "/metrics", "root").text
    for name in (
        "gpu_jobs_submitted_total",
        "gpu_jobs_completed_total",
        "gpu_jobs_failed_total",
        "gpu_job_duration_seconds",
        "file_transfer_duration_seconds",
        "gpu_jobs_active",
        "cluster_connections_active",
        "user_jobs_total",
        "gpu_hours_total",
        "model_final_accuracy",
        "training_final_loss",
        "broker_http_requests_total",
    ):
        assert f"# TYPE {name}" in text


def test_metrics_count_requests_by_route_not_by_address(api):
    api.call("GET", "/pipelines/some-name", "ann")
    text = api.call("GET", "/metrics", "root").text
    assert 'route="/pipelines/{ref}"' in text and "some-name" not in text


def test_metrics_are_open_when_the_setting_says_so(tmp_path):
    with context(tmp_path, metrics_public=True) as ctx:
        assert Api(ctx).call("GET", "/metrics").status_code == 200


def test_not_ready_while_the_tables_are_not_current(tmp_path):
    with context(tmp_path) as ctx:
        with ctx.db.write() as session:
            session.connection().exec_driver_sql("update alembic_version set version_num = 'older'")
        response = Api(ctx).call("GET", "/readyz")
        assert response.status_code == 503 and response.json()["checks"]["database"]["ok"] is False


def test_clusters_tell_how_old_what_is_known_is(api):
    (cluster,) = api.call("GET", "/clusters", "ann").json()["items"]
    assert (cluster["name"], cluster["default"], cluster["reachable"]) == ("main", True, None)


def test_only_the_documentation_is_served_beside_the_routes(api):
    assert api.http.get("/api/v1/docs").status_code == 200
    assert api.http.get("/api/v1/openapi.json").json()["info"]["title"] == "Slurm job broker"
    assert api.http.get("/docs").status_code == 404


def test_spec_of_the_tests_is_valid(api):
    answer = api.call("POST", "/pipelines/validate", "ann", content=json.dumps(SPEC)).json()
    assert answer["valid"] and answer["problems"] == []
