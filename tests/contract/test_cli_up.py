"""`broker up` as one process group, and the command line as its client: real processes, no cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import paramiko
import pytest

from tests.harness.processes import Process, children, gone, until
from tests.harness.product import BROKER, PASSWORD, UNLIMITED, to_toml

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "llm-finetune.json"
PATIENCE_S = 90.0


class Up:
    """One `broker up` below a folder, and `broker` commands as a person at its machine would give them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ready = home / "ready"
        paramiko.RSAKey.generate(2048).write_private_key_file(str(home / "key"))
        (home / "known_hosts").write_text("")
        cluster = {  # nobody answers there: what needs no cluster must work all the same
            "ssh_host": "127.0.0.1",
            "ssh_port": 1,
            "ssh_key_file": str(home / "key"),
            "ssh_known_hosts": str(home / "known_hosts"),
        }
        settings = {
            "data_dir": str(home / "data"),
            "api": {"port": 0},
            "clusters": {"main": cluster},
            "quotas": UNLIMITED,
        }
        (home / "broker.toml").write_text(to_toml(settings))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        self.env = {
            **kept,
            "BROKER_CONFIG_FILE": str(home / "broker.toml"),
            "XDG_CONFIG_HOME": str(home / "config"),
        }
        self.process: Process | None = None

    def start(self) -> Process:
        """Start it and wait until it says that it is ready."""
        self.ready.unlink(missing_ok=True)  # of one that was killed
        words = [str(BROKER), "up", "--ready-file", str(self.ready)]
        process = self.process = Process("up", words, self.env, self.home / "up.log")
        until(lambda: self.ready.exists() or not process.alive, PATIENCE_S, "it is ready", 0.1)
        assert process.alive, process.tail()
        return process

    @property
    def url(self) -> str:
        return self.ready.read_text().strip()

    def part(self, word: str) -> int:
        """The process id of a child."""
        assert self.process is not None
        return next(pid for pid, line in children(self.process.pid).items() if word in line)

    def broker(
        self, *words: str, stdin: str = "", status: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(BROKER), *words],
            input=stdin,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *words: str, **more: Any) -> Any:
        return json.loads(self.broker(*words, "--json", **more).stdout)

    def log_in(self) -> None:
        """The first login of the first admin."""
        first = (self.home / "data" / "first-admin-password").read_text()
        self.broker("--server", self.url, "login", "-u", "admin", "--password-stdin", stdin=first)
        self.broker("password", "--password-stdin", stdin=f"{first.strip()}\n{PASSWORD}\n")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    found = Up(tmp_path_factory.mktemp("up"))
    try:
        found.start()
        found.log_in()
        yield found
    finally:
        if found.process is not None:
            found.process.stop()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Up]:
    """One that a test may kill."""
    found = Up(tmp_path)
    yield found
    if found.process is not None:
        found.process.stop()


# ---- the client -----------------------------------------------------------------------------------------


def test_a_person_logs_in_once_and_is_known_afterwards(up: Up) -> None:
    me = up.json("whoami")
    assert (me["username"], me["role"], me["must_change_password"]) == ("admin", "admin", False)
    assert "admin" in up.broker("whoami").stdout


def test_a_wrong_password_is_refused_and_keeps_no_token(up: Up, tmp_path: Path) -> None:
    words = ("--server", up.url, "login", "-u", "admin", "--password-stdin")
    done = up.broker(*words, stdin="wrong\n", status=77, XDG_CONFIG_HOME=str(tmp_path))
    assert "Not logged in" in done.stderr and not list(tmp_path.rglob("credentials.json"))


def test_without_a_token_the_remedy_is_named(up: Up, tmp_path: Path) -> None:
    done = up.broker("--server", up.url, "run", "list", status=77, XDG_CONFIG_HOME=str(tmp_path))
    assert "broker login" in done.stderr


def test_a_token_in_the_environment_is_enough(up: Up, tmp_path: Path) -> None:
    stored = json.loads((up.home / "config/broker/credentials.json").read_text())
    token = stored["servers"][up.url]["token"]
    env = {"XDG_CONFIG_HOME": str(tmp_path), "BROKER_SERVER": up.url, "BROKER_TOKEN": token}
    assert up.json("whoami", **env)["username"] == "admin"


def test_a_server_that_is_not_there_is_unreachable(up: Up) -> None:
    done = up.broker("whoami", status=69, BROKER_SERVER="http://127.0.0.1:1", BROKER_TOKEN="x")
    assert "No broker answers at http://127.0.0.1:1" in done.stderr


