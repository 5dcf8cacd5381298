"""The parsers against what Slurm 22.05, 24.11 and 26.05 really answered (`record.py` asked)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.errors import Denied, SlurmRefused, Unreachable
from broker.hosts import Completed
from broker.slurm import AccountingJob, QueueJob, ResultKind, SlurmState
from broker.slurm.changes import Change
from broker.slurm.cluster import Config
from broker.slurm.command import Command
from broker.slurm.commands import REGISTRY
from broker.slurm.queue import latest
from broker.slurm.versions import accounting_fields

RECORDINGS = Path(__file__).parent / "recordings"
VERSIONS = ("22.05.8", "24.11.5", "26.05.5")


@dataclass(frozen=True)
class Recordings:
    """One release's answers."""

    version: str
    ids: Mapping[str, int]
    names: Mapping[str, str]

    def read(self, name: str) -> tuple[Command[Any], Completed]:
        found = json.loads((RECORDINGS / self.version / f"{name}.json").read_text())
        options = {key: _revived(key, value) for key, value in found["options"].items()}
        command = REGISTRY[found["command"]](**options)
        assert command.argv() == found["argv"], "the command line is no longer the one that was recorded"
        out, err = (found[key].encode("utf-8", "surrogateescape") for key in ("stdout", "stderr"))
        return command, Completed(found["rc"], out, err)

    def parse(self, name: str) -> Any:
        command, done = self.read(name)
        return command.parse(done)

    def queue(self, name: str = "queue") -> dict[str, QueueJob]:
        jobs, bad = self.parse(name)
        assert bad == ()
        return {label: job for label, job_id in self.ids.items() for job in jobs if job.job_id == job_id}

    def accounting(self) -> dict[str, AccountingJob]:
        attempts, bad = self.parse("accounting")
        assert bad == ()
        last = {job.job_id: job for job in latest(attempts)}
        return {label: last[job_id] for label, job_id in self.ids.items()}


def _revived(key: str, value: Any) -> Any:
    if key == "changes":
        return tuple(Change(job_id, line) for job_id, line in value)
    if key == "since" and value:
        return datetime.fromisoformat(value)
    return tuple(value) if isinstance(value, list) else value


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recordings:
    facts = json.loads((RECORDINGS / request.param / "facts.json").read_text())
    return Recordings(request.param, facts["ids"], facts["names"])


def test_every_command_was_recorded_on_every_release(recorded: Recordings) -> None:
    found = {
        json.loads(path.read_text())["command"]
        for path in (RECORDINGS / recorded.version).rglob("*.json")
        if path.name != "facts.json"
    }
    assert found == set(REGISTRY)


# label -> what squeue shows. Jobs that can start again are left out: they may be anywhere.
QUEUE = {
    "done": (SlurmState.COMPLETED, 0),
    "failed": (SlurmState.FAILED, 0),
    "killed": (SlurmState.FAILED, 0),
    "timeout": (SlurmState.TIMEOUT, 0),
    "cancelled_running": (SlurmState.CANCELLED, 0),
    "cancelled_held": (SlurmState.CANCELLED, 0),
    "deadline": (SlurmState.DEADLINE, 0),
    "held_user": (SlurmState.PENDING, 0),
    "held_admin": (SlurmState.PENDING, 0),
    "child": (SlurmState.PENDING, 0),
    "never": (SlurmState.PENDING, 0),
    "waiting": (SlurmState.PENDING, 0),
    "gpus": (SlurmState.RUNNING, 0),
    "requeued": (SlurmState.RUNNING, 1),
    "node_fail": (SlurmState.NODE_FAIL, 0),
    "preempted": (SlurmState.PREEMPTED, 0),
}


def test_the_queue_shows_every_state_and_how_often_it_started(recorded: Recordings) -> None:
    jobs = recorded.queue()
    assert {label: (jobs[label].state, jobs[label].restart_count) for label in QUEUE} == QUEUE
    assert {job.user for job in jobs.values()} == {"broker"}


def test_a_hostile_name_is_the_name_of_its_job_and_of_no_other(recorded: Recordings) -> None:
    jobs, bad = recorded.parse("queue")
    assert bad == ()
    assert len({job.job_id for job in jobs}) == len(jobs)
    by_label = recorded.queue()
    assert {label: by_label[label].name for label in recorded.names} == recorded.names
    assert {by_label[label].state for label in recorded.names} == {SlurmState.PENDING}
    # sacct writes a double quote as a backtick, and 22.05 what is not Latin-1 as question marks.
    kept = {label: name.replace('"', "`") for label, name in recorded.names.items()}
    if recorded.version.startswith("22.05"):
        kept["hostile_text"] = "??? ünï|co:de,~"
    assert {label: recorded.accounting()[label].name for label in recorded.names} == kept


