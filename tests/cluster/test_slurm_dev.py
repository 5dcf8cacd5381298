"""The development cluster keeps its promises: what is in it, its faults on demand, that it leaves nothing."""

from __future__ import annotations

import contextlib
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


def wait_for_state(cluster: DevCluster, job: str, *states: str, seconds: float = 60) -> None:
    until(
        lambda: cluster.ok("squeue", "-h", "-t", "all", "-j", job, "-o", "%T") in states,
        seconds,
        f"job {job} in {'/'.join(states)}",
        0.1,
    )


@pytest.fixture
def other(cluster: DevCluster) -> Iterator[str]:
    """The name of a second cluster, which is wiped afterwards."""
    name = f"{cluster.name}-other"
    control("down", "--purge", "--name", name)
    yield name
    control("down", "--purge", "--name", name)


# What is in it


def test_every_node_is_idle_with_its_typed_gpus(cluster: DevCluster) -> None:
    lines = cluster.ok("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T %G %c %m").splitlines()
    expected = [f"a100-{i} idle gpu:a100:4 64 524288" for i in range(1, 5)]
    expected += [f"v100-{i} idle gpu:v100:4 32 262144" for i in range(1, 3)]
    assert sorted(line.strip() for line in lines) == expected


def test_partitions_follow_the_gpu_type_and_all_nodes_are_the_default(cluster: DevCluster) -> None:
    assert cluster.ok("sinfo", "-h", "-o", "%P %D").splitlines() == ["gpu* 6", "a100 4", "v100 2", "capped 1"]


def test_people_and_accounts_are_registered_and_the_service_account_is_operator(cluster: DevCluster) -> None:
    associations = cluster.ok("sacctmgr", "-nP", "show", "assoc", "cluster=dev", "format=account,user,qos")
    people = {
        line.rpartition("|")[0]: set(line.rpartition("|")[2].split(",")) for line in associations.splitlines()
    }
    assert {"default|kim", "team-a|kim", "team-b|park"} <= set(people)
    assert "team-a|park" not in people
    assert people["team-a|kim"] == {"normal", "urgent-inference", "inference", "fine-tuning", "training"}
    levels = cluster.ok("sacctmgr", "-nP", "show", "user", "format=user,admin").splitlines()
    assert {"broker|Operator", "kim|None", "park|None", "lee|None"} <= set(levels)


def test_a_gpu_job_runs_on_the_right_node_and_accounting_counts_typed_gpus(cluster: DevCluster) -> None:
    script = "hostname; echo gpus=$CUDA_VISIBLE_DEVICES"
    arguments = ("--parsable", "--wait", "--gres=gpu:v100:2", "-o", "/home/kim/out", f"--wrap={script}")
    job = cluster.ok("sbatch", *arguments, user="kim")
    host, gpus = cluster.ok("cat", "/home/kim/out").splitlines()
    assert host in ("v100-1", "v100-2")
    assert gpus == "gpus=0,1"
    until(
        lambda: "COMPLETED|" in cluster.ok("sacct", "-nPX", "-j", job, "-o", "state,alloctres"),
        60,
        "accounting",
        0.1,
    )
    tres = cluster.ok("sacct", "-nPX", "-j", job, "-o", "alloctres")
    assert {"gres/gpu=2", "gres/gpu:v100=2"} <= set(tres.split(","))


def test_a_container_pulled_from_the_registry_runs_isolated_in_a_job(cluster: DevCluster) -> None:
    image, folder = f"/shared/images/hello-{os.getpid()}.sif", f"/shared/ml-jobs/container-{os.getpid()}"
    pull = ("apptainer", "pull", "--no-https", image, f"docker://{cluster.registry}/hello:1.0")
    cluster.ok(*pull, user="broker")
    cluster.ok("mkdir", "-p", f"{folder}/scratch", f"{folder}/out", user="broker")
    isolated = (
        f"apptainer run --containall --cleanenv --no-home --no-eval --workdir {folder}/scratch "
        f"--bind {folder}/out:/out --env OUTPUT_DIR=/out,COMPONENT=hello {image} --alpha 1"
    )
    submit = ("sbatch", "--wait", "--gres=gpu:a100:1", "-o", f"{folder}/log", f"--wrap=srun {isolated}")
    cluster.ok(*submit, user="broker")
    assert "hello from hello" in cluster.ok("cat", f"{folder}/log")
    assert cluster.ok("cat", f"{folder}/out/metrics.json").startswith("{")
    cluster.ok("rm", "-rf", folder, image)


def test_the_shared_folder_is_the_same_one_on_this_machine(cluster: DevCluster) -> None:
    cluster.ok("sh", "-c", "echo seen > /shared/ml-jobs/seen", user="broker")
    on_this_machine = Path(cluster.info["host_shared"]) / "ml-jobs" / "seen"
    assert on_this_machine.read_text() == "seen\n"
    assert on_this_machine.stat().st_uid == 2000
    on_this_machine.unlink()


@pytest.mark.parametrize("user", ["broker", "kim", "park", "lee"])
def test_everyone_logs_in_with_their_own_key_and_the_host_key_is_known(
    cluster: DevCluster, user: str
) -> None:
    key = next(person["key"] for person in cluster.info["users"] if person["name"] == user)
    assert ssh(cluster, user, key, "id", "-un").stdout.strip() == user


def test_another_persons_key_is_refused(cluster: DevCluster) -> None:
    assert "Permission denied" in ssh(cluster, "kim", cluster.ssh.key, "true").stderr


def ssh(cluster: DevCluster, user: str, key: str, *command: str) -> subprocess.CompletedProcess[str]:
    options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes")
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(cluster.ssh.port), "-i", key),
            *(word for option in options for word in ("-o", option)),
            *("-o", f"UserKnownHostsFile={cluster.ssh.known_hosts}", f"{user}@{cluster.ssh.host}", *command),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# Rights


