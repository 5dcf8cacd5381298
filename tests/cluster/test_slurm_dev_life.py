"""Clusters begin and end: side by side, killed half way, wiped, and nothing of them is left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import PROGRAM, DevCluster, control, load, running, state_home
from tests.harness.processes import until

pytestmark = pytest.mark.cluster


@pytest.fixture
def other(cluster: DevCluster) -> Iterator[str]:
    """The name of a second cluster, which is wiped afterwards."""
    name = f"{cluster.name}-other"
    control("down", "--purge", "--name", name)
    yield name
    control("down", "--purge", "--name", name)


def test_up_is_idempotent(cluster: DevCluster) -> None:
    before = load(cluster.name).info
    assert "is up already" in cluster.control("up")
    assert load(cluster.name).info == before


def test_another_suite_needs_a_reset(cluster: DevCluster) -> None:
    words = ("up", "--name", cluster.name, "--suite", "bookworm")
    done = subprocess.run([str(PROGRAM), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cluster reset --name {cluster.name} --suite bookworm" in done.stderr


def test_two_clusters_live_side_by_side_and_the_second_leaves_nothing(
    cluster: DevCluster, other: str
) -> None:
    control("up", "--name", other, "--no-images")
    second = load(other)
    assert second.ssh.port != cluster.ssh.port
    job = second.ok("sbatch", "--parsable", "--wait", "--wrap=hostname", user="kim")
    until(
        lambda: "COMPLETED" in second.ok("sacct", "-nPX", "-j", job, "-o", "state"),
        60,
        "accounting there",
        0.1,
    )
    key = second.info["users"][1]["key"]
    assert cluster.log_in("kim", key, "true").returncode != 0, "a key of one cluster opens the other"

    pid, namespace = second.info["pid"], _namespace(Path("/proc", str(second.info["pid"])))
    control("down", "--name", other)
    assert not Path(f"/proc/{pid}").exists()
    until(
        lambda: namespace not in {_namespace(entry) for entry in Path("/proc").iterdir()},
        5,
        "the last end",
        0.1,
    )
    assert other not in Path("/proc/mounts").read_text()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((second.ssh.host, second.ssh.port), timeout=5)
    assert not (state_home() / other / "cluster.json").exists()
    assert cluster.status()["state"] == "up"


def _namespace(process: Path) -> str:
    try:
        return str((process / "ns/pid_for_children").readlink())
    except OSError:
        return ""


def test_what_happened_is_still_known_after_down_and_up_and_forgotten_after_reset(other: str) -> None:
    control("up", "--name", other, "--no-images")
    before = load(other)
    job = before.ok("sbatch", "--parsable", "--wait", "--wrap=true", user="kim")
    control("down", "--name", other)
    control("up", "--name", other, "--no-images")
    again = load(other)
    assert (again.ssh, again.registry) == (before.ssh, before.registry)
    assert again.ok("sacct", "-nPX", "-j", job, "-o", "state") == "COMPLETED"
    control("reset", "--name", other, "--no-images")
    fresh = load(other)
    assert fresh.ssh == before.ssh
    assert fresh.ok("sacct", "-nPX", "-j", job, "-o", "state") == ""
    assert fresh.ok("sbatch", "--parsable", "--wrap=true", user="kim") == "1"


def test_a_start_that_was_killed_half_way_is_cleared_by_the_next_one(other: str) -> None:
    pid_file = state_home() / other / "pid"
    starting = subprocess.Popen(
        [str(PROGRAM), "up", "--name", other, "--no-images"], stdout=subprocess.PIPE, text=True
    )
    assert starting.stdout is not None
    for line in starting.stdout:
        if "starting mariadb" in line:
            break
    starting.kill()
    starting.wait()
    starting.stdout.close()
    first = int(pid_file.read_text())
    assert "is ready after" in control("up", "--name", other, "--no-images")
    assert load(other).info["pid"] != first
    assert load(other).status()["state"] == "up"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_cluster_bound_to_its_caller_ends_with_it(other: str, number: signal.Signals) -> None:
    with running(other, "--no-images") as bound:
        pid = bound.info["pid"]
        parent = _parent(_parent(pid))
        os.kill(parent, number)
        until(lambda: not Path(f"/proc/{pid}").exists(), 30, "the cluster's end", 0.1)


def _parent(pid: int) -> int:
    found = re.search(r"^PPid:\s+(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_a_port_that_somebody_took_is_named_and_another_one_chosen(other: str) -> None:
    control("up", "--name", other, "--no-images")
    port = load(other).ssh.port
    control("down", "--name", other)
    with socket.socket() as intruder:
        intruder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        intruder.bind(("127.0.0.1", port))
        intruder.listen()
        said = control("up", "--name", other, "--no-images")
    assert f"port {port} (ssh) is taken" in said
    moved = load(other)
    assert moved.ssh.port != port
    assert moved.log_in("broker", moved.ssh.key, "id", "-un").stdout == "broker\n"