def test_what_a_job_asked_for_and_got_is_read(recorded: Recordings) -> None:
    for job in (recorded.queue()["gpus"], recorded.accounting()["gpus"]):
        tres = job.tres if isinstance(job, QueueJob) else job.alloc_tres
        assert (job.cpus, job.node_count, job.time_limit_s) == (4, 1, 26 * 3600)
        assert (tres.cpus, tres.memory_mib, tres.nodes, tres.gpus) == (4, 100, 1, 2)
        assert dict(tres.gpu_types) == {"a100": 2}
        assert job.nodes[0].startswith("a100-")
        assert job.submit and job.start
        assert (job.account, job.qos, job.partition) == ("default", "normal", "gpu")


def test_dependencies_are_whole_and_reasons_are_slurms_words(recorded: Recordings) -> None:
    jobs, ids = recorded.queue(), recorded.ids
    for parent in ("held_user", "held_admin"):
        assert f"afterok:{ids[parent]}(unfulfilled)" in jobs["child"].dependency
    assert jobs["never"].reason == "DependencyNeverSatisfied"
    assert jobs["held_user"].reason == "JobHeldUser"
    assert jobs["held_admin"].reason == "JobHeldAdmin"
    assert jobs["held_admin"].priority == 0
    assert jobs["gpus"].priority > 0


def test_elements_of_an_array_know_their_array(recorded: Recordings) -> None:
    jobs, _ = recorded.parse("queue")
    array = recorded.ids["array"]
    elements = {job.array_task: job for job in jobs if job.array_id == array}
    assert elements.keys() >= {"0", "1"}
    assert elements["0"].state is SlurmState.RUNNING
    waiting = next(job for job in jobs if job.job_id == array)
    assert waiting.array_task == "2-7%2"
    assert waiting.state is SlurmState.PENDING


def test_the_queue_is_filtered_by_user_name_and_id(recorded: Recordings) -> None:
    assert recorded.parse("queue_of_nobody") == ((), ())
    named = recorded.queue("queue_by_name")
    assert {f"rec-{label}" for label in named} == {job.name for job in named.values()}
    assert named.keys() == recorded.ids.keys() - recorded.names.keys()
    assert recorded.queue("queue_by_id").keys() == recorded.ids.keys()
    assert recorded.parse("queue_purged") == ((), ())


# label -> state, exit code, signal
ACCOUNTING = {
    "done": (SlurmState.COMPLETED, 0, 0),
    "failed": (SlurmState.FAILED, 3, 0),
    "killed": (SlurmState.FAILED, 0, 11),
    "timeout": (SlurmState.TIMEOUT, 0, 0),
    "cancelled_running": (SlurmState.CANCELLED, 0, 0),
    "cancelled_held": (SlurmState.CANCELLED, 0, 0),
    "deadline": (SlurmState.DEADLINE, 1, 0),
    "held_user": (SlurmState.PENDING, 0, 0),
    "held_admin": (SlurmState.PENDING, 0, 0),
    "child": (SlurmState.PENDING, 0, 0),
    "gpus": (SlurmState.RUNNING, 0, 0),
    "requeued": (SlurmState.RUNNING, 0, 0),
    "preempted": (SlurmState.PREEMPTED, 0, 0),
}


def test_accounting_tells_how_each_ended(recorded: Recordings) -> None:
    jobs = recorded.accounting()
    labels = (*ACCOUNTING, "node_fail")
    found = {label: (jobs[label].state, jobs[label].exit_code, jobs[label].signal) for label in labels}
    node_fail = (SlurmState.NODE_FAIL, 0 if recorded.version.startswith("22.05") else 1, 0)
    assert found == {**ACCOUNTING, "node_fail": node_fail}
    assert jobs["cancelled_running"].cancelled_by == 2000
    assert jobs["timeout"].elapsed_s >= 60
    assert jobs["timeout"].time_limit_s == 60
    assert jobs["timeout"].end and jobs["timeout"].start
    assert jobs["cancelled_held"].alloc_tres.nodes == 0


def test_every_attempt_of_a_requeued_job_is_there_and_the_last_one_counts(recorded: Recordings) -> None:
    attempts, _ = recorded.parse("accounting")
    states = [job.state for job in attempts if job.job_id == recorded.ids["requeued"]]
    assert states == [SlurmState.REQUEUED, SlurmState.RUNNING]
    restarts = recorded.accounting()["requeued"].restarts
    assert restarts == (None if recorded.version.startswith("22.05") else 1)


def test_a_failed_node_is_named_where_the_release_says_so(recorded: Recordings) -> None:
    failed = recorded.accounting()["node_fail"]
    assert failed.nodes == ("v100-2",)
    assert failed.failed_node == (None if recorded.version.startswith("22.05") else "v100-2")


def test_accounting_by_name_leaves_out_what_waits_held(recorded: Recordings) -> None:
    attempts, bad = recorded.parse("accounting_by_name")
    assert bad == ()
    found = {job.name.removeprefix("rec-") for job in attempts}
    assert found >= {"done", "failed", "cancelled_running", "cancelled_held", "gpus"}
    assert found.isdisjoint({"held_user", "held_admin"})
    assert recorded.parse("accounting_unknown_id") == ((), ())


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


