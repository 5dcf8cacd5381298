"""What a spec becomes: names, sbatch arguments, edges and the hash of the plan."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.compiler import (
    ClassProfile,
    ClusterProfile,
    Plan,
    ResolvedCode,
    ResolvedImage,
    RunIdentity,
    compile_run,
    draft,
    job_name,
    log_paths,
    output_dir,
    preview,
    staging_archive,
    status_path,
    submission_script,
)
from broker.compiler.render import TEMPLATES
from broker.errors import ConfigurationError, InvalidSpec
from broker.spec import PipelineSpec, parse
from broker.spec.limits import MAX_SCRIPT_BYTES

EXAMPLE = parse((Path(__file__).parents[2] / "examples" / "llm-finetune.json").read_bytes())
PROFILE = ClusterProfile(
    name="test", base_path="/cluster/jobs", gpu_types={"V100": "tesla_v100"}, account="research", qos="normal"
)


def identity(
    run_id: str = "run-1", attempt: int = 1, number: int = 7, tenant: str = "default"
) -> RunIdentity:
    return RunIdentity(run_id, number, attempt, tenant, "kim")


def images(spec: PipelineSpec, digest: str = "sha256:1") -> dict[str, ResolvedImage]:
    return {
        c.image.reference: ResolvedImage(f"/images/{i}.sif", digest) for i, c in enumerate(spec.components)
    }


def compiled(spec: PipelineSpec = EXAMPLE, **options: Any) -> Plan:
    arguments = {"profile": PROFILE, "identity": identity(), "images": images(spec)} | options
    return compile_run(spec, **arguments)


def spec_of(*components: dict[str, Any], edges: tuple[str, ...] = (), **fields: Any) -> PipelineSpec:
    image = {"registry": "r.example.org/x", "tag": "1"}
    base = {"order": 1, "type": "custom", "image": image, "resources": {"memory": "4GB"}}
    workflow = [{"from": edge[0], "to": edge[1]} for edge in edges]
    return parse(
        {
            "pipeline_id": "p",
            "name": "p",
            "version": "1",
            "components": [base | c for c in components],
            "workflow": workflow,
        }
        | fields
    )


def arguments(resources: dict[str, Any], profile: ClusterProfile = PROFILE, **fields: Any) -> set[str]:
    spec = spec_of({"name": "a", "resources": {"memory": "4GB"} | resources, **fields})
    return set(compiled(spec, profile=profile).jobs[0].sbatch_args)


def problem_codes(**options: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as caught:
        compiled(**options)
    return [(problem.pointer, str(problem.code)) for problem in caught.value.problems]


def test_edges_become_dependencies_in_topological_order() -> None:
    plan = compiled()
    assert [(job.component, job.depends_on) for job in plan.jobs] == [
        ("data-loader", ()),
        ("preprocessor", ("data-loader",)),
        ("trainer", ("preprocessor",)),
        ("evaluator", ("trainer",)),
    ]


def test_resources_become_arguments() -> None:
    trainer = compiled().jobs[2]
    assert {
        "--gres=gpu:a100:4", "--mem=131072M", "--cpus-per-task=1", "--nodes=1", "--ntasks-per-node=1",
        "--time=0-01:00:00", "--requeue", "--open-mode=append", "--export=NONE",
        "--signal=TERM@120", "--account=research", "--qos=normal",
        "--chdir=/cluster/jobs/run-1", "--output=/cluster/jobs/run-1/control/trainer/1/slurm.log",
        f"--job-name={trainer.name}",
    } == set(trainer.sbatch_args)  # fmt: skip
    assert "--gres=gpu:tesla_v100:1" in compiled().jobs[0].sbatch_args


def test_amounts_are_divided_by_nodes() -> None:
    found = arguments({"nodes": 4, "gpu_type": "A100", "gpu_count": 8, "memory": "64GB", "cpus": 16})
    assert {
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gres=gpu:a100:2",
        "--mem=16384M",
        "--cpus-per-task=4",
    } <= found


def test_cpus_come_from_the_spec_then_the_gpus_then_the_default() -> None:
    profile = ClusterProfile(name="t", default_cpus=3, cpus_per_gpu=8)
    gpus = {"gpu_count": 2, "gpu_type": "A100"}
    assert "--cpus-per-task=5" in arguments({"cpus": 5, **gpus}, profile)
    assert "--cpus-per-task=16" in arguments(gpus, profile)
    assert "--cpus-per-task=3" in arguments({}, profile)
    assert "--cpus-per-task=2" in arguments({"nodes": 2}, profile)  # rounded up, never to nothing


def test_gpus_of_any_type_and_none() -> None:
    assert "--gres=gpu:2" in arguments({"gpu_count": 2})
    assert not any(argument.startswith("--gres") for argument in arguments({"gpu_type": "A100"}))


def test_the_component_chooses_its_signal_and_short_jobs_get_it_at_a_preemption_only() -> None:
    silent = ClusterProfile(name="t", signal_before_s=0)
    assert "--signal=USR1@120" in arguments({}, signal="USR1")
    assert "--signal=TERM@120" in arguments({})
    assert "--signal=USR1@0" in arguments({"time": "2m"}, signal="USR1")
    assert "--signal=USR2@0" in arguments({}, silent, signal="USR2")
    for short in (arguments({"time": "2m"}), arguments({}, silent)):
        assert not any(argument.startswith("--signal") for argument in short)


def test_job_names_are_readable_unique_and_short() -> None:
    name = job_name(PROFILE, identity(tenant="Team A"), "trainer")
    assert re.fullmatch(r"dev-team-a-trainer-0007\.[0-9a-f]{16}", name)
    others = [identity("run-2"), identity(attempt=2)]
    assert len({name, *(job_name(PROFILE, other, "trainer") for other in others)}) == 3
    longest = job_name(PROFILE, identity(tenant="Ünïcode " * 40, number=10**9), "x" * 63)
    assert len(longest) <= 128
    assert re.fullmatch(r"[a-z0-9.-]+", longest)


def test_places_are_where_the_design_says() -> None:
    assert output_dir(PROFILE, "run-1", "trainer", 2, 1) == "/cluster/jobs/run-1/trainer/2.1/outputs"
    assert status_path(PROFILE, "run-1", "trainer", 2) == "/cluster/jobs/run-1/control/trainer/2/status.json"
    logs = log_paths(PROFILE, "run-1", "trainer", 2, 1)
    assert logs.training == "/cluster/jobs/run-1/trainer/2.1/logs/training.log"
    assert logs.slurm == "/cluster/jobs/run-1/control/trainer/2/slurm.log"


def test_a_retry_satisfies_edges_to_what_is_not_run_again() -> None:
    outputs = {"preprocessor": "/cluster/jobs/run-1/preprocessor/1.0/outputs"}
    plan = compiled(identity=identity(attempt=2), only={"trainer", "evaluator"}, upstream_outputs=outputs)
    assert [(job.component, job.depends_on, dict(job.satisfied)) for job in plan.jobs] == [
        ("trainer", (), outputs),
        ("evaluator", ("trainer",), {}),
    ]
    assert "satisfied[preprocessor]=/cluster/jobs/run-1/preprocessor/1.0/outputs" in plan.jobs[0].script
    assert plan.attempt == 2
    assert plan.jobs[0].script_path == "/cluster/jobs/run-1/control/trainer/2/job.sh"


def test_how_much_a_run_hurries_is_said_to_sbatch_and_is_no_part_of_the_hash() -> None:
    usual, low = compiled(), compiled(identity=replace(identity(), nice=20_000))
    assert all("--nice=20000" in job.sbatch_args for job in low.jobs)
    assert not any(word.startswith("--nice") for job in usual.jobs for word in job.sbatch_args)
    assert low.plan_hash == usual.plan_hash


def test_the_plan_hash_is_the_same_for_every_run_and_attempt() -> None:
    same = compiled().plan_hash
    assert compiled(identity=identity("run-9", 3, 99)).plan_hash == same
    assert compiled(only={"evaluator"}, upstream_outputs={"trainer": "/x"}).plan_hash == same


def test_the_plan_hash_changes_with_whatever_would_run_differently() -> None:
    base = spec_of({"name": "a"}, {"name": "b"})
    variants = {
        compiled(base).plan_hash,
        compiled(base, images=images(base, "sha256:2")).plan_hash,
        compiled(base, profile=ClusterProfile(name="t", partition="gpu")).plan_hash,
        compiled(spec_of({"name": "a"}, {"name": "b"}, edges=("ab",))).plan_hash,
        compiled(spec_of({"name": "a", "params": {"x": 1}}, {"name": "b"})).plan_hash,
        compiled(spec_of({"name": "a"}, {"name": "b"}, env_vars={"X": "1"})).plan_hash,
        compiled(spec_of({"name": "a", "resources": {"memory": "5GB"}}, {"name": "b"})).plan_hash,
        compiled(spec_of({"name": "a", "args": ["x"]}, {"name": "b"})).plan_hash,
    }
    assert len(variants) == 8


def test_the_plan_hash_covers_the_commit() -> None:
    git = {"source": "git", "url": "https://example.org/x", "ref": "main", "entry_script": "train.py"}
    spec = spec_of({"name": "a", "code": git})
    plans = [
        compiled(spec, code={"a": ResolvedCode("git", "https://example.org/x", commit * 40)})
        for commit in "ab"
    ]
    assert plans[0].plan_hash != plans[1].plan_hash
    assert problem_codes(spec=spec) == [("/components/0/code", "code_not_resolved")]


def test_what_the_cluster_cannot_run_is_refused_with_pointers() -> None:
    assert problem_codes(images={}) == [(f"/components/{i}/image", "image_not_resolved") for i in range(4)]
    short = ClusterProfile(name="t", max_time_s=60)
    assert problem_codes(profile=short)[0] == ("/components/0/resources/time", "time_over_limit")


def test_a_script_larger_than_slurm_takes_is_refused() -> None:
    quotes = ["'" * 60_000] * 4
    params, env = (dict(zip("abcd", quotes, strict=True)) for _ in range(2))
    hostile = spec_of({"name": "a", "params": params, "args": quotes}, env_vars=env)
    assert problem_codes(spec=hostile) == [("/components/0", "script_too_large")]


@pytest.mark.parametrize("field", ["base_path", "image_dir", "partition", "account", "qos", "env"])
def test_a_profile_with_characters_that_need_quoting_is_refused(field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        ClusterProfile(name="t", **{field: "/a:b,c %j\n"})


def test_directives_travel_as_arguments_never_in_the_script() -> None:
    for job in compiled().jobs:
        assert "#SBATCH" not in job.script
        assert job.script.startswith("#!/bin/bash\n")


def test_the_preview_of_a_file_alone_shows_everything() -> None:
    shown = json.loads(json.dumps(preview(draft(EXAMPLE))))
    assert [job["component"] for job in shown["jobs"]] == [
        "data-loader",
        "preprocessor",
        "trainer",
        "evaluator",
    ]
    assert set(shown["jobs"][0]) == {"component", "name", "depends_on", "sbatch_args", "script"}


def test_drafts_stand_in_for_code_of_every_kind() -> None:
    entry = {"entry_script": "train.py"}
    spec = spec_of(
        {"name": "a", "code": {"source": "git", "url": "https://example.org/x", "ref": "main", **entry}},
        {"name": "b", "code": {"source": "upload", "upload_id": "u1", **entry}},
        {"name": "c", "code": {"source": "path", "path": "/code/x", **entry}},
    )
    for job in draft(spec).jobs:
        check(job.script)
        check(next(data.decode() for path, data in job.files.items() if path.endswith("fetch-code.sh")))


def test_a_thousand_parents_compile_within_the_limits() -> None:
    names = [f"c{i:04d}" for i in range(1000)]
    workflow = [{"from": name, "to": "join"} for name in names]
    spec = spec_of(*({"name": name} for name in [*names, "join"]), workflow=workflow)
    started = time.process_time()
    plan = compiled(spec)
    assert time.process_time() - started < 5  # 0.1 s on an idle machine
    join = plan.jobs[-1]
    assert join.depends_on == tuple(names)
    assert len(join.script.encode()) < MAX_SCRIPT_BYTES
    check(join.script)
    check(submission_script(plan))


def test_the_archive_is_private_and_ends_with_what_starts_the_submission() -> None:
    plan = compiled()
    with tarfile.open(fileobj=io.BytesIO(staging_archive(plan))) as archive:
        members = archive.getmembers()
    assert {member.mode for member in members if member.isfile()} == {0o600}
    assert {member.mode for member in members if member.isdir()} == {0o700}
    assert next(member.name for member in members if member.isfile()) == ".broker-run"
    assert members[-1].name == "control/submit.1.sh"
    assert "control/trainer/1/job.sh" in {member.name for member in members}


def test_templates_are_found_beside_the_package() -> None:
    assert (TEMPLATES / "job.sh.j2").is_file()
    assert (Path(__file__).parents[2] / "templates").samefile(TEMPLATES)


def check(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


CLASSES = {"training": ClassProfile("training", 24 * 3600), "inference": ClassProfile("inference")}


def test_a_run_goes_to_its_tenants_account_and_the_qos_of_its_class() -> None:
    governed = replace(PROFILE, classes=CLASSES)
    spec = spec_of({"name": "a"})

    def asked(tenant: str, priority_class: str) -> set[str]:
        who = replace(identity(tenant=tenant), priority_class=priority_class)
        return set(compiled(spec, profile=governed, identity=who).jobs[0].sbatch_args)

    assert {"--account=team-a", "--qos=inference"} <= asked("team-a", "inference")
    assert {"--account=research", "--qos=training"} <= asked("default", "training")
    with pytest.raises(ConfigurationError, match="urgent-inference"):
        asked("team-a", "urgent-inference")


def test_another_class_or_tenant_is_another_plan() -> None:
    governed = replace(PROFILE, classes=CLASSES)
    who = identity(tenant="team-a")
    plans = [
        compiled(profile=governed, identity=who).plan_hash,
        compiled(profile=governed, identity=replace(who, priority_class="inference")).plan_hash,
        compiled(profile=governed, identity=replace(who, tenant="team-b")).plan_hash,
    ]
    assert len(set(plans)) == 3


@pytest.mark.parametrize(
    ("asked", "priority_class", "limit", "goes_on"),
    [
        ("24h", "training", "1-00:00:00", False),
        ("36h", "training", "1-00:00:00", True),
        ("36h", "inference", "1-12:00:00", False),
    ],
)
def test_who_asks_for_more_than_one_start_may_take_goes_on_in_further_starts(
    asked: str, priority_class: str, limit: str, goes_on: bool
) -> None:
    governed = replace(PROFILE, classes=CLASSES)
    spec = spec_of({"name": "a", "resources": {"memory": "4GB", "time": asked}})
    job = compiled(spec, profile=governed, identity=replace(identity(), priority_class=priority_class)).jobs[
        0
    ]
    assert f"--time={limit}" in job.sbatch_args
    assert ("scontrol requeue" in job.script) == goes_on
