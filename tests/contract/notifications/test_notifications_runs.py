"""What happens to runs, tenants and clusters is told, with the change and once."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select

from broker.db import utcnow
from broker.identity import Role
from broker.notifications.tables import NotificationRow
from broker.runs.events import emit
from broker.runs.observation import Sighting
from broker.runs.settling import settle
from broker.runs.sightings import write_sighting
from broker.runs.states import JobState, Phase
from broker.runs.tables import JobRow, RunRow
from broker.runs.tracking import Tracker
from tests.api_support import Api, context, worker_lease


@pytest.fixture
def api(tmp_path):
    settings = {"unreachable_after_s": 60}
    with context(tmp_path, notifications=settings) as ctx:
        made = Api(ctx)
        made.ann = made.add("ann")
        made.add("root", Role.ADMIN)
        made.store("ann")
        yield made


def request(api):
    answer = api.call("POST", "/runs", "ann", json={"pipeline": "digits"})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def notices(api):
    with api.ctx.db.read() as session:
        rows = session.scalars(select(NotificationRow).order_by(NotificationRow.created_at)).all()
        return [(row.kind, row.user_id, row.data) for row in rows]


def kinds(api):
    return [kind for kind, _, _ in notices(api)]


def see(api, run_id, **states):
    """Let the tracker's own functions see each component in a state, and settle the run."""
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id, with_for_update=True)
        run.phase = Phase.ACTIVE if run.phase != Phase.STORING else run.phase
        now = utcnow()
        for job in session.scalars(select(JobRow).where(JobRow.run_id == run_id)):
            state = JobState(states[job.component])
            if state != job.state:
                began = now if state.occupies_nodes else None
                write_sighting(session, run, job, Sighting(state, started_at=began), now)
            if state.ended:
                job.storing = "none"
        settle(api.ctx, session, run)


def test_a_run_tells_of_its_start_once_and_of_its_end(api):
    run_id = request(api)
    see(api, run_id, loader="RUNNING", trainer="PENDING")
    see(api, run_id, loader="COMPLETED", trainer="RUNNING")
    assert kinds(api) == ["run_started"]
    see(api, run_id, loader="COMPLETED", trainer="COMPLETED")
    assert kinds(api) == ["run_started", "run_completed"]
    assert all(user == api.ann and data["run_id"] == run_id for _, user, data in notices(api))


@pytest.mark.parametrize(
    ("end", "kind"),
    [("FAILED", "run_failed"), ("OUT_OF_MEMORY", "run_failed"), ("TIMEOUT", "run_timed_out")],
)
def test_how_a_run_failed_decides_what_is_told(api, end, kind):
    run_id = request(api)
    see(api, run_id, loader="RUNNING", trainer="PENDING")
    see(api, run_id, loader=end, trainer="UPSTREAM_FAILED")
    assert kinds(api)[-1] == kind
    assert "loader" in notices(api)[-1][2]["error"]


def test_a_cancelled_run_tells_nobody_who_asked_for_it(api):
    run_id = request(api)
    api.call("POST", f"/runs/{run_id}/cancel", "ann")
    see(api, run_id, loader="CANCELLED", trainer="CANCELLED")
    assert kinds(api) == []


def test_a_request_for_approval_tells_which_component_is_over_which_threshold(api):
    run_id = request(api)
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id, with_for_update=True)
        run.needs_approval = [
            {"component": "trainer", "resource": "gpu_count", "requested": 8, "threshold": 4}
        ]
        emit(session, run, "approval_requested", needs=run.needs_approval)
        emit(session, run, "rejected", by="root", comment="too many GPUs")
    (asked, _, need), (decided, owner, decision) = notices(api)
    assert (asked, decided, owner) == ("run_approval_requested", "run_decided", api.ann)
    assert need["components"] == ["trainer: GPU 8 (≥ 4)"]
    assert decision["decision"] == "rejected" and decision["comment"] == "too many GPUs"


def test_a_notice_is_rolled_back_with_what_it_tells_of(api):
    run_id = request(api)
    with pytest.raises(ZeroDivisionError), api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id, with_for_update=True)
        emit(session, run, "run_finished", state="failed", error="never")
        raise ZeroDivisionError
    assert kinds(api) == []


def test_a_cluster_that_is_not_seen_for_long_is_told_of_once_per_outage(api):
    """`squeue` of an empty PATH: every look fails as it does when the login node is gone."""
    lease = worker_lease(api.ctx)
    settings = api.ctx.cluster("main").model_copy(update={"path": "/nonexistent"})
    api.ctx.settings.clusters["main"] = settings
    tracker = Tracker(api.ctx, "main", lease)

    def seen(minutes_ago):
        tracker._note(None, utcnow() - timedelta(minutes=minutes_ago))

    seen(0)
    tracker.tick()
    assert kinds(api) == []  # a moment only
    seen(2)
    for _ in range(3):
        tracker.tick()
    assert kinds(api) == ["cluster_unreachable"]
    seen(3)
    tracker.tick()
    assert kinds(api) == ["cluster_unreachable"] * 2
    ((_, _, data), _) = notices(api)
    assert data["cluster"] == "main" and data["trouble"] and data["since"]


def test_many_who_see_the_same_outage_tell_of_it_once(api):
    lease = worker_lease(api.ctx)
    tracker = Tracker(api.ctx, "main", lease)
    tracker._note(None, utcnow() - timedelta(hours=1))
    threads = [threading.Thread(target=tracker._note, args=("gone", None)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds(api) == ["cluster_unreachable"]
