"""A cluster of stand-ins to submit to: programs over a folder of job files, killed where a test says so."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.compiler import (
    ClusterProfile,
    Plan,
    ResolvedCode,
    ResolvedImage,
    RunIdentity,
    SubmissionExit,
    compile_run,
    stage_and_submit_argv,
    staging_archive,
)
from broker.spec import parse

# Each stand-in notes events; at event $KILL_AT, a number or a name, it kills the script, as a crash would.
COUNT = """#!/bin/bash
event() { # NAME
  local number
  exec 8>>"$SITE/events"; flock 8; echo "$1" >&8
  number=$(wc -l <"$SITE/events")
  exec 8>&- # kept, it would stand in the way of an sbatch beside this one
  [[ ${KILL_AT:-0} != "$number" && ${KILL_AT:-} != "$1" ]] || kill -KILL "$SCRIPT" # the one it was begun by
}
"""
SBATCH = (
    COUNT
    + """
args=("$@")
for argument; do case $argument in
  --job-name=*) name=${argument#*=} ;;
  --dependency=*) dependency=${argument#*=} ;;
esac; done
[[ $name =~ -([a-d])-[0-9] ]] && component=${BASH_REMATCH[1]}
event "$component.begun"
[[ -e $SITE/gate ]] && read -r <"$SITE/gate" # held up until the test writes here
[[ $component == "${REFUSE:--}" ]] && { echo "sbatch: error: $COMPLAINT" >&2; exit 1; }
[[ -s ${args[-1]} ]] || { echo "no script" >&2; exit 1; }
exec 7>>"$SITE/lock"; flock 7
id=$((100 + $(ls "$SITE/jobs" | wc -l)))
printf '%s|PENDING|%s|%s\\n' "$id" "$name" "${dependency:-}" >"$SITE/taking"
mv "$SITE/taking" "$SITE/jobs/$id" # whole, or not there: an sbatch may be on its way when the test looks
exec 7>&-
event "$component.taken"
echo "$id"
event "$component.told"
"""
)
SQUEUE = (
    COUNT
    + """
event squeue
[[ -e $SITE/controller-down ]] && { echo "Unable to contact slurm controller" >&2; exit 1; }
[[ -v SQUEUE_PARTITION ]] && exit 0 # a filter that hides everything
for job in "$SITE"/jobs/*; do [[ -e $job ]] && cut -d'|' -f1-3 "$job"; done
exit 0
"""
)
SACCT = """#!/bin/bash
[[ -e $SITE/dbd-down ]] && exit 1
[[ -e $SITE/accounting ]] && cat "$SITE/accounting"
exit 0
"""
SYNC = (
    COUNT
    + """
event sync
exec /bin/sync "$@"
"""
)


@dataclass
class Site:
    """A cluster of stand-ins and one plan: a diamond a → b, c → d."""

    root: Path
    plan: Plan

    def submit(self, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(**env)
        stdout, stderr = process.communicate(staging_archive(self.plan), timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(), stderr.decode())

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        """Begin `stage_and_submit_argv`; its process is the script's, as each step execs the next."""
        argv = [
            "bash",
            "-c",
            'echo $$ >"$SITE/script"; SCRIPT=$$ exec "$@"',
            "start",
            *stage_and_submit_argv(self.plan),
        ]
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": f"{self.root}/bin:{os.environ['PATH']}", "SITE": str(self.root)} | env,
        )

    @property
    def control(self) -> Path:
        return Path(self.plan.run_dir) / "control"

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Name → (id, dependency) of every job the stand-in took; fails if a name was taken twice."""
        rows = [path.read_text().strip().split("|") for path in sorted((self.root / "jobs").iterdir())]
        found = {name: (number, dependency) for number, _, name, dependency in rows}
        assert len(found) == len(rows), f"submitted twice: {rows}"
        return found

    def seen(self) -> list[str]:
        """The events so far."""
        path = self.root / "events"
        return path.read_text().splitlines() if path.exists() else []

    def change_state(self, component: str, state: str | None) -> str:
        """Set a job's state in the queue, or take it out; gives its accounting row."""
        name = next(job.name for job in self.plan.jobs if job.component == component)
        for path in (self.root / "jobs").iterdir():
            number, _, called, dependency = path.read_text().strip().split("|")
            if called == name:
                if state is None:
                    path.write_text(f"{number}|X|gone-{called}|")
                else:
                    path.write_text(f"{number}|{state}|{called}|{dependency}\n")
                return f"{number}|{{state}}|{called}\n"
        raise LookupError(component)

    def assert_whole(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode == SubmissionExit.COMPLETE, (done.stdout, done.stderr)
        assert done.stdout.splitlines()[-1] == "complete 4"
        told = dict(line.split() for line in done.stdout.splitlines()[:-1])
        jobs = self.jobs()
        assert told == {job.component: jobs[job.name][0] for job in self.plan.jobs}
        for job in self.plan.jobs:
            parents = [told[parent] for parent in job.depends_on]
            assert jobs[job.name][1] == (f"afterok:{':'.join(parents)}" if parents else "")

    def age_journal(self, seconds: int) -> None:
        """Make the journal say that the first start was longer ago."""
        journal = self.control / "journal.1"
        text = journal.read_text()
        first = text.splitlines()[0]
        journal.write_text(text.replace(first, f"# {int(time.time()) - seconds}", 1))


def make_plan(root: Path, attempt: int = 1, code: dict[str, ResolvedCode] | None = None) -> Plan:
    common: dict[str, Any] = {
        "order": 1,
        "type": "custom",
        "image": {"registry": "r/x", "tag": "1"},
        "resources": {"memory": "1GB"},
    }
    source = {"code": {"source": "path", "path": "/code", "entry_script": "x.py"}}
    spec = parse(
        {
            "pipeline_id": "p",
            "name": "p",
            "version": "1",
            "components": [common | {"name": n} | (source if code and n in code else {}) for n in "abcd"],
            "workflow": [{"from": s, "to": t} for s, t in ("ab", "ac", "bd", "cd")],
        }
    )
    profile = ClusterProfile(name="t", base_path=f"{root}/shared")
    images = {"r/x:1": ResolvedImage("/x.sif", "d")}
    return compile_run(spec, profile, RunIdentity("run-1", 1, attempt, "t", "u"), images, code=code)


def make_site(root: Path) -> Site:
    """The stand-ins as programs in `root`/bin, and a plan to submit to them."""
    (root / "bin").mkdir()
    (root / "jobs").mkdir()
    programs = {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "sync": SYNC, "sleep": "#!/bin/sh\n"}
    for name, text in programs.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    return Site(root, make_plan(root))
