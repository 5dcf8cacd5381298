"""Changes to jobs: what is written for scontrol, and whose complaint is whose."""

from __future__ import annotations

import inspect
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import (
    BrokerError,
    ConfigurationError,
    InvalidRequest,
    SlurmRefused,
    Unreachable,
)
from broker.hosts import Completed, LocalHost
from broker.slurm import DONE, ResultKind, SlurmClient, changes
from broker.slurm.changes import Adjust, Cancel, Control
from broker.slurm.cluster import WhoAmI
from broker.slurm.command import complaint, error_of, judged
from broker.slurm.commands import REGISTRY
from broker.slurm.queue import Queue, checked_name


def test_complaints_between_two_marks_belong_to_one_change() -> None:
    command = Control((changes.hold(1), changes.update(2, {"Nice": "5"}), changes.release(3)))
    said = (
        f"invalid keyword: {command.mark}0\nRequest aborted\nno id in this one\n"
        f"invalid keyword: {command.mark}1\nInvalid job id specified for job 3\n"
        f"invalid keyword: {command.mark}2\n"
    )
    results = command.parse(Completed(1, b"", said.encode()))
    assert [results[n].kind for n in (1, 2, 3)] == [
        ResultKind.DONE,
        ResultKind.INVALID_REQUEST,
        ResultKind.NOT_FOUND,
    ]
    assert results[2].message == "Request aborted; no id in this one"


def test_a_change_without_its_mark_is_unknown_not_done() -> None:
    command = Control((changes.hold(1), changes.hold(2), changes.hold(3)))
    results = command.parse(Completed(137, b"", f"invalid keyword: {command.mark}0\n".encode()))
    assert [results[n].kind for n in (1, 2, 3)] == [
        ResultKind.DONE,
        ResultKind.OUTCOME_UNKNOWN,
        ResultKind.OUTCOME_UNKNOWN,
    ]


def test_of_several_changes_to_a_job_the_first_that_failed_is_its_result() -> None:
    command = Control((changes.hold(1), changes.release(1), changes.requeue(1)))
    said = "\n".join(
        f"{words}invalid keyword: {command.mark}{n}" for n, words in enumerate(["", "Invalid user id\n", ""])
    )
    assert command.parse(Completed(1, b"", said.encode()))[1].kind is ResultKind.DENIED


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Job is in held state, pending scheduler release for job 1", ResultKind.HELD),
        ("Job has already finished for job 1", ResultKind.FINISHED),
        ("Access/permission denied for job 1", ResultKind.DENIED),
        ("Unable to contact slurm controller (connect failure)", ResultKind.UNREACHABLE),
        ("Socket timed out on send/recv operation", ResultKind.OUTCOME_UNKNOWN),
        ("Unexpected message received for job 1", ResultKind.OUTCOME_UNKNOWN),
        ("words of a release to come", ResultKind.INVALID_REQUEST),
    ],
)
def test_slurms_words_are_judged(words: str, kind: ResultKind) -> None:
    assert judged(words).kind is kind
    assert isinstance(error_of(judged(words)), BrokerError)


def test_a_reading_command_that_fails_is_unreachable_because_nothing_happened() -> None:
    timed_out = Completed(1, b"", b"slurm_load_jobs error: Socket timed out on send/recv operation\n")
    assert isinstance(complaint("squeue", timed_out), Unreachable)
    assert isinstance(complaint("squeue", Completed(127, b"", b"squeue: not found")), ConfigurationError)
    assert isinstance(
        complaint("sacct", Completed(1, b"", b"Invalid field requested: X")), ConfigurationError
    )
    assert isinstance(complaint("squeue", Completed(1, b"", b"Invalid user: nobody")), SlurmRefused)


@pytest.mark.parametrize("value", ["two\nlines", 'a"b', "back\\slash", "nul\0", "tab\there", "\x1f"])
def test_a_value_that_could_begin_a_new_command_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="Comment"):
        changes.update(1, {"Comment": value})


@pytest.mark.parametrize("name", ["", "Comment=x Nice", "a b", "9x", "x\n"])
def test_a_field_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        changes.update(1, {name: "x"})


def test_an_empty_value_empties_and_no_value_is_refused() -> None:
    assert changes.update(1, {"Comment": ""}).line == "update JobId=1 Comment="
    assert changes.update(1, {"Comment": "a 'b'"}).line == "update JobId=1 Comment=\"a 'b'\""
    with pytest.raises(InvalidRequest):
        changes.update(1, {})


