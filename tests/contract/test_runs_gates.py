"""How Slurm is made to follow a run's holds, and what happens to a run in between, on a real database.

`Answers` stands for Slurm: a controller that answers late or not at all at exactly one moment can't be
had. What the real one does is tried in tests/cluster/test_approval.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.identity import Principal, Role
from broker.runs import gatekeeper
from broker.runs.drift import Difference
from broker.runs.events import events_after
from broker.runs.gatekeeper import Gatekeeper
from broker.runs.holding import add_hold, lift_hold
from broker.runs.schemas import RunRequest
from broker.runs.service import create_run
from broker.runs.states import Gate, JobState, Phase
from broker.runs.submission import Submitter
from broker.runs.tables import ClusterRow, JobRow, RunHoldRow, RunRow, SubmissionRow
from broker.runs.tracking import Tracker
from broker.runs.views import attempt_jobs
from broker.slurm import DONE, QueueSnapshot, Result, ResultKind, SlurmState
from broker.slurm.held import HeldJob
from broker.slurm.tres import parse_tres
from tests.api_support import Api, context, worker_lease

FIRST = 100


@dataclass
class Answers:
    """What Slurm says: `reason` of jobs after a hold, results of changes, and what happens meanwhile."""

    reason: str = "JobHeldAdmin"
    result: Result = DONE
    meanwhile: Callable[[], object] = lambda: None
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    running: set[int] = field(default_factory=set)

    def _change(self, what: str, ids: Sequence[int]) -> dict[int, Result]:
        self.asked.append((what, tuple(ids)))
        self.meanwhile()
        return dict.fromkeys(ids, self.result)

    def hold(self, ids: Sequence[int]) -> dict[int, Result]:
        return self._change("hold", ids)

    def release(self, ids: Sequence[int]) -> dict[int, Result]:
        return self._change("release", ids)

    def held(self, ids: Sequence[int]) -> Mapping[int, HeldJob]:
        found = {number: _job(number, self.reason) for number in ids}
        return found | {n: replace(found[n], state=SlurmState.RUNNING) for n in self.running & found.keys()}

    def capabilities(self) -> Any:
        return type("Capabilities", (), {"user": "broker"})()


def _job(number: int, reason: str) -> HeldJob:
    texts = dict.fromkeys(HeldJob.__annotations__, "")
    return HeldJob(
        **texts
        | {
            "job_id": number,
            "state": SlurmState.PENDING,
            "reason": reason,
            "priority": 0 if reason.startswith("JobHeld") else 1,
            "tres": parse_tres(""),
            "max_nodes": 1,
            "max_cpus": 1,
            "time_limit_s": 60,
        }
    )


@dataclass
class Desk:
    ctx: Context
    slurm: Answers
    submitter: Submitter
    gates: Gatekeeper
    ann: Principal
    lease: Lease

    def run(self, run_id: str) -> RunRow:
        with self.ctx.db.read() as session:
            return session.get_one(RunRow, run_id)

    def holds(self, run_id: str) -> set[str]:
        with self.ctx.db.read() as session:
            return {row.kind for row in session.query(RunHoldRow).filter_by(run_id=run_id)}

    def change(self, run_id: str, what: Callable[..., object], *words: str) -> None:
        with self.ctx.db.write() as session:
            what(session, session.get_one(RunRow, run_id), *words)

    def submitted(self, **fields: Any) -> str:
        """A run that Slurm has, in the phase in which it is released."""
        run_id = create_run(self.ctx, self.ann, RunRequest(pipeline="digits")).id
        with self.ctx.db.write() as session:
            run = session.get_one(RunRow, run_id)
            run.phase = Phase.RELEASING
            for name, value in fields.items():
                setattr(run, name, value)
            for number, job in enumerate(attempt_jobs(session, run_id, 1), FIRST):
                job.slurm_job_id, job.state, job.submitted_at = number, JobState.PENDING, utcnow()
            session.query(RunHoldRow).filter_by(run_id=run_id).delete()
            row = SubmissionRow(run_id=run_id, attempt=1, plan=b"", plan_hash="sha256:1")
            row.intended_at = utcnow()
            session.add(row)
        return run_id


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with context(tmp_path) as ctx:
        api, slurm = Api(ctx), Answers()
        user_id = api.add("ann")
        assert api.store("ann").status_code == 201
        monkeypatch.setattr(ctx, "slurm", lambda cluster: slurm)
        lease = worker_lease(ctx)
        ann = Principal(user_id, "ann", Role.RESEARCHER, "default")
        yield Desk(ctx, slurm, Submitter(ctx, "main", lease), Gatekeeper(ctx, "main", lease), ann, lease)


def test_a_hold_counts_when_slurm_shows_it_and_not_before(desk: Desk) -> None:
    run_id = desk.submitted()
    desk.change(run_id, add_hold, "admin", "maintenance")
    desk.slurm.reason = "JobHeldUser"  # what a hold by an account that is no operator gives
    desk.submitter.advance(run_id)
    run = desk.run(run_id)
    assert run.gate == Gate.CLOSING and run.next_try_at is not None
    assert run.trouble is not None and "adminlevel=operator" in run.trouble
    desk.slurm.reason = "JobHeldAdmin"
    desk.submitter.advance(run_id)
    run = desk.run(run_id)
    assert (run.gate, run.trouble, run.phase) == (Gate.CLOSED, None, Phase.RELEASING)
    desk.slurm.asked.clear()
    desk.submitter.advance(run_id)
    assert desk.slurm.asked == []  # nothing more to do until the hold is lifted
    desk.change(run_id, lift_hold, "admin")
    desk.submitter.advance(run_id)
    assert desk.slurm.asked == [("release", (FIRST + 1, FIRST))]  # children before roots
    assert (desk.run(run_id).gate, desk.run(run_id).phase) == (Gate.OPEN, Phase.ACTIVE)


def test_a_controller_that_does_not_answer_changes_nothing(desk: Desk) -> None:
    run_id = desk.submitted()
    desk.change(run_id, add_hold, "admin", "maintenance")
    desk.slurm.result = Result(ResultKind.OUTCOME_UNKNOWN, "Socket timed out")
    desk.submitter.advance(run_id)
    assert desk.run(run_id).gate == Gate.CLOSING and "Socket timed out" in (desk.run(run_id).trouble or "")


def test_a_hold_that_is_lifted_while_slurm_holds_ends_in_a_release(desk: Desk) -> None:
    run_id = desk.submitted()
    desk.change(run_id, add_hold, "admin", "maintenance")
    desk.slurm.meanwhile = lambda: desk.change(run_id, lift_hold, "admin")
    desk.submitter.advance(run_id)
    assert desk.run(run_id).gate == Gate.OPENING
    desk.slurm.meanwhile = lambda: None
    desk.submitter.advance(run_id)
    assert desk.run(run_id).gate == Gate.OPEN
    assert [what for what, _ in desk.slurm.asked] == ["hold", "release"]


def test_a_hold_that_comes_while_slurm_releases_is_not_forgotten(desk: Desk) -> None:
    run_id = desk.submitted()
    desk.slurm.meanwhile = lambda: desk.change(run_id, add_hold, "quota", "no room")
    desk.submitter.advance(run_id)
    assert (desk.run(run_id).gate, desk.run(run_id).phase) == (Gate.CLOSING, Phase.ACTIVE)
    desk.slurm.meanwhile = lambda: None
    desk.submitter.advance(run_id)
    assert desk.run(run_id).gate == Gate.CLOSED
    assert [what for what, _ in desk.slurm.asked] == ["release", "hold"]


def test_what_runs_is_neither_held_nor_released(desk: Desk) -> None:
    run_id = desk.submitted(phase=Phase.ACTIVE)
    with desk.ctx.db.write() as session:
        loader, _ = attempt_jobs(session, run_id, 1)
        loader.state, loader.started_at = JobState.RUNNING, utcnow()
    desk.change(run_id, add_hold, "admin", "maintenance")
    desk.submitter.advance(run_id)
    desk.change(run_id, lift_hold, "admin")
    desk.submitter.advance(run_id)
    assert desk.slurm.asked == [("hold", (FIRST + 1,)), ("release", (FIRST + 1,))]


@pytest.mark.parametrize(
    ("plan_hash", "age"),
    [("sha256:other", timedelta()), ("sha256:1", timedelta(seconds=1)), (None, timedelta())],
)
def test_nothing_is_released_that_was_not_approved_exactly_and_lately(
    desk: Desk, plan_hash: str | None, age: timedelta
) -> None:
    over = [{"component": "trainer", "resource": "gpu_count", "requested": 8, "threshold": 4}]
    until = utcnow() + (timedelta(days=1) if not age else -age)
    run_id = desk.submitted(
        approval="approved", needs_approval=over, approved_plan_hash=plan_hash, approved_until=until
    )
    desk.submitter.advance(run_id)
    assert desk.slurm.asked == []
    run = desk.run(run_id)
    assert (run.approval, run.state, desk.holds(run_id)) == ("pending", "pending_approval", {"approval"})


NEEDS: Any = {
    "needs_approval": [{"component": "trainer", "resource": "gpu_count", "requested": 8, "threshold": 4}]
}
APPROVED: Any = {"approval": "approved", "approved_plan_hash": "sha256:1"}
CHANGED = [Difference("trainer", "memory (MB)", "64", "200000")]


def test_a_decision_that_comes_while_a_run_is_read_releases_nothing_that_was_changed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.submitted(**NEEDS, approval="pending")
    read_before = desk.run(run_id)
    with desk.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        for name, value in APPROVED.items():
            setattr(run, name, value)
        run.approved_until = utcnow() + timedelta(days=1)
    monkeypatch.setattr(desk.gates, "_differences", lambda run, jobs: CHANGED)
    desk.gates.follow(read_before)
    assert desk.slurm.asked == []
    assert (desk.run(run_id).approval, desk.holds(run_id)) == ("pending", {"approval"})


def test_what_runs_of_a_run_that_waits_for_a_second_decision_was_let_go_by_the_first(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.submitted(**NEEDS, **APPROVED, phase=Phase.ACTIVE, gate=Gate.OPENING)
    with desk.ctx.db.write() as session:
        loader, _ = attempt_jobs(session, run_id, 1)
        loader.state, loader.started_at = JobState.RUNNING, utcnow()
    desk.slurm.running = {FIRST}
    monkeypatch.setattr(Gatekeeper, "_differences", lambda self, run, jobs: CHANGED)
    desk.submitter.advance(run_id)
    assert (desk.run(run_id).approval, desk.run(run_id).gate) == ("pending", Gate.CLOSING)
    desk.submitter.advance(run_id)
    run = desk.run(run_id)
    assert (run.gate, run.phase) == (Gate.CLOSED, Phase.ACTIVE)
    assert run.trouble is not None and "200000" in run.trouble and "approve it" in run.trouble
    loader_seen = replace(_queued(FIRST, "None"), state=SlurmState.RUNNING, priority=1)
    desk.gates.watch(QueueSnapshot(utcnow(), (loader_seen, _queued(FIRST + 1, "JobHeldAdmin"))))
    assert desk.run(run_id).gate == Gate.CLOSED


def test_a_run_whose_last_start_was_preempted_is_released_after_an_admins_hold(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script has lowered the limit of that start; one that never started has nobody's leave for it."""
    asked: list[Set[str]] = []

    def compared(*found: Any) -> list[Difference]:
        asked.append(found[-1])
        return []

    monkeypatch.setattr(gatekeeper, "load_plan", lambda *_: object())
    monkeypatch.setattr(gatekeeper, "differences", compared)
    monkeypatch.setattr(desk.slurm, "batch_scripts", lambda ids: {}, raising=False)
    monkeypatch.setattr(desk.slurm, "partitions", lambda: [], raising=False)
    run_id = desk.submitted(**NEEDS, **APPROVED, phase=Phase.ACTIVE, gate=Gate.OPENING)
    with desk.ctx.db.write() as session:
        for job in attempt_jobs(session, run_id, 1):
            job.resources = job.resources | {"start_s": 600}
            job.started_at = utcnow() if job.component == "trainer" else None
    desk.submitter.advance(run_id)
    assert asked == [{"trainer"}]
    assert (desk.run(run_id).gate, desk.slurm.asked) == (Gate.OPEN, [("release", (FIRST + 1, FIRST))])


