"""Records what `sstat` answers to the broker's command line (`broker.slurm.usage`), by record.py's means.

    python tests/contract/record_usage.py SUITE        bookworm (22.05), trixie (24.11) or sid (26.05)

Into `recordings/VERSION/usage/`: half a minute, where all of record.py takes several.
"""

from __future__ import annotations

import sys
import time

from tests.contract.record import Recorder

BUSY = """python3 -c 'x = bytearray(64 << 20)
while True: pass' &
srun --overlap --ntasks=2 --cpus-per-task=1 --mem=100M sleep 300"""

WIDE = "srun --ntasks=2 --mem=150M python3 -c 'import time; x = bytearray(64 << 20); time.sleep(300)'"


def record_usage(rec: Recorder) -> None:
    """An own job with steps, one that has ended, a stranger's, no job; a silent node, a silent controller."""
    kim = rec.connect("kim")
    ids = []
    for host, script in ((rec.host, BUSY), (rec.host, "true"), (kim, "sleep 300")):
        asked = ["--output=/dev/null", "--chdir=/tmp", "--mem=300M", "--cpus-per-task=2", f"--wrap={script}"]
        done = host.run(["sbatch", "--parsable", *asked], timeout=120)
        assert done.rc == 0, done.complaint
        ids.append(int(done.stdout))
    ended = f"squeue -h -t all -o %T -j {ids[1]}"
    rec.wait("the short job ends", lambda: rec.sh(ended).strip() == "COMPLETED")
    time.sleep(12)  # two samples of `JobAcctGatherFrequency=task=5`
    rec.record("running_usage", "running_usage", ids=(*ids, 999_999))
    rec.record("running_usage_of_none", "running_usage", ids=(999_999,))
    wide = ["sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=200M", "-N2", "-n2"]
    done = rec.host.run([*wide, "--nodelist=a100-3,a100-4", f"--wrap={WIDE}"], timeout=120)
    assert done.rc == 0, done.complaint
    told = f"sstat -a -nP -o TRESUsageInTot -j {int(done.stdout)}.0"
    rec.wait("both tasks are sampled", lambda: "mem=0" not in rec.sh(told) and "mem=" in rec.sh(told))
    rec.control("pause", "a100-4")
    rec.record("running_usage_silent_node", "running_usage", ids=(int(done.stdout), ids[0]))
    rec.control("resume", "a100-4")
    rec.control("pause", "slurmctld")
    rec.record("running_usage_frozen", "running_usage", ids=(ids[0],), limit_s=2)
    kim.close()


if __name__ == "__main__":
    recorder = Recorder(f"record-usage-{sys.argv[1]}", sys.argv[1], "usage")
    try:
        record_usage(recorder)
    finally:
        recorder.host.close()
        recorder.control("down", "--purge")
