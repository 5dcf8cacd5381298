"""What is compared with what before anything is changed in Slurm, and what is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Denied, OutcomeUnknown, SlurmRefused, Unreachable
from broker.hosts import Completed
from broker.settings import ClusterSettings
from broker.slurm.accounts import Manage, Memberships, QosLimitsList, limits_text
from broker.spec import Thresholds
from broker.tenancy.objects import (
    Fields,
    Key,
    Person,
    Tenant,
    add_words,
    modify_words,
    seen,
    wanted_accounts,
    wanted_people,
    wanted_qos,
)
from broker.tenancy.plan import Action, Line, plan

THRESHOLDS = Thresholds(gpu_count=4, memory_mib=128 << 10)
SERVICE, PEOPLE = ClusterSettings(run_as="service"), ClusterSettings(run_as="user")
TEAM = Key("account", "team-a")


def one(wanted: Fields, now: Fields | None, ours: Fields | None, *adopt: str) -> Line:
    """The line of one account."""
    [line] = plan(
        {TEAM: wanted}, {} if now is None else {TEAM: now}, {} if ours is None else {TEAM: ours}, "dev", adopt
    )
    return line


@pytest.mark.parametrize(
    ("now", "ours", "action"),
    [
        (None, None, Action.CREATE),
        ("3", None, Action.SAME),
        ("3", "1", Action.SAME),
        ("1", "1", Action.CHANGE),
        ("1", None, Action.FOREIGN),
        ("7", "1", Action.DRIFT),
        ("7", "3", Action.DRIFT),
        (None, "3", Action.REMOVED),
    ],
)
def test_what_somebody_else_set_is_shown_and_what_the_broker_set_is_changed(
    now: str | None, ours: str | None, action: Action
) -> None:
    line = one({"Fairshare": "3"}, now and {"Fairshare": now}, ours and {"Fairshare": ours})
    assert line.action is action
    assert bool(line.words) == (action is not Action.SAME)
    adopted = one({"Fairshare": "3"}, now and {"Fairshare": now}, ours and {"Fairshare": ours}, "team-a")
    assert adopted.action.applies == (action is not Action.SAME)


def test_only_what_is_named_is_overwritten() -> None:
    now = {key: {"Fairshare": "9"} for key in (TEAM, Key("account", "team-b"))}
    wanted = {key: {"Fairshare": "1"} for key in now}
    assert [line.action for line in plan(wanted, now, {}, "dev", ["team-b"])] == ["foreign", "change"]
    assert [line.action for line in plan(wanted, now, {}, "dev", ["account team-a"])] == ["change", "foreign"]
    assert [line.action for line in plan(wanted, now, {}, "dev", ["all"])] == ["change", "change"]


def test_a_field_that_is_managed_since_now_is_not_one_that_was_changed_by_hand() -> None:
    line = one({"Fairshare": "3", "DefaultQOS": "training"}, {"Fairshare": "3"}, {"Fairshare": "3"})
    assert line.action is Action.CHANGE
    assert line.words == (
        *("modify", "account", "where", "Name=team-a", "Cluster=dev", "set"),
        "DefaultQOS=training",
    )


@pytest.mark.parametrize(
    ("field", "now", "wanted", "action"),
    [
        ("DefaultQOS", "night", "training", Action.DRIFT),
        ("QOS", "long", "training", Action.DRIFT),
        ("QOS", "long", "long,training", Action.CHANGE),
        ("QOS", "", "training", Action.CHANGE),
    ],
)
def test_what_a_field_that_is_managed_since_now_had_is_somebody_elses(
    field: str, now: str, wanted: str, action: Action
) -> None:
    line = one({"Fairshare": "3", field: wanted}, {"Fairshare": "3", field: now}, {"Fairshare": "3"})
    assert line.action is action


def test_strangers_in_a_tenants_account_are_shown_and_left() -> None:
    there = {TEAM: {"Fairshare": "1"}, Key("user", "team-a/eve"): {"MaxSubmitJobs": ""}}
    lines = plan({TEAM: {"Fairshare": "1"}}, there, {}, "dev", ["all"])
    assert [(str(line.key), line.action) for line in lines][1:] == [("user team-a/eve", Action.EXTRA)]
    assert not lines[1].words


FIELDS = st.dictionaries(st.sampled_from(["Fairshare", "QOS", "GrpTRES"]), st.sampled_from(["", "1", "2"]))


@given(FIELDS, st.none() | FIELDS, st.none() | FIELDS)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    wanted: Fields, now: Fields | None, ours: Fields | None
) -> None:
    line = one(wanted, now, ours, "all")
    after = {**(now or {}), **wanted} if line.action.applies else now
    assert one(wanted, after, wanted).action is Action.SAME


# What there should be


def test_the_four_classes_have_twins_and_urgent_work_preempts_both_kinds_of_training() -> None:
    found = wanted_qos(SERVICE, THRESHOLDS)
    assert len(found) == 8
    assert {key.name for key in found} == {
        f"{name}{twin}" for name in SERVICE.classes for twin in ("", "-approved")
    }
    urgent = found[Key("qos", "urgent-inference")]
    assert urgent["Preempt"] == "fine-tuning,fine-tuning-approved,training,training-approved"
    assert urgent["MaxWall"] == ""
    training = found[Key("qos", "training")]
    assert (training["MaxWall"], training["GraceTime"], training["PreemptMode"]) == (
        "86400",
        "120",
        "requeue",
    )
    names = [key.name for key in found]
    assert names.index("urgent-inference") > names.index("training-approved"), (
        "who is named must exist before"
    )


def test_thresholds_stand_on_the_ordinary_classes_where_people_submit_as_themselves() -> None:
    found = wanted_qos(PEOPLE, THRESHOLDS)
    assert found[Key("qos", "training")]["MaxTRESPerJob"] == "gres/gpu=3,mem=131071"
    assert found[Key("qos", "training-approved")]["MaxTRESPerJob"] == ""
    assert wanted_qos(SERVICE, THRESHOLDS)[Key("qos", "training")]["MaxTRESPerJob"] == ""


def test_where_people_submit_as_themselves_an_account_has_no_qos_without_thresholds() -> None:
    there: dict[Key, Fields] = {TEAM: {"QOS": "long,normal"}}
    mine = wanted_accounts(SERVICE, [Tenant("team-a", 1)], there)[TEAM]
    theirs = wanted_accounts(PEOPLE, [Tenant("team-a", 1)], there)[TEAM]
    assert mine["QOS"] == "fine-tuning,inference,long,normal,training,urgent-inference"
    assert theirs["QOS"] == "fine-tuning,inference,training,urgent-inference"
    assert theirs["DefaultQOS"] == "training"


def test_who_is_shut_out_keeps_account_and_jobs_and_can_submit_no_more() -> None:
    accounts = wanted_accounts(SERVICE, [Tenant("team-a", 1, active=False)], {})
    assert accounts[TEAM]["GrpSubmitJobs"] == "0"
    people = wanted_people([Person("team-a", "kim"), Person("team-a", "park", active=False)])
    assert [fields["MaxSubmitJobs"] for fields in people.values()] == ["", "0"]


def test_a_tenants_quota_is_the_backstop_on_its_account() -> None:
    limits = {"GrpTRES": "gres/gpu=-1", "GrpTRESRunMins": "gres/gpu=6000"}
    fields = wanted_accounts(SERVICE, [Tenant("team-a", 2, limits=limits)], {})[TEAM]
    assert (fields["Fairshare"], fields["GrpTRES"], fields["GrpTRESRunMins"]) == ("2", "", "gres/gpu=6000")


def test_without_classes_no_qos_is_touched() -> None:
    plain = ClusterSettings(priority_classes=False)
    assert wanted_qos(plain, THRESHOLDS) == {}
    assert "QOS" not in wanted_accounts(plain, [Tenant("team-a", 1)], {})[TEAM]


# What sacctmgr is told


def test_values_are_written_as_sacctmgr_takes_them_and_taken_away_where_they_are_gone() -> None:
    wall = {"MaxWall": "86400", "MaxTRESPerJob": "gres/gpu=3,mem=131071"}
    assert add_words(Key("qos", "training"), wall, "dev") == (
        *("add", "qos", "training"),
        *("MaxWall=1440", "MaxTRESPerJob=gres/gpu=3,mem=131071M"),
    )
    gone = {"MaxWall": "", "MaxTRESPerJob": "", "Preempt": "", "GrpSubmitJobs": ""}
    before = {"MaxWall": "86400", "MaxTRESPerJob": "cpu=4,mem=131071", "Preempt": "training"}
    assert modify_words(Key("qos", "training"), gone, before, "dev")[-4:] == (
        *("MaxWall=-1", "MaxTRESPerJob=cpu=-1,mem=-1"),
        *("Preempt=", "GrpSubmitJobs=-1"),
    )
    assert add_words(Key("user", "team-a/kim"), {"MaxSubmitJobs": ""}, "dev") == (
        *("add", "user", "kim", "Account=team-a", "Cluster=dev"),
    )


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("mem=128G,gres/gpu=3", "gres/gpu=3,mem=131072"),
        ("gres/gpu=0", "gres/gpu=0"),
        ("cpu=4", "cpu=4"),
    ],
)
def test_limits_are_written_one_way_only_and_zero_is_one(text: str, canonical: str) -> None:
    assert limits_text(text) == canonical


def answered(rc: int, out: str = "", err: str = "") -> Completed:
    return Completed(rc, out.encode(), err.encode())


def test_a_change_that_is_made_already_is_no_failure() -> None:
    said = " Already existing account team-a\n Nothing new added.\n"
    assert "Nothing new added" in Manage(("add", "account", "team-a")).parse(answered(1, said))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("sacctmgr: error: Access/permission denied", Denied),
        ("sacctmgr: error: Unknown field 'colour'", SlurmRefused),
        ("sacctmgr: error: slurm_persist_conn_open: failed to open persistent connection", Unreachable),
        ("sacctmgr: error: Socket timed out on send/recv operation", OutcomeUnknown),
    ],
)
def test_what_slurm_says_of_a_change_is_not_confused(said: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Manage(("modify", "qos")).parse(answered(1, err=said))


def test_what_there_is_is_read_from_slurms_own_tables() -> None:
    accounts = "team-a|||root|7|inference,training|training|gres/gpu=5|gres/gpu=6000|0|\n"
    accounts += "team-a|kim|||1|training|||||\nteam-a|kim|gpu||1|training|||||\n"
    qos = "training|100|00:02:00||requeue|1-00:00:00|gres/gpu=3,mem=131071M\n"
    members, bad = Memberships("dev").parse(answered(0, accounts))
    limits, worse = QosLimitsList().parse(answered(0, qos))
    assert (bad, worse) == ((), ())
    found = seen(limits, members)
    assert set(found) == {TEAM, Key("user", "team-a/kim"), Key("qos", "training")}
    assert found[TEAM] == {
        "Fairshare": "7",
        "QOS": "inference,training",
        "DefaultQOS": "training",
        "GrpTRES": "gres/gpu=5",
        "GrpTRESRunMins": "gres/gpu=6000",
        "GrpSubmitJobs": "0",
    }
    assert found[Key("qos", "training")]["MaxTRESPerJob"] == "gres/gpu=3,mem=131071"
