"""`broker doctor` against a real cluster: what is well is well, what is broken is named."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.product import BROKER, to_toml

pytestmark = pytest.mark.cluster

Checks = dict[str, dict[str, str]]


class Doctor:
    """The command, with settings for one cluster."""

    def __init__(self, cluster: DevCluster, home: Path) -> None:
        self.cluster, self.home = cluster, home

    def settings(self, **changes: Any) -> dict[str, Any]:
        ssh = self.cluster.ssh
        return {
            "ssh_host": ssh.host,
            "ssh_port": ssh.port,
            "ssh_user": ssh.user,
            "ssh_key_file": ssh.key,
            "ssh_known_hosts": ssh.known_hosts,
            "base_path": "/shared/ml-jobs",
            "image_dir": "/shared/images",
            "gpu_types": {"A100": "a100", "V100": "v100"},
            "poll_interval_s": 2,
            **changes,
        }

    def run(self, *words: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        config = {"data_dir": str(self.home / "data"), "clusters": {"main": self.settings(**changes)}}
        file = self.home / "broker.toml"
        file.write_text(to_toml(config))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        return subprocess.run(
            [str(BROKER), "doctor", *words],
            env={**kept, "BROKER_CONFIG_FILE": str(file)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def checks(self, *words: str, status: int, **changes: Any) -> Checks:
        done = self.run("--cluster", "main", "--json", *words, **changes)
        assert done.returncode == status, done.stdout + done.stderr
        [report] = json.loads(done.stdout)["reports"]
        return {check["name"]: check for check in report["checks"]}


@pytest.fixture
def doctor(cluster: DevCluster, tmp_path: Path) -> Doctor:
    return Doctor(cluster, tmp_path)


def failed(checks: Mapping[str, Mapping[str, str]]) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "fail"}


def test_a_good_cluster_passes_and_what_development_lacks_is_a_warning(doctor: Doctor) -> None:
    checks = doctor.checks(status=0)
    assert {name for name, check in checks.items() if check["status"] == "warn"} == {"fences"}
    for name in (
        "hold",
        "cancel",
        "sacct",
        "found by name",
        "job on a node",
        "shared base path",
        "Apptainer",
    ):
        assert checks[name]["status"] == "ok", checks[name]
    assert "Operator" in checks["hold"]["detail"] and "squashfuse" in checks["Apptainer"]["detail"]
    assert checks["GPU types"]["detail"] == "a100 x 16, v100 x 8"


def test_the_doctor_leaves_nothing_behind(doctor: Doctor) -> None:
    doctor.checks(status=0)
    names = doctor.cluster.ok("squeue", "-h", "-t", "PD,R,S,CG", "-o", "%j")
    assert "broker-doctor" not in names
    assert "doctor" not in doctor.cluster.ok("ls", "-A", "/shared/ml-jobs", "/shared/images")


def test_everything_is_examined_and_told_to_a_person(doctor: Doctor) -> None:
    done = doctor.run()
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("database", "S3 multipart", "cluster main", "→ broker db upgrade"):
        assert word in done.stdout
    assert "0 failed" in done.stderr


def test_a_person_without_slurm_rights_is_told_which_are_missing(doctor: Doctor) -> None:
    kim = next(user for user in doctor.cluster.info["users"] if user["name"] == "kim")
    folder = "/shared/kim-doctor"
    doctor.cluster.ok("install", "-d", "-o", "kim", "-m", "0755", folder)
    changes = {"ssh_user": "kim", "ssh_key_file": kim["key"], "base_path": folder, "image_dir": folder}
    checks = doctor.checks(status=0, **changes)
    assert checks["hold"]["status"] == "warn" and "adminlevel=Operator" in checks["hold"]["remedy"]
    assert checks["job on a node"]["status"] == "ok"
    doctor.cluster.ok("rmdir", folder)


def test_a_folder_that_is_not_ours_is_named(doctor: Doctor) -> None:
    checks = doctor.checks("--no-jobs", status=1, base_path="/etc", image_dir="/nowhere")
    assert failed(checks) == {"base path", "image cache"}
    assert "Permission denied" in checks["base path"]["detail"]
    assert "No such file" in checks["image cache"]["detail"]


def test_settings_that_slurm_does_not_know_are_named(doctor: Doctor) -> None:
    checks = doctor.checks(
        status=1, account="nobody", partition="none", gpu_types={"H100": "h100"}, qos="royal"
    )
    assert {"association", "partition", "GPU types", "sbatch"} <= failed(checks)
    assert "hold" not in checks  # nothing was submitted after Slurm had said that it would refuse


def test_an_unknown_host_key_is_refused_with_the_remedy(doctor: Doctor) -> None:
    empty = doctor.home / "known_hosts"
    empty.write_text("")
    checks = doctor.checks(status=1, ssh_known_hosts=str(empty))
    assert failed(checks) == {"connection"}
    assert "ssh-keyscan" in checks["connection"]["detail"] + checks["connection"]["remedy"]


def test_a_key_that_others_can_read_is_named(doctor: Doctor) -> None:
    key = doctor.home / "key"
    key.write_bytes(Path(doctor.cluster.ssh.key).read_bytes())
    key.chmod(0o644)
    assert "SSH key" in failed(doctor.checks("--no-jobs", status=1, ssh_key_file=str(key)))


def test_a_login_node_that_does_not_answer_is_one_finding(doctor: Doctor) -> None:
    checks = doctor.checks(status=1, ssh_port=1, ssh_timeout_s=3)
    assert failed(checks) == {"connection"}


def test_a_cluster_that_is_not_configured_is_wrong_input(doctor: Doctor) -> None:
    done = doctor.run("--cluster", "other")
    assert done.returncode == 78 and "configured: main" in done.stderr


def test_more_sessions_than_sshd_allows_are_noticed(doctor: Doctor) -> None:
    checks = doctor.checks("--no-jobs", status=0, ssh_channels=20)
    assert checks["sessions"]["status"] == "warn" and "MaxSessions" in checks["sessions"]["remedy"]
    assert "of 20 sessions" in checks["sessions"]["detail"]
