"""What a person may ask for, and what Slurm is told to enforce behind the broker."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from broker.errors import InvalidRequest, LimitReached
from broker.identity import Role
from broker.quotas.limits import (
    UserUse,
    backstop,
    check_times,
    check_user,
    larger_than_quota,
    max_run_hours,
    runs_per_day,
)
from broker.settings import QuotaSettings

DEFAULTS = QuotaSettings()
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_defaults_are_what_was_asked_for() -> None:
    quota = (DEFAULTS.api_calls_per_day, DEFAULTS.gpu_hours_per_month, DEFAULTS.upload_gb_per_month)
    assert quota == (10_000, 100, 50)
    assert (DEFAULTS.active_runs_per_user, DEFAULTS.runs_per_hour) == (3, 5)
    assert {role: runs_per_day(DEFAULTS, role) for role in (Role.RESEARCHER, Role.INTERNAL, Role.ADMIN)} == {
        Role.RESEARCHER: 10,
        Role.INTERNAL: 50,
        Role.ADMIN: 10,
    }


@pytest.mark.parametrize(("allowed", "hours"), [(None, 36), (48, 48), (72, 72), (1000, 72), (12, 12)])
def test_an_admin_allows_a_person_more_or_less_up_to_a_bound(allowed: int | None, hours: float) -> None:
    assert max_run_hours(DEFAULTS, allowed) == hours


def test_each_component_that_would_run_too_long_is_named() -> None:
    check_times({"a": 36 * 3600}, 36)
    with pytest.raises(InvalidRequest) as refused:
        check_times({"a": 36 * 3600 + 1, "b": 60, "c": 10**6}, 36)
    assert [problem.pointer for problem in refused.value.problems] == [
        "/overrides/components/a/time",
        "/overrides/components/c/time",
    ]


def test_the_fourth_active_run_is_refused_and_the_third_is_not() -> None:
    check_user(UserUse(2, []), DEFAULTS, Role.RESEARCHER, NOON)
    with pytest.raises(LimitReached, match="3 of your runs have not ended") as refused:
        check_user(UserUse(3, []), DEFAULTS, Role.RESEARCHER, NOON)
    assert refused.value.retry_after_s == 60


def test_a_run_as_large_as_the_whole_quota_is_none_too_large() -> None:
    assert larger_than_quota(3600, 3600, "t") is None
    refusal = larger_than_quota(3601, 3600, "t")
    assert isinstance(refusal, InvalidRequest) and refusal.problems[0].code == "larger_than_quota"


def test_the_backstop_lets_any_run_start_that_the_ledger_lets_go() -> None:
    assert backstop(100, None) == {"GrpTRES": "gres/gpu=-1", "GrpTRESRunMins": "gres/gpu=12000"}
    assert backstop(0.5, 8) == {"GrpTRES": "gres/gpu=8", "GrpTRESRunMins": "gres/gpu=60"}
