"""The development cluster's configuration files: what they must say, for each Slurm release."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "slurm-dev"))

from slurmdev import conf, layout

SETTINGS = layout.Settings(
    name="dev",
    suite="trixie",
    ports={name: 21000 + number for number, name in enumerate(layout.PORT_NAMES)},
    owner=(1000, 1000),
)
RELEASES = [(22, 5), (24, 11), (26, 5)]


def fields(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if "=" in line and not line.startswith(("#", "NodeName")))
    return dict(line.split("=", 1) for line in lines if not line.startswith("PartitionName"))


@pytest.mark.parametrize("release", RELEASES)
def test_daemons_bind_what_their_host_name_means_and_that_is_loopback(release: conf.Version) -> None:
    said = fields(conf.slurm_conf(SETTINGS, release))
    assert said["CommunicationParameters"] == "NoCtldInAddrAny,NoInAddrAny"
    assert said["SlurmctldHost"] == f"{layout.LOGIN_HOST}(127.0.0.1)"
    loopback = next(line for line in conf.hosts().splitlines() if line.startswith("127.0.0.1"))
    assert {layout.LOGIN_HOST, *layout.NODES} <= set(loopback.split())
    assert "CommunicationParameters=NoInAddrAny" in conf.slurmdbd_conf(SETTINGS)
    assert "ListenAddress 127.0.0.1" in conf.sshd_config(SETTINGS)
    assert '"127.0.0.1:' in conf.registry_yaml(SETTINGS)
    assert "--skip-networking" in conf.mariadb_options()


@pytest.mark.parametrize("release", RELEASES)
def test_preempted_jobs_get_the_users_signal_in_the_words_of_each_release(release: conf.Version) -> None:
    said = fields(conf.slurm_conf(SETTINGS, release))
    in_scheduler = "preempt_send_user_signal" in said["SchedulerParameters"].split(",")
    assert in_scheduler != (said.get("PreemptParameters") == "send_user_signal")
    assert in_scheduler == (release < (23, 2))


@pytest.mark.parametrize(("release", "plugin"), [((22, 5), "cgroup/v1"), ((24, 11), "disabled")])
def test_no_release_looks_for_control_groups(release: conf.Version, plugin: str) -> None:
    assert conf.cgroup_conf(release) == f"CgroupPlugin={plugin}\n"


def test_every_node_has_a_port_of_its_own_and_a_device_file_per_gpu() -> None:
    nodes = [line for line in conf.slurm_conf(SETTINGS, (24, 11)).splitlines() if line.startswith("NodeName")]
    ports = {word for line in nodes for word in line.split() if word.startswith("Port=")}
    assert len(nodes) == len(ports) == 6
    assert "NodeName=v100-1,v100-2 Name=gpu Type=v100 File=/dev/slurm-dev/gpu[0-3]" in conf.gres_conf()


def test_limits_are_enforced_and_gpus_are_counted_by_type() -> None:
    said = fields(conf.slurm_conf(SETTINGS, (24, 11)))
    assert said["AccountingStorageEnforce"] == "associations,limits,qos,safe"
    assert said["AccountingStorageTRES"] == "gres/gpu,gres/gpu:a100,gres/gpu:v100"


def test_the_service_account_may_act_for_one_group_alone() -> None:
    assert conf.sudoers() == "broker ALL=(%people) NOPASSWD: ALL\n"


def test_a_dead_node_is_noticed_within_half_a_minute_and_a_small_partition_lies_beside_the_others() -> None:
    text = conf.slurm_conf(SETTINGS, (24, 11))
    silent, message = (int(fields(text)[name]) for name in ("SlurmdTimeout", "MessageTimeout"))
    # A look every third of the time-out; the third one without an answer counts, each of two before it lasts
    # as long as a message may (slurmctld's ping_nodes, measured). A quarter of it is left to a busy machine.
    assert silent / 3 + 2 * message < 30 * 3 / 4
    assert "PartitionName=capped Nodes=v100-2 MaxTime=INFINITE State=UP" in text


def test_settings_survive_their_file_and_a_missing_port_is_an_error() -> None:
    assert layout.Settings.from_json(SETTINGS.to_json()) == SETTINGS
    short = layout.Settings("dev", "trixie", {"ssh": 1})
    with pytest.raises(ValueError, match="cluster reset"):
        layout.Settings.from_json(short.to_json())