def test_the_owner_cannot_release_an_administrator_hold(cluster: DevCluster) -> None:
    job = cluster.ok("sbatch", "--parsable", "--hold", "--wrap=true", user="kim")
    cluster.ok("scontrol", "hold", job, user="broker")
    status, _out, err = cluster.exec(["scontrol", "release", job], user="kim")
    assert status != 0
    assert "denied" in err
    assert cluster.ok("squeue", "-h", "-j", job, "-o", "%T %r") == "PENDING JobHeldAdmin"
    cluster.ok("scontrol", "release", job, user="broker")
    wait_for_state(cluster, job, "COMPLETED")


def test_the_service_account_acts_for_people_of_one_group_and_for_nobody_else(cluster: DevCluster) -> None:
    assert cluster.ok("sudo", "-n", "-H", "-u", "kim", "--", "id", "-un", user="broker") == "kim"
    for somebody in ("root", "slurm"):
        status, _out, err = cluster.exec(["sudo", "-n", "-u", somebody, "--", "id"], user="broker")
        assert status != 0, f"broker became {somebody}"
        assert "password is required" in err or "not allowed" in err
    assert cluster.exec(["sudo", "-n", "-u", "park", "--", "id"], user="kim")[0] != 0


def test_a_job_of_an_account_one_does_not_belong_to_is_refused(cluster: DevCluster) -> None:
    status, _out, err = cluster.exec(["sbatch", "--account=team-b", "--wrap=true"], user="kim")
    assert status != 0
    assert "Invalid account" in err


# Faults on demand


def test_a_failed_node_takes_its_processes_along_and_slurm_requeues_its_job(cluster: DevCluster) -> None:
    marker = f"/shared/ml-jobs/starts-{os.getpid()}"
    script = f'echo "$SLURM_RESTART_COUNT $(hostname)" >> {marker}; sleep 1000 & wait'
    request = ("--requeue", "--gres=gpu:a100:4", "--open-mode=append", "-o", "/dev/null")
    job = cluster.ok("sbatch", "--parsable", *request, f"--wrap={script}", user="broker")
    wait_for_state(cluster, job, "RUNNING")
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
    assert ssh(cluster, "broker", cluster.ssh.key, "echo", "back").stdout == "back\n"


def test_jobs_survive_a_restart_of_the_controller(cluster: DevCluster) -> None:
    job = cluster.ok("sbatch", "--parsable", "--hold", "--wrap=true", user="lee")
    cluster.restart("slurmctld")
    assert cluster.ok("squeue", "-h", "-j", job, "-o", "%T") == "PENDING"
    cluster.ok("scancel", job)


# Manners


def test_everything_listens_on_loopback_only(cluster: DevCluster) -> None:
    job = cluster.ok("sbatch", "--parsable", "--wrap=srun sleep 1000", user="kim")
    wait_for_state(cluster, job, "RUNNING")
    try:
        until(lambda: cluster.exec(["pgrep", "-u", "kim", "sleep"])[0] == 0, 60, "the step", 0.1)
        # ss names the processes of the cluster alone: sockets of this machine have no `users:`.
        ours = [line for line in cluster.ok("ss", "-ltnpH").splitlines() if "users:" in line]
        addresses = [line.split()[3] for line in ours]
        assert len(addresses) > 10, "nobody listens?"
        assert {address.rpartition(":")[0] for address in addresses} == {"127.0.0.1"}
        found = " ".join(ours)
        for program in ("slurmctld", "slurmdbd", "slurmd", "srun", "sshd", "docker-registry"):
            assert f'("{program}"' in found, f"{program} does not listen"
        assert "mariadbd" not in found
    finally:
        cluster.ok("scancel", job)


def test_up_is_idempotent(cluster: DevCluster) -> None:
    before = load(cluster.name).info
    assert "is up already" in cluster.control("up")
    assert load(cluster.name).info == before


def test_status_tells_what_cluster_json_says_and_how_it_is_now(cluster: DevCluster) -> None:
    status = cluster.status()
    assert {key: status[key] for key in cluster.info} == cluster.info
    assert status["state"] == "up"
    assert set(status["node_states"]) == set(cluster.info["nodes"])
    assert {daemon["state"] for daemon in status["daemons"].values()} == {"running"}


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
    assert ssh(cluster, "kim", key, "true").returncode != 0, "a key of one cluster opens the other"

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
    assert ssh(moved, "broker", moved.ssh.key, "id", "-un").stdout == "broker\n"


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("up", "--name", "Not_A_Name"), "lower-case"),
        (("status", "--name", "never-started"), "cluster up --name never-started"),
        (("exec", "--name", "never-started", "true"), "is not up"),
        (("fail", "node", "x100-1"), "a100-1"),
        (("pause", "postgres"), "slurmctld"),
    ],
)
def test_a_mistake_gets_one_clear_error(words: tuple[str, ...], remedy: str) -> None:
    done = subprocess.run([str(PROGRAM), *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2)
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_another_suite_needs_a_reset(cluster: DevCluster) -> None:
    words = ("up", "--name", cluster.name, "--suite", "bookworm")
    done = subprocess.run([str(PROGRAM), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cluster reset --name {cluster.name} --suite bookworm" in done.stderr


def test_the_log_of_every_daemon_can_be_read(cluster: DevCluster) -> None:
    for daemon in cluster.status()["daemons"]:
        cluster.control("logs", daemon)
    assert "slurmctld version" in cluster.control("logs", "slurmctld")
    assert "starting slurmctld" in cluster.control("logs")