def test_those_who_decide_are_told_when_a_release_was_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = utcnow() + timedelta(days=1)
    run_id = desk.submitted(**NEEDS, **APPROVED, approved_until=until)
    monkeypatch.setattr(Gatekeeper, "_differences", lambda self, run, jobs: CHANGED)
    desk.submitter.advance(run_id)
    with desk.ctx.db.read() as session:
        told = [event.type for event in events_after(session, run_id, 0)]
    assert told[-2:] == ["release_refused", "approval_requested"]
    assert desk.run(run_id).approval == "pending"


def test_a_run_that_was_rejected_while_it_failed_stays_rejected(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.submitted(**NEEDS, approval="pending")
    desk.change(run_id, add_hold, "approval", "large")

    def reject(*_: object) -> None:
        with desk.ctx.db.write() as session:
            run = session.get_one(RunRow, run_id)
            run.approval, run.error, run.cancel_requested_at = "rejected", "too large", utcnow()

    ended: list[object] = []
    monkeypatch.setattr(Submitter, "_end_jobs", lambda self, run, reason: ended.append(reason))
    desk.slurm.running, desk.slurm.meanwhile = {FIRST}, reject
    desk.submitter.advance(run_id)
    run = desk.run(run_id)
    assert len(ended) == 1
    assert (run.phase, run.error, run.ended_at) == (Phase.RELEASING, "too large", None)  # its end is pursued


def test_what_many_jobs_on_whole_nodes_asked_for_is_asked_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (FIRST, FIRST + 2):
        run_id = desk.submitted(**NEEDS, **APPROVED, unix_account="kim", phase=Phase.ACTIVE)
        with desk.ctx.db.write() as session:
            for number, job in enumerate(attempt_jobs(session, run_id, 1), first):
                job.slurm_job_id, job.state = number, JobState.RUNNING
    asked: list[list[int]] = []

    def accounting(ids: Sequence[int]) -> list[Any]:
        asked.append(sorted(ids))
        told = {number: parse_tres("mem=1M") for number in ids} | {FIRST + 1: parse_tres("mem=900G")}
        told.pop(FIRST + 2)  # accounting does not know it yet
        return [type("Account", (), {"job_id": n, "req_tres": tres})() for n, tres in told.items()]

    monkeypatch.setattr(desk.slurm, "accounting", accounting, raising=False)
    whole = parse_tres("cpu=128,mem=900G")
    rows = [
        replace(_queued(n, "None"), state=SlurmState.RUNNING, priority=1, tres=whole, time_limit_s=60)
        for n in range(FIRST, FIRST + 4)
    ]
    desk.gates.watch(QueueSnapshot(utcnow(), tuple(rows)))
    assert asked == [[FIRST, FIRST + 1, FIRST + 2, FIRST + 3]]
    with desk.ctx.db.read() as session:
        reaped = [job.slurm_job_id for job in session.query(JobRow).filter(JobRow.reap)]
    assert reaped == [FIRST + 1]


@pytest.mark.parametrize(("reason", "gate"), [("Priority", Gate.CLOSING), ("JobHeldAdmin", Gate.CLOSED)])
def test_each_look_at_the_queue_sees_what_got_loose(desk: Desk, reason: str, gate: Gate) -> None:
    run_id = desk.submitted(gate=Gate.CLOSED)
    desk.change(run_id, lambda session, run: session.add(
        RunHoldRow(run_id=run.id, kind="approval", reason="", since=utcnow())
    ))  # fmt: skip
    seen = [_queued(number, reason) for number in (FIRST, FIRST + 1)]
    desk.gates.watch(QueueSnapshot(utcnow(), tuple(seen)))
    assert desk.run(run_id).gate == gate


def test_what_is_wrong_with_one_run_holds_up_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, sound = (desk.submitted(gate=Gate.CLOSED) for _ in range(2))
    with desk.ctx.db.write() as session:
        for number, job in enumerate(attempt_jobs(session, sound, 1), FIRST + 2):
            job.slurm_job_id = number
    real = gatekeeper.locked

    def locked(session: Any, lease: Lease, run: RunRow, phases: Any = None) -> RunRow | None:
        if run.id == broken:
            raise ValueError("a defect, or a row that can't be read")
        return real(session, lease, run, phases)

    monkeypatch.setattr(gatekeeper, "locked", locked)
    seen = [_queued(number, "Priority") for number in range(FIRST, FIRST + 4)]
    desk.gates.watch(QueueSnapshot(utcnow(), tuple(seen)))
    assert (desk.run(broken).gate, desk.run(sound).gate) == (Gate.CLOSED, Gate.CLOSING)


def test_a_size_that_cannot_be_compared_hides_no_other_run_that_outgrew_its_approval(desk: Desk) -> None:
    broken, large = (
        desk.submitted(**NEEDS, **APPROVED, unix_account="kim", phase=Phase.ACTIVE) for _ in range(2)
    )
    with desk.ctx.db.write() as session:
        for run_id in (broken, large):
            for number, job in enumerate(attempt_jobs(session, run_id, 1), FIRST + 2 * (run_id == large)):
                job.slurm_job_id = number
                if run_id == broken:
                    job.resources = {"of": "another release"}
    grown = replace(_queued(FIRST + 2, "Priority"), tres=parse_tres("cpu=1,mem=900G"), time_limit_s=60)
    seen = [grown, *(_queued(number, "Priority") for number in (FIRST, FIRST + 1))]
    desk.gates.watch(QueueSnapshot(utcnow(), tuple(seen)))
    with desk.ctx.db.read() as session:
        reaped = [job.slurm_job_id for job in session.query(JobRow).filter(JobRow.reap)]
    assert reaped == [FIRST + 2]


def test_a_look_goes_on_where_one_part_of_it_fails(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_snapshot: QueueSnapshot) -> None:
        raise ValueError("a defect of what keeps the queue")

    taken = utcnow()
    monkeypatch.setattr(desk.slurm, "jobs", lambda user: QueueSnapshot(taken, ()), raising=False)
    monkeypatch.setattr(desk.slurm, "accounting", lambda ids: [], raising=False)
    before = REGISTRY.get_sample_value("broker_worker_defects_total") or 0.0
    Tracker(desk.ctx, "main", desk.lease, fails).tick()
    with desk.ctx.db.read() as session:
        assert session.get_one(ClusterRow, "main").polled_at == taken
    assert REGISTRY.get_sample_value("broker_worker_defects_total") == before + 1


def _queued(number: int, reason: str) -> Any:
    from tests.contract.test_runs_races import queued

    job = type("Job", (), {"name": "x"})()
    row = queued(job, number, "broker")
    return replace(row, reason=reason, priority=0 if reason.startswith("JobHeld") else 1)
