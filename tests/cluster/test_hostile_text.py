"""Hostile text in every field: refused with a clear error, or carried as data; no list broken."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import DevCluster
from tests.harness import specs
from tests.harness.client import Client
from tests.harness.cluster import Cluster
from tests.harness.hostile import CANARY, FIELDS, KEYS, TEXTS, carried, text_at, with_key, with_text
from tests.harness.product import PASSWORD, Broker

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker; when all is over, nothing of what was sent may have been executed anywhere."""
    with Broker(tmp_path_factory.mktemp("broker"), Cluster(cluster.name)) as started:
        yield started
        shared = started.cluster.shared
        assert [str(path) for path in (shared / "ml-jobs").glob(f"{CANARY}*")] == []
        assert started.cluster.exec("find", "/tmp", "-name", f"{CANARY}*") == ""
        assert list(Path("/tmp").glob(f"{CANARY}*")) == []
        log = (started.home / "api.log").read_text()
        assert "Traceback" not in log


@pytest.fixture(scope="module")
def client(broker: Broker) -> Client:
    return broker.client


def refused(answer: httpx.Response) -> list[dict[str, Any]]:
    """The problems of a refusal, which must be one that a person can act on."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text[:500]
    problem = answer.json()
    assert problem["detail"]
    assert len(answer.content) < 64 << 10, "an error must not repeat a megabyte"
    found: list[dict[str, Any]] = problem["errors"]
    assert all(entry["detail"] and entry["code"] for entry in found)
    return found


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: "/".join(map(str, place)))
def test_text_in_a_field_of_a_spec_is_refused_by_name_or_kept_as_it_is(
    broker: Broker, client: Client, tmp_path: Path, place: tuple[str | int, ...]
) -> None:
    for name, text in TEXTS.items():
        spec = with_text(place, text)
        answer = client.send("POST", "/pipelines", content=json.dumps(spec))
        assert answer.status_code < 500, (name, answer.text[:500])
        if answer.status_code in {413, 422}:
            pointers = [entry["pointer"] for entry in refused(answer)]
            wanted = "/" + "/".join(map(str, place))
            whole = answer.status_code == 413 or name in {"lone surrogate", "long"}
            assert whole or any(wanted.startswith(p) or p.startswith(wanted) for p in pointers), (
                name,
                pointers,
            )
            continue
        assert answer.status_code in {200, 201}, (name, answer.text[:500])
        ref = answer.json()["pipeline"]["id"]
        stored = client.get(f"/pipelines/{ref}/versions/latest")["spec"]
        assert text_at(stored, place) == text, name
        _compiles(client, ref, tmp_path)


def _compiles(client: Client, ref: str, tmp_path: Path) -> None:
    """What would be submitted is a script that parses, and arguments without a control character."""
    answer = client.send("POST", f"/pipelines/{ref}/versions/latest/compile", json={})
    if answer.status_code >= 400:
        assert answer.status_code < 500, answer.text[:500]
        refused(answer)
        return
    for job in answer.json()["jobs"]:
        assert all(argument.isprintable() for argument in job["sbatch_args"]), job["sbatch_args"]
        script = tmp_path / "job.sh"
        script.write_text(job["script"])
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("place", KEYS, ids=lambda place: "/".join(map(str, place)) or "top")
def test_a_hostile_name_of_a_field_is_refused_or_kept(client: Client, place: tuple[str | int, ...]) -> None:
    for name, text in TEXTS.items():
        answer = client.send("POST", "/pipelines", content=json.dumps(with_key(place, text)))
        assert answer.status_code < 500, (name, answer.text[:500])
        if answer.status_code >= 400:
            refused(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":1,"a":2}',
        b"NaN",
        b"1e999",
    ],
    ids=repr,
)
def test_a_body_that_is_no_spec_is_refused(client: Client, body: bytes) -> None:
    answer = client.send("POST", "/pipelines", content=body)
    assert answer.status_code in {400, 413, 415, 422}
    refused(answer)


@pytest.mark.parametrize("name", TEXTS)
def test_text_in_a_request_for_a_run_is_refused(client: Client, name: str) -> None:
    spec = specs.pipeline([specs.component("only", "true")])
    client.store(spec)
    text = TEXTS[name]
    good = {"pipeline": spec["pipeline_id"]}
    for body in (
        {"pipeline": text},
        {**good, "version": text},
        {**good, "kind": text},
        {**good, "cluster": text or "-"},
        {**good, "test_run_ref": text},
        {**good, "overrides": {"all": {"memory": text}}},
        {**good, "overrides": {"components": {text: {"cpus": 1}}}},
        {**good, "overrides": {"components": {"only": {"gpu_type": text}}}},
        {**good, text: "x"},
    ):
        answer = client.send("POST", "/runs", content=json.dumps(body))
        assert 400 <= answer.status_code < 500, (body.keys(), answer.text[:300])
        refused(answer)
    assert client.get("/runs", pipeline=spec["pipeline_id"])["items"] == []


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in {"lone surrogate", "long"}])
def test_text_in_addresses_and_queries_finds_nothing(client: Client, name: str) -> None:
    text = TEXTS[name]
    address = httpx.URL("http://x/").copy_with(params={"q": text}).query.decode()[2:].replace("+", "%20")
    for path in (f"/runs/{address}", f"/pipelines/{address}", f"/models/{address}", f"/users/{address}"):
        answer = client.send("GET", path)
        assert answer.status_code < 500, answer.text[:300]
        if path.rstrip("/") != path.rsplit("/", 1)[0]:
            assert answer.status_code in {404, 405, 422} or address in {"", "%20%20%20", "..%2F"}
    for path, field in (
        ("/runs", "cursor"),
        ("/runs", "pipeline"),
        ("/runs", "state"),
        ("/pipelines", "limit"),
        ("/models", "run"),
        ("/audit", "cursor"),
    ):
        answer = client.send("GET", path, params={field: text})
        assert answer.status_code < 500, (path, field, answer.text[:300])


def test_text_in_headers_and_names_of_people_is_refused_or_kept(broker: Broker, client: Client) -> None:
    for name, text in TEXTS.items():
        answer = client.send("POST", "/auth/login", content=json.dumps({"username": text, "password": text}))
        assert answer.status_code in {401, 413, 422, 429}, (name, answer.text[:300])
        body = {"username": "person", "display_name": text, "tenant": text, "role": "viewer"}
        answer = client.send("POST", "/users", content=json.dumps(body))
        assert answer.status_code in {413, 422}, (name, answer.text[:300])
        refused(answer)
    for key in ("a\tb", "ü", "x" * 10_000, "'; drop table runs; --"):
        answer = client.send(
            "POST", "/runs", json={"pipeline": "nosuch"}, headers={b"Idempotency-Key": key.encode("latin-1")}
        )
        assert 400 <= answer.status_code < 500, answer.text[:300]
    assert client.login("admin", PASSWORD)["access_token"]


SPECIAL = {
    "APPTAINER_BIND": "/etc:/mnt",
    "APPTAINERENV_TEXT": f"$(touch /tmp/{CANARY})",
    "SINGULARITY_BINDPATH": "/etc:/mnt",
    "BASH_ENV": "/shared/ml-jobs/evil.sh",
    "SLURM_CONF": "/dev/null",
    "LD_LIBRARY_PATH": "/nowhere",
    "IFS": "a",
    "PS4": f"$(touch /tmp/{CANARY})",
    "OUTPUT_DIR": "/etc",
}
"""Variables that mean something to a shell, to Slurm or to Apptainer: they change nothing outside."""

DUMP = """
cat /proc/self/environ > "$OUTPUT_DIR/environ"
cat "$PARAMS_FILE" > "$OUTPUT_DIR/params.json"
for word; do printf '%s\\0' "$word"; done > "$OUTPUT_DIR/words"
ls -A /mnt > "$OUTPUT_DIR/mnt"
"""


def test_a_program_gets_environment_params_and_arguments_exactly_as_sent(
    broker: Broker, client: Client
) -> None:
    texts = dict(carried())
    refused_there = {"carriage return"}  # as a variable: Apptainer's environment script would lose it
    env = {f"TEXT_{n}": text for n, (name, text) in enumerate(texts.items()) if name not in refused_there}
    params: dict[str, Any] = {f"text-{number}": text for number, text in enumerate(texts.values())}
    params |= {"nested": {"list": list(texts.values()), "none": None, "number": 1e-7, "yes": True}}
    carrier = specs.component("carrier", args=list(texts.values()), params=params)
    carrier["command"] = ["sh", "-ec", DUMP, "carrier"]
    spec = specs.pipeline([carrier, specs.component("after")], [("carrier", "after")], env_vars=env | SPECIAL)
    spec["name"] = f"""it's "a" $(touch /tmp/{CANARY}) | {{{{ 7*7 }}}} #SBATCH 한글 🚀"""
    run_id = client.start(spec)
    run = client.succeed(run_id)
    assert run["name"] == spec["name"]
    got = _outputs(client, run_id, "carrier")
    environ = dict(entry.split("=", 1) for entry in got["environ"].decode().split("\0") if entry)
    lost = {name: environ.get(name) for name, text in env.items() if environ.get(name) != text}
    assert lost == {}
    assert json.loads(got["params.json"]) == params
    words = got["words"].decode().split("\0")[:-1]
    assert words[-len(texts) :] == list(texts.values())
    for number, text in enumerate(texts.values()):
        assert words[words.index(f"--text-{number}") + 1] == text
    assert got["mnt"] == b"", "a variable of the spec opened the host's files"
    listed = broker.cluster.exec("squeue", "-h", "-a", "-t", "all", "-o", "%j")
    assert all(len(line.split()) == 1 for line in listed.splitlines())