@pytest.mark.parametrize("name", ["", "a,b", "a\nb", "\x1f"])
def test_a_name_that_would_be_two_is_not_looked_up(name: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_name(name)


def test_a_refused_cancel_names_its_job_and_a_general_complaint_concerns_all() -> None:
    one = b"scancel: error: Kill job error on job id 2: Access/permission denied\n"
    assert Cancel((1, 2)).parse(Completed(1, b"", one)).keys() == {2}
    every = b"scancel: error: Unable to contact slurm controller (connect failure)\n"
    results = Cancel((1, 2)).parse(Completed(1, b"", every))
    assert {result.kind for result in results.values()} == {ResultKind.UNREACHABLE}


@given(st.text(st.characters(codec="utf-8"), max_size=400), st.integers(0, 255))
def test_no_answer_breaks_a_change(said: str, rc: int) -> None:
    if rc == 127:
        return
    results = Control((changes.hold(1), changes.hold(2))).parse(Completed(rc, b"", said.encode()))
    assert {result.kind for result in results.values()} == {ResultKind.OUTCOME_UNKNOWN}
    assert all(result.message for result in Cancel((1,)).parse(Completed(rc, b"", said.encode())).values())


_RECORD = (
    "JobId={id} JobName={name} UserId=kim(2001) GroupId=kim(2001) MCS_label=N/A Priority={priority} Nice=0 "
    "Account=default QOS=normal JobState=PENDING Reason=Priority Dependency=(null) Comment={comment}\n"
)


def _shown(command: Adjust, when: str, job_id: int, **fields: object) -> str:
    values = {"id": job_id, "name": "x", "priority": 7, "comment": ""} | fields
    return f"{command.mark}{when}{job_id}\n" + _RECORD.format(**values)


def test_a_job_is_read_back_under_its_own_mark_only() -> None:
    command = Adjust((changes.update(1, {"Priority": "9"}), changes.update(2, {"Priority": "9"})))
    said = (
        f"no such job\ninvalid keyword: {command.mark}\ninvalid keyword: @{command.mark}-0\nInvalid job id\n"
    )
    done = Completed(
        1,
        (
            f"scontrol: show hostnames {command.mark}b1\n"  # some builds repeat what they read
            + _shown(command, "b", 1)
            + _shown(command, "a", 1, priority=9)
            + f"{command.mark}a2\n"
        ).encode(),
        f"{said}invalid keyword: @{command.mark}-1\n".encode(),
    )
    adjusted = command.parse(done)
    assert [adjusted.results[n].kind for n in (1, 2)] == [ResultKind.DONE, ResultKind.NOT_FOUND]
    assert (adjusted.before[1].priority, adjusted.after[1].priority) == (7, 9)
    assert 2 not in adjusted.before and 2 not in adjusted.after


@pytest.mark.parametrize("field", ["name", "comment"])
def test_a_name_that_looks_like_fields_is_not_believed(field: str) -> None:
    command = Adjust((changes.update(1, {"Priority": "9"}),))
    forged = (
        "x UserId=a(1) GroupId=a(1) MCS_label=N Priority=9 Nice=0 Account=a QOS=q "
        "JobState=PENDING Reason=None Dependency="
    )
    assert command._shown(_shown(command, "a", 1, **{field: forged})) == {}
    assert command._shown(_shown(command, "a", 1, **{field: "harmless Priority=9"}))["a", 1].priority == 7
    assert command._shown(_shown(command, "a", 1, id=2)) == {}


def test_changes_that_were_never_reached_are_unknown() -> None:
    adjusted = Adjust((changes.release(1),)).parse(Completed(255, b"", b"Connection closed"))
    assert adjusted.results[1].kind is ResultKind.OUTCOME_UNKNOWN


def test_every_command_is_in_the_registry_once() -> None:
    from broker.slurm.command import Command

    def concrete(cls: type) -> set[type]:
        return {cls} | {sub for child in cls.__subclasses__() for sub in concrete(child)}

    ours = {cls for cls in concrete(Command) if cls.__module__.startswith("broker.slurm.")}
    assert {cls for cls in ours if not inspect.isabstract(cls)} == set(REGISTRY.values())
    assert len(set(REGISTRY.values())) == len(REGISTRY)


def test_only_changes_are_not_readonly() -> None:
    assert {name for name, command in REGISTRY.items() if not command.readonly} == {
        "control",
        "adjust",
        "cancel",
        "manage",
    }


def _slurm(tmp_path: Path, **programs: str) -> SlurmClient:
    """A client whose Slurm programs are these scripts: failures that no real cluster has on demand."""
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return SlurmClient(LocalHost(), timeout_s=5, path=f"{tmp_path}:/usr/bin:/bin")


def test_a_time_out_of_a_change_is_unknown_and_of_a_read_unreachable(tmp_path: Path) -> None:
    slurm = _slurm(tmp_path, scontrol="sleep 60", squeue="sleep 60")
    slurm._timeout_s = 0.3
    assert slurm.hold([1])[1].kind is ResultKind.OUTCOME_UNKNOWN
    with pytest.raises(Unreachable):
        slurm.jobs()


def test_programs_that_are_not_there_are_a_matter_of_configuration(tmp_path: Path) -> None:
    for call in (lambda s: s.jobs(), lambda s: s.hold([1]), lambda s: s.cancel([1])):
        with pytest.raises(ConfigurationError, match="PATH"):
            call(SlurmClient(LocalHost(), timeout_s=5, path=str(tmp_path)))


def test_a_login_shell_that_talks_is_found_out() -> None:
    assert WhoAmI().parse(Completed(0, b"broker\n", b"")) == "broker"
    with pytest.raises(ConfigurationError, match="bashrc"):
        WhoAmI().parse(Completed(0, b"Welcome to login1!\nbroker\n", b""))


def test_half_an_answer_of_sacct_is_no_answer(tmp_path: Path) -> None:
    slurm = _slurm(
        tmp_path,
        scontrol="echo ClusterName = c",
        sinfo="echo slurm 24.11.5",
        sacct='[ "$1" = -e ] && echo JobID && exit; echo "sacct: error: Connection refused" >&2; exit 0',
    )
    with pytest.raises(Unreachable):
        slurm.accounting([1])


def test_a_profile_of_the_account_filters_nothing(tmp_path: Path) -> None:
    slurm = _slurm(tmp_path, squeue="env | grep -E '^(SQUEUE|SLURM|TZ)' | sort >&2; exit 1")
    environment = {
        "PATH": os.environ["PATH"],
        "SQUEUE_USERS": "x",
        "SQUEUE_FORMAT2": "y",
        "SLURM_CLUSTERS": "z",
    }
    host = LocalHost()
    host._environment = environment
    slurm._host = host
    with pytest.raises(SlurmRefused) as refused:
        slurm.jobs()
    assert refused.value.detail == "squeue: SLURM_TIME_FORMAT=%s; TZ=UTC"


def test_more_names_than_fit_one_command_line_are_asked_in_several(tmp_path: Path) -> None:
    slurm = _slurm(tmp_path, squeue=f'for w; do :; done; echo "${{#w}}" >> {tmp_path}/sizes')
    names = [f"job-{n:04d}-{'x' * 90}" for n in range(1500)]
    assert slurm.jobs(names=names).jobs == ()
    sizes = [int(line) for line in (tmp_path / "sizes").read_text().split()]
    assert len(sizes) > 2
    assert max(sizes) < 64 * 1024
    assert sum(sizes) >= sum(len(name) for name in names)


@settings(max_examples=40)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), min_size=1, max_size=5
    )
)
def test_hostile_words_reach_a_command_as_they_are(words: list[str]) -> None:
    import shlex

    argv = ["printf", "%s\\0", *words]
    through_shell = subprocess.run(["sh", "-c", shlex.join(argv)], capture_output=True, check=True).stdout
    assert through_shell == LocalHost().run(argv, timeout=10).stdout
    assert through_shell.decode().split("\0")[:-1] == words


def test_the_result_of_nothing_to_do_is_nothing() -> None:
    slurm = SlurmClient(LocalHost(), timeout_s=1, path="/nonexistent")
    assert slurm.hold([]) == slurm.cancel([]) == slurm.update([]) == {}
    assert slurm.jobs(names=[]).jobs == ()
    assert DONE.message == ""
    assert Queue(ids=(1,)).parse(Completed(1, b"", b"slurm_load_jobs error: Invalid job id specified")) == (
        (),
        (),
    )
