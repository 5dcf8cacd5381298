"""What only the doctor asks of Slurm: argument lists, and answers as Slurm 24.11 gave them."""

from __future__ import annotations

import pytest

from broker.doctor.commands import (
    AdminLevel,
    Association,
    Associations,
    DryRun,
    PartitionSharing,
    Sharing,
    Submit,
)
from broker.errors import SlurmRefused, Unreachable
from broker.hosts import Completed


def test_associations_are_read() -> None:
    command = Associations("broker", "main")
    assert command.args()[-3:] == ["user=broker", "cluster=main", "format=Account,User,QOS"]
    done = Completed(0, b"default|broker|normal,high\nteam-a|broker|\n", b"")
    assert command.parse(done) == (
        Association("default", "broker", ("normal", "high")),
        Association("team-a", "broker", ()),
    )


def test_a_user_whom_accounting_does_not_know_has_no_rights() -> None:
    assert AdminLevel("broker").parse(Completed(0, b"Operator\n", b"")) == "Operator"
    assert AdminLevel("nobody").parse(Completed(0, b"", b"")) == "None"


def test_sharing_is_read_from_every_partition() -> None:
    text = (
        b"PartitionName=gpu Default=YES OverSubscribe=FORCE:4 State=UP\nPartitionName=cpu OverSubscribe=NO\n"
    )
    assert Sharing().parse(Completed(0, text, b"")) == (
        PartitionSharing("gpu", "FORCE:4"),
        PartitionSharing("cpu", "NO"),
    )


def test_slurms_refusal_of_a_trial_is_told_in_its_words() -> None:
    command = DryRun(("--gres=gpu:h100:1",))
    assert command.args() == ["--test-only", "--gres=gpu:h100:1"] and command.stdin.startswith(b"#!")
    words = b"allocation failure: Invalid generic resource (gres) specification"
    with pytest.raises(SlurmRefused, match="Invalid generic resource"):
        command.parse(Completed(1, b"", words))
    told = b"sbatch: Job 17 to start at 2024-05-01T12:00:00 using 1 processors on nodes n1\n"
    assert "using 1 processors" in command.parse(Completed(0, b"", told))


def test_an_unanswered_trial_is_no_refusal() -> None:
    with pytest.raises(Unreachable):
        DryRun(()).parse(Completed(1, b"", b"sbatch: error: Unable to contact slurm controller"))


def test_a_job_id_is_read_with_and_without_the_clusters_name() -> None:
    command = Submit(("--hold",), "#!/bin/sh\n")
    assert not command.readonly
    assert command.parse(Completed(0, b"42;main\n", b"")) == 42
    assert command.parse(Completed(0, b"43\n", b"")) == 43
    with pytest.raises(SlurmRefused):
        command.parse(Completed(0, b"Submitted batch job 44\n", b""))
