"""Records what Slurm answers to every command line of `broker.slurm.commands.REGISTRY`.

    python tests/contract/record.py SUITE        bookworm (22.05), trixie (24.11) or sid (26.05)

Starts a development cluster of its own, gives it jobs in every state and with hostile names, runs each
command, writes argument list, output and exit status to `recordings/VERSION/NAME.json`, and takes the cluster
down. (OUT_OF_MEMORY is not among the states: without cgroups Slurm never sees it.)
`facts.json` beside them says which id belongs to which label; what must be true of each label stands in
`slurm/test_slurm_*.py`, not here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker.hosts import SshConfig, SshHost
from broker.slurm import changes
from broker.slurm.commands import REGISTRY
from broker.slurm.versions import accounting_fields, parse_version
from tests.recordings import RECORDINGS

PROGRAM = Path(__file__).resolve().parents[2] / "slurm-dev" / "cluster"

NAMES = {
    "hostile_newline": "first\nsecond line",
    "hostile_row": "x\n1\x1f1\x1fN/A\x1fCOMPLETED\x1fNone",
    "hostile_shell": "$(id) `id` 'a' \"b\" ; | & \\ #SBATCH --wrap",
    "hostile_text": "한국어 ünï|co:de,~",
}

# label -> (arguments of sbatch, what it runs). Memory: all ask for 100 MB.
JOBS: Mapping[str, tuple[list[str], str]] = {
    "done": ([], "true"),
    "failed": ([], "exit 3"),
    "killed": ([], "kill -SEGV $$"),
    "timeout": (["--time=1"], "sleep 600"),
    "cancelled_running": (["--time=10"], "sleep 600"),
    "cancelled_held": (["--hold"], "true"),
    "held_user": (["--hold"], "true"),
    "held_admin": (["--hold"], "true"),
    "child": (["--dependency=afterok:{held_user}:{held_admin}"], "true"),
    "never": (["--dependency=afterok:{failed}"], "true"),
    "gpus": (
        ["--nodelist=a100-1", "--gres=gpu:a100:2", "--cpus-per-task=4", "--time=1-02:00:00"],
        "sleep 3600",
    ),
    "waiting": (["--nodelist=a100-1", "--exclusive"], "true"),
    "deadline": (["--nodelist=a100-1", "--exclusive", "--time=1", "--deadline=now+65"], "true"),
    "array": (["--array=0-7%2"], "sleep 3600"),
    "requeued": (["--time=1-00:00:00"], "sleep 3600"),
    "node_fail": (["--no-requeue", "--nodelist=v100-2"], "sleep 3600"),
    "preempted": (["--no-requeue", "--nodelist=a100-4", "--exclusive"], "sleep 3600"),
    **{label: (["--hold", f"--job-name={name}"], "true") for label, name in NAMES.items()},
}


class Recorder:
    """One cluster, its jobs, and the answers."""

    def __init__(self, cluster: str, suite: str, part: str = "") -> None:
        self.cluster = cluster
        subprocess.run([str(PROGRAM), "down", "--purge", "--name", cluster], check=False)  # of a broken try
        self.control("up", "--suite", suite, "--no-images")
        status = subprocess.run(
            [str(PROGRAM), "status", "--name", cluster, "--json"], capture_output=True, check=True
        )
        self.info = json.loads(status.stdout)
        self.host = self.connect("broker")
        self.version = parse_version(self.sh("sinfo --version"))
        self.folder = RECORDINGS / str(self.version) / part
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob("*.json"):
            old.unlink()
        self.ids: dict[str, int] = {}

    def control(self, command: str, *words: str) -> None:
        subprocess.run([str(PROGRAM), command, "--name", self.cluster, *words], check=True, stdout=sys.stderr)

    def root(self, script: str) -> None:
        subprocess.run(
            [str(PROGRAM), "exec", "--name", self.cluster, "--", "sh", "-c", script],
            check=True,
            stdout=sys.stderr,
        )

    def connect(self, user: str) -> SshHost:
        ssh = self.info["ssh"]
        key = next(Path(person["key"]) for person in self.info["users"] if person["name"] == user)
        return SshHost(SshConfig(ssh["host"], ssh["port"], user, key, Path(ssh["known_hosts"])))

    def sh(self, script: str) -> str:
        done = self.host.run(["sh", "-c", script], timeout=120)
        assert done.rc == 0, done.complaint
        return done.stdout.decode()

    def submit(self, label: str) -> None:
        arguments, script = JOBS[label]
        words = [word.format(**self.ids) if label not in NAMES else word for word in arguments]
        argv = [
            "sbatch",
            "--parsable",
            "--output=/dev/null",
            "--chdir=/tmp",
            "--mem=100M",
            f"--wrap={script}",
        ]
        named = [] if label in NAMES else [f"--job-name=rec-{label}"]
        done = self.host.run([*argv, *named, *words], timeout=120)
        assert done.rc == 0, f"{label}: {done.complaint}"
        self.ids[label] = int(done.stdout)

    def wait(self, what: str, satisfied: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not satisfied():
            assert time.monotonic() < deadline, f"still not true: {what}"
            time.sleep(1)

    def queue_state(self, label: str) -> str:
        return self.sh(f"squeue -h -t all -o %T -j {self.ids[label]} | head -1").strip()

    def sacct_state(self, label: str) -> str:
        return self.sh(f"sacct -nPX -o State -j {self.ids[label]} | tail -1").strip().split(" ")[0]

    def record(self, name: str, command: str, host: SshHost | None = None, **options: Any) -> str:
        """Run one command of the registry and write down all of it; gives its standard output."""
        made = REGISTRY[command](**options)
        done = (host or self.host).run(made.argv(), stdin=made.stdin, timeout=240)
        recording = {
            "command": command,
            "options": {field.name: _plain(getattr(made, field.name)) for field in fields(made)},  # type: ignore[arg-type]
            "argv": made.argv(),
            "rc": done.rc,
            "stdout": done.stdout.decode("utf-8", "surrogateescape"),
            "stderr": done.stderr.decode("utf-8", "surrogateescape"),
        }
        (self.folder / f"{name}.json").write_text(json.dumps(recording, indent=1) + "\n")
        return recording["stdout"]  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return [value.job_id, value.line] if isinstance(value, changes.Change) else value


def prepare(rec: Recorder) -> None:
    """Bring every job into its state."""
    rec.root(
        "sacctmgr -i add qos urgent priority=1000 preempt=normal preemptmode=cancel >/dev/null; "
        "sacctmgr -i modify user broker set qos+=urgent >/dev/null"
    )
    for label in JOBS:
        rec.submit(label)
    for label in ("gpus", "array", "requeued", "node_fail", "preempted", "cancelled_running"):
        rec.wait(
            f"{label} runs",
            lambda label=label: (
                "RUNNING"
                in rec.sh(  # type: ignore[misc]
                    f"squeue -h -t all -o %T -j {rec.ids[label]}"
                )
            ),
        )
    rec.sh(f"scancel {rec.ids['cancelled_running']} {rec.ids['cancelled_held']}")
    rec.sh(f"scontrol hold {rec.ids['held_admin']} && scontrol requeue {rec.ids['requeued']}")
    rec.sh(
        "sbatch --output=/dev/null --chdir=/tmp --qos=urgent --nodelist=a100-4 --exclusive --mem=100M "
        "--time=5 --job-name=rec-urgent --wrap='sleep 1'"
    )
    rec.control("fail", "node", "v100-2")
    rec.root("scontrol update nodename=a100-3 state=drain reason='bad fan State=IDLE NodeName=a100-9 x=y'")
    for label in ("done", "failed", "killed", "timeout", "preempted", "node_fail", "deadline"):
        rec.wait(
            f"{label} ends",
            lambda label=label: (
                rec.sacct_state(label)  # type: ignore[misc]
                not in {"", "PENDING", "RUNNING", "COMPLETING"}
            ),
        )
    rec.wait("requeued runs again", lambda: rec.queue_state("requeued") == "RUNNING")
    time.sleep(3)  # 22.05 writes a job's name to accounting up to 2.8 s after its end


def record_reads(rec: Recorder, since: datetime) -> None:
    every = tuple(rec.ids.values())
    for name in ("version", "config", "whoami", "ping", "nodes", "partitions", "priorities", "shares", "qos"):
        rec.record(name, name)
    known = accounting_fields(rec.record("accounting_fields", "accounting_fields").split())
    names = tuple(f"rec-{label}" for label in JOBS if label not in NAMES)
    rec.record("queue", "queue")
    rec.record("queue_of_user", "queue", user="broker")
    rec.record("queue_of_nobody", "queue", user="kim")
    rec.record("queue_by_name", "queue", user="broker", names=names)
    rec.record("queue_by_id", "queue", ids=(*every, 999_999))
    rec.record("queue_purged", "queue", ids=(999_999,))
    held = [rec.ids[label] for label in ("held_admin", "held_user", "gpus", "child")]
    rec.record("held", "held", ids=(*held, 999_999))
    rec.record("batch_scripts", "batch_scripts", ids=(rec.ids["held_admin"], rec.ids["child"], 999_999))
    rec.record("accounting", "accounting", fields=known, ids=every)
    rec.record("accounting_unknown_id", "accounting", fields=known, ids=(999_999,))
    rec.record("accounting_by_name", "accounting", fields=known, names=names, user="broker", since=since)


def record_accounts(rec: Recorder) -> None:
    """Accounts, people and QOS, by an Operator: it may change the first two."""
    about = ("Cluster=dev", "Description=team-r", "Organization=broker")
    limits = ("GrpTRES=gres/gpu=5", "GrpTRESRunMins=gres/gpu=6000", "GrpSubmitJobs=0", "DefaultQOS=training")
    rec.record("manage", "manage", words=("add", "account", "team-r", *about, "Fairshare=3", *limits))
    rec.record("manage_again", "manage", words=("add", "account", "team-r", *about))
    rec.record(
        "manage_denied", "manage", words=("modify", "qos", "where", "Name=training", "set", "Priority=5")
    )
    rec.record(
        "manage_wrong", "manage", words=("modify", "account", "where", "Name=team-r", "set", "Colour=red")
    )
    rec.record("memberships", "memberships", cluster="dev")
    rec.record("qos_limits", "qos_limits")


def record_changes(rec: Recorder) -> None:
    ids, kim = rec.ids, rec.connect("kim")
    labels = ("held_admin", "held_user", "gpus", "child")
    rec.record("held", "held", ids=(*(ids[label] for label in labels), 999_999))
    rec.record("batch_scripts", "batch_scripts", ids=(ids["held_admin"], ids["child"], 999_999))
    rec.record(
        "adjust",
        "adjust",
        changes=(
            changes.update(ids["waiting"], {"Priority": "77"}),
            changes.update(ids["held_admin"], {"Nice": "-500"}),
            changes.update(ids["held_user"], {"Priority": "77"}),
            changes.update(999_999, {"Priority": "77"}),
        ),
    )
    rec.record(
        "control",
        "control",
        changes=(
            changes.hold(ids["held_user"]),
            changes.hold(999_999),
            changes.hold(ids["failed"]),
            changes.release(ids["child"]),
            changes.update(ids["held_admin"], {"Priority": "5"}),
            changes.update(ids["hostile_text"], {"Comment": "it's a  comment", "Nice": "7"}),
            changes.update(ids["hostile_shell"], {"NoSuchField": "1"}),
            changes.update(ids["hostile_row"], {"QOS": "nosuch"}),
            changes.requeue(ids["hostile_newline"]),
            changes.update(ids["timeout"], {"TimeLimit": "5"}),
        ),
    )
    rec.record(
        "control_denied",
        "control",
        kim,
        changes=(
            changes.hold(ids["child"]),
            changes.release(ids["held_admin"]),
            changes.update(ids["held_user"], {"Comment": "x"}),
            changes.requeue(ids["gpus"]),
        ),
    )
    rec.record("cancel_denied", "cancel", kim, ids=(ids["child"], ids["gpus"]))
    rec.record("cancel", "cancel", ids=(ids["array"], 999_999, ids["failed"]))
    rec.record("queue_after_cancel", "queue", ids=(ids["array"], 999_999, ids["failed"]))
    kim.close()


def record_trouble(rec: Recorder) -> None:
    """A frozen controller, no controller, no accounting. Nothing works afterwards."""
    known = accounting_fields(rec.sh("sacct -e").split())
    one = (changes.hold(rec.ids["held_user"]), changes.hold(rec.ids["held_admin"]))
    rec.control("pause", "slurmctld")
    rec.record("queue_controller_frozen", "queue")
    rec.record("control_controller_frozen", "control", changes=one[:1])
    rec.control("resume", "slurmctld")
    rec.control("pause", "slurmdbd")
    rec.record("accounting_frozen", "accounting", fields=known, ids=tuple(rec.ids.values()))
    rec.control("resume", "slurmdbd")
    rec.control("pause", "slurmdbd")
    rec.record("manage_frozen", "manage", words=("add", "account", "team-s", "Cluster=dev"))
    rec.control("resume", "slurmdbd")
    rec.root("pkill -KILL slurmdbd; pkill -KILL slurmctld; sleep 1")
    rec.record("queue_no_controller", "queue")
    rec.record("ping_no_controller", "ping")
    rec.record("control_no_controller", "control", changes=one)
    rec.record("cancel_no_controller", "cancel", ids=(rec.ids["child"],))
    rec.record("accounting_no_database", "accounting", fields=known, ids=tuple(rec.ids.values()))
    rec.record("manage_no_database", "manage", words=("add", "account", "team-s", "Cluster=dev"))


def main(suite: str) -> None:
    since = datetime.now(UTC)
    rec = Recorder(f"record-{suite}", suite)
    try:
        prepare(rec)
        record_reads(rec, since)
        record_accounts(rec)
        record_changes(rec)
        facts = {"ids": rec.ids, "names": NAMES, "since": since.isoformat()}
        (rec.folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        record_trouble(rec)
    finally:
        rec.host.close()
        rec.control("down", "--purge")
    print(f"{len(list(rec.folder.glob('*.json'))) - 1} recordings of Slurm {rec.version} in {rec.folder}")


if __name__ == "__main__":
    main(sys.argv[1])
