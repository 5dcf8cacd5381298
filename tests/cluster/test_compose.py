"""The development cluster in a container keeps the promises that it keeps in namespaces, on a real engine."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import PROGRAM, state_home
from tests.cluster.engine import Engine, cache, engine
from tests.harness.processes import free_port

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.getuid() != 0, reason="a Docker engine of one's own needs root"),
]
NAME = "compose-test"
ROOT = PROGRAM.parents[1]


class ContainerCluster:
    """The `cluster` program told to use our engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.home = engine, state_home()
        self._env = {
            **engine.env,
            "SLURM_DEV_COMPOSE_FILES": str(engine.override),
        }

    def run(self, command: str, *words: str, stdin: str = "") -> str:
        done = subprocess.run(
            [str(PROGRAM), command, "--name", NAME, *words],
            env=self._env, input=stdin, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"cluster {command}: {done.stderr}{done.stdout[-3000:]}"
        return done.stdout

    def exec(self, *argv: str, user: str = "root", stdin: str = "") -> str:
        return self.run("exec", "--user", user, "--", *argv, stdin=stdin).strip()

    @property
    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self.home / NAME / "cluster.json").read_text())
        return info

    def ssh(self, script: str) -> str:
        """Run a script on the login node, as the service account and as the broker does: over SSH."""
        how = self.info["ssh"]
        options = ["-o", f"UserKnownHostsFile={how['known_hosts']}", "-o", "BatchMode=yes", "-i", how["key"]]
        done = subprocess.run(
            ["ssh", *options, "-p", str(how["port"]), f"{how['user']}@{how['host']}", "bash -es"],
            input=script, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()


@pytest.fixture(scope="module")
def running_engine() -> Iterator[Engine]:
    with engine() as found:
        yield found


@pytest.fixture(scope="module")
def container(running_engine: Engine) -> Iterator[ContainerCluster]:
    found = ContainerCluster(running_engine)
    found.run("down", "--purge")
    found.run("up", "--via", "compose")
    yield found
    found.run("down", "--purge")


def test_every_node_is_idle_and_accounting_answers(container: ContainerCluster) -> None:
    status = json.loads(container.run("status", "--json"))
    assert status["state"] == "up" and status["scheduler"] and status["accounting"]
    assert set(status["node_states"].values()) == {"idle"} and len(status["node_states"]) == 6


def test_nothing_is_published_beyond_loopback_and_no_privilege_beyond_the_named(
    container: ContainerCluster,
) -> None:
    (number,) = container.engine.docker("ps", "--quiet").split()
    (inspected,) = json.loads(container.engine.docker("inspect", number))
    published = [
        entry["HostIp"] for entries in inspected["NetworkSettings"]["Ports"].values() for entry in entries
    ]
    assert published == ["127.0.0.1", "127.0.0.1"]
    assert inspected["HostConfig"]["Privileged"] is False


def test_a_job_runs_an_image_of_the_registry_under_its_gpus(container: ContainerCluster) -> None:
    script = "\n".join(
        [
            "#!/bin/bash",
            "unset SLURM_EXPORT_ENV",
            'srun apptainer --quiet run --containall hello.sif "GPUs $CUDA_VISIBLE_DEVICES"',
        ]
    )
    output = container.ssh(
        f"""
        apptainer --quiet pull --no-https --force hello.sif docker://{container.info["registry"]}/hello:1.0
        echo {shlex.quote(script)} > job.sh
        sbatch --quiet --wait --export=NONE --gres=gpu:a100:2 --output=job.log job.sh
        cat job.log
        """
    )
    assert output == "hello from a component of no run, attempt 0: GPUs 0,1"


def test_people_enter_and_daemons_freeze_as_in_namespaces(container: ContainerCluster) -> None:
    assert container.exec("id", "--user", "--name", user="kim") == "kim"
    assert container.exec("cat", stdin="text on standard input") == "text on standard input"
    container.run("pause", "slurmctld")
    assert json.loads(container.run("status", "--json"))["daemons"]["slurmctld"]["state"] == "paused"
    container.run("resume", "slurmctld")
    assert container.exec("scontrol", "ping").endswith("UP")


def test_down_leaves_nothing_running_and_up_finds_jobs_accounts_and_keys_again(
    container: ContainerCluster,
) -> None:
    job = container.ssh("sbatch --parsable --wait --wrap true")
    before = container.info["ssh"]
    container.run("down")
    assert container.engine.docker("ps", "--all", "--quiet") == ""
    assert (
        container.engine.docker("network", "ls", "--quiet", "--filter", "label=com.docker.compose.project")
        == ""
    )
    with socket.socket() as probe:
        assert probe.connect_ex((before["host"], before["port"])) != 0
    container.run("up")  # the way is remembered
    assert container.info["via"] == "compose" and container.info["ssh"] == before
    assert "COMPLETED" in container.exec("sacct", "-X", "-n", "-j", job, "-o", "State")


@pytest.fixture
def everything(running_engine: Engine, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Every service of docker-compose.yml; the environment in which the host's command line talks to them."""
    ports = {name: free_port() for name in ("SSH_PORT", "REGISTRY_PORT", "OBJECTS_PORT", "BROKER_PORT")}
    env = {
        **running_engine.env,
        **{name: str(port) for name, port in ports.items()},
        "CLUSTER_PROJECT": "compose-everything",
        "CLUSTER_CACHE": str(cache()),  # the images that other tests had built: no network is needed inside
        "XDG_CONFIG_HOME": str(tmp_path),
        "BROKER_SERVER": f"http://127.0.0.1:{ports['BROKER_PORT']}",
    }
    subprocess.run([ROOT / "slurm-dev" / "images" / "build"], check=True, stdout=subprocess.DEVNULL)
    compose = [
        "docker",
        "compose",
        f"--file={ROOT / 'docker-compose.yml'}",
        f"--file={running_engine.override}",
    ]
    env["COMPOSE"] = " ".join(compose)
    try:
        succeed([*compose, "up", "--build", "--detach"], env)
        yield env
    finally:
        succeed([*compose, "down", "--volumes"], env)


def succeed(argv: Sequence[str | Path], env: Mapping[str, str], stdin: str = "") -> str:
    """Run a program that must succeed; its standard output."""
    done = subprocess.run(
        argv, env=dict(env), input=stdin, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{argv}: {done.stderr[-3000:]}{done.stdout[-1000:]}"
    return done.stdout


@pytest.mark.slow
def test_all_services_together_turn_the_example_into_a_stored_model(
    everything: dict[str, str], tmp_path: Path
) -> None:
    def broker(*words: str, stdin: str = "") -> str:
        return succeed([Path(sys.executable).with_name("broker"), *words], everything, stdin)

    compose = everything["COMPOSE"].split()
    password = succeed(
        [*compose, "exec", "-T", "serve", "cat", "/var/lib/broker/first-admin-password"], everything
    )
    broker("login", "--username", "admin", "--password-stdin", stdin=password)
    broker("password", "--password-stdin", stdin=f"{password.strip()}\nnobody guesses this one 7\n")
    small = ("--set", "trainer.gpu_count=2", "--set", "trainer.memory=64GB")  # needs nobody's approval
    run = json.loads(
        broker("run", "submit", str(ROOT / "examples" / "llm-finetune.json"), *small, "--wait", "--json")
    )
    assert run["state"] == "succeeded"
    (model,) = json.loads(broker("models", "list", "--json"))
    assert model["metrics"]["final_accuracy"] > 0.9
    broker("models", "download", model["id"], "--output", str(tmp_path / "model"))
    assert next((tmp_path / "model").rglob("best_model.joblib")).stat().st_size > 100_000
