"""What the doctor makes of a login node, a held job, a compute node, a key and a database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.checks import Check
from broker.doctor import login, probes
from broker.doctor.examine import Report, connection_check, guarded, key_checks, sessions_check
from broker.doctor.login import Folder, LoginFacts
from broker.doctor.probes import HeldFacts, NodeFacts
from broker.doctor.services import database_checks
from broker.errors import Unreachable
from broker.settings import ClusterSettings
from broker.slurm import DONE, Result, ResultKind

CLUSTER = ClusterSettings()
FOLDER = Folder("/cluster/ml-jobs", "", 100_000, "nfs", 0o755)
LOGIN = LoginFacts(1000.0, "broker", 2000, "login1", (), FOLDER, FOLDER)
HELD = HeldFacts(42, (42,), DONE, "JobHeldAdmin", "PENDING", DONE, in_accounting=True)
NODE = NodeFacts(
    host="n1",
    uid=2000,
    token="t",
    clock=1000.5,
    started_at=1000.0,
    apptainer="apptainer version 1.4.5",
    helpers=frozenset({"squashfuse", "fuse2fs"}),
    fuse=True,
    images=True,
    step="works",
)


def statuses(checks: object) -> dict[str, str]:
    return {check.name: check.status for check in checks}  # type: ignore[attr-defined]


def judged(facts: LoginFacts) -> dict[str, str]:
    return statuses(login.judge(facts, asked_at=999.0, answered_at=1001.0))


def test_a_good_login_node_has_nothing_to_mend() -> None:
    assert set(judged(LOGIN).values()) == {"ok"}


def test_the_login_nodes_answer_is_read() -> None:
    text = """clock=1714564800.5
