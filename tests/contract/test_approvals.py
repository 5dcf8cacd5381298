"""Requests above the thresholds, over HTTP on a real database: who decides about what, and what that does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from broker.approvals.service import expire
from broker.audit.tables import AuditRow
from broker.compiler import ResolvedImage
from broker.db import leases, utcnow
from broker.identity import Role
from broker.runs.holding import add_hold, lift_hold, plan_known
from broker.runs.planning import Resolved, encode, make_plan
from broker.runs.states import Gate, JobState, Phase, RunState
from broker.runs.tables import JobRow, RunHoldRow, RunRow, SubmissionRow
from tests.api_support import Api, codes, context, spec
from tests.postgres import database_of

LARGE = {"components": {"trainer": {"gpu_count": 8}}}
NEEDED = [{"component": "trainer", "resource": "gpu_count", "requested": 8, "threshold": 4}]


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path, url) as ctx:
        api = Api(ctx)
        for name, role in (("root", Role.ADMIN), ("boss", Role.ADMIN), ("ann", Role.RESEARCHER)):
            api.add(name, role)
        api.add("bob", Role.RESEARCHER, "other")
        api.add("lead", Role.TENANT_ADMIN)
        assert api.store("ann").status_code == 201
        yield api


def ask(api: Api, who: str = "ann", **body: Any) -> dict[str, Any]:
    answer = api.call("POST", "/runs", who, json={"pipeline": "digits", "overrides": LARGE} | body)
    assert answer.status_code == 201, answer.text
    run: dict[str, Any] = answer.json()
    return run


def compile_(api: Api, run_id: str, digest: str = "sha256:1") -> str:
    """What the worker does once the images are on the cluster: the plan is stored; now it can be decided."""
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        images = {
            f"registry.example.org/{name}:1.0": ResolvedImage(f"/images/{name}.sif", digest)
            for name in ("loader", "trainer")
        }
        run.resolved = Resolved(images, {}).document()
    plan, _ = make_plan(api.ctx, run_id)
    with api.ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        row = SubmissionRow(run_id=run_id, attempt=run.attempt, plan=encode(plan), plan_hash=plan.plan_hash)
        row.intended_at = utcnow()
        session.merge(row)
        plan_known(session, run, plan.plan_hash)
    return plan.plan_hash


def decide(api: Api, run: dict[str, Any], verdict: str, who: str = "root", **body: Any) -> Any:
    return api.call("POST", f"/approvals/{run['id']}/{verdict}", who, json=body)


def row(api: Api, run: dict[str, Any]) -> RunRow:
    with api.ctx.db.read() as session:
        return session.get_one(RunRow, run["id"])


def holds(api: Api, run: dict[str, Any]) -> set[str]:
    with api.ctx.db.read() as session:
        return set(session.scalars(select(RunHoldRow.kind).where(RunHoldRow.run_id == run["id"])))


def end(api: Api, run: dict[str, Any], state: RunState) -> None:
    """The worker's part of an end, without a cluster."""
    with api.ctx.db.write() as session:
        found = session.get_one(RunRow, run["id"])
        found.state, found.phase, found.ended_at = state, Phase.DONE, utcnow()
        for job in session.scalars(select(JobRow).where(JobRow.run_id == found.id)):
            job.state = JobState.FAILED


# ---- before and at the request --------------------------------------------------------------------------


def test_validate_says_before_the_request_which_component_would_need_approval(api: Api) -> None:
    small = api.call("POST", "/pipelines/validate", "ann", json=spec())
    assert small.json()["needs_approval"] == []
    document = spec()
    document["components"][1]["resources"] |= {"gpu_count": 8, "memory": "256GB"}
    large = api.call("POST", "/pipelines/validate", "ann", json=document).json()
    memory = {"component": "trainer", "resource": "memory_mib", "requested": 262144, "threshold": 131072}
    assert large["needs_approval"] == [*NEEDED, memory]


