"""What the doctor makes of facts: Slurm's configuration, nodes, partitions, accounts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.doctor import rules
from broker.doctor.commands import Association, PartitionSharing
from broker.doctor.examine import asking_remedy
from broker.settings import ClusterSettings
from broker.slurm import Config, Node, Partition, Tres, Version

CLUSTER = ClusterSettings(account="ml", gpu_types={"A100": "a100"})
CONFIG = Config(
    cluster_name="main",
    min_job_age_s=300,
    message_timeout_s=10,
    slurmctld_timeout_s=120,
    max_job_count=10_000,
    max_array_size=1001,
    enforce=frozenset({"associations", "limits", "qos", "safe"}),
    tracked_tres=("cpu", "mem", "gres/gpu", "gres/gpu:a100"),
    accounting_storage="accounting_storage/slurmdbd",
    job_requeue=True,
    preempt_mode=("OFF",),
    preempt_type="preempt/none",
    preempt_parameters=(),
    priority_type="priority/multifactor",
    raw={
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CORE_MEMORY",
        "TaskPlugin": "task/cgroup,task/affinity",
        "ProctrackType": "proctrack/cgroup",
    },
)
NODE = Node(
    name="n1",
    state="IDLE",
    flags=frozenset(),
    partitions=("gpu",),
    features=(),
    total=Tres(64, 512 << 10, 1, 64, 4, {"a100": 4}),
    used=Tres(),
    memory_free_mib=None,
    load=None,
    reason="",
    boot=None,
)
PARTITION = Partition("gpu", "UP", True, ("n1",), 64, 1, None, None, 1, Tres(), (), ())
MODERN = Version(24, 11, 5)


def with_raw(**changes: str) -> Config:
    return replace(CONFIG, raw={**CONFIG.raw, **changes})


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (Version(21, 8, 8), "fail"),
        (Version(22, 5, 8), "ok"),
        (Version(24, 11, 5), "ok"),
        (Version(26, 5, 5), "ok"),
        (Version(26, 11, 0), "warn"),
    ],
)
def test_only_tested_releases_are_trusted(version: Version, status: str) -> None:
    assert rules.version_check(version).status == status


def test_without_slurmdbd_nothing_can_be_trusted() -> None:
    [check] = rules.accounting_checks(replace(CONFIG, accounting_storage="accounting_storage/none"))
    assert check.status == "fail" and "slurmdbd" in check.remedy


@pytest.mark.parametrize("missing", ["associations", "limits", "qos", "safe"])
def test_each_limit_that_is_not_enforced_is_named(missing: str) -> None:
    enforced = rules.accounting_checks(replace(CONFIG, enforce=CONFIG.enforce - {missing}))[1]
    assert enforced.status == "warn" and missing in enforced.remedy
    assert rules.accounting_checks(CONFIG)[1].status == "ok"


def test_gpus_that_accounting_does_not_count_are_named() -> None:
    check = rules.tracking_check(CONFIG, {"a100", "v100"})
    assert check.status == "warn" and "gres/gpu:v100" in check.remedy and "a100" not in check.remedy
    assert rules.tracking_check(CONFIG, {"a100"}).status == "ok"


def test_an_account_without_association_can_not_submit() -> None:
    [check] = rules.association_checks(CLUSTER, [], "broker", CONFIG)
    assert check.status == "fail" and "sacctmgr add user broker account=ml" in check.remedy
    [check] = rules.association_checks(CLUSTER, [], "broker", replace(CONFIG, enforce=frozenset()))
    assert check.status == "warn"


def test_the_configured_account_must_be_one_of_ours() -> None:
    other = [Association("physics", "broker", ("normal",)), Association("ml", "kim", ("normal",))]
    [check] = rules.association_checks(CLUSTER, other, "broker", CONFIG)
    assert check.status == "fail" and "it has: physics" in check.detail


def test_the_configured_qos_must_be_allowed_for_that_account() -> None:
    wanted = CLUSTER.model_copy(update={"qos": "high"})
    own = [Association("ml", "broker", ("normal",)), Association("other", "broker", ("high",))]
    assert [check.status for check in rules.association_checks(wanted, own, "broker", CONFIG)] == [
        "ok",
        "fail",
    ]
    assert [check.status for check in rules.association_checks(CLUSTER, own, "broker", CONFIG)] == ["ok"]


def test_every_priority_class_needs_its_qos_and_our_account_the_right_to_it() -> None:
    classes = tuple(CLUSTER.classes)
    twins = tuple(f"{name}-approved" for name in classes)

    def check(cluster: ClusterSettings, there: tuple[str, ...], ours: tuple[str, ...]) -> tuple[str, str]:
        found = rules.class_check(cluster, there, [Association("ml", "broker", ours)], "broker")
        return found.status, found.detail

    assert check(CLUSTER, (*classes, *twins), classes)[0] == "ok"
    assert check(CLUSTER, classes, classes)[0] == "warn"
    assert check(CLUSTER, (*classes[1:], *twins), classes) == (
        "fail",
        f"there is no QOS {classes[0]}: sbatch will refuse jobs",
    )
    status, detail = check(CLUSTER, (*classes, *twins), classes[:-1])
    assert (status, classes[-1] in detail) == ("fail", True)
    as_people = CLUSTER.model_copy(update={"run_as": "user"})
    assert check(as_people, (*classes, *twins), ())[0] == "ok", "the jobs are not ours there"
    assert check(CLUSTER.model_copy(update={"priority_classes": False}), (), ())[0] == "ok"


def test_jobs_need_a_partition_that_takes_them() -> None:
    named = CLUSTER.model_copy(update={"partition": "gpu"})
    assert rules.partition_check(named, [PARTITION]).status == "ok"
    assert rules.partition_check(CLUSTER, [PARTITION]).status == "ok"
    assert rules.partition_check(CLUSTER, [replace(PARTITION, default=False)]).status == "fail"
    assert rules.partition_check(named, [replace(PARTITION, name="cpu")]).status == "fail"
    assert rules.partition_check(named, [replace(PARTITION, state="DOWN")]).status == "fail"


def test_a_gpu_type_that_no_node_has_is_a_wrong_setting() -> None:
    wrong = CLUSTER.model_copy(update={"gpu_types": {"A100": "a100", "H100": "h100"}})
    check = rules.gpu_type_check(wrong, [NODE])
    assert check.status == "fail" and "H100 → h100" in check.detail and "a100 x 4" in check.remedy
    assert rules.gpu_type_check(CLUSTER, [NODE]).status == "ok"


def test_gpus_without_a_type_and_clusters_without_gpus_are_told() -> None:
    plain = ClusterSettings()
    untyped = replace(NODE, total=Tres(64, 1024, 1, 64, 4))
    assert "n1" in rules.gpu_type_check(plain, [untyped]).detail
    assert rules.gpu_type_check(plain, [replace(NODE, total=Tres(64, 1024))]).status == "warn"


def test_nodes_that_take_no_jobs_are_named_and_none_at_all_is_a_failure() -> None:
    down = replace(NODE, name="n2", state="DOWN", reason="burnt out")
    assert rules.node_check([NODE]).status == "ok"
    check = rules.node_check([NODE, down])
    assert check.status == "warn" and "n2 DOWN" in check.detail
    check = rules.node_check([down])
    assert check.status == "fail" and "burnt out" in check.detail
    assert rules.node_check([]).status == "fail"


@pytest.mark.parametrize(
    ("value", "shares"),
    [
        ("NO", False),
        ("EXCLUSIVE", False),
        ("YES:4", True),
        ("FORCE:4", True),
        ("FORCE:1", False),
        ("YES", True),
    ],
)
def test_partitions_that_share_are_overcommit(value: str, shares: bool) -> None:
    check = rules.overcommit_checks(CONFIG, [PartitionSharing("gpu", value)])[1]
    assert (check.status == "fail") is shares


def test_memory_must_be_counted_and_gpus_given_out() -> None:
    for config in (with_raw(SelectTypeParameters="CR_CORE"), with_raw(SelectType="select/linear")):
        assert rules.overcommit_checks(config, [])[0].status == "fail"
    assert rules.overcommit_checks(CONFIG, [])[0].status == "ok"


def test_jobs_without_fences_are_a_warning() -> None:
    assert rules.overcommit_checks(with_raw(ProctrackType="proctrack/linuxproc"), [])[2].status == "warn"
    assert rules.overcommit_checks(with_raw(TaskPlugin="task/none"), [])[2].status == "warn"
    assert rules.overcommit_checks(CONFIG, [])[2].status == "ok"


def test_the_queue_must_be_seen_before_slurm_forgets() -> None:
    assert rules.lifetime_check(CONFIG, MODERN, 30).status == "ok"
    short = replace(CONFIG, min_job_age_s=60)
    assert rules.lifetime_check(short, MODERN, 30).status == "warn"
    assert rules.lifetime_check(short, MODERN, 2).status == "ok"
    assert "child runs" in rules.lifetime_check(short, Version(22, 5, 8), 2).detail


def _named(config: Config, name: str) -> str:
    return next(check.status for check in rules.behaviour_checks(config) if check.name == name)


def test_slurm_must_leave_children_of_failed_jobs_to_us() -> None:
    assert _named(with_raw(DependencyParameters="kill_invalid_depend"), "dependencies") == "warn"
    assert _named(CONFIG, "dependencies") == "ok"


@pytest.mark.parametrize(
    ("kind", "mode", "parameters", "status"),
    [
        ("preempt/none", ("OFF",), (), "ok"),
        ("preempt/qos", ("REQUEUE",), ("send_user_signal",), "ok"),
        ("preempt/qos", ("REQUEUE",), (), "warn"),
        ("preempt/qos", ("GANG", "SUSPEND"), ("send_user_signal",), "warn"),
    ],
)
def test_preemption_must_free_gpus_and_warn_programs(
    kind: str, mode: tuple[str, ...], parameters: tuple[str, ...], status: str
) -> None:
    config = replace(CONFIG, preempt_type=kind, preempt_mode=mode, preempt_parameters=parameters)
    assert _named(config, "preemption") == status


def test_requeue_may_be_off_because_jobs_ask_for_it_themselves() -> None:
    assert _named(replace(CONFIG, job_requeue=False), "requeue") == "ok"


def test_a_small_queue_is_a_warning() -> None:
    assert _named(replace(CONFIG, max_job_count=100), "MaxJobCount") == "warn"


def test_every_finding_that_is_not_well_says_how_to_mend_it() -> None:
    poor = replace(
        CONFIG,
        enforce=frozenset(),
        tracked_tres=(),
        min_job_age_s=2,
        max_job_count=10,
        preempt_type="preempt/qos",
        preempt_mode=("SUSPEND",),
        raw={"DependencyParameters": "kill_invalid_depend"},
    )
    found = [
        rules.version_check(Version(20, 2, 0)),
        *rules.accounting_checks(poor),
        rules.tracking_check(poor, {"a100"}),
        *rules.association_checks(CLUSTER, [], "broker", poor),
        rules.partition_check(CLUSTER, []),
        rules.gpu_type_check(CLUSTER, []),
        rules.node_check([]),
        *rules.overcommit_checks(poor, [PartitionSharing("gpu", "FORCE:4")]),
        rules.lifetime_check(poor, MODERN, 30),
        *rules.behaviour_checks(poor),
    ]
    assert sum(check.status != "ok" for check in found) >= 12
    assert all(check.remedy for check in found if check.status != "ok")


@pytest.mark.parametrize(("program", "daemon"), [("sacct", "slurmdbd"), ("scontrol", "slurmctld")])
def test_the_remedy_names_the_daemon_that_did_not_answer(program: str, daemon: str) -> None:
    assert daemon in asking_remedy(f"login: {program} did not answer in time")