def test_what_a_held_job_asks_for_and_its_script_are_read_back(recorded: Recordings) -> None:
    found, bad = recorded.parse("held")
    assert bad == ()
    jobs, ids = {job.job_id: job for job in found}, recorded.ids
    assert jobs.keys() == {ids[label] for label in ("held_admin", "held_user", "gpus", "child")}
    held = {label: jobs[ids[label]].held_by_admin for label in ("held_admin", "held_user", "child")}
    assert held == {"held_admin": True, "held_user": False, "child": False}
    gpus = jobs[ids["gpus"]]
    assert (gpus.max_cpus, gpus.tres.gpus, gpus.required_nodes) == (4, 2, "a100-1")
    assert str(ids["held_admin"]) in jobs[ids["child"]].dependency
    assert (gpus.work_dir, gpus.output, gpus.time_limit_s) == ("/tmp", "/dev/null", 26 * 3600)
    scripts = recorded.parse("batch_scripts")
    assert scripts.keys() == {ids["held_admin"], ids["child"]}
    assert {script.splitlines()[-1] for script in scripts.values()} == {"true"}


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


@pytest.mark.parametrize(
    "name",
    ["queue_controller_frozen", "queue_no_controller", "accounting_frozen", "accounting_no_database"],
)
def test_no_answer_is_an_error_and_never_an_empty_queue(recorded: Recordings, name: str) -> None:
    with pytest.raises(Unreachable):
        recorded.parse(name)


def test_a_change_without_an_answer_is_unknown_never_refused(recorded: Recordings) -> None:
    for name in ("control_controller_frozen", "control_no_controller"):
        results = recorded.parse(name)
        kinds = {result.kind for result in results.values()}
        assert kinds <= {ResultKind.OUTCOME_UNKNOWN, ResultKind.UNREACHABLE}, (name, results)
    assert {r.kind for r in recorded.parse("cancel_no_controller").values()} == {ResultKind.UNREACHABLE}
    (controller,) = recorded.parse("ping_no_controller")
    assert not controller.up


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


def test_priorities_leave_out_held_jobs_and_shares_form_a_tree(recorded: Recordings) -> None:
    found, bad = recorded.parse("priorities")
    assert bad == ()
    waiting = {job.job_id for job in found}
    assert waiting.isdisjoint({recorded.ids["held_user"], recorded.ids["held_admin"]})
    assert recorded.ids["waiting"] in waiting
    assert all(job.total > 0 and job.user == "broker" for job in found)
    shares, bad = recorded.parse("shares")
    assert bad == ()
    assert shares[0].account == "root"
    mine = [share for share in shares if (share.account, share.user) == ("default", "broker")]
    assert mine[0].raw_usage > 0


# Accounts, people, classes


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


def test_an_administrators_hold_is_told_from_an_owners(recorded: Recordings) -> None:
    jobs, bad = recorded.parse("held")
    assert bad == ()
    by_id = {job.job_id: job for job in jobs}
    held = {label: by_id[recorded.ids[label]].held_by_admin for label in ("held_admin", "held_user", "child")}
    assert held == {"held_admin": True, "held_user": False, "child": False}
    gpus = by_id[recorded.ids["gpus"]]
    assert (gpus.tres.gpus, gpus.tres.cpus, gpus.max_cpus, gpus.max_nodes) == (2, 4, 4, 1)
    assert (gpus.time_limit_s, gpus.required_nodes, gpus.work_dir) == (93600, "a100-1", "/tmp")
    parents = {f"afterok:{recorded.ids[label]}(unfulfilled)" for label in ("held_user", "held_admin")}
    assert set(by_id[recorded.ids["child"]].dependency.split(",")) == parents


def test_batch_scripts_are_those_that_were_submitted(recorded: Recordings) -> None:
    script = "#!/bin/sh\n# This script was created by sbatch --wrap.\n\ntrue\n"
    assert recorded.parse("batch_scripts") == {
        recorded.ids["held_admin"]: script,
        recorded.ids["child"]: script,
    }


# What running jobs use (record_usage.py)


def test_sstat_tells_each_running_step_of_an_own_job_and_of_no_other(recorded: Recordings) -> None:
    command, _ = recorded.read("usage/running_usage")
    mine, ended, strangers, none = command.ids  # type: ignore[attr-defined]
    steps, bad = recorded.parse("usage/running_usage")
    assert bad == ()
    assert {(one.job_id, one.step) for one in steps} == {(mine, "batch"), (mine, "0")}
    assert {ended, strangers, none}.isdisjoint(one.job_id for one in steps)
    batch, parallel = steps
    assert 2 <= batch.cpu_s <= 15, "a process that computed for 12 s beside others, as sampled every 5 s"
    assert 64 <= batch.memory_mib <= 128, "64 MiB, and what Python itself needs"
    assert (parallel.cpu_s, parallel.memory_mib > 2) == (0, True), "two tasks of sleep(1)"
    assert (batch.gpu_util, batch.gpu_memory_mib) == (None, None)


def test_sstat_of_unknown_jobs_is_empty_and_of_a_silent_controller_an_error(recorded: Recordings) -> None:
    assert recorded.parse("usage/running_usage_of_none") == ((), ())
    with pytest.raises(Unreachable):
        recorded.parse("usage/running_usage_frozen")
