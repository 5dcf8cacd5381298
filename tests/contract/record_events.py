"""Records what `sacctmgr` remembers of nodes and reservations (`broker.slurm.events`).

    python -m tests.contract.record_events SUITE      bookworm (22.05), trixie (24.11) or sid (26.05)

Starts a development cluster of its own, does to its nodes what happens to nodes, and writes the answers to
`recordings/VERSION/events/`. What must be true of them stands in `slurm/test_slurm_events.py`, not here.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from tests.contract.record import Recorder

REASON = "bad | fan\nsecond | line"


def prepare(rec: Recorder) -> dict[str, int]:
    """What happens, and when it was done: by what it is called."""
    times: dict[str, int] = {}

    def do(what: str, script: str) -> None:
        times[what] = int(datetime.now(UTC).timestamp())
        rec.root(script)

    rec.sh("sbatch --output=/dev/null --chdir=/tmp --mem=100M -w a100-1 --gres=gpu:a100:2 --wrap='sleep 10'")
    rec.wait("the job runs", lambda: "R" in rec.sh("squeue -h -o %t -w a100-1"))
    do("drained_busy", "scontrol update nodename=a100-1 state=drain reason='its job goes on'")
    do("drained", f"scontrol update nodename=a100-2 state=drain reason='{REASON}'")
    do("down", "scontrol update nodename=v100-1 state=down reason=psu; sleep 3")
    do("resumed", "scontrol update nodename=v100-1 state=resume; sleep 1")
    do("drained_first", "scontrol update nodename=a100-3 state=drain reason='first drained'; sleep 2")
    do("then_down", "scontrol update nodename=a100-3 state=down reason='then down'")
    do(
        "maintenance",
        "scontrol create reservation reservationname=mnt starttime=now duration=10 nodes=a100-4 "
        "flags=maint users=root",
    )
    do(
        "course",
        "scontrol create reservation reservationname=course starttime=now duration=20 nodes=v100-1 users=kim",
    )
    rec.control("fail", "node", "v100-2")
    rec.wait("Slurm notices", lambda: "down" in rec.sh("sinfo -h -n v100-2 -o %T"), 90)
    do("maintained", "scontrol delete reservationname=mnt")
    rec.control("restart", "slurmctld")
    rec.wait("the job ended", lambda: rec.sh("squeue -h -w a100-1") == "")
    return times


def main(suite: str) -> None:
    rec = Recorder(f"record-events-{suite}", suite, "events")
    try:
        times = prepare(rec)
        since = times["drained_busy"] - 3600
        rec.record("node_events", "node_events", cluster="dev", since=since)
        rec.record("reservations", "reservations", cluster="dev", since=since)
        rec.record("node_events_later", "node_events", cluster="dev", since=times["resumed"] + 60)
        kim = rec.connect("kim")
        rec.record("node_events_of_user", "node_events", kim, cluster="dev", since=since)
        kim.close()
        rec.root("pkill -KILL slurmdbd; sleep 1")
        rec.record("node_events_no_database", "node_events", cluster="dev", since=since)
        facts = {"times": times, "reason": REASON}
        (rec.folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    finally:
        rec.host.close()
        rec.control("down", "--purge")
    print(f"recordings of Slurm {rec.version} in {rec.folder}")


if __name__ == "__main__":
    main(sys.argv[1])
