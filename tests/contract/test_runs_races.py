"""What happens to a run while somebody else was looking elsewhere: on a real database, both kinds of it."""

from __future__ import annotations

import getpass
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from broker.compiler import ClusterProfile
from broker.compiler.names import status_path
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError, Conflict, Denied, InvalidRequest, NotFound, SlurmRefused
from broker.hosts import Host
from broker.identity import Principal, Role
from broker.runs import tracking
from broker.runs.cleanup import remove_run_files
from broker.runs.observation import Marker, Sighting
from broker.runs.schemas import RunRequest
from broker.runs.service import cancel_run, create_run, retry_run
from broker.runs.sightings import read_marker
from broker.runs.states import JobState, Phase, RunState
from broker.runs.strays import adopt_strays
from broker.runs.submission import Submitter
from broker.runs.tables import JobRow, RunRow
from broker.runs.tracking import Tracker
from broker.runs.views import attempt_jobs
from broker.slurm import QueueJob, QueueSnapshot, Result, ResultKind
from broker.slurm.states import SlurmState
from tests.api_support import Api, context, jobs_of, row, worker_lease
from tests.queue_jobs import queue_job


@pytest.fixture(params=["sqlite", "postgresql"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with context(tmp_path, url) as made:
        yield made


@pytest.fixture
def ann(ctx: Context) -> Principal:
    api, name = Api(ctx), f"ann-{secrets.token_hex(4)}"  # the tests share one PostgreSQL
    user_id = api.add(name, tenant=name)
    assert api.store(name).status_code == 201
    return Principal(user_id, name, Role.RESEARCHER, name)


@pytest.fixture
def lease(ctx: Context) -> Lease:
    return worker_lease(ctx)


def requested(ctx: Context, ann: Principal) -> str:
    return create_run(ctx, ann, RunRequest(pipeline="digits")).id


def submitted(ctx: Context, run_id: str, state: JobState = JobState.PENDING) -> None:
    """Slurm has every job."""
    with ctx.db.write() as session:
        session.get_one(RunRow, run_id).phase = Phase.ACTIVE
        for number, job in enumerate(attempt_jobs(session, run_id, 1), 100):
            job.slurm_job_id, job.state = number, state
            job.submitted_at = job.observed_at = utcnow() - timedelta(minutes=5)
            job.started_at = job.observed_at if state.occupies_nodes else None


def queued(job: JobRow, number: int, user: str, state: SlurmState = SlurmState.PENDING) -> QueueJob:
    return queue_job(number, job.name, state=state, reason="JobHeldUser", user=user, qos="normal", priority=0)


def test_cancelling_an_attempt_leaves_the_one_after_it_alone(
    ctx: Context, ann: Principal, lease: Lease
) -> None:
    run_id, submitter = requested(ctx, ann), Submitter(ctx, "main", lease)
    cancel_run(ctx, ann, run_id)
    seen = row(ctx, run_id)
    submitter.advance(run_id)
    assert row(ctx, run_id).state == RunState.CANCELLED
    retry_run(ctx, ann, run_id, None)
    submitter._cancel(seen)  # the cluster was slow to answer
    assert row(ctx, run_id).phase == Phase.PREPARING
    assert {job.state for job in jobs_of(ctx, run_id).values()} == {JobState.INTENDED}


def test_the_failure_of_an_attempt_is_not_that_of_the_one_after_it(
    ctx: Context, ann: Principal, lease: Lease
) -> None:
    run_id, submitter = requested(ctx, ann), Submitter(ctx, "main", lease)
    seen = row(ctx, run_id)
    submitter._fail(seen, SlurmRefused("no"))
    assert row(ctx, run_id).state == RunState.FAILED
    retry_run(ctx, ann, run_id, None)
    submitter._fail(seen, SlurmRefused("no"))
    submitter._postpone(seen, SlurmRefused("no"))
    after = row(ctx, run_id)
    assert (after.state, after.phase, after.error, after.tries) == ("queued", "preparing", None, 0)


def test_a_job_that_came_into_being_after_its_run_was_given_up_is_found_and_ended(
    ctx: Context, ann: Principal, lease: Lease
) -> None:
    run_id = requested(ctx, ann)
    waiting = jobs_of(ctx, run_id)["loader"]
    me = getpass.getuser()
    adopt_strays(ctx, "main", lease, set(), [queued(waiting, 7, me)])
    assert jobs_of(ctx, run_id)["loader"].slurm_job_id is None  # its submission may still be going on
    Submitter(ctx, "main", lease)._fail(row(ctx, run_id), SlurmRefused("no"))
    adopt_strays(ctx, "main", lease, set(), [queued(waiting, 8, "mallory")])
    adopt_strays(ctx, "main", lease, set(), [queued(waiting, 9, me, SlurmState.CANCELLED)])
    assert jobs_of(ctx, run_id)["loader"].slurm_job_id is None
    adopt_strays(ctx, "main", lease, set(), [queued(waiting, 7, me)])
    found = jobs_of(ctx, run_id)["loader"]
    assert (found.slurm_job_id, found.reap, found.state) == (7, True, JobState.CANCELLED)


def test_a_component_whose_results_got_lost_runs_again_with_what_follows_from_it(
    ctx: Context, ann: Principal
) -> None:
    run_id = requested(ctx, ann)
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        run.state, run.phase = RunState.FAILED, Phase.DONE
        for job in attempt_jobs(session, run_id, 1):
            job.state, job.storing = JobState.COMPLETED, "stored"
            if job.component == "loader":
                job.storing = "failed"
    retry_run(ctx, ann, run_id, None)
    assert set(jobs_of(ctx, run_id)) == {"loader", "trainer"}


def test_what_is_seen_of_a_job_is_a_new_version_of_its_run(
    ctx: Context, ann: Principal, lease: Lease
) -> None:
    run_id = requested(ctx, ann)
    submitted(ctx, run_id)
    before = row(ctx, run_id).row_version
    jobs = list(jobs_of(ctx, run_id).values())
    seen = {job.id: Sighting(JobState.PENDING, reason="Resources") for job in jobs}
    Tracker(ctx, "main", lease)._apply(run_id, jobs, seen, utcnow())
    assert row(ctx, run_id).row_version > before


def test_a_job_that_only_accounting_takes_to_be_running_is_unknown_until_its_deadline(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = requested(ctx, ann)
    submitted(ctx, run_id, JobState.RUNNING)
    tracker = Tracker(ctx, "main", lease)
    monkeypatch.setattr(
        tracker, "_accounting", lambda jobs: {job.id: Sighting(JobState.RUNNING) for job in jobs}
    )
    monkeypatch.setattr(tracker, "_marked", lambda job: None)
    watched = tracker._watched()
    now = datetime.now(UTC)
    seen, trouble = tracker._ends(watched, {}, QueueSnapshot(now, ()))
    assert trouble is None
    assert {sighting.state for sighting in seen.values()} == {JobState.UNKNOWN}
    seen, _ = tracker._ends(watched, {}, QueueSnapshot(now, (), ("a line that was not understood",)))
    assert {sighting.state for sighting in seen.values()} == {JobState.RUNNING}


def test_one_run_that_cannot_be_written_down_hides_no_other(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [requested(ctx, ann), requested(ctx, ann)]
    for run_id in runs:
        submitted(ctx, run_id)
    tracker, reached = Tracker(ctx, "main", lease), []

    def apply(run_id: str, *_: object) -> None:
        reached.append(run_id)
        raise RuntimeError("a defect")

    monkeypatch.setattr(tracker, "_apply", apply)
    sighting = Sighting(JobState.PENDING, reason="Resources")
    monkeypatch.setattr(
        tracker, "_in_queue", lambda watched, _: (watched, {job.id: sighting for job in watched})
    )
    monkeypatch.setattr(ctx.slurm("main"), "jobs", lambda user: QueueSnapshot(utcnow(), ()))
    tracker.tick()
    assert set(runs) <= set(reached)


def with_markers(
    ctx: Context, ann: Principal, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> tuple[str, str]:
    """Two runs that squeue and sacct have lost: the markers of one fail, the others say finished."""
    broken, sound = requested(ctx, ann), requested(ctx, ann)
    for run_id in (broken, sound):
        submitted(ctx, run_id, JobState.RUNNING)

    def read(_host: Host, _profile: ClusterProfile, job: JobRow) -> Marker:
        if job.run_id == broken:
            raise error
        ended = utcnow()
        return Marker(job.slurm_job_id or 0, 0, 0, ended, ended, "/o", "/l")

    monkeypatch.setattr(tracking, "read_marker", read)
    monkeypatch.setattr(ctx.slurm("main"), "jobs", lambda user: QueueSnapshot(utcnow(), ()))
    monkeypatch.setattr(ctx.slurm("main"), "accounting", lambda ids: [])
    return broken, sound


def test_the_marker_of_one_run_holds_up_the_end_of_no_other(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = with_markers(ctx, ann, monkeypatch, RuntimeError("a defect"))
    tracker, before = Tracker(ctx, "main", lease), defects()
    tracker.tick()
    assert {job.state for job in jobs_of(ctx, sound).values()} == {JobState.COMPLETED}
    assert {job.state for job in jobs_of(ctx, broken).values()} == {JobState.UNKNOWN}
    assert defects() == before + 2  # both jobs, at every look: there is an alarm for it
    with ctx.db.write() as session:
        for job in attempt_jobs(session, broken, 1):
            job.unknown_since = utcnow() - timedelta(seconds=ctx.cluster("main").unknown_deadline_s + 1)
    tracker.tick()
    assert {job.state for job in jobs_of(ctx, broken).values()} == {JobState.FAILED}  # not for ever


def defects() -> float:
    return REGISTRY.get_sample_value("broker_worker_defects_total") or 0.0


def test_a_folder_in_the_markers_place_is_no_marker(ctx: Context, ann: Principal) -> None:
    run_id = requested(ctx, ann)
    job, profile = jobs_of(ctx, run_id)["loader"], ctx.profile("main")
    Path(status_path(profile, run_id, "loader", 1)).mkdir(parents=True)
    assert read_marker(ctx.host("main"), profile, job) is None


@pytest.mark.parametrize("error", [Denied("closed"), NotFound("gone"), InvalidRequest("a folder by now")])
def test_a_marker_that_is_taken_away_as_it_is_read_holds_up_the_end_of_no_other(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch, error: BrokerError
) -> None:
    broken, sound = with_markers(ctx, ann, monkeypatch, error)
    Tracker(ctx, "main", lease).tick()
    assert {job.state for job in jobs_of(ctx, sound).values()} == {JobState.COMPLETED}
    assert {job.state for job in jobs_of(ctx, broken).values()} == {JobState.UNKNOWN}


def test_a_defect_in_looking_for_one_job_is_not_its_absence(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = requested(ctx, ann), requested(ctx, ann)
    for run_id in (broken, sound):
        submitted(ctx, run_id)
    with ctx.db.write() as session:
        for number, job in enumerate(attempt_jobs(session, sound, 1), 300):
            job.slurm_job_id = number
    jobs, me = [*jobs_of(ctx, broken).values(), *jobs_of(ctx, sound).values()], getpass.getuser()
    queue = [queued(job, job.slurm_job_id or 0, me, SlurmState.RUNNING) for job in jobs]
    tracker, real = Tracker(ctx, "main", lease), tracking.Tracker._is_of

    def is_of(self: Tracker, job: JobRow, found: QueueJob) -> bool:
        if job.run_id == broken:
            raise RuntimeError("a defect")
        return real(self, job, found)

    monkeypatch.setattr(tracking.Tracker, "_is_of", is_of)
    monkeypatch.setattr(ctx.slurm("main"), "jobs", lambda user: QueueSnapshot(utcnow(), tuple(queue)))
    monkeypatch.setattr(ctx.slurm("main"), "accounting", lambda ids: [])
    tracker.tick()
    assert {job.state for job in jobs_of(ctx, sound).values()} == {JobState.RUNNING}
    assert {job.state for job in jobs_of(ctx, broken).values()} == {JobState.PENDING}


def test_ends_are_concluded_from_where_the_look_for_strays_fails(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = requested(ctx, ann)
    submitted(ctx, run_id, JobState.RUNNING)
    ended = [queued(job, job.slurm_job_id or 0, getpass.getuser(), SlurmState.COMPLETED)
             for job in jobs_of(ctx, run_id).values()]  # fmt: skip

    def fails(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(tracking, "adopt_strays", fails)
    monkeypatch.setattr(ctx.slurm("main"), "jobs", lambda user: QueueSnapshot(utcnow(), tuple(ended)))
    monkeypatch.setattr(ctx.slurm("main"), "accounting", lambda ids: [])
    tracker = Tracker(ctx, "main", lease)
    monkeypatch.setattr(tracker, "_marked", lambda job: None)
    tracker.tick()
    assert {job.state for job in jobs_of(ctx, run_id).values()} == {JobState.COMPLETED}


def test_a_run_whose_components_have_all_ended_can_not_be_cancelled_any_more(
    ctx: Context, ann: Principal
) -> None:
    run_id = requested(ctx, ann)
    submitted(ctx, run_id, JobState.COMPLETED)
    with ctx.db.write() as session:
        session.get_one(RunRow, run_id).phase = Phase.STORING
    with pytest.raises(Conflict, match="stored"):
        cancel_run(ctx, ann, run_id)
    assert row(ctx, run_id).cancel_requested_at is None


def test_files_of_a_run_that_is_being_retried_are_not_removed(
    ctx: Context, ann: Principal, lease: Lease
) -> None:
    run_id = requested(ctx, ann)
    Submitter(ctx, "main", lease)._fail(row(ctx, run_id), SlurmRefused("no"))
    retry_run(ctx, ann, run_id, None)  # after the janitor had made its list
    remove_run_files(ctx, "main", lease, run_id)
    assert row(ctx, run_id).removed_at is None


def test_a_run_that_failed_is_over_only_when_slurm_is_rid_of_all_of_it(
    ctx: Context, ann: Principal, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, tracker, slurm = requested(ctx, ann), Tracker(ctx, "main", lease), ctx.slurm("main")
    submitted(ctx, run_id)
    jobs, me = jobs_of(ctx, run_id), getpass.getuser()
    never = replace(queued(jobs["trainer"], 101, me), reason="BadConstraints")
    queue = (queued(jobs["loader"], 100, me, SlurmState.FAILED), never)
    answers = [Result(ResultKind.UNREACHABLE), Result(ResultKind.DONE)]
    asked: list[int] = []

    def cancel(job_ids: Sequence[int]) -> dict[int, Result]:
        asked.extend(job_ids)
        return dict.fromkeys(job_ids, answers.pop(0))

    monkeypatch.setattr(slurm, "jobs", lambda user: QueueSnapshot(utcnow(), queue))
    monkeypatch.setattr(slurm, "accounting", lambda ids: [])
    monkeypatch.setattr(slurm, "cancel", cancel)
    monkeypatch.setattr(tracker, "_marked", lambda job: None)
    tracker.tick()
    trainer = jobs_of(ctx, run_id)["trainer"]
    assert (trainer.state, trainer.reap, row(ctx, run_id).ended_at) == (JobState.FAILED, True, None)
    tracker.tick()
    assert asked.count(101) == 2
    assert not jobs_of(ctx, run_id)["trainer"].reap
    assert (row(ctx, run_id).state, row(ctx, run_id).phase) == (RunState.FAILED, Phase.DONE)