user=broker
uid=2000
host=login1
missing=curl
base_ok=1
base_free=104857600
base_type=nfs
base_mode=755
images_trouble=mktemp: failed to create file: Permission denied
images_free=
images_type=
images_mode=
"""
    facts = login.parse(text, CLUSTER)
    assert (facts.clock, facts.uid, facts.missing) == (1714564800.5, 2000, ("curl",))
    assert facts.base == Folder("/cluster/ml-jobs", "", 102_400, "nfs", 0o755)
    assert "Permission denied" in facts.images.trouble and facts.images.mode is None


def test_an_answer_that_says_nothing_is_no_success() -> None:
    assert judged(login.parse("", CLUSTER))["base path"] == "fail"


def test_root_is_not_an_account_to_run_jobs_with() -> None:
    assert judged(replace(LOGIN, uid=0))["account"] == "fail"


def test_missing_programs_are_named_with_what_will_not_work() -> None:
    assert judged(replace(LOGIN, missing=("git",)))["programs"] == "warn"
    facts = replace(LOGIN, missing=("git", "curl"))
    [check] = [c for c in login.judge(facts, asked_at=999, answered_at=1001) if c.name == "programs"]
    assert check.status == "fail" and "registries" in check.detail


@pytest.mark.parametrize(
    ("folder", "status"),
    [
        (replace(FOLDER, trouble="No such file or directory"), "fail"),
        (replace(FOLDER, mode=0o777), "fail"),
        (replace(FOLDER, mode=0o775), "fail"),
        (replace(FOLDER, mode=0o1777), "ok"),
        (replace(FOLDER, free_mib=500), "warn"),
        (replace(FOLDER, free_mib=None, mode=None), "ok"),
    ],
)
def test_folders_are_writable_by_us_alone_and_have_room(folder: Folder, status: str) -> None:
    check = login.folder_check("base path", folder, "base_path")
    assert check.status == status and (status == "ok" or check.remedy)


@pytest.mark.parametrize(
    ("clock", "status"), [(1000.0, "ok"), (998.0, "ok"), (1004.0, "ok"), (900.0, "warn"), (1100.0, "warn")]
)
def test_clocks_are_compared_with_the_time_it_took_to_ask(clock: float, status: str) -> None:
    assert login.clock_check("clock", clock, 999.0, 1001.0).status == status


def test_a_hold_that_works_is_an_administrators() -> None:
    assert set(statuses(probes.judge_hold(HELD, "Operator")).values()) == {"ok"}


def test_a_users_hold_is_a_warning_that_names_the_remedy() -> None:
    user = replace(HELD, reason="JobHeldUser")
    [check] = [check for check in probes.judge_hold(user, "None") if check.status != "ok"]
    assert check.name == "hold" and check.status == "warn" and "adminlevel=Operator" in check.remedy


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (replace(HELD, found=()), "found by name"),
        (replace(HELD, found=(42, 43)), "found by name"),
        (replace(HELD, hold=Result(ResultKind.DENIED, "Access/permission denied")), "hold"),
        (replace(HELD, cancel=Result(ResultKind.DENIED, "Access/permission denied")), "cancel"),
        (replace(HELD, in_accounting=False), "sacct"),
    ],
)
def test_each_right_that_is_missing_fails_by_its_name(facts: HeldFacts, name: str) -> None:
    assert statuses(probes.judge_hold(facts, "Operator"))[name] == "fail"


def test_a_good_node_has_nothing_to_mend() -> None:
    assert set(statuses(probes.judge_node(NODE, "t", 2000, CLUSTER)).values()) == {"ok"}


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        (replace(NODE, token=""), "shared base path", "fail"),
        (replace(NODE, images=False), "shared image cache", "fail"),
        (replace(NODE, uid=1000), "user ids", "fail"),
        (replace(NODE, step="srun: error: Unable to create step"), "job steps", "fail"),
        (replace(NODE, apptainer="sh: apptainer: not found"), "Apptainer", "fail"),
        (replace(NODE, helpers=frozenset()), "Apptainer", "warn"),
        (replace(NODE, fuse=False), "Apptainer", "fail"),
        (replace(NODE, helpers=frozenset({"squashfuse_ll"})), "Apptainer", "ok"),
        (replace(NODE, clock=5000.0), "node's clock", "warn"),
        (replace(NODE, clock=1025.0), "node's clock", "ok"),
    ],
)
def test_each_trouble_of_a_node_is_told_by_its_name(facts: NodeFacts, name: str, status: str) -> None:
    [check] = [check for check in probes.judge_node(facts, "t", 2000, CLUSTER) if check.name == name]
    assert check.status == status and (status == "ok" or check.remedy)


def test_a_nodes_answer_is_read() -> None:
    text = "clock=12.5\nhost=n1\nuid=2000\ntoken=abc\napptainer=apptainer version 1.4.5\n"
    facts = probes.parse_node(text + "have=squashfuse\nhave=fuse2fs\nfuse=1\nimages=1\nstep=works\n", 12.0)
    expected = replace(NODE, clock=12.5, token="abc", started_at=12.0)
    assert facts == expected


def test_probe_jobs_ask_for_what_the_settings_say() -> None:
    cluster = ClusterSettings(partition="gpu", account="ml", qos="high", priority_classes=False)
    words = probes.job_arguments(cluster)
    assert {"--partition=gpu", "--account=ml", "--qos=high", "--export=NONE"} <= set(words)
    with_classes = probes.job_arguments(ClusterSettings(qos="high", qos_prefix="ml-"))
    assert [word for word in with_classes if word.startswith("--qos")] == ["--qos=ml-training"]


def test_a_key_that_others_can_read_fails() -> None:
    path = Path("/etc/broker/key")
    assert [check.status for check in key_checks(path, 0o600)] == ["ok"]
    assert [check.status for check in key_checks(path, 0o640)] == ["fail"]
    assert [check.status for check in key_checks(path, None)] == ["fail"]
    assert list(key_checks(None, None)) == []


def test_a_slow_connection_is_told() -> None:
    assert connection_check(CLUSTER, 0.01).status == "ok"
    assert connection_check(CLUSTER, 2.0).status == "warn"


def test_sessions_that_had_to_wait_for_each_other_are_told() -> None:
    together = [(0.0, 1.0), (0.1, 1.1), (0.2, 1.2)]
    assert sessions_check(3, together).status == "ok"
    check = sessions_check(4, [*together, (1.3, 2.3)])
    assert check.status == "warn" and "3 ran at once" in check.detail
    assert sessions_check(2, []).status == "warn"


def test_tables_that_are_not_current_fail() -> None:
    assert [check.status for check in database_checks("sqlite", "2", "2")] == ["ok", "ok"]
    assert [check.status for check in database_checks("sqlite", "1", "2")] == ["ok", "fail"]
    assert [check.status for check in database_checks("sqlite", None, "2")] == ["ok", "warn"]


def test_an_error_on_the_way_is_a_finding() -> None:
    def act() -> list[Check]:
        raise Unreachable("slurmctld does not answer")

    [check] = guarded("nodes", act)
    assert (check.name, check.status) == ("nodes", "fail") and "does not answer" in check.detail


def test_warnings_do_not_fail_a_report() -> None:
    assert not Report("x", (Check("a", "ok", ""), Check("b", "warn", "", "mend"))).failed
    assert Report("x", (Check("a", "ok", ""), Check("b", "fail", "", "mend"))).failed
