"""SlurmClient against a real cluster."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from broker.errors import OutcomeUnknown, Unreachable
from broker.hosts import SshConfig, SshHost
from broker.slurm import ResultKind, SlurmClient, SlurmState
from broker.slurm.queue import Accounting

pytestmark = pytest.mark.cluster

DONE = ResultKind.DONE


class Jobs:
    """Submits jobs of one test and cancels what is left of them."""

    def __init__(self, host: SshHost) -> None:
        self.host, self.ids = host, list[int]()
        self.since = datetime.now(UTC)
        self.mark = uuid.uuid4().hex[:12]

    def name(self, label: str) -> str:
        return f"t-{label}.{self.mark}"

    def submit(self, label: str, *words: str, run: str = "sleep 600", timeout: float = 30) -> int:
        argv = ["sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=50M", "--time=20"]
        done = self.host.run(
            [*argv, f"--job-name={self.name(label)}", *words, f"--wrap={run}"], timeout=timeout
        )
        assert done.rc == 0, done.complaint
        self.ids.append(int(done.stdout))
        return self.ids[-1]


@pytest.fixture
def host(cluster: Any) -> Iterator[SshHost]:
    ssh = cluster.ssh
    with closing(
        SshHost(SshConfig(ssh.host, ssh.port, ssh.user, Path(ssh.key), Path(ssh.known_hosts)))
    ) as found:
        yield found


@pytest.fixture
def slurm(host: SshHost) -> SlurmClient:
    return SlurmClient(host, timeout_s=30)


@pytest.fixture
def jobs(host: SshHost, slurm: SlurmClient) -> Iterator[Jobs]:
    found = Jobs(host)
    yield found
    slurm.cancel(found.ids)


def states(slurm: SlurmClient, *ids: int) -> list[SlurmState]:
    queue = slurm.jobs("broker").by_id()
    return [queue[job_id].state for job_id in ids]


def test_the_cluster_says_what_it_is(cluster: Any, slurm: SlurmClient) -> None:
    found = slurm.capabilities()
    assert str(found.version) == cluster.info["slurm_version"]
    assert found.user == "broker"
    assert found.config.has_accounting
    assert slurm.capabilities() is found
    assert all(controller.up for controller in slurm.ping())
    assert {node.name for node in slurm.nodes()} == set(cluster.info["nodes"])
    assert {partition.name for partition in slurm.partitions()} >= {"gpu", "a100", "v100"}
    assert {share.user for share in slurm.shares()} >= {"broker", "kim"}
    assert "normal" in {qos.name for qos in slurm.qos()}


def test_held_and_dependent_jobs_are_found_by_name_at_once(slurm: SlurmClient, jobs: Jobs) -> None:
    parent = jobs.submit("parent", "--hold")
    child = jobs.submit("child", f"--dependency=afterok:{parent}")
    asked = [jobs.name(label) for label in ("parent", "child", "never-submitted")]
    assert slurm.find_by_name(asked, jobs.since) == {asked[0]: [parent], asked[1]: [child]}


def test_two_jobs_of_one_name_are_both_found_oldest_first(slurm: SlurmClient, jobs: Jobs) -> None:
    first, second = jobs.submit("twice", "--hold"), jobs.submit("twice", "--hold")
    assert slurm.find_by_name([jobs.name("twice")], jobs.since) == {jobs.name("twice"): [first, second]}


def test_another_persons_job_of_the_same_name_is_not_ours(
    cluster: Any, slurm: SlurmClient, jobs: Jobs
) -> None:
    theirs = cluster.ok(
        *("sbatch", "--parsable", "--hold", "--chdir=/tmp", "--output=/dev/null", "--mem=50M"),
        *(f"--job-name={jobs.name('stolen')}", "--wrap=true"),
        user="kim",
    )
    jobs.ids.append(int(theirs))
    assert slurm.find_by_name([jobs.name("stolen")], jobs.since) == {}
    assert slurm.find_by_name([jobs.name("stolen")], jobs.since, user="kim") == {
        jobs.name("stolen"): [int(theirs)]
    }


def test_an_ended_job_that_the_queue_forgot_is_found_in_accounting(
    cluster: Any, slurm: SlurmClient, jobs: Jobs
) -> None:
    job = jobs.submit("gone", run="exit 3")
    await_true(lambda: slurm.accounting([job], jobs.since)[:1] and slurm.accounting([job])[0].state.finished)
    ended = slurm.accounting([job], jobs.since)[0]
    assert (ended.state, ended.exit_code, ended.name) == (SlurmState.FAILED, 3, jobs.name("gone"))
    # The same question, answered by accounting alone.
    fields = slurm.capabilities().accounting_fields
    found, bad = slurm._ask(Accounting(fields, names=(jobs.name("gone"),), user="broker", since=jobs.since))
    assert [attempt.job_id for attempt in found] == [job]
    assert bad == ()


def test_a_hold_by_the_broker_is_one_that_the_owner_cannot_lift(
    cluster: Any, slurm: SlurmClient, jobs: Jobs
) -> None:
    theirs = int(
        cluster.ok(
            *("sbatch", "--parsable", "--hold", "--chdir=/tmp", "--output=/dev/null", "--mem=50M"),
            "--wrap=sleep 600",
            user="kim",
        )
    )
    jobs.ids.append(theirs)
    assert slurm.jobs("kim").by_id()[theirs].reason == "JobHeldUser"
    assert slurm.hold([theirs])[theirs].kind is DONE
    assert slurm.jobs("kim").by_id()[theirs].reason == "JobHeldAdmin"
    cluster.exec(["scontrol", "release", str(theirs)], user="kim")
    held = slurm.jobs("kim").by_id()[theirs]
    assert (held.state, held.reason) == (SlurmState.PENDING, "JobHeldAdmin")
    assert slurm.release([theirs])[theirs].kind is DONE
    await_true(lambda: slurm.jobs("kim").by_id()[theirs].state is SlurmState.RUNNING)


def test_jobs_are_released_in_the_order_given(slurm: SlurmClient, jobs: Jobs) -> None:
    parent = jobs.submit("parent", "--hold", run="true")
    child = jobs.submit("child", "--hold", f"--dependency=afterok:{parent}", run="true")
    results = slurm.release([child, 999_999_999, parent])
    assert [results[job].kind for job in (child, parent)] == [DONE, DONE]
    assert results[999_999_999].kind is ResultKind.NOT_FOUND
    await_true(lambda: states(slurm, parent, child) == [SlurmState.COMPLETED] * 2)
    by_id = {job.job_id: job for job in slurm.accounting([parent, child], jobs.since)}
    started, ended = by_id[child].start, by_id[parent].end
    assert started is not None and ended is not None and started >= ended


def test_fifty_changes_go_in_one_command_and_one_bad_one_stops_none(slurm: SlurmClient, jobs: Jobs) -> None:
    held = [jobs.submit(f"u{n}", "--hold") for n in range(12)]
    wanted = [(job, {"Nice": str(10 + n), "Comment": f"it's number {n}"}) for n, job in enumerate(held)]
    wanted.insert(5, (999_999_999, {"Nice": "1"}))
    wanted.insert(7, (held[0], {"QOS": "no-such-qos"}))
    results = slurm.update(wanted)
    assert results[999_999_999].kind is ResultKind.NOT_FOUND
    assert results[held[0]].kind is ResultKind.INVALID_REQUEST
    assert {results[job].kind for job in held[1:]} == {DONE}
    queue = slurm.jobs("broker").by_id()
    assert [queue[job].nice for job in held] == [10 + n for n in range(12)]


def test_cancel_tells_what_came_of_it(slurm: SlurmClient, jobs: Jobs) -> None:
    held, ended = jobs.submit("held", "--hold"), jobs.submit("ended", run="true")
    running = jobs.submit("running")
    await_true(lambda: states(slurm, ended, running) == [SlurmState.COMPLETED, SlurmState.RUNNING])
    results = slurm.cancel([held, running, ended, 999_999_999])
    assert [results[job].kind for job in (held, running, ended, 999_999_999)] == [
        DONE,
        DONE,
        ResultKind.FINISHED,
        ResultKind.NOT_FOUND,
    ]
    await_true(lambda: {job.state for job in slurm.accounting([held, running])} == {SlurmState.CANCELLED})


def test_a_requeued_job_keeps_its_id_and_counts_its_starts(slurm: SlurmClient, jobs: Jobs) -> None:
    job = jobs.submit("again")
    await_true(lambda: states(slurm, job) == [SlurmState.RUNNING])
    assert slurm.requeue([job])[job].kind is DONE
    await_true(lambda: slurm.jobs("broker").by_id()[job].restart_count == 1)
    await_true(lambda: states(slurm, job) == [SlurmState.RUNNING], seconds=120)
    (last,) = slurm.accounting([job], jobs.since)
    assert (last.state, last.restarts) == (SlurmState.RUNNING, 1)


def test_hostile_names_of_others_forge_no_job(cluster: Any, slurm: SlurmClient, jobs: Jobs) -> None:
    mine = jobs.submit("mine", "--hold")
    forged = f"x\n{mine}\x1f{mine}\x1fN/A\x1fCOMPLETED\x1fNone\x1fbroker"
    theirs = cluster.ok(
        *("sbatch", "--parsable", "--hold", "--chdir=/tmp", "--output=/dev/null", "--mem=50M"),
        *(f"--job-name={forged}", "--wrap=true"),
        user="kim",
    )
    jobs.ids.append(int(theirs))
    queue = slurm.jobs()
    assert queue.bad_rows == ()
    assert queue.by_id()[mine].state is SlurmState.PENDING
    assert queue.by_id()[int(theirs)].name == forged


def test_sbatch_into_a_frozen_controller_is_unknown_and_then_found_by_name(
    cluster: Any, slurm: SlurmClient, jobs: Jobs
) -> None:
    slurm.capabilities()
    cluster.pause("slurmctld")
    try:
        with pytest.raises(OutcomeUnknown):
            jobs.submit("unclear", "--hold", timeout=2)
    finally:
        cluster.resume("slurmctld")
    name = jobs.name("unclear")
    await_true(lambda: bool(slurm.find_by_name([name], jobs.since)))
    found = slurm.find_by_name([name], jobs.since)[name]
    jobs.ids += found
    assert len(found) == 1


def test_a_frozen_controller_is_unreachable_for_reads_and_unknown_for_changes(
    cluster: Any, host: SshHost, slurm: SlurmClient, jobs: Jobs
) -> None:
    held = jobs.submit("held", "--hold")
    impatient = SlurmClient(host, timeout_s=2)
    cluster.pause("slurmctld")
    try:
        with pytest.raises(Unreachable):
            impatient.jobs("broker")
        assert impatient.hold([held])[held].kind is ResultKind.OUTCOME_UNKNOWN
        assert impatient.cancel([held])[held].kind is ResultKind.OUTCOME_UNKNOWN
    finally:
        cluster.resume("slurmctld")
    await_true(lambda: states(slurm, held)[0] in {SlurmState.PENDING, SlurmState.CANCELLED})


def test_a_frozen_accounting_is_unreachable_and_not_an_empty_answer(
    cluster: Any, host: SshHost, slurm: SlurmClient, jobs: Jobs
) -> None:
    held = jobs.submit("held", "--hold")
    impatient = SlurmClient(host, timeout_s=5)
    impatient.capabilities()
    cluster.pause("slurmdbd")
    try:
        with pytest.raises(Unreachable):
            impatient.accounting([held])
        assert impatient.jobs("broker").by_id()[held].state is SlurmState.PENDING
    finally:
        cluster.resume("slurmdbd")
    await_true(lambda: [job.job_id for job in slurm.accounting([held], jobs.since)] == [held])


def await_true(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.2)


def _holds(condition: Callable[[], Any]) -> bool:
    """A cluster that is being mended may not answer yet, or not know the job yet."""
    try:
        return bool(condition())
    except (Unreachable, KeyError, IndexError):
        return False
