"""What the doctor makes of sudo's rules, a Unix group, and an attempt to act for somebody in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.checks import Check
from broker.doctor.people import (
    Group,
    Rule,
    Trial,
    group_checks,
    operator_check,
    parse_group,
    parse_rules,
    rule_check,
    trial_checks,
)
from broker.settings import ClusterSettings

CLUSTER = ClusterSettings(run_as="user", base_path="/cluster/jobs")
LISTED = """Matching Defaults entries for broker on login1:
    env_reset, mail_badpass,
    secure_path=/usr/local/sbin\\:/usr/local/bin\\:/usr/sbin\\:/usr/bin\\:/sbin\\:/bin,
    use_pty

User broker may run the following commands on login1:
"""
PEOPLE = "    (%people) NOPASSWD: ALL\n"
GROUP = Group("people", True, ((2001, "kim"), (2002, "park")), "broker", 0o1777)
TRIAL = Trial("kim", "kim 700", "", reads_images=True, writes_images=False)


def about(rules: str) -> Check:
    return rule_check(parse_rules(LISTED + rules), "broker")[0]


def statuses(checks: object) -> dict[str, str]:
    return {check.name: check.status for check in checks}  # type: ignore[attr-defined]


def test_the_rule_for_one_group_is_all_that_is_needed() -> None:
    assert parse_rules(LISTED + PEOPLE) == (Rule(("%people",), "NOPASSWD: ALL"),)
    assert rule_check(parse_rules(LISTED + PEOPLE), "broker")[1] == "people"
    assert about(PEOPLE).status == "ok"
    assert about("    (%people : %people) SETENV: NOPASSWD: ALL\n").status == "ok"


@pytest.mark.parametrize(
    "more",
    [
        *("    (ALL) NOPASSWD: ALL\n", "    (ALL : ALL) ALL\n", "    (root) NOPASSWD: /usr/bin/systemctl\n"),
        *("    (%wheel) NOPASSWD: ALL\n", "    (%people, root) NOPASSWD: ALL\n"),
    ],
)
def test_a_rule_that_reaches_beyond_the_group_is_a_fault(more: str) -> None:
    check = about(PEOPLE + more)
    assert check.status == "fail"
    assert "as well as for the group people" in check.detail


@pytest.mark.parametrize(
    "rules",
    [
        *("", "    (ALL) NOPASSWD: ALL\n", "    (kim) NOPASSWD: ALL\n", "    (%people) ALL\n"),
        *("    (%people) PASSWD: ALL\n", "    (%people) NOPASSWD: /usr/bin/sbatch\n"),
        *("    (%people, %others) NOPASSWD: ALL\n", "    (!root, %people) NOPASSWD: ALL\n"),
    ],
)
def test_anything_else_is_not_the_rule_that_is_needed(rules: str) -> None:
    check, group = rule_check(parse_rules(LISTED + rules), "broker")
    assert (check.status, group) == ("fail", None)
    assert "broker ALL=(%GROUP) NOPASSWD: ALL" in check.remedy


def test_where_sudo_says_nothing_its_complaint_is_shown() -> None:
    check, group = rule_check((), "broker", "sudo: a password is required")
    assert group is None
    assert "a password is required" in check.detail


def test_a_group_is_read_with_its_members() -> None:
    text = "base=root 1777\ngid=2100\nmember=2001 kim\nmember=2002 park\nmember= gone\n"
    assert parse_group("people", text) == replace(GROUP, base_owner="root")
    assert parse_group("people", "base=root 1777\n") == Group("people", False, (), "root", 0o1777)
    assert parse_group("people", "base=\n").base_mode is None


def test_a_group_of_people_and_a_sticky_base_path_are_well() -> None:
    assert set(statuses(group_checks(GROUP, CLUSTER, "broker")).values()) == {"ok"}
    assert set(statuses(group_checks(replace(GROUP, base_owner="root"), CLUSTER, "broker")).values()) == {
        "ok"
    }


@pytest.mark.parametrize("stranger", [(0, "root"), (2000, "broker"), (998, "slurm")])
def test_accounts_that_are_no_peoples_have_no_place_in_the_group(stranger: tuple[int, str]) -> None:
    found = statuses(group_checks(replace(GROUP, members=(*GROUP.members, stranger)), CLUSTER, "broker"))
    assert found["group people"] == "fail"


def test_an_empty_group_is_a_warning() -> None:
    found = statuses(group_checks(replace(GROUP, members=()), CLUSTER, "broker"))
    assert found["group people"] == "warn"


@pytest.mark.parametrize(
    "change", [{"base_mode": 0o777}, {"base_mode": 0o775}, {"base_mode": None}, {"base_owner": "kim"}]
)
def test_a_base_path_where_run_directories_can_be_replaced_is_a_fault(change: dict[str, object]) -> None:
    found = statuses(group_checks(replace(GROUP, **change), CLUSTER, "broker"))  # type: ignore[arg-type]
    assert found["base path for people"] == "fail"


def test_acting_for_somebody_is_judged_by_what_came_of_it() -> None:
    assert set(statuses(trial_checks(TRIAL, CLUSTER)).values()) == {"ok"}
    refused = statuses(trial_checks(replace(TRIAL, made="", trouble="Permission denied"), CLUSTER))
    assert refused["acting as kim"] == "fail"
    assert statuses(trial_checks(replace(TRIAL, made="nobody 700"), CLUSTER))["acting as kim"] == "fail"
    for change in ({"reads_images": False}, {"writes_images": True}):
        found = statuses(trial_checks(replace(TRIAL, **change), CLUSTER))
        assert found == {"acting as kim": "ok", "image cache for people": "fail"}


@pytest.mark.parametrize(("level", "status"), [("Operator", "ok"), ("Administrator", "ok"), ("None", "fail")])
def test_only_an_operator_can_hold_other_peoples_jobs(level: str, status: str) -> None:
    check = operator_check(level, "broker")
    assert check.status == status
    assert status == "ok" or "adminlevel=Operator" in check.remedy
