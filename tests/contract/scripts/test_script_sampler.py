"""The sampler of GPUs in a job script: what it writes, for whom, and that it harms nothing."""

from __future__ import annotations

import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from broker.compiler import (
    CompiledJob,
)
from broker.resources.nvidia_smi import parse_slices
from tests.job_site import Site, spec_of

SAMPLES = Path(__file__).parents[2] / "samples/nvidia-smi"

NVIDIA_SMI = """#!/bin/bash
# Replays what was sample of a real one; notes how it was called.
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
    sample = (SAMPLES / "two-gpus.csv").read_text()
    listed = "GPU 0: A (UUID: GPU-1)\nGPU 1: A (UUID: GPU-2)\n"
    job = with_gpus(site, sample, listed=listed)
    file = f"Path({str(samples(job))!r})"
    twice = f"{file}.exists() and {file}.read_text().count('GPU-') > 2"
    done = site.run(job, WAITS.format(twice), CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, done.stderr
    text = samples(job).read_text()
    assert text.startswith(sample * 2)
    assert stat.S_IMODE(samples(job).stat().st_mode) == 0o600
    asked = (site.root / "dump.smi").read_text().splitlines()
    assert asked[0] == "-L"
    assert not any(call.startswith("-i") for call in asked), "all GPUs of the node are this job's"
    deadline = time.monotonic() + 60
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
    job = with_gpus(site, (SAMPLES / "two-gpus.csv").read_text(), listed=listed)
    site.run(job, WAITS.format(f"Path({str(samples(job))!r}).exists()"), **environment)
    queries = [call for call in (site.root / "dump.smi").read_text().splitlines() if "--query-gpu" in call]
    assert queries[0].startswith(asked_for)


def test_of_slices_their_memory_is_written_down_too(site: Site) -> None:
    sample = (SAMPLES / "slices.mig").read_text()
    head, mark, xml = sample.partition("<nvidia_smi_log>")
    visible, _, listed = head.partition("\n")
    noise = f'<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "x.dtd">\n{mark}{xml}'.replace(
        "<gpu_instance_id>", "<serial>1</serial>\n<gpu_instance_id>"
    )
    job = with_gpus(site, (SAMPLES / "slices.csv").read_text(), listed=listed, xml=noise)
    path = str(samples(job, "mig"))
    site.run(job, WAITS.format(f"Path({path!r}).exists()"), CUDA_VISIBLE_DEVICES=visible.removeprefix("# "))
    assert parse_slices(Path(path).read_text()) == parse_slices(sample)
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
