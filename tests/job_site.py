"""Where compiled job scripts run under a real bash; srun and Apptainer are played by small programs."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.compiler import (
    ClusterProfile,
    CompiledJob,
    ResolvedImage,
    RunIdentity,
    compile_run,
)
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
            ["bash", job.script_path], env=slurm | env, capture_output=True, check=False, timeout=300
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
