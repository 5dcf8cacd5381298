"""The batch script, really run by bash.

`srun` and `apptainer` are stand-ins here (a few lines that say what they were given): what is tested is the
script's own work, quoting above all. The script under a real Slurm with a real Apptainer: tests/cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.compiler import (
    SETUP_FAILED,
    ClassProfile,
    ClusterProfile,
    CompiledJob,
    ResolvedCode,
    ResolvedImage,
    RunIdentity,
    compile_run,
    tree_digest_argv,
)
from broker.errors import InvalidSpec
from broker.resources.nvidia_smi import parse_slices
from broker.spec import PipelineSpec, parse

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
APPTAINER = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["DUMP"], "w", encoding="utf-8", errors="surrogateescape") as file:
    json.dump({"argv": sys.argv, "env": dict(os.environ)}, file)
print("to stdout", flush=True)
print("to stderr", file=sys.stderr, flush=True)
exec(os.environ.get("PROGRAM", ""))
"""


@dataclass
class Site:
    """A folder with the stand-ins, and what is needed to run jobs in it."""

    root: Path

    def __post_init__(self) -> None:
        (self.root / "bin").mkdir()
        for name, text in {"srun": SRUN, "apptainer": APPTAINER, "sleep": "#!/bin/sh\n"}.items():
            program = self.root / "bin" / name
            program.write_text(text)
            program.chmod(0o755)
        self.profile = ClusterProfile(
            name="t", base_path=f"{self.root}/jobs", path=f"{self.root}/bin:{os.environ['PATH']}"
        )

    @property
    def run_dir(self) -> Path:
        return self.root / "jobs" / "run-1"

    def compile(self, spec: PipelineSpec, attempt: int = 1, **options: Any) -> dict[str, CompiledJob]:
        images = {c.image.reference: ResolvedImage("/images/x.sif", "sha256:1") for c in spec.components}
        plan = compile_run(spec, self.profile, RunIdentity("run-1", 1, attempt, "t", "u"), images, **options)
        for job in plan.jobs:
            for path, data in job.files.items():
                (self.run_dir / path).parent.mkdir(parents=True, exist_ok=True)
                (self.run_dir / path).write_bytes(data)
        return {job.component: job for job in plan.jobs}

    def run(self, job: CompiledJob, program: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
        slurm = {
            "SLURM_JOB_ID": "42",
            "DUMP": f"{self.root}/dump",
            "PROGRAM": program,
            "HOME": str(self.root),
        }
        return subprocess.run(
            ["bash", job.script_path], env=slurm | env, capture_output=True, check=False, timeout=60
        )

    @property
    def dump(self) -> dict[str, Any]:
        return json.loads((self.root / "dump").read_text(encoding="utf-8", errors="surrogateescape"))

    def arguments(self) -> list[str]:
        """What the program in the container was given."""
        argv = self.dump["argv"]
        return argv[argv.index("/images/x.sif") + 1 :]

    def binds(self) -> list[str]:
        argv = self.dump["argv"]
        return [argv[i + 1] for i, word in enumerate(argv) if word == "--bind"]

    def environment(self) -> dict[str, str]:
        """What the container's environment is made of."""
        start = len("APPTAINERENV_")
        return {name[start:]: v for name, v in self.dump["env"].items() if name.startswith("APPTAINERENV_")}

    def status(self, job: CompiledJob) -> dict[str, Any]:
        return json.loads((Path(job.script_path).parent / "status.json").read_text())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def spec_of(*components: dict[str, Any], edges: tuple[str, ...] = (), **fields: Any) -> PipelineSpec:
    base = {
        "order": 1,
        "type": "custom",
        "image": {"registry": "r/x", "tag": "1"},
        "resources": {"memory": "1GB"},
    }
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


# --- code ----------------------------------------------------------------------------------------------


def code_spec(source: dict[str, str], entry: str = "train.py") -> PipelineSpec:
    return spec_of({"name": "a", "params": {"lr": 1}, "code": source | {"entry_script": entry}})


@pytest.fixture
def folder(site: Site) -> Path:
    place = site.root / "code"
    place.mkdir()
    (place / "train.py").write_text("print('training')\n")
    (place / "odd name\n.txt").write_text("x")
    return place


def fetch(job: CompiledJob, **env: str) -> subprocess.CompletedProcess[bytes]:
    script = Path(job.script_path).with_name("fetch-code.sh")
    return subprocess.run(
        ["bash", str(script)], env=os.environ | env, capture_output=True, check=False, timeout=60
    )


def path_code(site: Site, folder: Path) -> CompiledJob:
    digest = subprocess.run(tree_digest_argv(str(folder)), capture_output=True, check=True).stdout.split()[0]
    code = ResolvedCode("path", str(folder), f"sha256:{digest.decode()}")
    return site.compile(code_spec({"source": "path", "path": str(folder)}), code={"a": code})["a"]


def test_code_of_a_folder_is_copied_checked_and_run(site: Site, folder: Path) -> None:
    job = path_code(site, folder)
    assert fetch(job).returncode == 0
    assert fetch(job).returncode == 0  # again: it is there
    assert site.run(job).returncode == 0
    assert f"{site.run_dir}/a/1.0/code:/broker/code" in site.binds()
    assert site.arguments()[-8:] == [
        "python3",
        "train.py",
        "--output_dir",
        "/broker/outputs",
        "--log_dir",
        "/broker/logs",
        "--lr",
        "1",
    ]
    assert (site.run_dir / "a/1.0/code/odd name\n.txt").exists()
    assert not list((site.run_dir / "control/a").glob(".code.*"))


def test_a_folder_that_changed_since_the_request_is_refused(site: Site, folder: Path) -> None:
    job = path_code(site, folder)
    (folder / "train.py").write_text("print('other')\n")
    done = fetch(job)
    assert done.returncode == 1
    assert b"has changed since the run was requested" in done.stderr


def test_code_that_changed_after_submission_is_not_run(site: Site, folder: Path) -> None:
    job = path_code(site, folder)
    fetch(job)
    (archive,) = (site.run_dir / "control/a").glob("code-*.tar")
    archive.write_bytes(archive.read_bytes() + b"\0")
    done = site.run(job)
    assert done.returncode == SETUP_FAILED
    assert b"is not what was fetched at submission" in done.stderr


def test_uploaded_code_is_compared_with_its_checksum(site: Site, folder: Path) -> None:
    archive = site.root / "upload.tgz"
    subprocess.run(["tar", "-czf", archive, "-C", folder, "."], check=True)
    spec = code_spec({"source": "upload", "upload_id": "u"}, entry="run.sh")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    job = site.compile(spec, code={"a": ResolvedCode("upload", str(archive), f"sha256:{digest}")})["a"]
    assert fetch(job).returncode == 0
    assert site.run(job).returncode == 0
    assert site.arguments()[-8:-6] == ["bash", "run.sh"]
    other = site.compile(
        spec, attempt=2, code={"a": ResolvedCode("upload", str(archive), "sha256:" + "0" * 64)}
    )["a"]
    assert fetch(other).returncode == 1


def test_code_from_git_is_the_commit_whatever_the_branch_does_later(site: Site, folder: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", "-C", str(folder), *who, *words], capture_output=True, check=True, text=True
        ).stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", "train.py")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (folder / "train.py").write_text("print('later')\n")
    git("commit", "-qam", "second")
    ssh = site.root / "bin" / "ssh"  # stands in for the network: runs the remote git here
    ssh.write_text('#!/bin/bash\neval "${@: -1}"\n')
    ssh.chmod(0o755)
    url = f"ssh://git@example.org{folder}"
    spec = code_spec({"source": "git", "url": url, "ref": "main"})
    job = site.compile(spec, code={"a": ResolvedCode("git", url, commit)})["a"]
    done = fetch(job, PATH=site.profile.path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert site.run(job).returncode == 0
    assert (site.run_dir / "a/1.0/code/train.py").read_text() == "print('training')\n"


def test_an_unreachable_repository_is_a_matter_of_time_a_wrong_one_is_not(site: Site) -> None:
    spec = code_spec({"source": "git", "url": "https://127.0.0.1:1/x", "ref": "main"})
    job = site.compile(spec, code={"a": ResolvedCode("git", "https://127.0.0.1:1/x", "a" * 40)})["a"]
    assert fetch(job).returncode == 75
    job = site.compile(spec, attempt=2, code={"a": ResolvedCode("git", "file:///nowhere", "a" * 40)})["a"]
    assert fetch(job).returncode == 1


# --- hostile text --------------------------------------------------------------------------------------

SHARP = st.sampled_from(
    ["'", '"', "`", "$(", ")", "\n", "\r\n", "\\", "|", ";", "#SBATCH --hold\n", "${IFS}", "*", "!", " ",
     "\t", "%s", "{{ x }}", "{% raw %}", "-", "--", "=", ",", "\u202e", "한국", "\U0001f600", "\x01", "\x7f",
     "EOF\n", "\ud800", "\0"]
)  # fmt: skip
HOSTILE = st.lists(st.one_of(SHARP, st.text(max_size=5)), max_size=12).map("".join)
FIELDS: list[tuple[str | int, ...]] = [
    ("pipeline_id",), ("name",), ("version",), ("env_vars", "KEY"), ("storage", "path"), ("storage", "type"),
    ("test_run_ref",), ("created_at",), ("workflow", 0, "from"),
    *(("components", 0, *rest) for rest in [
        ("name",), ("image", "registry"), ("image", "tag"), ("resources", "gpu_type"),
        ("resources", "memory"), ("resources", "time"), ("params", "p"), ("args", 0), ("command", 0),
    ]),
]  # fmt: skip


def hostile_tree(place: tuple[str | int, ...], text: str) -> dict[str, Any]:
    common = {"order": 1, "type": "custom", "args": [""], "command": ["x"]}
    tree: dict[str, Any] = {
        "pipeline_id": "p",
        "name": "p",
        "version": "1",
        "env_vars": {},
        "storage": {"type": "s3", "path": "/x"},
        "components": [
            {
                **deepcopy(common),
                "name": name,
                "image": {"registry": "r/x", "tag": "1"},
                "resources": {"memory": "1GB", "gpu_count": 1},
                "params": {},
            }
            for name in "ab"
        ],
        "workflow": [{"from": "a", "to": "b"}],
    }
    *above, last = place
    target: Any = tree
    for part in above:
        target = target[part]
    target[last] = text
    return tree


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
@settings(max_examples=25, deadline=None)
@given(text=HOSTILE)
def test_hostile_text_is_refused_or_leaves_a_script_bash_can_read(
    place: tuple[str | int, ...], text: str
) -> None:
    try:
        spec = parse(hostile_tree(place, text))
    except InvalidSpec as error:
        assert all((p.pointer + p.detail).isprintable() for p in error.problems)
        return
    images = {c.image.reference: ResolvedImage("/x.sif", "d") for c in spec.components}
    plan = compile_run(spec, ClusterProfile(name="t"), RunIdentity("run-1", 1, 1, "t", "u"), images)
    script = plan.jobs[0].script
    assert "\r\n" not in script
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    for job in plan.jobs:
        assert all(argument.isprintable() and argument.isascii() for argument in job.sbatch_args)


carried = HOSTILE.filter(lambda text: "\0" not in text and "\ud800" not in text)


@settings(max_examples=25, deadline=None)
@given(env=carried.filter(lambda text: "\r" not in text), value=carried, argument=carried)
def test_hostile_text_arrives_exactly_as_data(env: str, value: str, argument: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        spec = spec_of(
            {"name": "a", "params": {"p": value, "deep": [{value: value}]}, "args": [argument]},
            env_vars={"KEY": env},
        )
        done = site.run(site.compile(spec)["a"])
        assert done.returncode == 0, done.stderr
        assert site.environment()["KEY"] == env
        words = site.arguments()
        assert words[5] == value
        assert json.loads(words[7]) == [{value: value}]
        assert words[8:] == [argument]
        params = (site.run_dir / "a/1.0/params.json").read_bytes()
        assert json.loads(params) == spec.components[0].params
        assert sorted(path.name for path in site.root.iterdir()) == ["bin", "dump", "jobs"]


def test_the_largest_text_is_carried(site: Site) -> None:
    text = "$(id)'" * 10_000
    site.run(site.compile(spec_of({"name": "a", "params": {"p": text}}, env_vars={"KEY": text}))["a"])
    assert site.environment()["KEY"] == text
    assert site.arguments()[-1] == text


@pytest.mark.parametrize(
    "name", ["BASH_ENV", "LD_PRELOAD", "PATH", "IFS", "SHELLOPTS", "PS4", "PROMPT_COMMAND", "ENV"]
)
def test_spec_variables_never_act_on_the_batch_shell(site: Site, name: str) -> None:
    job = site.compile(spec_of({"name": "a"}, env_vars={name: "/nowhere:$(touch /tmp/x)"}))["a"]
    done = site.run(job)
    assert (done.returncode, done.stderr) == (0, b"")
    assert site.environment()[name] == "/nowhere:$(touch /tmp/x)"
    assert site.dump["env"].get(name) != "/nowhere:$(touch /tmp/x)"


def test_a_folder_that_can_not_be_read_whole_has_no_digest(tmp_path: Path) -> None:
    done = subprocess.run(tree_digest_argv(str(tmp_path / "gone")), capture_output=True, check=False)
    assert done.returncode != 0


# ---- the sampler of GPUs --------------------------------------------------------------------------------

RECORDED = Path(__file__).parent / "recordings/nvidia-smi"
NVIDIA_SMI = """#!/bin/bash
# Replays what was recorded of a real one; notes how it was called.
echo "$*" >>"$DUMP.smi"
case $* in
-L) cat "$DUMP.list" ;;
*-q\\ -x*) cat "$DUMP.xml" ;;
*--query-gpu=*) cat "$DUMP.csv" ;;
esac
"""


def with_gpus(site: Site, csv: str, gpus: int = 2, listed: str = "", xml: str = "") -> CompiledJob:
    """A job with GPUs on a node where `nvidia-smi` says this."""
    program = site.root / "bin/nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    for name, text in (("csv", csv), ("list", listed), ("xml", xml)):
        (site.root / f"dump.{name}").write_text(text)
    site.profile = replace(site.profile, gpu_sample_s=1)
    resources = {"gpu_count": gpus, "memory": "8GB", "time": "01:00:00"}
    return site.compile(spec_of({"name": "a", "resources": resources}))["a"]


WAITS = "import time; from pathlib import Path\nfor _ in range(300):\n  time.sleep(0.1)\n  if {}: break\n"


def samples(job: CompiledJob, suffix: str = "csv") -> Path:
    return Path(job.script_path).parent / f"gpu.0.0.{suffix}"


def test_a_job_with_gpus_writes_down_how_busy_they_are_and_the_sampler_ends_with_it(site: Site) -> None:
    recorded = (RECORDED / "two-a5000.csv").read_text()
    listed = "GPU 0: A (UUID: GPU-1)\nGPU 1: A (UUID: GPU-2)\n"
    job = with_gpus(site, recorded, listed=listed)
    file = f"Path({str(samples(job))!r})"
    twice = f"{file}.exists() and {file}.read_text().count('GPU-') > 2"
    done = site.run(job, WAITS.format(twice), CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, done.stderr
    text = samples(job).read_text()
    assert text.startswith(recorded * 2)
    assert stat.S_IMODE(samples(job).stat().st_mode) == 0o600
    asked = (site.root / "dump.smi").read_text().splitlines()
    assert asked[0] == "-L"
    assert not any(call.startswith("-i") for call in asked), "all GPUs of the node are this job's"
    deadline = time.monotonic() + 10
    while subprocess.run(["pgrep", "-f", str(samples(job))], capture_output=True, check=False).stdout:
        assert time.monotonic() < deadline, "the sampler outlived its job"
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("environment", "asked_for"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_GPUS": "3"}, "-i 3 "),
        ({"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_GPUS": "1"}, "-i 1 "),
        ({"CUDA_VISIBLE_DEVICES": "GPU-2"}, "-i GPU-2 "),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "--query-gpu"),
        ({}, "--query-gpu"),
    ],
)
def test_the_sampler_asks_for_the_jobs_own_gpus(
    site: Site, environment: dict[str, str], asked_for: str
) -> None:
    listed = "GPU 0: A (UUID: GPU-1)\nGPU 1: A (UUID: GPU-2)\n"
    job = with_gpus(site, (RECORDED / "two-a5000.csv").read_text(), listed=listed)
    site.run(job, WAITS.format(f"Path({str(samples(job))!r}).exists()"), **environment)
    queries = [call for call in (site.root / "dump.smi").read_text().splitlines() if "--query-gpu" in call]
    assert queries[0].startswith(asked_for)


def test_of_slices_their_memory_is_written_down_too(site: Site) -> None:
    recorded = (RECORDED / "a100-mig.mig").read_text()
    head, mark, xml = recorded.partition("<nvidia_smi_log>")
    visible, _, listed = head.partition("\n")
    noise = f'<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "x.dtd">\n{mark}{xml}'.replace(
        "<gpu_instance_id>", "<serial>1</serial>\n<gpu_instance_id>"
    )
    job = with_gpus(site, (RECORDED / "a100-mig.csv").read_text(), listed=listed, xml=noise)
    path = str(samples(job, "mig"))
    site.run(job, WAITS.format(f"Path({path!r}).exists()"), CUDA_VISIBLE_DEVICES=visible.removeprefix("# "))
    assert parse_slices(Path(path).read_text()) == parse_slices(recorded)
    assert "DOCTYPE" not in Path(path).read_text()


def test_without_nvidia_smi_or_gpus_nothing_is_sampled_and_a_broken_one_harms_nothing(site: Site) -> None:
    job = with_gpus(site, "")
    (site.root / "bin/nvidia-smi").write_text("#!/bin/bash\nexit 9\n")
    assert site.run(job).returncode == 0
    assert not samples(job).exists()
    (site.root / "bin/nvidia-smi").unlink()
    (samples(job).parent / "done").unlink()
    assert site.run(job).returncode == 0
    assert not samples(job).exists()
    assert "sample_gpus" not in site.compile(spec_of({"name": "a"}))["a"].script