NASTY_FILES = r"""
cd "$OUTPUT_DIR"
echo 1 > "with space"; echo 2 > "quote'\"\`"; echo 3 > "$(printf 'new\nline')"
echo 4 > -rf; echo 5 > '$(touch x)'; echo 6 > 한글.txt; echo 7 > '%2e%2e'; echo 8 > 'a|b;c&d'
echo 9 > '#SBATCH'; echo 10 > "$(printf 'tab\tesc\033')"
mkdir -p 'deep/ /~'; echo 11 > 'deep/ /~/file'; : > empty
echo 12 > "$(printf 'not-\377-utf8')"
ln -s /etc/passwd link; ln -s / rootlink; mkfifo pipe; ln empty hard
printf '{"accuracy": NaN, "text": "\\u0000"}' > metrics.json
printf '\033[31mred \377\376 \000 raw\n'; printf 'no newline at end'
"""


def test_files_with_hostile_names_are_stored_or_listed_as_refused(broker: Broker, client: Client) -> None:
    run_id = client.start(specs.pipeline([specs.component("files", NASTY_FILES), specs.component("after")]))
    client.succeed(run_id)
    got = _outputs(client, run_id, "files")
    expected = {
        "with space": b"1\n",
        "quote'\"`": b"2\n",
        "new\nline": b"3\n",
        "-rf": b"4\n",
        "$(touch x)": b"5\n",
        "한글.txt": b"6\n",
        "%2e%2e": b"7\n",
        "a|b;c&d": b"8\n",
        "#SBATCH": b"9\n",
        "tab\tesc\033": b"10\n",
        "deep/ /~/file": b"11\n",
        "empty": b"",
        "hard": b"",
    }
    assert {name: got.get(name) for name in expected} == expected
    assert not {"link", "rootlink", "pipe"} & set(got), "links and devices are not followed"
    assert not any("passwd" in name for name in got)
    stored = next(
        event
        for event in client.get(f"/runs/{run_id}/events")
        if event["type"] == "job_stored" and event["data"]["component"] == "files"
    )
    assert stored["data"]["refused"] >= 4, "two links, a pipe and a name that is no text"
    text = client.log(run_id, "files")["text"]
    assert text.endswith("no newline at end")
    assert "\ufffd" in text


@pytest.mark.parametrize("path", ["/pipelines", "/runs", "/models", "/audit", "/users"])
def test_no_list_is_broken_afterwards(broker: Broker, client: Client, path: str) -> None:
    seen = set()
    cursor: dict[str, str] = {}
    while True:
        page = client.get(path, limit=50, **cursor)
        ids = [item["id"] for item in page["items"]]
        assert not seen & set(ids)
        seen |= set(ids)
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen or path == "/models"


def _outputs(client: Client, run_id: str, component: str) -> dict[str, bytes]:
    """What a component left: bytes by path below its outputs."""
    return {
        entry["path"].removeprefix("outputs/"): httpx.get(entry["url"]).content
        for entry in client.outputs(run_id)
        if entry["component"] == component and entry["path"].startswith("outputs/")
    }
