"""Stored specs over HTTP: versions, visibility, compilation."""

import json

import pytest

from broker.identity import Role
from tests.api_support import SPEC, Api, codes, context, spec


@pytest.fixture
def api(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        api.add("bob")
        api.add("vera", Role.VIEWER)
        api.add("otto", tenant="other")
        with api.http:
            yield api


def test_spec_comes_back_as_it_was_sent(api):
    text = json.dumps(SPEC, indent=4)
    stored = api.call("POST", "/pipelines", "ann", content=text)
    assert stored.status_code == 201
    got = api.call("GET", "/pipelines/digits/versions/1", "ann")
    assert got.json()["spec"] == SPEC
    assert got.headers["ETag"] == f'"{stored.json()["version"]["content_hash"]}"'


def test_same_content_is_the_same_version_and_other_content_a_new_one(api):
    first = api.store("ann").json()
    again = api.call("POST", "/pipelines", "ann", content=json.dumps(SPEC, indent=2))
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert again.json()["version"]["id"] == first["version"]["id"]
    other = api.store("ann", spec(name="Digits, anew"))
    assert (other.status_code, other.json()["version"]["number"]) == (201, 2)
    back = api.store("ann")
    assert (back.status_code, back.json()["version"]["number"]) == (201, 3)  # only the newest is compared
    numbers = [v["number"] for v in api.call("GET", "/pipelines/digits/versions", "ann").json()["items"]]
    assert numbers == [3, 2, 1]


def test_versions_never_change(api):
    api.store("ann")
    before = api.call("GET", "/pipelines/digits/versions/1", "ann").json()
    api.store("ann", spec(name="other"))
    assert api.call("GET", "/pipelines/digits/versions/1", "ann").json() == before
    for method in ("PUT", "PATCH", "DELETE"):
        assert api.call(method, "/pipelines/digits/versions/1", "ann").status_code == 405


def test_unchanged_version_answers_304(api):
    api.store("ann")
    tag = api.call("GET", "/pipelines/digits/versions/latest", "ann").headers["ETag"]
    again = api.call("GET", "/pipelines/digits/versions/latest", "ann", {"If-None-Match": f'W/"x", {tag}'})
    assert again.status_code == 304 and again.content == b"" and again.headers["ETag"] == tag


def test_tenant_reads_owner_changes_strangers_see_nothing(api):
    api.store("ann")
    for who in ("ann", "bob", "vera", "root"):
        assert api.call("GET", "/pipelines/digits", who).status_code == 200
    assert api.call("GET", "/pipelines/digits", "otto").status_code == 404
    assert api.call("GET", "/pipelines", "otto").json()["items"] == []
    assert api.store("bob", spec(name="mine now")).status_code == 403
    assert api.call("DELETE", "/pipelines/digits", "bob").status_code == 403
    assert api.call("DELETE", "/pipelines/digits", "otto").status_code == 404
    assert api.store("vera").status_code == 403
    assert api.store("root", spec(name="an admin may")).status_code == 201


def test_same_pipeline_id_in_two_tenants_are_two_pipelines(api):
    ours, theirs = api.store("ann").json(), api.store("otto").json()
    assert ours["pipeline"]["id"] != theirs["pipeline"]["id"]
    assert api.call("GET", "/pipelines/digits", "otto").json()["id"] == theirs["pipeline"]["id"]
    assert api.call("GET", f"/pipelines/{theirs['pipeline']['id']}", "ann").status_code == 404
    by_id = api.call("GET", f"/pipelines/{theirs['pipeline']['id']}", "root")
    assert by_id.json()["tenant"] == "other"


def test_ambiguous_name_asks_an_admin_for_the_id(api):
    api.add("boss", Role.ADMIN, tenant="third")
    ours, theirs = api.store("ann").json(), api.store("otto").json()
    answer = api.call("GET", "/pipelines/digits", "boss")
    assert answer.status_code == 409
    assert ours["pipeline"]["id"] in answer.text and theirs["pipeline"]["id"] in answer.text


def test_version_goes_only_to_its_own_pipeline(api):
    api.store("ann")
    body = json.dumps(spec(name="second"))
    assert (
        api.call("POST", "/pipelines/digits/versions", "ann", content=body).json()["version"]["number"] == 2
    )
    other = json.dumps(spec(pipeline_id="letters"))
    answer = api.call("POST", "/pipelines/digits/versions", "ann", content=other)
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/pipeline_id"
    assert api.call("POST", "/pipelines/none/versions", "ann", content=body).status_code == 404


def test_removed_pipeline_is_gone_and_comes_back_with_its_history(api):
    api.store("ann")
    assert api.call("DELETE", "/pipelines/digits", "ann").status_code == 204
    assert api.call("GET", "/pipelines/digits", "ann").status_code == 404
    assert api.call("GET", "/pipelines", "ann").json()["items"] == []
    again = api.store("ann")
    assert (again.status_code, again.json()["version"]["number"]) == (201, 2)
    assert api.call("GET", "/pipelines/digits/versions/1", "ann").status_code == 200


@pytest.mark.parametrize("version", ["0", "2", "-1", "1.0", "newest", "9" * 30, "１"])
def test_version_that_does_not_exist_is_not_found(api, version):
    api.store("ann")
    assert api.call("GET", f"/pipelines/digits/versions/{version}", "ann").status_code == 404


def test_every_problem_of_a_spec_is_told_at_once_and_nothing_is_stored(api):
    bad = spec(workflow=[{"from": "loader", "to": "nobody"}, {"from": "trainer", "to": "trainer"}])
    bad["components"][0]["resources"]["memory"] = "much"
    answer = api.store("ann", bad)
    assert answer.status_code == 422 and answer.json()["code"] == "invalid_spec"
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert "/components/0/resources/memory" in pointers and len(pointers) >= 3
    assert api.call("GET", "/pipelines", "ann").json()["items"] == []


def test_validation_tells_problems_warnings_and_defaults(api):
    document = spec(env_vars={"CUDA_VISIBLE_DEVICES": "all"})
    answer = api.call("POST", "/pipelines/validate", "vera", content=json.dumps(document)).json()
    assert answer["valid"] and [w["pointer"] for w in answer["warnings"]] == [
        "/env_vars/CUDA_VISIBLE_DEVICES"
    ]
    assert answer["defaults"]["gpu_type"] == "A100" and answer["defaults"]["gpu_count"] == 2
    wrong = api.call("POST", "/pipelines/validate", "vera", content=b"{}").json()
    assert not wrong["valid"] and wrong["defaults"] is None and wrong["problems"]


def test_compilation_shows_what_would_be_submitted(api):
    api.store("ann")
    answer = api.call("POST", "/pipelines/digits/versions/latest/compile", "vera", json={})
    loader, trainer = answer.json()["jobs"]
    assert (loader["component"], trainer["depends_on"]) == ("loader", ["loader"])
    assert "--gres=gpu:a100:2" in trainer["sbatch_args"]
    assert trainer["script"].startswith("#!/bin/bash")


def test_compilation_applies_overrides_and_names_their_faults(api):
    api.store("ann")
    path = "/pipelines/digits/versions/latest/compile"
    more = {"overrides": {"components": {"trainer": {"gpu_count": 4}}}}
    jobs = api.call("POST", path, "ann", json=more).json()["jobs"]
    assert "--gres=gpu:a100:4" in jobs[1]["sbatch_args"]
    wrong = api.call("POST", path, "ann", json={"overrides": {"components": {"nobody": {"cpus": 1}}}})
    assert wrong.status_code == 422 and codes(wrong) == {"unknown_component"}
    unknown = api.call("POST", path, "ann", json={"cluster": "moon"})
    assert unknown.status_code == 422 and unknown.json()["errors"][0]["pointer"] == "/cluster"


def test_storing_is_audited(api):
    stored = api.store("ann").json()
    api.call("DELETE", "/pipelines/digits", "ann")
    rows = api.call("GET", "/audit", "root", params={"object_id": stored["pipeline"]["id"]}).json()["items"]
    assert [row["action"] for row in rows] == ["pipeline.remove", "pipeline.store"]


def test_byte_order_mark_is_no_obstacle(api):
    stored = api.call("POST", "/pipelines", "ann", content=b"\xef\xbb\xbf" + json.dumps(SPEC).encode())
    assert stored.status_code == 201
    assert api.call("GET", "/pipelines/digits/versions/1", "ann").json()["spec"] == SPEC
