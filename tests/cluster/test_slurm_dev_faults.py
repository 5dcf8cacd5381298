"""Faults of the development cluster, on demand: what fails, what goes on, what comes back."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.processes import until

pytestmark = pytest.mark.cluster


def test_a_failed_node_takes_its_processes_along_and_slurm_requeues_its_job(cluster: DevCluster) -> None:
    marker = f"/shared/ml-jobs/starts-{os.getpid()}"
    script = f'echo "$SLURM_RESTART_COUNT $(hostname)" >> {marker}; sleep 1000 & wait'
    request = ("--requeue", "--gres=gpu:a100:4", "--open-mode=append", "-o", "/dev/null")
    job = cluster.ok("sbatch", "--parsable", *request, f"--wrap={script}", user="broker")
    cluster.await_state(job, "RUNNING")
    until(lambda: cluster.exec(["test", "-s", marker])[0] == 0, 60, "the job's first start", 0.1)
    node = cluster.ok("squeue", "-h", "-j", job, "-o", "%N")
    try:
        assert cluster.exec(["pgrep", "-u", "broker", "sleep"])[0] == 0
        cluster.fail_node(node)
        assert cluster.exec(["pgrep", "-u", "broker", "sleep"])[0] == 1, "a process of the job survived"
        assert cluster.status()["daemons"][node]["state"] == "ended"
        until(lambda: cluster.status()["node_states"][node].startswith("down"), 120, "the node down", 0.1)
        until(lambda: len(cluster.ok("cat", marker).splitlines()) == 2, 120, "its second start", 0.1)
        restart = cluster.ok("cat", marker).splitlines()[1]
        assert restart.split()[0] == "1"
        assert restart.split()[1] != node
    finally:
        cluster.ok("scancel", job)
        cluster.recover_node(node)
        cluster.ok("rm", "-f", marker)
    assert cluster.status()["node_states"][node] in ("idle", "mixed", "allocated")


def test_a_frozen_node_can_still_fail_and_recover(cluster: DevCluster) -> None:
    cluster.pause("a100-4")
    assert cluster.status()["daemons"]["a100-4"]["state"] == "paused"
    cluster.fail_node("a100-4")
    assert cluster.status()["daemons"]["a100-4"]["reason"] == "killed by SIGKILL"
    cluster.recover_node("a100-4")
    assert cluster.status()["daemons"]["a100-4"]["state"] == "running"


def test_a_paused_controller_answers_nobody_until_it_is_resumed(cluster: DevCluster) -> None:
    cluster.pause("slurmctld")
    try:
        assert cluster.exec(["timeout", "2", "squeue"])[0] == 124
        state = cluster.status()
        assert state["daemons"]["slurmctld"]["state"] == "paused"
        assert state["scheduler"] is False
        assert state["accounting"] is True
    finally:
        cluster.resume("slurmctld")
    assert cluster.exec(["squeue", "-h"])[0] == 0
    assert cluster.status()["scheduler"] is True


@pytest.mark.parametrize("daemon", ["slurmdbd", "mariadb"])
def test_paused_accounting_leaves_the_scheduler_working(cluster: DevCluster, daemon: str) -> None:
    cluster.pause(daemon)
    try:
        assert cluster.exec(["timeout", "2", "sacct"])[0] == 124
        assert cluster.exec(["squeue", "-h"])[0] == 0
    finally:
        cluster.resume(daemon)
    until(lambda: cluster.status()["accounting"], 60, "accounting answers again", 0.1)


def test_a_restarted_sshd_cuts_connections_and_accepts_new_ones(cluster: DevCluster) -> None:
    with socket.create_connection((cluster.ssh.host, cluster.ssh.port), timeout=10) as connection:
        assert connection.recv(4) == b"SSH-"
        cluster.restart("sshd")
        connection.settimeout(10)
        # Cut is an empty read or a reset; silence would be a timeout, hence a failure.
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass
    assert cluster.log_in("broker", cluster.ssh.key, "echo", "back").stdout == "back\n"


def test_jobs_survive_a_restart_of_the_controller(cluster: DevCluster) -> None:
    job = cluster.ok("sbatch", "--parsable", "--hold", "--wrap=true", user="lee")
    cluster.restart("slurmctld")
    assert cluster.ok("squeue", "-h", "-j", job, "-o", "%T") == "PENDING"
    cluster.ok("scancel", job)
