"""The file that a job's sampler writes: it is renewed before it grows too large, and is never away."""

from __future__ import annotations

from broker.compiler.names import GPU_SAMPLES_BYTES
from tests.contract.scripts.test_script_sampler import WAITS, samples, with_gpus
from tests.job_site import Site


def test_a_file_that_begins_anew_has_its_first_line_at_once(site: Site) -> None:
    """Without it the job's GPUs would be unknown until the next sample."""
    line = "2026/05/01 12:00:00.000, 0, GPU-1, 5, 5, 5, 5, 5, 5.0, Disabled\n"
    job = with_gpus(site, line * (GPU_SAMPLES_BYTES // len(line) + 1), listed="GPU 0: A (UUID: GPU-1)\n")
    old = samples(job, "csv.old")
    done = site.run(job, WAITS.format(f"__import__('os').path.exists({str(old)!r})"))
    assert done.returncode == 0, done.stderr
    assert old.stat().st_size > GPU_SAMPLES_BYTES
    assert samples(job).exists()
