"""The submission script, really run by bash: killed everywhere, rerun, refused, fenced.

`sbatch`, `squeue` and `sacct` are stand-ins here (tests/submission_site.py): what is tested is the script's
own logic, above all that it never submits a job twice. Under a real Slurm: tests/cluster.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from broker.compiler import ResolvedCode, SubmissionExit, fence_argv, staging_archive
from tests.harness.processes import until
from tests.submission_site import Site, make_plan, make_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path)


def events(site: Site) -> int:
    return len(site.seen())


def reset(site: Site) -> None:
    for path in [*(site.root / "jobs").iterdir(), *site.control.glob("journal*")]:
        path.unlink()
    (site.root / "events").write_text("")


def test_a_graph_is_submitted_with_its_edges(site: Site) -> None:
    site.assert_whole(site.submit())
    assert (site.control / "plan.1.json").exists()
    assert json.loads((site.control / "plan.1.json").read_text())["plan_hash"] == site.plan.plan_hash


def test_a_second_run_submits_nothing_and_says_the_same(site: Site) -> None:
    first = site.submit()
    # An sbatch has told its id before it ends, and the script waits for no more.
    until(lambda: sum(event.endswith(".told") for event in site.seen()) == 4, 30, "every sbatch has ended")
    before = events(site)
    second = site.submit()
    assert second.stdout == first.stdout
    assert site.seen()[before:] == ["sync"]  # the journal's; Slurm is not asked
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
    until(lambda: events(site) >= 2, 30, "the intent is synced, and the first sbatch on its way")
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
    process.communicate(archive[: len(archive) // 2], timeout=300)
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
    first.wait(timeout=300)
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