def test_a_spec_is_stored_once_however_often_it_is_sent(up: Up) -> None:
    first = up.json("pipeline", "create", str(EXAMPLE))
    again = up.json("pipeline", "create", "-", stdin=EXAMPLE.read_text())
    assert again["created"] is False and again["version"] == first["version"]
    name = first["pipeline"]["pipeline_id"]
    assert [one["number"] for one in up.json("pipeline", "versions", name)] == [1]
    assert up.json("pipeline", "show", name)["spec"] == json.loads(EXAMPLE.read_text())
    assert name in up.broker("pipeline", "list").stdout
    assert "data-loader → preprocessor" in up.broker("pipeline", "show", name).stdout


def test_server_and_file_say_the_same_of_a_wrong_spec(up: Up, tmp_path: Path) -> None:
    spec = json.loads(EXAMPLE.read_text())
    spec["workflow"].append({"from": "evaluator", "to": "data-loader"})
    spec["components"][0]["resources"]["memory"] = "much"
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(spec))
    here = up.json("pipeline", "validate", str(file), status=2)["problems"]
    there = json.loads(up.broker("pipeline", "create", str(file), "--json", status=2).stderr)["errors"]
    assert here == there and len(here) == 2


def test_what_would_be_submitted_is_the_same_from_server_and_file(up: Up) -> None:
    name = up.json("pipeline", "create", str(EXAMPLE))["pipeline"]["pipeline_id"]
    there = up.json("pipeline", "compile", name, "--set", "trainer.cpus=7")["jobs"]
    here = up.json("pipeline", "script", str(EXAMPLE), "--set", "trainer.cpus=7")["jobs"]
    assert [job["component"] for job in there] == [job["component"] for job in here]
    assert "--cpus-per-task=7" in there[2]["sbatch_args"] and "--cpus-per-task=7" in here[2]["sbatch_args"]


def test_a_folder_of_code_is_uploaded_once_and_links_are_refused(up: Up, tmp_path: Path) -> None:
    (tmp_path / "src/deep").mkdir(parents=True)
    (tmp_path / "src/train.py").write_text("print('hello')\n")
    (tmp_path / "src/deep/data.bin").write_bytes(os.urandom(3 << 20))
    (tmp_path / "src/__pycache__").mkdir()
    (tmp_path / "src/__pycache__/x.pyc").write_bytes(b"cache")
    first = up.json("pipeline", "upload", str(tmp_path / "src"))
    os.utime(tmp_path / "src/train.py", (0, 0))
    assert up.json("pipeline", "upload", str(tmp_path / "src")) == first and first["files"] == 2
    (tmp_path / "src/link").symlink_to("/etc/passwd")
    assert "link is a link" in up.broker("pipeline", "upload", str(tmp_path / "src"), status=2).stderr
    assert "can't be read" in up.broker("pipeline", "upload", "nowhere.zip", status=2).stderr


def test_the_same_key_asks_for_one_run(up: Up) -> None:
    words = ("run", "submit", str(EXAMPLE), "--idempotency-key", "once", "--test")
    first, again = up.json(*words), up.json(*words)
    assert first["id"] == again["id"] and first["kind"] == "test"
    assert up.json(*words[:3])["id"] != first["id"]
    assert first["id"] in [run["id"] for run in up.json("run", "list", "--kind", "test", "--mine")]
    events = up.broker("run", "events", first["id"], "--json").stdout.splitlines()
    assert json.loads(events[0])["type"] == "run_requested"


def test_waiting_has_an_end_and_harms_nothing(up: Up) -> None:
    run = up.json("run", "submit", str(EXAMPLE))
    done = up.broker("run", "wait", run["id"], "--timeout", "0.5", status=69)
    assert "is still pending_approval" in done.stderr  # its trainer asks for 4 GPUs
    assert up.json("run", "show", run["id"])["state"] == "pending_approval"
    up.broker("run", "logs", run["id"], "trainer")
    done = up.broker("run", "logs", run["id"], "nobody", status=2)
    assert "data-loader, preprocessor, trainer, evaluator" in done.stderr


def test_what_is_not_there_is_not_found(up: Up) -> None:
    for words in (("run", "show", "run-none"), ("models", "show", "mv-none"), ("pipeline", "show", "none")):
        assert "Not found" in up.broker(*words, status=66).stderr


