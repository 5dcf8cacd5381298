"""Reading what Slurm holds of waiting jobs, and their scripts, whatever their owners wrote into them."""

from __future__ import annotations

import pytest

from broker.errors import Unreachable
from broker.hosts import Completed
from broker.slurm.held import BatchScripts, Held, held_by_admin
from broker.slurm.states import SlurmState

VALUES = {
    "JobID": "11", "UserName": "kim", "State": "PENDING", "Reason": "JobHeldAdmin", "PriorityLong": "0",
    "Account": "default", "QOS": "training", "Partition": "gpu",
    "tres-alloc": "cpu=3,mem=1000M,node=1,billing=3,gres/gpu=1", "MaxNodes": "4", "MaxCPUs": "6",
    "TimeLimit": "1:00:00",
    "Dependency": "afterok:9(unfulfilled)", "ArrayTaskID": "N/A", "Feature": "(null)", "ReqNodes": "",
    "ExcNodes": "", "Reservation": "(null)", "Licenses": "(null)", "Container": "(null)",
    "WorkDir": "/cluster/run-1", "StdOut": "/cluster/run-1/log", "StdErr": "(null)", "Name": "a b\nPENDING",
}  # fmt: skip


def test_fields_are_read_by_a_delimiter_that_no_owner_can_know() -> None:
    command = Held((11,))
    assert [word.split(":")[0] for word in command.args()[5].split(",")] == list(VALUES)
    line = command.delimiter.join(VALUES.values())
    jobs, bad = command.parse(Completed(0, f"{line}\n".encode(), b""))
    assert bad == ()
    (job,) = jobs
    assert (job.name, job.array, job.features, job.error) == ("a b\nPENDING", "", "", "")
    assert (job.tres.gpus, job.tres.memory_mib, job.max_nodes, job.time_limit_s) == (1, 1000, 4, 3600)
    assert job.held_by_admin


def test_only_an_administrators_hold_on_a_waiting_job_is_one() -> None:
    assert held_by_admin(SlurmState.PENDING, 0, "JobHeldAdmin")
    assert not held_by_admin(SlurmState.PENDING, 0, "JobHeldUser")
    assert not held_by_admin(SlurmState.PENDING, 5, "JobHeldAdmin")
    assert not held_by_admin(SlurmState.RUNNING, 0, "JobHeldAdmin")


def test_jobs_that_the_queue_has_forgotten_are_absent() -> None:
    error = b"slurm_load_jobs error: Invalid job id specified\n"
    assert Held((11,)).parse(Completed(1, b"", error)) == ((), ())


# What scontrol 24.11 prints: each line it reads on a pipe is repeated, a script is given as it is.
def _printed(command: BatchScripts, *, echo: bool) -> bytes:
    said = {11: "#!/bin/bash\nwrite batch_script 12 -\nno newline at the end", 12: "", 13: "#!/bin/sh\n"}
    lines = []
    for number, script in said.items():
        for asked, answer in (
            (f"show hostnames {command.mark}{number}", f"{command.mark}{number}\n"),
            (f"write batch_script {number} -", script),
        ):
            lines.append((f"scontrol: {asked}\n" if echo else "") + answer)
    last = f"{command.mark}0"
    return "".join([*lines, f"scontrol: show hostnames {last}\n" if echo else "\n", f"{last}\n"]).encode()


def test_scripts_are_told_apart_whatever_stands_in_them() -> None:
    command = BatchScripts((11, 12, 13))
    error = b"job script retrieval failed: Invalid job id specified\n"
    scripts = command.parse(Completed(1, _printed(command, echo=True), error))
    assert scripts == {
        11: "#!/bin/bash\nwrite batch_script 12 -\nno newline at the end",
        13: "#!/bin/sh\n",
    }


@pytest.mark.parametrize("answer", [b"", b"scontrol: show hostnames\n"])
def test_an_answer_that_breaks_off_is_none(answer: bytes) -> None:
    command = BatchScripts((11,))
    with pytest.raises(Unreachable):
        command.parse(Completed(1, answer, b"slurm_load_jobs error: Unable to contact slurm controller"))


def test_a_controller_that_does_not_answer_is_not_a_job_without_a_script() -> None:
    command = BatchScripts((11, 12, 13))
    error = b"job script retrieval failed: Unable to contact slurm controller (connect failure)\n"
    with pytest.raises(Unreachable):
        command.parse(Completed(1, _printed(command, echo=True), error))
