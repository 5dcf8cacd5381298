"""What Slurm holds is compared with what was approved: every change an owner can make is a difference."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any

import pytest

from broker.compiler import ClusterProfile, Plan, ResolvedImage, RunIdentity, compile_run
from broker.runs.drift import Difference, Holder, differences, grown
from broker.runs.planning import note_plan
from broker.runs.tables import JobRow
from broker.slurm.held import HeldJob
from broker.slurm.states import SlurmState
from broker.slurm.tres import Tres
from broker.spec import parse
from tests.api_support import spec

HOLDER = Holder(user="kim", partition="gpu", approved_qos="training-approved")
IDS = {"loader": 7, "trainer": 8}


def _plan() -> Plan:
    document = spec()
    document["components"][1]["resources"] = {
        "gpu_type": "A100", "gpu_count": 8, "memory": "256GB", "nodes": 2, "cpus": 16, "time": "90m",
    }  # fmt: skip
    parsed = parse(document)
    profile = ClusterProfile(name="dev", account="default", qos="training")
    images = {c.image.reference: ResolvedImage("/images/x.sif", "sha256:0") for c in parsed.components}
    return compile_run(parsed, profile, RunIdentity("run-1", 1, 1, "default", "kim"), images)


PLAN = _plan()
SCRIPTS = {IDS[job.component]: job.script for job in PLAN.jobs}


def _held(component: str, **fields: Any) -> HeldJob:
    job = next(job for job in PLAN.jobs if job.component == component)
    args = dict(arg.removeprefix("--").split("=", 1) for arg in job.sbatch_args if "=" in arg)
    large = component == "trainer"
    return HeldJob(
        **{
            "job_id": IDS[component],
            "user": "kim",
            "state": SlurmState.PENDING,
            "reason": "JobHeldAdmin",
            "priority": 0,
            "account": "default",
            "qos": "training",
            "partition": "gpu",
            "tres": Tres(16, 256 << 10, 2, 16, 8, {"a100": 8}) if large else Tres(2, 4096, 1, 2),
            "max_nodes": 2 if large else 1,
            "max_cpus": 16 if large else 2,
            "time_limit_s": 5400 if large else 3600,
            "dependency": "afterok:7(unfulfilled)" if large else "",
            **dict.fromkeys(("array", "features", "required_nodes", "excluded_nodes"), ""),
            **dict.fromkeys(("reservation", "licenses", "container", "error"), ""),
            "work_dir": args["chdir"],
            "output": args["output"],
            "name": job.name,
        }
        | fields
    )


def compare(started: Set[str] = frozenset(), **fields: Any) -> list[Difference]:
    held = {7: _held("loader"), 8: _held("trainer", **fields)}
    return differences(PLAN, IDS, held, SCRIPTS, HOLDER, started=started)


def test_what_slurm_holds_as_it_was_submitted_differs_in_nothing() -> None:
    assert compare() == []
    assert compare(qos="training-approved") == []  # a release that was cut short had moved it already


TRES = _held("trainer").tres


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tres": replace(TRES, gpus=16, gpu_types={"a100": 16})}, "GPUs"),
        ({"tres": replace(TRES, gpu_types={"v100": 8})}, "GPU types"),
        ({"tres": replace(TRES, other={"gres/shard": 8})}, "GPU shards"),
        ({"tres": replace(TRES, memory_mib=512 << 10)}, "memory (MB)"),
        ({"tres": replace(TRES, nodes=3)}, "nodes"),
        ({"tres": replace(TRES, cpus=17)}, "CPUs"),
        ({"tres": replace(TRES, gpus=4, gpu_types={"a100": 4})}, "GPUs"),  # less is something else, too
        ({"max_nodes": 8}, "most nodes"),
        ({"max_cpus": 64}, "most CPUs"),
        ({"time_limit_s": 5460}, "time limit (s)"),
        ({"time_limit_s": None}, "time limit (s)"),
        ({"user": "park"}, "owner"),
        ({"name": "another"}, "name"),
        ({"account": "team-b"}, "account"),
        ({"qos": "urgent-inference"}, "QOS"),
        ({"partition": "v100"}, "partition"),
        ({"dependency": ""}, "dependencies"),
        ({"dependency": "afterany:7(unfulfilled)"}, "dependencies"),
        ({"dependency": "afterok:7(unfulfilled),singleton(unfulfilled)"}, "dependencies"),
        ({"array": "0-9"}, "array"),
        ({"features": "a100"}, "features"),
        ({"required_nodes": "a100-1"}, "required nodes"),
        ({"excluded_nodes": "a100-1"}, "excluded nodes"),
        ({"reservation": "mine"}, "reservation"),
        ({"licenses": "matlab"}, "licenses"),
        ({"container": "/tmp/oci"}, "container"),
        ({"work_dir": "/home/kim"}, "folder"),
        ({"output": "/home/kim/log"}, "output"),
        ({"error": "/home/kim/err"}, "error output"),
        ({"state": SlurmState.RUNNING}, "state"),
    ],
)
def test_every_field_that_an_owner_can_change_is_compared(fields: dict[str, Any], field: str) -> None:
    found = compare(**fields)
    assert field in {each.field for each in found}
    assert {each.component for each in found} == {"trainer"}
    assert all(str(each).startswith("trainer: ") for each in found)


def test_a_last_start_has_lowered_its_own_limit_to_what_is_left_of_the_time_asked_for() -> None:
    assert compare(started={"trainer"}, time_limit_s=600) == []  # preempted then, and under a hold
    assert [each.field for each in compare(time_limit_s=600)] == ["time limit (s)"]  # it has had no start
    for more in (5460, None):
        assert [each.field for each in compare(started={"trainer"}, time_limit_s=more)] == ["time limit (s)"]


@pytest.mark.parametrize("script", ["#!/bin/bash\nmine\n", None])
def test_another_script_is_a_difference_and_so_is_one_that_is_not_given(script: str | None) -> None:
    scripts = {7: SCRIPTS[7]} | ({8: script} if script else {})
    held = {7: _held("loader"), 8: _held("trainer")}
    assert [str(each) for each in differences(PLAN, IDS, held, scripts, HOLDER)] == [
        "trainer: another batch script"
    ]


def test_a_parent_that_has_ended_may_be_gone_from_the_dependencies() -> None:
    def dependencies(text: str) -> list[Difference]:
        held = {8: _held("trainer", dependency=text)}
        return differences(PLAN, IDS, held, SCRIPTS, HOLDER, ended={"loader"})

    assert dependencies("") == dependencies("afterok:7(unfulfilled)") == []
    assert dependencies("afterok:9(unfulfilled)") != []


def test_a_job_that_slurm_has_no_more_holds_up_nothing() -> None:
    gone = {7: _held("loader", state=SlurmState.CANCELLED)}
    assert differences(PLAN, IDS, gone, {}, HOLDER) == []


def test_only_more_than_was_approved_counts_after_the_release() -> None:
    resources = {"gpu_count": 8, "memory_mib": 256 << 10, "time_s": 5400}
    assert grown("trainer", resources, TRES, 5400) == []
    assert grown("trainer", resources, replace(TRES, gpus=1, memory_mib=1), 60) == []
    larger = replace(TRES, gpus=16, memory_mib=257 << 10, other={"gres/shard": 1})
    assert [each.field for each in grown("trainer", resources, larger, None)] == [
        "GPUs", "GPU shards", "memory (MB)", "time limit (s)",
    ]  # fmt: skip


def test_what_takes_several_starts_was_approved_with_the_limit_of_one() -> None:
    """Its owner may not make one start as long as the whole: others take turns with it."""
    resources = {"gpu_count": 8, "memory_mib": 256 << 10, "time_s": 3 * 86400, "start_s": 86400}
    assert grown("trainer", resources, TRES, 86400) == grown("trainer", resources, TRES, 600) == []
    assert [str(each) for each in grown("trainer", resources, TRES, 3 * 86400)] == [
        "trainer: time limit (s) is 259200, not 86400"
    ]
    assert grown("trainer", resources | {"start_s": 90}, TRES, 120) == []  # Slurm counts whole minutes


@pytest.mark.parametrize(("before", "whole_s"), [({}, 6 * 3600), ({"start_s": 3600}, 5400), ({}, 5400)])
def test_limits_of_a_class_that_changed_before_the_submission_make_nothing_look_larger(
    before: dict[str, int], whole_s: int
) -> None:
    """The plan asks for 90 min at a time, whatever was thought when the run was asked for."""
    needs = {"gpu_count": 8, "memory_mib": 256 << 10, "time_s": whole_s}
    jobs = [JobRow(component="trainer", resources=needs | before)]
    note_plan(jobs, PLAN, {})
    assert jobs[0].resources == needs | ({"start_s": 5400} if whole_s > 5400 else {})
    assert grown("trainer", jobs[0].resources, TRES, 5400) == []
    assert grown("trainer", jobs[0].resources, TRES, 5460) != []


def test_no_value_makes_the_sentence_endless() -> None:
    (found,) = compare(features="x" * 5000)
    assert len(str(found)) < 300
