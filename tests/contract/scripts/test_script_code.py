"""Code that a job brings: copied, compared with what was asked for, refused if it changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from broker.compiler import (
    SETUP_FAILED,
    CompiledJob,
    ResolvedCode,
    tree_digest_argv,
)
from broker.spec import PipelineSpec
from tests.job_site import Site, spec_of


def code_spec(source: dict[str, str], entry: str = "train.py") -> PipelineSpec:
    return spec_of({"name": "a", "params": {"lr": 1}, "code": source | {"entry_script": entry}})


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