def test_an_account_is_made_used_and_shut_out(up: Up, tmp_path: Path) -> None:
    up.broker("tenant", "create", "team-a")
    made = up.json("user", "create", "kim", "--role", "viewer", "--tenant", "team-a")
    assert up.json("user", "show", "kim")["role"] == "viewer"
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    once = made["one_time_password"] + "\n"
    up.broker("--server", up.url, "login", "-u", "kim", "--password-stdin", stdin=once, **env)
    up.broker("password", "--password-stdin", stdin=f"{once}{PASSWORD}\n", **env)
    assert up.json("run", "list", **env) == []
    assert "Not allowed" in up.broker("user", "list", status=77, **env).stderr
    up.broker("user", "deactivate", "kim")
    up.broker("run", "list", status=77, **env)
    assert up.json("user", "change", "kim", "--role", "researcher")["role"] == "researcher"


def test_logging_out_forgets_the_token(up: Up, tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    up.broker("--server", up.url, "login", "-u", "admin", "--password-stdin", stdin=f"{PASSWORD}\n", **env)
    assert up.json("logout", **env)["logged_out"]
    up.broker("--server", up.url, "whoami", status=77, **env)


def test_clusters_show_what_stands_in_the_way(up: Up) -> None:
    [cluster] = up.json("clusters")
    assert cluster["name"] == "main" and cluster["default"]


def test_the_database_commands_know_the_same_database(up: Up) -> None:
    assert up.json("db", "current")["current"]
    answer = up.json("db", "upgrade")
    assert answer["before"] == answer["after"]


# ---- the process group ----------------------------------------------------------------------------------


def test_a_second_one_in_the_same_folder_is_refused(up: Up) -> None:
    done = up.broker("up", status=75)
    assert up.process is not None and f"process {up.process.pid}" in done.stderr and "data_dir" in done.stderr
    assert httpx.get(f"{up.url}/healthz", timeout=60).status_code == 200


def test_a_port_that_is_taken_is_named_with_its_setting(up: Up, other: Up) -> None:
    port = up.url.rpartition(":")[2]
    done = other.broker("up", status=78, BROKER_API__PORT=port)
    assert f"port {port} (api.host, api.port)" in done.stderr


def test_sigterm_ends_everything_and_the_next_start_finds_all_again(other: Up) -> None:
    process = other.start()
    other.log_in()
    other.json("pipeline", "create", str(EXAMPLE))
    parts = list(children(process.pid))
    assert len(parts) == 3
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: not process.alive, PATIENCE_S, "it has ended")
    assert not other.ready.exists() and all(map(gone, parts))
    assert "worker |" in process.tail(200) and re.search(r"^ready http://", process.log.read_text(), re.M)
    other.start()
    words = ("--server", other.url, "login", "-u", "admin", "--password-stdin")
    other.broker(*words, stdin=f"{PASSWORD}\n")
    assert len(other.json("pipeline", "list")) == 1


def test_sigkill_of_the_leader_leaves_nothing_and_the_next_start_works(other: Up) -> None:
    process = other.start()
    url, parts = other.url, list(children(process.pid))
    process.kill()
    until(lambda: all(map(gone, parts)), 60, "every child has ended")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz", timeout=2)
    other.start()
    assert httpx.get(f"{other.url}/readyz", timeout=60).json()["ready"]


def test_each_part_that_is_killed_comes_back_under_the_same_address(other: Up) -> None:
    process = other.start()
    url = other.url
    for word in ("cli serve", "cli worker", "objects.server"):
        before = other.part(word)
        os.kill(before, signal.SIGKILL)

        def is_back(word: str = word, before: int = before) -> bool:
            found = [pid for pid, line in children(process.pid).items() if word in line]
            return bool(found) and found != [before]

        until(is_back, 90, f"{word} is back")

    def ready() -> bool:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=30).json()
        except httpx.TransportError:
            return False
        return bool(answer["ready"] and answer["checks"]["object_store"]["ok"])

    until(ready, 60, "everything answers again", 0.2)
    assert "api was killed by signal 9" in process.tail(500).replace("broker | ", "")


def test_a_request_during_a_restart_of_the_api_waits_instead_of_failing(other: Up) -> None:
    other.start()
    os.kill(other.part("cli serve"), signal.SIGKILL)
    assert httpx.get(f"{other.url}/healthz", timeout=60).status_code == 200