def test_a_run_below_the_thresholds_needs_nobody(api: Api) -> None:
    run = ask(api, overrides=None)
    assert (run["approval"], run["state"], run["needs_approval"]) == ("not_required", "queued", [])
    assert run["holds"] == ["submission"]
    assert api.call("GET", f"/approvals/{run['id']}", "root").status_code == 404


@pytest.mark.parametrize("kind", ["normal", "test"])
def test_a_large_run_waits_from_its_request_on_and_says_because_of_what(api: Api, kind: str) -> None:
    run = ask(api, kind=kind)
    assert (run["approval"], run["state"], run["state_ko"]) == ("pending", "pending_approval", "승인대기")
    assert run["needs_approval"] == NEEDED
    assert run["holds"] == ["approval", "submission"]
    assert api.call("GET", f"/runs/{run['id']}", "ann").json()["needs_approval"] == NEEDED
    assert row(api, run).gate == Gate.CLOSING


# ---- who sees, who decides ------------------------------------------------------------------------------


def test_only_an_administrator_decides_and_nobody_about_their_own_request(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    for who in ("ann", "lead"):
        assert decide(api, run, "approve", who).status_code == 403
        assert decide(api, run, "reject", who, comment="no").status_code == 403
    assert decide(api, run, "approve", "bob").status_code in {403, 404}
    assert api.call("GET", f"/approvals/{run['id']}", "bob").status_code == 404
    own = ask(api, who="boss")
    compile_(api, own["id"])
    refused = decide(api, own, "approve", "boss")
    assert refused.status_code == 403 and "their own request" in refused.json()["detail"]
    review = api.call("GET", f"/approvals/{own['id']}", "boss").json()
    assert not review["may_decide"] and "their own" in review["why_not"]
    assert decide(api, own, "approve", "root").status_code == 200
    assert row(api, run).approval == "pending"


def test_requests_are_listed_for_those_who_may_see_the_run(api: Api) -> None:
    waiting, rejected, small = ask(api), ask(api), ask(api, overrides=None)
    assert decide(api, rejected, "reject", comment="too large").status_code == 200

    def listed(who: str, **query: Any) -> list[str]:
        items = api.call("GET", "/approvals", who, params=query).json()["items"]
        return [item["run_id"] for item in items]

    assert listed("root") == listed("ann") == [rejected["id"], waiting["id"]]
    assert small["id"] not in listed("root")
    assert listed("bob") == []
    assert listed("root", state="pending") == [waiting["id"]]
    assert listed("root", state="rejected") == [rejected["id"]]
    [item] = api.call("GET", "/approvals", "root", params={"state": "rejected"}).json()["items"]
    assert item["requester"] == "ann" and item["expires_at"] is None
    assert (item["decision"]["decision"], item["decision"]["comment"]) == ("rejected", "too large")
    assert item["decision"]["decided_by"] == "root"


def test_a_request_that_was_cancelled_is_nobodys_to_decide(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    assert api.call("POST", f"/runs/{run['id']}/cancel", "ann").status_code == 202
    assert decide(api, run, "approve").status_code == 409
    assert api.call("GET", "/approvals?state=pending", "root").json()["items"] == []


# ---- deciding -------------------------------------------------------------------------------------------


def test_an_approval_is_bound_to_what_was_compiled(api: Api) -> None:
    run = ask(api)
    early = decide(api, run, "approve")
    assert early.status_code == 409 and "not known yet" in early.json()["detail"]
    plan_hash = compile_(api, run["id"])
    other = decide(api, run, "approve", plan_hash="sha256:0")
    assert other.status_code == 409 and plan_hash in other.json()["detail"]
    approved = decide(api, run, "approve", plan_hash=plan_hash, comment="fine")
    assert approved.status_code == 200, approved.text
    after = row(api, run)
    assert (after.approval, after.state, after.approved_plan_hash) == ("approved", "queued", plan_hash)
    assert after.approved_until is not None and after.approved_until > utcnow() + timedelta(days=13)
    assert holds(api, run) == {"submission"}
    assert after.gate == Gate.OPENING
    assert decide(api, run, "approve").status_code == 409
    assert decide(api, run, "reject", comment="after all").status_code == 409


def test_a_rejection_needs_a_reason_and_ends_the_run(api: Api) -> None:
    run = ask(api)
    for body in ({}, {"comment": ""}, {"comment": "  \n"}):
        refused = decide(api, run, "reject", **body)
        assert refused.status_code == 422
        assert [problem["pointer"] for problem in refused.json()["errors"]] == ["/comment"]
    assert codes(decide(api, run, "reject", comment=" ")) == {"comment_required"}
    assert decide(api, run, "reject", comment="use 2 GPUs").status_code == 200
    after = row(api, run)
    assert (after.approval, after.error_code, after.error) == ("rejected", "rejected", "use 2 GPUs")
    assert after.cancel_requested_at is not None  # the worker ends it: nothing of it stays in Slurm
    assert api.call("POST", f"/runs/{run['id']}/retry", "ann", json={}).status_code == 409


def test_every_decision_leaves_an_audit_row_and_an_event(api: Api) -> None:
    one, two = ask(api), ask(api)
    plan_hash = compile_(api, one["id"])
    decide(api, one, "approve", comment="fine")
    decide(api, two, "reject", comment="no")
    with api.ctx.db.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action.in_(["run.approve", "run.reject"])))
        found = [(r.actor_name, r.action, r.object_id, r.before, r.after, r.note) for r in rows]
    pending = {"approval": "pending"}
    approved = {"approval": "approved", "attempt": 1, "plan_hash": plan_hash}
    rejected = {"approval": "rejected", "attempt": 1, "plan_hash": None}
    assert found == [
        ("root", "run.approve", one["id"], pending, approved, "fine"),
        ("root", "run.reject", two["id"], pending, rejected, "no"),
    ]
    events = api.call("GET", f"/runs/{two['id']}/events", "ann").json()
    assert events[-1]["type"] == "rejected" and events[-1]["data"]["comment"] == "no"


