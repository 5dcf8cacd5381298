"""The submission script, really run by bash: killed everywhere, rerun, refused, fenced.

`sbatch`, `squeue` and `sacct` are stand-ins here (a folder of job files): what is tested is the script's own
logic, above all that it never submits a job twice. Under a real Slurm: tests/cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.compiler import (
    ClusterProfile,
    Plan,
    ResolvedCode,
    ResolvedImage,
    RunIdentity,
    SubmissionExit,
    compile_run,
    fence_argv,
    stage_and_submit_argv,
    staging_archive,
)
from broker.spec import parse

# Each stand-in notes events; at event $KILL_AT, a number or a name, it kills the script, as a crash would.
COUNT = """#!/bin/bash
script=$(<"$SITE/script") # not a later one: an sbatch may outlive the script that began it
event() { # NAME
  local number
  exec 8>>"$SITE/events"; flock 8; echo "$1" >&8
  number=$(wc -l <"$SITE/events")
  exec 8>&- # kept, it would stand in the way of an sbatch beside this one
  [[ ${KILL_AT:-0} != "$number" && ${KILL_AT:-} != "$1" ]] || kill -KILL "$script"
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
        stdout, stderr = process.communicate(staging_archive(self.plan), timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(), stderr.decode())

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        """Begin `stage_and_submit_argv`; its process is the script's, as each step execs the next."""
        argv = [
            "bash",
            "-c",
            'echo $$ >"$SITE/script"; exec "$@"',
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


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    programs = {"sbatch": SBATCH, "squeue": SQUEUE, "sacct": SACCT, "sync": SYNC, "sleep": "#!/bin/sh\n"}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return Site(tmp_path, make_plan(tmp_path))


def events(site: Site) -> int:
    return len(site.seen())


def test_a_graph_is_submitted_with_its_edges(site: Site) -> None:
    site.assert_whole(site.submit())
    assert (site.control / "plan.1.json").exists()
    assert json.loads((site.control / "plan.1.json").read_text())["plan_hash"] == site.plan.plan_hash


def test_a_second_run_submits_nothing_and_says_the_same(site: Site) -> None:
    first = site.submit()
    before = events(site)
    second = site.submit()
    assert second.stdout == first.stdout
    assert events(site) - before == 1  # the journal is synced; Slurm is not asked
    site.assert_whole(second)


def test_a_first_run_asks_slurm_for_nothing_but_its_jobs(site: Site) -> None:
    (site.root / "controller-down").touch()
    (site.root / "dbd-down").touch()
    site.assert_whole(site.submit())


def test_killed_at_any_moment_and_run_again_no_job_is_lost_or_doubled(site: Site) -> None:
    survived = False
    kill_at = 0
    while not survived:
        kill_at += 1
        reset(site)
        killed = site.submit(KILL_AT=str(kill_at))
        survived = killed.returncode == 0
        assert survived or killed.returncode == -signal.SIGKILL
        (site.root / "events").write_text("")
        site.assert_whole(site.submit())
    assert kill_at > 12  # four jobs, three moments each


@pytest.mark.parametrize("first", [2, 5, 8, 11])
def test_killed_again_while_recovering_no_job_is_lost_or_doubled(site: Site, first: int) -> None:
    for second in range(1, 14):
        reset(site)
        site.submit(KILL_AT=str(first))
        (site.root / "events").write_text("")
        site.submit(KILL_AT=str(second))
        (site.root / "events").write_text("")
        site.assert_whole(site.submit())


def reset(site: Site) -> None:
    for path in [*(site.root / "jobs").iterdir(), *site.control.glob("journal*")]:
        path.unlink()
    (site.root / "events").write_text("")


def test_a_lost_or_torn_journal_is_made_up_from_the_queue(site: Site) -> None:
    site.submit()
    journal = site.control / "journal.1"
    whole = journal.read_text()
    for length in range(len(whole.splitlines()[0]) + 1, len(whole)):
        journal.write_text(whole[:length])
        site.assert_whole(site.submit())
        assert journal.read_text().endswith("\n")


def test_an_orphaned_sbatch_keeps_the_lock_until_it_is_done(site: Site) -> None:
    os.mkfifo(site.root / "gate")
    first = site.start()
    assert first.stdin
    first.stdin.write(staging_archive(site.plan))
    first.stdin.close()
    wait_for(lambda: events(site) >= 2)  # the intent is synced, the first sbatch is on its way
    os.kill(int((site.root / "script").read_text()), signal.SIGKILL)
    first.wait()
    second = site.start()
    assert second.stdin
    second.stdin.write(staging_archive(site.plan))
    second.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=0.5)
    assert not site.jobs()
    gate = (site.root / "gate").open("w")
    (site.root / "gate").unlink()
    gate.write("go\n")
    gate.close()
    assert second.stdout
    assert second.stderr
    stdout, stderr = second.stdout.read().decode(), second.stderr.read().decode()
    site.assert_whole(subprocess.CompletedProcess([], second.wait(), stdout, stderr))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_refusal_stops_and_says_why(site: Site) -> None:
    done = site.submit(REFUSE="c", COMPLAINT="Invalid account or account/partition combination specified")
    assert done.returncode == SubmissionExit.REFUSED
    assert done.stdout.splitlines()[-1] == "refused c 1"
    assert "Invalid account" in done.stderr
    assert len(site.jobs()) == 2
    site.assert_whole(site.submit())


def test_an_unclear_answer_is_unknown_never_a_refusal(site: Site) -> None:
    done = site.submit(
        REFUSE="c", COMPLAINT="Batch job submission failed: Socket timed out on send/recv operation"
    )
    assert done.returncode == SubmissionExit.UNKNOWN
    assert done.stdout.splitlines()[-1] == "unknown c"
    site.assert_whole(site.submit())


def test_recovery_without_an_answer_from_the_queue_submits_nothing(site: Site) -> None:
    site.submit(KILL_AT="a.told")
    (site.root / "controller-down").touch()
    before = len(site.jobs())
    done = site.submit()
    assert done.returncode == SubmissionExit.UNKNOWN
    assert "Unable to contact" in done.stderr
    assert len(site.jobs()) == before
    (site.root / "controller-down").unlink()
    site.assert_whole(site.submit())


def test_a_late_recovery_asks_accounting_for_what_slurmctld_forgot(site: Site) -> None:
    site.submit(KILL_AT="b.taken")  # a and b are submitted, b is not in the journal yet
    site.age_journal(3600)
    row = site.change_state("b", None)
    (site.root / "accounting").write_text(row.format(state="CANCELLED by 0"))
    done = site.submit()
    assert done.returncode == SubmissionExit.REFUSED
    assert "ended as CANCELLED before the graph was complete" in done.stderr
    assert "d.begun" not in site.seen()


def test_a_late_recovery_without_accounting_submits_nothing(site: Site) -> None:
    site.submit(KILL_AT="b.taken")
    site.age_journal(3600)
    (site.root / "dbd-down").touch()
    assert site.submit().returncode == SubmissionExit.UNKNOWN
    (site.root / "dbd-down").unlink()
    site.assert_whole(site.submit())


def test_an_early_recovery_does_without_accounting(site: Site) -> None:
    site.submit(KILL_AT="b.taken")
    (site.root / "dbd-down").touch()
    site.assert_whole(site.submit())


def test_a_recorded_job_that_nobody_knows_any_more_is_unknown(site: Site) -> None:
    site.submit(KILL_AT="b.taken")
    site.change_state("a", None)
    done = site.submit()
    assert done.returncode == SubmissionExit.UNKNOWN
    assert "known to neither squeue nor sacct" in done.stderr


def test_a_parent_that_was_cancelled_meanwhile_stops_the_graph(site: Site) -> None:
    site.submit(KILL_AT="b.taken")
    site.change_state("a", "CANCELLED")
    assert site.submit().returncode == SubmissionExit.REFUSED


def test_a_parent_that_has_completed_is_no_dependency_any_more(site: Site) -> None:
    site.submit(KILL_AT="a.told")
    site.change_state("a", "COMPLETED")
    assert site.submit().returncode == SubmissionExit.COMPLETE
    jobs = {job.component: site.jobs()[job.name] for job in site.plan.jobs}
    assert jobs["c"][1] == ""
    assert jobs["d"][1] == f"afterok:{jobs['b'][0]}:{jobs['c'][0]}"


def test_after_the_fence_nothing_is_submitted(site: Site) -> None:
    assert subprocess.run(fence_argv(site.plan), check=False).returncode == 0
    done = site.submit()
    assert (done.returncode, done.stdout) == (SubmissionExit.FENCED, "fenced\n")
    assert not site.jobs()


def test_the_fence_of_one_attempt_leaves_the_next_alone(site: Site) -> None:
    site.assert_whole(site.submit())
    subprocess.run(fence_argv(site.plan), check=True)
    first = site.jobs()
    site.plan = make_plan(site.root, attempt=2)
    assert site.submit().returncode == SubmissionExit.COMPLETE
    assert len(site.jobs()) == 8
    assert first.items() <= site.jobs().items()


def test_a_truncated_archive_submits_nothing(site: Site) -> None:
    process = site.start()
    archive = staging_archive(site.plan)
    process.communicate(archive[: len(archive) // 2], timeout=60)
    assert process.returncode not in {SubmissionExit.COMPLETE}
    assert not site.jobs()
    site.assert_whole(site.submit())


def test_variables_of_the_login_node_change_nothing(site: Site) -> None:
    site.assert_whole(site.submit(SBATCH_RESERVATION="x", SBATCH_DEPENDENCY="afterok:1", BASH_ENV="/nowhere"))


def test_a_filter_in_the_accounts_profile_hides_no_job_of_ours(site: Site) -> None:
    site.submit()
    journal = site.control / "journal.1"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])  # every id got lost
    site.assert_whole(site.submit(SQUEUE_PARTITION="other"))


def test_code_is_fetched_before_any_job_is_submitted(site: Site) -> None:
    gone = {"c": ResolvedCode("path", "/nowhere/at/all", "sha256:" + "0" * 64)}
    site.plan = make_plan(site.root, code=gone)
    done = site.submit()
    assert done.returncode == SubmissionExit.REFUSED
    assert done.stdout == "refused c 1\n"
    assert "/nowhere/at/all is not where it was" in done.stderr
    assert not site.jobs()


def test_a_start_that_was_cut_before_the_archive_came_costs_nothing_but_a_look(site: Site) -> None:
    first = site.start()
    assert first.stdin is not None
    first.stdin.close()  # the broker was killed while it made the plan
    first.wait(timeout=30)
    assert site.jobs() == {}
    site.assert_whole(site.submit())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder somebody else's")
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_nothing_is_written_into_a_folder_that_somebody_else_made_first(site: Site, mode: int) -> None:
    run_dir = Path(site.plan.run_dir)
    run_dir.mkdir(parents=True)
    run_dir.chmod(mode)
    os.chown(run_dir, 12345, 12345)
    done = site.submit()
    assert (done.returncode, done.stdout) == (SubmissionExit.FOREIGN, "foreign\n")
    assert not site.jobs()
    fenced = subprocess.run(fence_argv(site.plan), capture_output=True, check=False)
    assert fenced.returncode == SubmissionExit.FOREIGN
    assert not [path for path in run_dir.rglob("*") if path.is_file()]


def test_nothing_is_written_through_a_link_in_the_place_of_the_runs_folder(site: Site) -> None:
    other = site.root / "other"
    other.mkdir()
    run_dir = Path(site.plan.run_dir)
    run_dir.parent.mkdir(parents=True)
    run_dir.symlink_to(other)
    done = site.submit()
    assert (done.returncode, done.stdout) == (SubmissionExit.FOREIGN, "foreign\n")
    assert not [path for path in other.rglob("*") if path.is_file()]
