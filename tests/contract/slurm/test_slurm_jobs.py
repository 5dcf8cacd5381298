"""What is read of jobs, waiting, running and ended, against what three releases of Slurm answered."""

from __future__ import annotations

import pytest

from broker.errors import Unreachable
from broker.slurm import QueueJob, SlurmState
from tests.recordings import Recordings

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


@pytest.mark.parametrize(
    "name",
    ["queue_controller_frozen", "queue_no_controller", "accounting_frozen", "accounting_no_database"],
)
def test_no_answer_is_an_error_and_never_an_empty_queue(recorded: Recordings, name: str) -> None:
    with pytest.raises(Unreachable):
        recorded.parse(name)


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


def test_an_administrators_hold_is_told_from_an_owners(recorded: Recordings) -> None:
    jobs, bad = recorded.parse("held")
    assert bad == ()
    by_id = {job.job_id: job for job in jobs}
    assert by_id.keys() == {recorded.ids[one] for one in ("held_admin", "held_user", "gpus", "child")}
    held = {label: by_id[recorded.ids[label]].held_by_admin for label in ("held_admin", "held_user", "child")}
    assert held == {"held_admin": True, "held_user": False, "child": False}
    gpus = by_id[recorded.ids["gpus"]]
    assert (gpus.tres.gpus, gpus.tres.cpus, gpus.max_cpus, gpus.max_nodes) == (2, 4, 4, 1)
    assert (gpus.time_limit_s, gpus.required_nodes) == (93600, "a100-1")
    assert (gpus.work_dir, gpus.output) == ("/tmp", "/dev/null")
    parents = {f"afterok:{recorded.ids[label]}(unfulfilled)" for label in ("held_user", "held_admin")}
    assert set(by_id[recorded.ids["child"]].dependency.split(",")) == parents


def test_batch_scripts_are_those_that_were_submitted(recorded: Recordings) -> None:
    script = "#!/bin/sh\n# This script was created by sbatch --wrap.\n\ntrue\n"
    assert recorded.parse("batch_scripts") == {
        recorded.ids["held_admin"]: script,
        recorded.ids["child"]: script,
    }


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


def test_a_job_of_which_a_node_is_silent_is_unknown_not_small(recorded: Recordings) -> None:
    """sstat leaves out the step over both nodes and tells the batch step alone: a sixth of the job."""
    command, answer = recorded.read("usage/running_usage_silent_node")
    wide, other = command.ids  # type: ignore[attr-defined]
    assert f"{wide}.batch|" in answer.stdout.decode()
    steps, _ = recorded.parse("usage/running_usage_silent_node")
    assert {one.job_id for one in steps} == {other}, "a stranger's silent node costs nobody else's figures"


def test_sstat_of_unknown_jobs_is_empty_and_of_a_silent_controller_an_error(recorded: Recordings) -> None:
    assert recorded.parse("usage/running_usage_of_none") == ((), ())
    with pytest.raises(Unreachable):
        recorded.parse("usage/running_usage_frozen")
