"""The command line on a real cluster: from a spec's file to verified files, and what it says of failures."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import BROKER, PASSWORD, Broker
from tests.harness.specs import WAIT, Json, component, diamond, model, pipeline

pytestmark = pytest.mark.cluster


class Person:
    """Somebody with the `broker` command and a login."""

    def __init__(self, server: Broker, home: Path) -> None:
        self.server, self.home = server, home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        self.env = {**kept, "BROKER_SERVER": server.url, "XDG_CONFIG_HOME": str(home), "TERM": "xterm"}
        self.broker("login", "-u", "admin", "--password-stdin", stdin=f"{PASSWORD}\n")

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BROKER), *words], env=self.env, cwd=self.home, text=True, stdout=-1, stderr=-1, **options
        )

    def broker(self, *words: str, stdin: str = "", status: int = 0) -> tuple[str, str]:
        """Run a command to its end: standard output and error."""
        process = self.start(*words, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=240)
        assert process.returncode == status, f"{words}: {process.returncode}\n{out}{err}"
        return out, err

    def json(self, *words: str, **more: Any) -> Any:
        return json.loads(self.broker(*words, "--json", **more)[0])

    def file(self, spec: Json) -> str:
        """A spec in a file."""
        path = self.home / f"{spec['pipeline_id']}.json"
        path.write_text(json.dumps(spec))
        return str(path)


@pytest.fixture(scope="module")
def person(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    home = tmp_path_factory.mktemp("cli")
    with Broker(home / "server", Cluster(cluster.name), together=True) as server:
        yield Person(server, home)


def test_a_file_is_run_followed_and_its_results_arrive_verified(person: Person, tmp_path: Path) -> None:
    spec = diamond(left="echo from the left; printf 'no newline'", join=model('{"accuracy": 0.75}'))
    out, err = person.broker("run", "submit", person.file(spec), "--follow")
    assert re.search(r"^left +\| from the left$", out, re.M) and re.search(
        r"^left +\| no newline$", out, re.M
    )
    assert "succeeded" in out and re.search(r"join \[\d+\]: RUNNING|join \[\d+\]: COMPLETED", err)
    run_id = re.search(r"Run (run-\w+)", err)[1]  # type: ignore[index]

    files = person.json("run", "outputs", run_id)
    fetched = person.json("run", "outputs", run_id, "--download", str(tmp_path / "out"))
    assert len(fetched) == len(files) > 8
    for file in files:
        data = (tmp_path / "out" / file["component"] / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])

    [found] = person.json("models", "list", "--run", run_id)
    assert found["metrics"] == {"accuracy": 0.75}
    person.broker("models", "download", found["id"], "-o", str(tmp_path / "model"))
    assert (tmp_path / "model/outputs/best_model.bin").read_text() == f"weights of {run_id}"
    assert "accuracy=0.75" in person.broker("models", "show", found["id"])[0]
    types = [
        json.loads(line)["type"] for line in person.broker("run", "events", run_id, "--json")[0].splitlines()
    ]
    assert types[0] == "run_requested" and types[-1] == "run_finished"
    script = person.json("run", "script", run_id)
    assert [job["component"] for job in script["jobs"]][-1] == "join"


def test_a_failed_run_says_which_component_and_why_and_a_retry_mends_it(person: Person) -> None:
    script = 'if [ "$ATTEMPT" = 1 ]; then echo the disk is on fire >&2; exit 7; fi; echo put out'
    spec = diamond(left=script)
    out, err = person.broker("run", "submit", person.file(spec), "--wait", status=1)
    run_id = re.search(r"Run (run-\w+)", err)[1]  # type: ignore[index]
    assert "left: FAILED" in err and "exit code 7" in err
    assert f"broker run logs {run_id} left" in err and "never started" in err
    assert "left failed" in out
    assert person.broker("run", "logs", run_id, "left", "--error")[0].startswith("the disk is on fire\n")

    out, err = person.broker("run", "retry", run_id, "--follow")
    assert re.search(r"^left +\| put out$", out, re.M) and "succeeded" in out
    assert person.json("run", "show", run_id)["attempt"] == 2
    assert person.json("run", "show", run_id, "--attempt", "1")["jobs"]
    assert "on fire" in person.broker("run", "logs", run_id, "left", "--attempt", "1", "--error")[0]


def test_a_waited_for_run_that_is_cancelled_is_no_success(person: Person) -> None:
    run = person.json("run", "submit", person.file(pipeline([component("endless", WAIT)])))
    waiting = person.start("run", "wait", run["id"], "--json")
    out, _ = person.broker("run", "cancel", run["id"], "--wait")
    assert "is cancelled" in out
    told, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 1 and json.loads(told)["state"] == "cancelled"


def test_a_log_is_followed_to_its_end(person: Person) -> None:
    spec = pipeline([component("talker", f"echo one; {WAIT}; echo two")])
    run = person.json("run", "submit", person.file(spec))
    follower = person.start("run", "logs", run["id"], "talker", "--follow", "--interval", "0.2")
    assert follower.stdout is not None
    assert follower.stdout.readline() == "one\n"
    person.server.open_gate(run["id"], "talker")
    out, _ = follower.communicate(timeout=60)
    assert out == "two\n" and follower.returncode == 0
    assert person.broker("run", "logs", run["id"], "talker", "--tail", "4")[0] == "two\n"


def test_waiting_outlives_a_restart_of_the_broker(person: Person) -> None:
    spec = pipeline([component("patient", WAIT)])
    run = person.json("run", "submit", person.file(spec))
    waiting = person.start("run", "wait", run["id"], "--interval", "0.2")
    assert waiting.stderr is not None
    until(lambda: "patient" in waiting.stderr.readline(), 60, "it is being watched", 0)  # type: ignore[union-attr]
    person.server.kill("up")
    person.server.start("up")
    person.server.open_gate(run["id"], "patient")
    out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, out + err
    assert "succeeded" in out


def test_on_a_terminal_the_run_is_a_picture_that_ends_with_the_verdict(person: Person) -> None:
    spec = pipeline([component("first"), component("second")], [("first", "second")])
    file = person.file(spec)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [str(BROKER), "run", "submit", file, "--wait"],
        env={**person.env, "COLUMNS": "120", "LINES": "40"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 120
    while select.select([leader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            data = os.read(leader, 65536)
        except OSError:  # EIO: the other end is closed (pty(7))
            break
        shown += data
    os.close(leader)
    assert process.wait(10) == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "0 of 2 completed" in text and "succeeded." in text


def test_many_components_of_one_run_are_followed_without_losing_a_line(person: Person) -> None:
    names = [f"part-{n:02d}" for n in range(12)]
    spec = pipeline([component(name, f"seq 1 200 | sed s/^/{name}-/") for name in names])
    out, _ = person.broker("run", "submit", person.file(spec), "--follow")
    for name in names:
        lines = re.findall(rf"^{name} \| {name}-(\d+)$", out, re.M)
        assert lines == [str(n) for n in range(1, 201)], name


def test_a_cluster_is_compared_shown_and_brought_into_line(person: Person) -> None:
    slurm = person.server.cluster
    tenant = f"cli-{person.server.environment}"
    person.broker("tenant", "create", tenant, "--fairshare", "4")
    try:
        shown = person.broker("cluster", "sync")[0]
        assert re.search(rf"^account +{tenant} +create", shown, re.M)
        script = person.broker("cluster", "sync", "--script")[0]
        assert f"sacctmgr -i add account {tenant} Cluster=dev" in script
        done = person.json("cluster", "sync", "--apply")
        assert {line["result"] for line in done["lines"] if tenant in line["name"]} == {"done"}
        share = slurm.exec("sacctmgr", "-nP", "show", "assoc", f"account={tenant}", "user=", "format=share")
        assert share.strip() == "4"
        assert tenant not in person.broker("cluster", "sync")[0]
        assert tenant in person.broker("cluster", "sync", "--all")[0]
    finally:
        slurm.exec("bash", "-c", f"sacctmgr -i delete account {tenant} || true")
