"""The one-job form of a run, and requests that are repeated."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from broker.api.idempotency import KEPT, IdempotencyRow
from broker.db import utcnow
from broker.identity import Role
from broker.runs.tables import RunRow
from tests.api_support import Api, context

JOB = {
    "job_name": "Train digits",
    "image": {"registry": "registry.example.org/trainer", "tag": "1.0"},
    "code_source": {"source": "git", "url": "https://git.example.org/team/code", "ref": "main"},
    "entry_script": "train.py",
    "script_arguments": {"epochs": 3, "lr": 0.1},
    "environment_variables": {"MODE": "fast"},
    "gpu_count": 2,
    "gpu_type": "A100",
    "memory": "64GB",
}


@pytest.fixture
def api(tmp_path):
    with context(tmp_path, default_image="registry.example.org/base:2") as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        api.add("bob")
        api.add("vera", Role.VIEWER)
        with api.http:
            yield api


def submit(api, body=JOB, who="ann", key=None):
    return api.call("POST", "/gpu-jobs/submit", who, {"Idempotency-Key": key} if key else {}, json=body)


def runs(api):
    with api.ctx.db.read() as session:
        return session.scalar(select(func.count()).select_from(RunRow))


def test_gpu_job_is_a_run_of_one_component(api):
    job = submit(api)
    assert job.status_code == 201, job.text
    run = api.call("GET", f"/runs/{job.json()['job_id']}", "ann").json()
    assert [j["component"] for j in run["jobs"]] == ["job"]
    assert run["name"] == "Train digits" and run["jobs"][0]["resources"]["gpu_count"] == 2
    spec = api.call("GET", f"/pipelines/{run['pipeline_id']}/versions/1", "ann").json()["spec"]
    assert spec["components"][0]["params"] == {"epochs": 3, "lr": 0.1}
    assert spec["components"][0]["code"]["entry_script"] == "train.py"
    assert spec["env_vars"] == {"MODE": "fast"}


def test_status_list_and_visibility(api):
    job_id = submit(api).json()["job_id"]
    status = api.call("GET", f"/gpu-jobs/{job_id}/status", "ann").json()
    assert (status["job_name"], status["status"], status["status_ko"]) == ("Train digits", "queued", "대기")
    assert [job["job_id"] for job in api.call("GET", "/gpu-jobs", "ann").json()["items"]] == [job_id]
    assert api.call("GET", "/gpu-jobs", "ann", params={"status": "running"}).json()["items"] == []
    assert api.call("GET", f"/gpu-jobs/{job_id}/status", "bob").status_code == 404
    assert api.call("GET", f"/gpu-jobs/{job_id}/logs", "bob").status_code == 404
    assert api.call("GET", f"/gpu-jobs/{job_id}/status", "vera").status_code == 200
    log = api.call("GET", f"/gpu-jobs/{job_id}/logs", "ann").json()
    assert (log["text"], log["complete"]) == ("", False)


def test_run_of_a_pipeline_is_no_gpu_job(api):
    api.store("ann")
    run = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()
    assert api.call("GET", f"/gpu-jobs/{run['id']}/status", "ann").status_code == 404
    assert api.call("GET", "/gpu-jobs", "ann").json()["items"] == []


def test_two_people_use_the_same_job_name(api):
    assert submit(api).status_code == submit(api, who="bob").status_code == 201


def test_same_job_again_is_a_second_run_of_the_same_version(api):
    first, second = submit(api).json(), submit(api).json()
    assert first["job_id"] != second["job_id"]
    pages = [api.call("GET", f"/runs/{job['job_id']}", "ann").json() for job in (first, second)]
    assert pages[0]["pipeline_id"] == pages[1]["pipeline_id"]
    assert [page["pipeline_version"] for page in pages] == [1, 1]


def test_arguments_as_a_list_and_the_default_image(api):
    body = {"job_name": "한글 이름", "script_arguments": ["--fast", "a b"]}
    run = api.call("GET", f"/runs/{submit(api, body).json()['job_id']}", "ann").json()
    spec = api.call("GET", f"/pipelines/{run['pipeline_id']}/versions/1", "ann").json()["spec"]
    assert spec["components"][0]["args"] == ["--fast", "a b"]
    assert spec["components"][0]["image"] == {"registry": "registry.example.org/base", "tag": "2"}


def test_without_any_image_the_request_says_so(tmp_path):
    with context(tmp_path) as ctx:
        api = Api(ctx)
        api.add("ann")
        answer = submit(api, {"job_name": "x"})
        assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/image"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"memory": "lots"}, "/memory"),
        ({"gpu_count": -1}, "/gpu_count"),
        ({"time": "soon"}, "/time"),
        ({"gpu_type": "a b"}, "/gpu_type"),
        ({"environment_variables": {"1BAD": "x"}}, "/environment_variables/1BAD"),
        ({"script_arguments": {"--x": 1}}, "/script_arguments/--x"),
        ({"entry_script": "/etc/passwd"}, "/entry_script"),
        ({"entry_script": None}, "/entry_script"),
        ({"code_source": {"source": "git", "url": "ext::sh -c id", "ref": "main"}}, "/code_source/url"),
        ({"code_source": {"source": "git", "url": "https://a.b/c", "ref": "-x"}}, "/code_source/ref"),
        ({"code_source": None}, "/entry_script"),
        ({"image": {"registry": "A B", "tag": "1"}}, "/image/registry"),
        ({"job_name": "a\nb"}, "/job_name"),
        ({"cluster": "moon"}, "/cluster"),
        ({"surprise": 1}, "/surprise"),
    ],
)
def test_what_is_wrong_is_named_by_the_requests_own_field(api, change, pointer):
    answer = submit(api, JOB | change)
    assert answer.status_code == 422, answer.text
    assert pointer in {error["pointer"] for error in answer.json()["errors"]}, answer.text
    assert runs(api) == 0


def test_request_repeated_with_its_key_is_done_once_and_answered_alike(api):
    first, again = submit(api, key="k1"), submit(api, key="k1")
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json() and again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers and runs(api) == 1


def test_key_used_for_another_request_is_refused(api):
    submit(api, key="k1")
    answer = submit(api, JOB | {"gpu_count": 1}, key="k1")
    assert answer.status_code == 422 and answer.json()["code"] == "idempotency_key_reused"
    assert runs(api) == 1


def test_keys_are_each_persons_own(api):
    assert submit(api, key="k1").json()["job_id"] != submit(api, who="bob", key="k1").json()["job_id"]


def test_key_of_a_failed_request_is_free(api):
    assert submit(api, JOB | {"memory": "lots"}, key="k1").status_code == 422
    assert submit(api, key="k1").status_code == 201


def test_key_is_forgotten_after_a_day(api):
    submit(api, key="k1")
    with api.ctx.db.write() as session:
        session.execute(update(IdempotencyRow).values(created_at=utcnow() - KEPT * 2))
    assert submit(api, key="k2").status_code == 201
    assert submit(api, key="k1").status_code == 201
    assert runs(api) == 3


@pytest.mark.parametrize("key", ["a b", "x" * 129, "", "ключ".encode()])
def test_odd_key_is_refused(api, key):
    headers = [("Idempotency-Key", key), ("Authorization", f"Bearer {api.tokens['ann']}")]
    answer = api.http.post("/api/v1/gpu-jobs/submit", json=JOB, headers=headers)
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == ":Idempotency-Key"


def race(api):
    api.store("ann")

    def ask(_):
        return api.call("POST", "/runs", "ann", {"Idempotency-Key": "race"}, json={"pipeline": "digits"})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert runs(api) == 1


def test_the_same_request_from_many_threads_makes_one_run(api):
    race(api)
