"""The development cluster keeps its promises: what is in it, who may do what, what it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import PROGRAM, DevCluster
from tests.harness.processes import until

pytestmark = pytest.mark.cluster


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
    assert cluster.log_in(user, key, "id", "-un").stdout.strip() == user


def test_another_persons_key_is_refused(cluster: DevCluster) -> None:
    assert "Permission denied" in cluster.log_in("kim", cluster.ssh.key, "true").stderr


def test_everything_listens_on_loopback_only(cluster: DevCluster) -> None:
    job = cluster.ok("sbatch", "--parsable", "--wrap=srun sleep 1000", user="kim")
    cluster.await_state(job, "RUNNING")
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


def test_status_tells_what_cluster_json_says_and_how_it_is_now(cluster: DevCluster) -> None:
    status = cluster.status()
    assert {key: status[key] for key in cluster.info} == cluster.info
    assert status["state"] == "up"
    assert set(status["node_states"]) == set(cluster.info["nodes"])
    assert {daemon["state"] for daemon in status["daemons"].values()} == {"running"}


def test_the_log_of_every_daemon_can_be_read(cluster: DevCluster) -> None:
    for daemon in cluster.status()["daemons"]:
        cluster.control("logs", daemon)
    assert "slurmctld version" in cluster.control("logs", "slurmctld")
    assert "starting slurmctld" in cluster.control("logs")


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


def test_the_owner_cannot_release_an_administrator_hold(cluster: DevCluster) -> None:
    job = cluster.ok("sbatch", "--parsable", "--hold", "--wrap=true", user="kim")
    cluster.ok("scontrol", "hold", job, user="broker")
    status, _out, err = cluster.exec(["scontrol", "release", job], user="kim")
    assert status != 0
    assert "denied" in err
    assert cluster.ok("squeue", "-h", "-j", job, "-o", "%T %r") == "PENDING JobHeldAdmin"
    cluster.ok("scontrol", "release", job, user="broker")
    cluster.await_state(job, "COMPLETED")


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
