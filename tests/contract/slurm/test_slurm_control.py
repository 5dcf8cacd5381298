"""What became of changes, of jobs and of accounts, against what three releases of Slurm answered."""

from __future__ import annotations

import pytest

from broker.errors import Denied, SlurmRefused, Unreachable
from broker.slurm import ResultKind, SlurmState
from tests.recordings import Recordings


def test_each_change_has_its_own_result(recorded: Recordings) -> None:
    results, ids = recorded.parse("control"), recorded.ids
    assert {label: results[ids[label]].kind for label in ids if ids[label] in results} == {
        "held_user": ResultKind.DONE,
        "failed": ResultKind.FINISHED,
        "child": ResultKind.DONE,
        "held_admin": ResultKind.HELD,
        "hostile_text": ResultKind.DONE,
        "hostile_shell": ResultKind.INVALID_REQUEST,
        "hostile_row": ResultKind.INVALID_REQUEST,
        "hostile_newline": ResultKind.INVALID_REQUEST,
        "timeout": ResultKind.FINISHED,
    }
    assert results[999_999].kind is ResultKind.NOT_FOUND
    assert "NoSuchField" in results[ids["hostile_shell"]].message


def test_jobs_are_changed_and_read_back_in_one_command(recorded: Recordings) -> None:
    adjusted, ids = recorded.parse("adjust"), recorded.ids
    waiting, user, admin = (ids[label] for label in ("waiting", "held_user", "held_admin"))
    assert {job_id: result.kind for job_id, result in adjusted.results.items()} == {
        waiting: ResultKind.DONE,
        admin: ResultKind.DONE,
        user: ResultKind.HELD,
        999_999: ResultKind.NOT_FOUND,
    }
    assert adjusted.before.keys() == adjusted.after.keys() == {waiting, user, admin}
    assert adjusted.before[waiting].priority != 77 == adjusted.after[waiting].priority
    assert (adjusted.before[admin].nice, adjusted.after[admin].nice) == (0, -500)
    assert (adjusted.after[user].reason, adjusted.after[user].priority) == ("JobHeldUser", 0)
    assert {shown.state for shown in adjusted.after.values()} == {SlurmState.PENDING}


def test_a_stranger_is_denied_every_change(recorded: Recordings) -> None:
    assert {result.kind for result in recorded.parse("control_denied").values()} == {ResultKind.DENIED}
    refused = recorded.parse("cancel_denied")
    assert refused.keys() == {recorded.ids["child"], recorded.ids["gpus"]}
    assert {result.kind for result in refused.values()} == {ResultKind.DENIED}


def test_cancel_says_nothing_of_ids_it_does_not_know_so_the_queue_is_read(recorded: Recordings) -> None:
    assert recorded.parse("cancel") == {}
    after = recorded.queue("queue_after_cancel")
    assert after["array"].state is SlurmState.CANCELLED
    assert after["failed"].state is SlurmState.FAILED


def test_a_change_without_an_answer_is_unknown_never_refused(recorded: Recordings) -> None:
    for name in ("control_controller_frozen", "control_no_controller"):
        results = recorded.parse(name)
        kinds = {result.kind for result in results.values()}
        assert kinds <= {ResultKind.OUTCOME_UNKNOWN, ResultKind.UNREACHABLE}, (name, results)
    assert {r.kind for r in recorded.parse("cancel_no_controller").values()} == {ResultKind.UNREACHABLE}
    (controller,) = recorded.parse("ping_no_controller")
    assert not controller.up


def test_an_operator_changes_accounts_but_no_qos_and_slurms_words_are_kept(recorded: Recordings) -> None:
    assert "team-r" in recorded.parse("manage")
    recorded.parse("manage_again")  # made already: no failure
    with pytest.raises(Denied, match="privilege"):
        recorded.parse("manage_denied")
    with pytest.raises(SlurmRefused, match="Colour"):
        recorded.parse("manage_wrong")
    for name in ("manage_frozen", "manage_no_database"):
        with pytest.raises(Unreachable):
            recorded.parse(name)
