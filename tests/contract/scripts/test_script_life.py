"""The life of a compiled job script under a real bash: contract, marks, restarts, inputs."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.compiler import (
    SETUP_FAILED,
    ClassProfile,
)
from tests.job_site import Site, spec_of


def test_a_program_runs_with_the_contract(site: Site) -> None:
    spec = spec_of(
        {"name": "a", "params": {"lr": 0.001, "name": "x y", "deep": {"k": [1]}, "on": True, "none": None}}
    )
    job = site.compile(spec)["a"]
    assert site.run(job).returncode == 0
    assert site.arguments() == [
        "--output_dir", "/broker/outputs", "--log_dir", "/broker/logs", "--lr", "0.001", "--name", "x y",
        "--deep", '{"k": [1]}', "--on", "true", "--none", "null",
    ]  # fmt: skip
    assert {
        "RUN_ID": "run-1", "COMPONENT": "a", "JOB_ID": "42", "ATTEMPT": "1", "INPUT_DIR": "/broker/inputs",
        "OUTPUT_DIR": "/broker/outputs", "LOG_DIR": "/broker/logs", "PARAMS_FILE": "/broker/params.json",
        "CHECKPOINT_DIR": "/broker/checkpoints", "PROGRESS_FILE": "/broker/logs/progress.json",
    }.items() <= site.environment().items()  # fmt: skip
    assert "RESUME" not in site.environment()
    assert site.dump["argv"][1] == "run"
    assert {"--containall", "--cleanenv", "--no-eval"} <= set(site.dump["argv"])
    home = site.run_dir / "a/1.0"
    assert json.loads((home / "params.json").read_text()) == spec.components[0].params
    assert f"{home}/params.json:/broker/params.json:ro" in site.binds()
    assert not any("control" in bind for bind in site.binds())


def test_success_leaves_its_marks(site: Site) -> None:
    job = site.compile(spec_of({"name": "a"}))["a"]
    done = site.run(job)
    outputs, logs = site.run_dir / "a/1.0/outputs", site.run_dir / "a/1.0/logs"
    assert done.returncode == 0
    assert (outputs / "SUCCESS").exists()
    assert not (outputs / "FAILED").exists()
    assert (outputs / "status.txt").read_text() == "success\n"
    assert set((logs / "training.log").read_text().splitlines()) == {"to stdout", "to stderr"}
    assert (logs / "error.log").read_text() == "to stderr\n"
    assert (logs / "start_time.log").read_text().startswith("Job started at 20")
    assert {b"to stdout", b"to stderr"} <= set(done.stdout.splitlines())
    status = site.status(job)
    assert status | {"started_at": 0, "ended_at": 0} == {
        "component": "a", "attempt": 1, "restart": 0, "job_id": 42, "exit_code": 0,
        "started_at": 0, "ended_at": 0,
        "output_dir": str(outputs), "log_dir": str(logs),
    }  # fmt: skip
    assert status["started_at"] <= status["ended_at"]
    assert not (site.run_dir / "a/1.0/scratch").exists()


@pytest.mark.parametrize(("program", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 15)", 143)])
def test_the_programs_status_is_reported_not_tees(site: Site, program: str, code: int) -> None:
    job = site.compile(spec_of({"name": "a"}))["a"]
    assert site.run(job, program).returncode == code
    assert (site.run_dir / "a/1.0/outputs/FAILED").exists()
    assert (site.run_dir / "a/1.0/outputs/status.txt").read_text() == "failed\n"
    assert site.status(job)["exit_code"] == code
    assert not (Path(job.script_path).parent / "output_dir").exists()


def test_a_success_that_cannot_be_written_down_is_none(site: Site) -> None:
    job = site.compile(spec_of({"name": "a"}))["a"]
    (Path(job.script_path).parent / "status.json" / "in-the-way").mkdir(parents=True)
    assert site.run(job).returncode == 125


def test_a_finished_job_that_is_requeued_does_not_run_again(site: Site) -> None:
    job = site.compile(spec_of({"name": "a"}))["a"]
    site.run(job)
    before = site.status(job)
    (site.root / "dump").unlink()
    again = site.run(job, SLURM_RESTART_COUNT="1")
    assert again.returncode == 0
    assert b"finished already" in again.stdout
    assert not (site.root / "dump").exists()
    assert site.status(job) == before
    assert not (site.run_dir / "a/1.1").exists()


def test_an_interrupted_job_resumes_in_a_new_directory_with_its_checkpoints(site: Site) -> None:
    job = site.compile(spec_of({"name": "a"}))["a"]
    site.run(job, "sys.exit(143)")
    site.run(job, "sys.exit(143)", SLURM_RESTART_COUNT="1")
    assert "RESUME" not in site.environment()  # there was no checkpoint to resume from
    (site.run_dir / "a/checkpoints/last.pt").write_text("x")
    site.run(job, SLURM_RESTART_COUNT="2")
    assert site.environment()["RESUME"] == "1"
    assert f"{site.run_dir}/a/checkpoints:/broker/checkpoints" in site.binds()
    assert site.status(job)["restart"] == 2
    assert (site.run_dir / "a/1.0/outputs/FAILED").exists()
    assert (site.run_dir / "a/1.2/outputs/SUCCESS").exists()


def test_a_job_that_asked_for_more_than_one_start_goes_on_until_its_time_is_used_up(site: Site) -> None:
    """Of 90 s a start may take 60: a start that was warned and ended is followed by another one."""
    classes = {"training": ClassProfile("training", 60)}
    site.profile = replace(site.profile, signal_before_s=0, classes=classes)
    scontrol = site.root / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {site.root}/asked\n')
    scontrol.chmod(0o755)
    resources = {"memory": "1GB", "time": "90s"}
    job = site.compile(spec_of({"name": "a", "command": ["train"], "resources": resources}))["a"]
    spent = Path(job.script_path).parent / "spent"

    assert b"back to the queue" in site.run(job, "sys.exit(143)").stdout
    assert (site.root / "asked").read_text() == "requeue 42\n"
    spent.write_text("60\n")
    site.run(job, "sys.exit(143)", SLURM_RESTART_COUNT="1")
    lowered, again = (site.root / "asked").read_text().splitlines()[1:]
    assert (lowered, again) == ("update JobId=42 TimeLimit=1", "requeue 42")
    spent.write_text("90\n")
    over = site.run(job, "sys.exit(143)", SLURM_RESTART_COUNT="2")
    assert (over.returncode, b"are used up" in over.stderr) == (SETUP_FAILED, True)
    assert len((site.root / "asked").read_text().splitlines()) == 3

    spent.write_text("0\n")
    assert site.run(job, "sys.exit(0)", SLURM_RESTART_COUNT="3").returncode == 0, (
        "a success is none to repeat"
    )
    assert site.status(job)["exit_code"] == 0


def test_a_new_attempt_keeps_the_checkpoints(site: Site) -> None:
    site.run(site.compile(spec_of({"name": "a"}))["a"], "sys.exit(1)")
    (site.run_dir / "a/checkpoints/last.pt").write_text("x")
    site.run(site.compile(spec_of({"name": "a"}), attempt=2)["a"])
    assert (site.environment()["RESUME"], site.environment()["ATTEMPT"]) == ("1", "2")


def test_a_stale_status_is_gone_while_a_restart_runs(site: Site) -> None:
    job = site.compile(spec_of({"name": "a"}))["a"]
    site.run(job, "sys.exit(1)")
    path = Path(job.script_path).parent / "status.json"
    site.run(job, f"sys.exit(9 if os.path.exists({str(path)!r}) else 0)", SLURM_RESTART_COUNT="1")
    assert site.status(job)["exit_code"] == 0


def test_inputs_are_the_upstream_restart_that_succeeded(site: Site) -> None:
    spec = spec_of({"name": "a"}, {"name": "b"}, {"name": "c"}, edges=("ac", "bc"))
    jobs = site.compile(spec)
    site.run(jobs["a"], "sys.exit(1)")
    site.run(jobs["a"], SLURM_RESTART_COUNT="1")
    site.run(jobs["b"])
    site.run(jobs["c"])
    assert [bind for bind in site.binds() if "/inputs/" in bind] == [
        f"{site.run_dir}/a/1.1/outputs:/broker/inputs/a:ro",
        f"{site.run_dir}/b/1.0/outputs:/broker/inputs/b:ro",
    ]
    assert sorted(path.name for path in (site.run_dir / "c/1.0/inputs").iterdir()) == ["a", "b"]


def test_inputs_of_a_retry_come_from_where_the_plan_says(site: Site) -> None:
    spec = spec_of({"name": "a"}, {"name": "b"}, edges=("ab",))
    jobs = site.compile(spec, attempt=2, only={"b"}, upstream_outputs={"a": "/elsewhere/a/1.3/outputs"})
    site.run(jobs["b"])
    assert "/elsewhere/a/1.3/outputs:/broker/inputs/a:ro" in site.binds()


def test_a_missing_upstream_output_fails_clearly_and_is_reported(site: Site) -> None:
    job = site.compile(spec_of({"name": "a"}, {"name": "b"}, edges=("ab",)))["b"]
    done = site.run(job)
    assert done.returncode == SETUP_FAILED == site.status(job)["exit_code"]
    assert b"component a left no outputs" in done.stderr
    assert not (site.root / "dump").exists()


def test_gpus_are_what_slurm_gave_never_what_the_spec_says(site: Site) -> None:
    spec = spec_of(
        {"name": "a"}, env_vars={"CUDA_VISIBLE_DEVICES": "all", "SLURM_JOB_ID": "1", "OUTPUT_DIR": "/"}
    )
    job = site.compile(spec)["a"]
    site.run(job, CUDA_VISIBLE_DEVICES="2,3")
    assert site.environment()["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert site.environment()["SLURM_JOB_ID"] == "42"
    site.run(job, SLURM_RESTART_COUNT="0")
    assert site.environment()["OUTPUT_DIR"] == "/broker/outputs"


def test_without_gpus_from_slurm_there_is_no_gpu_variable(site: Site) -> None:
    site.run(site.compile(spec_of({"name": "a"}, env_vars={"CUDA_VISIBLE_DEVICES": "all"}))["a"])
    assert "CUDA_VISIBLE_DEVICES" not in site.environment()


@pytest.mark.parametrize(
    ("component", "start"),
    [
        ({"command": ["sleep", "60"]}, ["sleep", "60"]),
        ({"command": ["sleep"], "args": ["60"]}, ["sleep", "60"]),
        (
            {"command": ["python3", "t.py"], "params": {"lr": 1}, "args": ["-v"]},
            [
                "python3",
                "t.py",
                "--output_dir",
                "/broker/outputs",
                "--log_dir",
                "/broker/logs",
                "--lr",
                "1",
                "-v",
            ],
        ),
    ],
)
def test_a_command_without_params_runs_exactly_as_written(
    site: Site, component: dict[str, Any], start: list[str]
) -> None:
    site.run(site.compile(spec_of({"name": "a", **component}))["a"])
    assert site.dump["argv"][1] == "exec"
    assert site.arguments() == start


def test_what_a_container_left_as_a_link_is_never_written_through(site: Site) -> None:
    victim = site.root / "victim"
    victim.write_text("precious")
    job = site.compile(spec_of({"name": "a"}))["a"]
    outputs = site.run_dir / "a/1.0/outputs"
    hostile = f"[os.symlink({str(victim)!r}, {str(outputs)!r} + '/' + n) for n in ('SUCCESS', 'status.txt')]"
    assert site.run(job, hostile).returncode == 0
    assert victim.read_text() == "precious"
    assert not (outputs / "SUCCESS").is_symlink()


def test_everything_is_private(site: Site) -> None:
    site.run(site.compile(spec_of({"name": "a"}))["a"])
    for path in (site.run_dir / "a").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_image_file_server_is_shielded_from_signals(site: Site) -> None:
    server = site.root / "bin" / "squashfuse_ll"
    server.write_text('#!/bin/sh\nkill -TERM $$; kill -USR1 $$; echo alive "$@"\n')
    server.chmod(0o755)
    program = "import subprocess; subprocess.run(['squashfuse_ll', 'a b'], check=True)"
    assert b"alive a b" in site.run(site.compile(spec_of({"name": "a"}))["a"], program).stdout
