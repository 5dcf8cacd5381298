"""Records what `sacct` answers to the warehouse (`broker.slurm.sacct.Window`).

    python -m tests.contract.record_warehouse SUITE      bookworm (22.05), trixie (24.11) or sid (26.05)

Starts a development cluster of its own, gives it jobs that end in each way, and writes the answers to
`recordings/VERSION/warehouse/`. What must be true of them stands in `slurm/test_slurm_warehouse.py`, not
here.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from broker.slurm.sacct import warehouse_fields
from tests.contract.record import Recorder

NAME = "na|me\nsecond | line"
MEMORY_MIB = 300
JOBSTATS = {
    "nodes": {
        "a100-1": {
            "cpus": 4,
            "total_time": 5.5,
            "total_memory": 104857600,
            "used_memory": 3612672,
            "gpu_utilization": {"0": 90, "1": 50.5},
            "gpu_used_memory": {"0": 1 << 30, "1": 1 << 29},
            "gpu_total_memory": {"0": 80 << 30, "1": 80 << 30},
        }
    },
    "total_time": 6,
    "gpus": 2,
}
"""What jobstats stores of a job with two GPUs (github.com/PrincetonUniversity/jobstats)."""

_EAT = f"python3 -c \"import time; x = b'a' * ({MEMORY_MIB} << 20); time.sleep(14)\""
_COUNT = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"

# label -> (arguments of sbatch, what it runs)
JOBS: Mapping[str, tuple[list[str], str]] = {
    "het": ([":", "--mem=100M", "--time=1:00:00", "--gres=gpu:v100:1"], "srun --het-group=0,1 sleep 2"),
    "memory": (["--mem=1G"], _EAT),
    "steps": (["--ntasks=2", "--mem=1G"], f"srun -n2 sh -c '{_COUNT}'; srun -n1 true"),
    "gpus": (["--nodelist=a100-1", "--gres=gpu:a100:2", "--cpus-per-task=4"], "sleep 6"),
    "done": ([f"--job-name={NAME}"], "true"),
    "failed": ([], "exit 3"),
    "timeout": (["--time=1"], "sleep 600"),
    "cancelled": ([], "sleep 600"),
    "cancelled_held": (["--hold"], "true"),
    "requeued": ([], "sleep 600"),
    "suspended": ([], "sleep 8"),
    "array": (["--array=0-3"], "sleep 2"),
    "blocker": (["--nodelist=v100-2", "--exclusive"], "sleep 600"),
    "waiting_array": (["--nodelist=v100-2", "--exclusive", "--array=0-9"], "true"),
    "late": ([], "true"),
}


def submit(rec: Recorder, label: str) -> None:
    words, script = JOBS[label]
    argv = ["sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=100M", "--time=1:00:00"]
    done = rec.host.run([*argv, f"--job-name=rec-{label}", *words, f"--wrap={script}"], timeout=120)
    assert done.rc == 0, f"{label}: {done.complaint}"
    rec.ids[label] = int(done.stdout.split(b";")[0])


def prepare(rec: Recorder) -> None:
    """Bring every job into its state."""
    ids = rec.ids
    for label in JOBS:
        submit(rec, label)
        if label == "het":  # the backfill scheduler starts it, while no other job is in its way
            rec.wait("het runs", lambda: rec.queue_state("het") == "RUNNING")
    for label in ("cancelled", "requeued", "suspended", "blocker"):
        rec.wait(f"{label} runs", lambda label=label: rec.queue_state(label) == "RUNNING")  # type: ignore[misc]
    time.sleep(3)  # the job that is suspended has run for a while, and the one that is requeued as well
    rec.sh(f"scontrol suspend {ids['suspended']}; scontrol requeue {ids['requeued']}")
    rec.sh(f"scancel {ids['cancelled']} {ids['cancelled_held']}")
    time.sleep(6)
    rec.sh(f"scontrol resume {ids['suspended']}")
    for label in ("memory", "steps", "gpus", "failed", "suspended", "cancelled", "timeout", "het", "done"):
        rec.wait(
            f"{label} ends",
            lambda label=label: (
                rec.sacct_state(label)  # type: ignore[misc]
                not in {"", "PENDING", "RUNNING", "COMPLETING", "SUSPENDED"}
            ),
        )
    rec.wait("requeued runs again", lambda: rec.queue_state("requeued") == "RUNNING")
    rec.wait("the array ends", lambda: rec.queue_state("array") in {"", "COMPLETED"})
    packed = base64.b64encode(gzip.compress(json.dumps(JOBSTATS).encode(), mtime=0)).decode()
    rec.root(
        f"sacctmgr -i update job where jobid={ids['gpus']} set AdminComment=JS1:{packed} && "
        f"sacctmgr -i update job where jobid={ids['failed']} set AdminComment=JS1:Short"
    )
    time.sleep(3)  # 22.05 writes a job's name to accounting up to 2.8 s after its end


def record(rec: Recorder, since: datetime) -> None:
    """Windows, jobs by id; then slurmdbd refuses what is too wide; then it is gone."""
    fields = warehouse_fields(rec.sh("sacct -e").split())
    window: dict[str, Any] = {"fields": fields, "version": rec.version}
    begin, now = int(since.timestamp()), int(datetime.now(UTC).timestamp()) + 1
    rec.record("window", "warehouse", **window, since=begin, until=now)
    rec.record("by_id", "warehouse", **window, ids=tuple(rec.ids.values()))
    rec.record("before", "warehouse", **window, since=begin - 86_400, until=begin - 3600)
    rec.root("echo MaxQueryTimeRange=1-00:00:00 >> /etc/slurm/slurmdbd.conf")
    rec.control("restart", "slurmdbd")
    rec.wait("slurmdbd answers", lambda: rec.sh("sacctmgr -n show cluster || true") != "")
    user = rec.connect("kim")  # an Operator may ask for more
    rec.record("too_wide", "warehouse", user, **window, since=begin - 3 * 86_400, until=now)
    rec.record("as_operator_too_wide", "warehouse", **window, since=begin - 3 * 86_400, until=now)
    user.close()
    rec.root("pkill -KILL slurmdbd; sleep 1")
    rec.record("no_database", "warehouse", **window, since=begin, until=now)


def main(suite: str) -> None:
    since = datetime.now(UTC)
    rec = Recorder(f"record-warehouse-{suite}", suite, "warehouse")
    try:
        prepare(rec)
        record(rec, since)
        facts = {"ids": rec.ids, "name": NAME, "memory_mib": MEMORY_MIB}
        (rec.folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    finally:
        rec.host.close()
        rec.control("down", "--purge")
    print(f"recordings of Slurm {rec.version} in {rec.folder}")


if __name__ == "__main__":
    main(sys.argv[1])