# ---- other holds ----------------------------------------------------------------------------------------


def test_lifting_another_hold_never_bypasses_an_approval(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    with api.ctx.db.write() as session:
        found = session.get_one(RunRow, run["id"])
        assert add_hold(session, found, "admin", "maintenance")
        assert not add_hold(session, found, "admin", "again")
        found.gate = Gate.CLOSED
        assert lift_hold(session, found, "admin")
        assert found.gate == Gate.CLOSED  # the approval's hold stands: nothing is released
    assert decide(api, run, "approve").status_code == 200
    assert row(api, run).gate == Gate.OPENING


def test_an_approved_run_goes_on_waiting_for_what_else_holds_it(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    with api.ctx.db.write() as session:
        add_hold(session, session.get_one(RunRow, run["id"]), "quota", "no room")
    assert decide(api, run, "approve").status_code == 200
    assert holds(api, run) == {"submission", "quota"}
    assert row(api, run).gate == Gate.CLOSING


# ---- retry ----------------------------------------------------------------------------------------------


def retried(api: Api, run: dict[str, Any], digest: str = "sha256:1") -> RunRow:
    end(api, run, RunState.FAILED)
    assert api.call("POST", f"/runs/{run['id']}/retry", "ann", json={}).status_code == 202
    assert row(api, run).approval == "pending"
    compile_(api, run["id"], digest)
    return row(api, run)


def test_a_retry_of_exactly_what_was_approved_keeps_its_approval(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    decide(api, run, "approve")
    after = retried(api, run)
    assert (after.attempt, after.approval, after.state) == (2, "approved", "queued")
    assert holds(api, run) == {"submission"}


def test_a_retry_of_anything_else_needs_a_decision_again(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    decide(api, run, "approve")
    after = retried(api, run, digest="sha256:2")
    assert (after.approval, after.state) == ("pending", "pending_approval")
    assert holds(api, run) == {"submission", "approval"}


def test_an_approval_is_not_kept_for_ever(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    decide(api, run, "approve")
    with api.ctx.db.write() as session:
        session.get_one(RunRow, run["id"]).approved_until = utcnow() - timedelta(seconds=1)
    assert retried(api, run).approval == "pending"


def test_a_retry_of_what_nobody_decided_about_still_waits(api: Api) -> None:
    run = ask(api)
    compile_(api, run["id"])
    assert retried(api, run).approval == "pending"


# ---- expiry ---------------------------------------------------------------------------------------------


def test_a_request_that_nobody_decides_expires(api: Api) -> None:
    old, new = ask(api), ask(api)
    with api.ctx.db.write() as session:
        asked = utcnow() - timedelta(days=14, seconds=1)
        session.get_one(RunRow, old["id"]).approval_requested_at = asked
    lease = leases.acquire(api.ctx.db, "approvals", "test", 3600)
    assert lease is not None
    assert expire(api.ctx, lease) == 1
    assert expire(api.ctx, lease) == 0
    assert row(api, new).approval == "pending"
    after = row(api, old)
    assert after.approval == "rejected" and after.error is not None and "14 days" in after.error
    [decision] = api.call("GET", f"/approvals/{old['id']}", "ann").json()["decisions"]
    assert (decision["decision"], decision["decided_by"]) == ("expired", None)


# ---- reviewing ------------------------------------------------------------------------------------------


def test_a_review_shows_what_there_is_to_know(api: Api) -> None:
    test = ask(api, kind="test", overrides=None)
    compile_(api, test["id"])
    end(api, test, RunState.SUCCEEDED)
    with api.ctx.db.write() as session:
        for job in session.scalars(select(JobRow).where(JobRow.run_id == test["id"])):
            job.metrics = {"accuracy": 0.9} if job.component == "trainer" else None
    document = spec(env_vars={"EPOCHS": "30"})
    document["components"].reverse()  # an order that means nothing
    assert api.store("ann", document).status_code == 201
    run = ask(api, test_run_ref=test["id"], priority_class="fine-tuning")
    plan_hash = compile_(api, run["id"], digest="sha256:2")
    review = api.call("GET", f"/approvals/{run['id']}", "root").json()
    assert review["may_decide"] and review["why_not"] is None and review["plan_hash"] == plan_hash
    assert (review["requester"]["username"], review["requester"]["tenant"]) == ("ann", "default")
    assert review["thresholds"] == {"gpu_count": 4, "memory_mib": 131072}
    over = {one["component"]: one["over"] for one in review["components"]}
    assert over == {"loader": [], "trainer": ["gpu_count"]}
    assert review["spec"]["components"][0]["resources"]["gpu_count"] == 8  # the override is applied
    assert {job["component"] for job in review["jobs"]} == {"loader", "trainer"}
    assert all(job["script"].startswith("#!/bin/bash") for job in review["jobs"])
    assert review["tenant_usage"]["tenant"] == "default"
    assert review["test_run"]["state"] == "succeeded"
    assert review["test_run"]["metrics"] == {"trainer": {"accuracy": 0.9}}
    assert {(one["pointer"], one["tested"], one["requested"]) for one in review["changes"]} == {
        ("/env_vars/EPOCHS", "3", "30"),
        ("/components/trainer/resources/gpu_count", 2, 8),
        ("/priority_class", "training", "fine-tuning"),
        ("/resolved/images/registry.example.org~1loader:1.0", "sha256:1", "sha256:2"),
        ("/resolved/images/registry.example.org~1trainer:1.0", "sha256:1", "sha256:2"),
    }


def test_the_requester_sees_the_review_but_may_not_decide(api: Api) -> None:
    run = ask(api)
    review = api.call("GET", f"/approvals/{run['id']}", "ann")
    assert review.status_code == 200
    assert not review.json()["may_decide"] and "administrator" in review.json()["why_not"]
    assert review.json()["changes"] is None and review.json()["plan_hash"] is None
