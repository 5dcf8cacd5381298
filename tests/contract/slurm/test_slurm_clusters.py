"""What is read of a cluster, its nodes, partitions, classes and people, against three releases of Slurm."""

from __future__ import annotations

import json

from broker.slurm.cluster import Config
from broker.slurm.commands import REGISTRY
from broker.slurm.versions import accounting_fields
from tests.recordings import RECORDINGS, Recordings


def test_every_command_was_recorded_on_every_release(recorded: Recordings) -> None:
    found = {
        json.loads(path.read_text())["command"]
        for path in (RECORDINGS / recorded.version).rglob("*.json")
        if path.name != "facts.json"
    }
    assert found == set(REGISTRY)


def test_the_cluster_says_what_it_is_and_can(recorded: Recordings) -> None:
    assert str(recorded.parse("version")) == recorded.version
    config: Config = recorded.parse("config")
    assert config.cluster_name == "dev"
    assert config.has_accounting
    assert config.enforce >= {"associations", "limits", "qos", "safe"}
    assert {"gres/gpu", "gres/gpu:a100", "gres/gpu:v100"} <= set(config.tracked_tres)
    assert (config.message_timeout_s, config.preempt_mode, config.job_requeue) == (10, ("REQUEUE",), True)
    assert config.priority_type == "priority/multifactor"
    assert recorded.parse("whoami") == "broker"
    (controller,) = recorded.parse("ping")
    assert controller.up
    fields = accounting_fields(recorded.parse("accounting_fields"))
    assert ("Restarts" in fields) == (not recorded.version.startswith("22.05"))


def test_nodes_are_counted_and_their_troubles_named(recorded: Recordings) -> None:
    found, bad = recorded.parse("nodes")
    assert bad == ()
    nodes = {node.name: node for node in found}
    assert nodes.keys() == {"a100-1", "a100-2", "a100-3", "a100-4", "v100-1", "v100-2"}
    assert dict(nodes["a100-1"].total.gpu_types) == {"a100": 4}
    assert (nodes["v100-1"].total.cpus, nodes["v100-1"].total.memory_mib) == (32, 262_144)
    assert sum(node.used.gpus for node in found) == 2
    assert {node.name for node in found if not node.available} == {"a100-3", "v100-2"}
    assert nodes["v100-2"].state == "DOWN"
    assert "DRAIN" in nodes["a100-3"].flags
    assert nodes["a100-3"].reason.startswith("bad fan State=IDLE NodeName=a100-9 x=y")
    assert nodes["a100-1"].partitions == ("gpu", "a100")


def test_partitions_and_classes_of_service_are_read(recorded: Recordings) -> None:
    found, bad = recorded.parse("partitions")
    assert bad == ()
    partitions = {partition.name: partition for partition in found}
    assert partitions.keys() == {"gpu", "a100", "v100"}
    assert partitions["gpu"].default
    assert partitions["gpu"].tres.gpus == 24
    assert partitions["a100"].nodes == ("a100-1", "a100-2", "a100-3", "a100-4")
    found, bad = recorded.parse("qos")
    assert bad == ()
    urgent = {qos.name: qos for qos in found}["urgent"]
    assert (urgent.priority, urgent.preempts, urgent.preempt_mode) == (1000, ("normal",), "cancel")


def test_accounts_people_and_classes_are_read_with_their_limits(recorded: Recordings) -> None:
    members, bad = recorded.parse("memberships")
    assert bad == ()
    [made] = [one for one in members if one.account == "team-r"]
    assert (made.user, made.parent, made.shares, made.default_qos) == ("", "root", "3", "training")
    assert (made.group_tres, made.group_running, made.group_submit) == ("gres/gpu=5", "gres/gpu=6000", 0)
    people = {one.user for one in members if one.account == "team-a"}
    assert people == {"", "broker", "kim", "lee"}
    limits, bad = recorded.parse("qos_limits")
    assert bad == ()
    classes = {one.name: one for one in limits}
    training, urgent = classes["training"], classes["urgent-inference"]
    assert (training.priority, training.grace_s, training.max_wall_s) == (100, 120, 86400)
    assert (urgent.max_wall_s, "training-approved" in urgent.preempts) == (None, True)
