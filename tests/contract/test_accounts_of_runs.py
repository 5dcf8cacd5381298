"""Whose Unix account a run belongs to: asked for, kept, taken away. On a real database, both kinds of it.

What then happens on a cluster is in tests/cluster/test_run_as.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.context import Context
from broker.db import leases, utcnow
from broker.db.leases import Lease
from broker.errors import SlurmRefused
from broker.hosts import LocalHost, PersonHost
from broker.identity.tables import UserRow
from broker.runs.states import JobState, Phase, RunState
from broker.runs.strays import adopt_strays
from broker.runs.submission import Submitter
from broker.runs.tables import JobRow, RunRow
from broker.runs.tracking import Tracker
from broker.runs.views import attempt_jobs
from broker.slurm import QueueJob, QueueSnapshot
from tests.api_support import Api, context, jobs_of, row
from tests.queue_jobs import queue_job

CLUSTERS = {
    "theirs": {"transport": "local", "run_as": "user"},
    "ours": {"transport": "ssh", "ssh_user": "broker"},
}


@pytest.fixture(params=["sqlite", "postgresql"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    with context(tmp_path, url, clusters=CLUSTERS) as made:
        yield made


class Person:
    """A researcher with a stored pipeline, and with an account on the clusters or without."""

    def __init__(self, ctx: Context, account: str | None) -> None:
        self.ctx, self.api = ctx, Api(ctx)
        self.name = f"kim-{secrets.token_hex(4)}"  # the tests share one PostgreSQL
        self.id = self.api.add(self.name, tenant=self.name)
        self.account = f"{account}{secrets.token_hex(4)}" if account else None
        self.set_account(self.account)
        assert self.api.store(self.name).status_code == 201

    def set_account(self, account: str | None) -> None:
        with self.ctx.db.write() as session:
            session.get_one(UserRow, self.id).unix_account = account

    def request(self, cluster: str) -> Any:
        return self.api.call("POST", "/runs", self.name, json={"pipeline": "digits", "cluster": cluster})


@pytest.fixture
def lease(ctx: Context) -> Lease:
    held = leases.acquire(ctx.db, "worker:theirs", "test", 300)
    assert held is not None
    return held


def test_a_run_has_the_account_of_its_person_only_where_runs_are_peoples_own(ctx: Context) -> None:
    kim = Person(ctx, "kim")
    assert kim.request("theirs").json()["unix_account"] == kim.account
    assert kim.request("ours").json()["unix_account"] is None


def test_without_an_account_it_is_refused_with_the_remedy_and_nothing_is_left(ctx: Context) -> None:
    lee = Person(ctx, None)
    answer = lee.request("theirs")
    assert answer.status_code == 403
    [problem] = answer.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/cluster", "no_unix_account")
    assert "--unix-account" in problem["detail"]
    assert lee.api.call("GET", "/runs", lee.name).json()["items"] == []
    assert lee.request("ours").status_code == 201


@pytest.mark.parametrize("account", [None, "other"])
def test_an_account_that_is_no_more_its_owners_runs_nothing(
    ctx: Context, lease: Lease, account: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kim = Person(ctx, "kim")
    run_id = kim.request("theirs").json()["id"]
    kim.set_account(account and account + secrets.token_hex(4))
    ran: list[object] = []
    monkeypatch.setattr(LocalHost, "run", lambda *args, **_: ran.append(args))
    Submitter(ctx, "theirs", lease).advance(run_id)
    run = row(ctx, run_id)
    assert (run.state, run.error_code, ran) == (RunState.FAILED, "denied", [])
    assert f"{kim.account!r}, which is its owner's no more" in (run.error or "")


@pytest.mark.parametrize("account", ["root", "#0", "kim;id", "-u", "kim\nroot", "kim$(id)"])
def test_no_account_that_got_into_the_database_gets_into_a_command(
    ctx: Context, lease: Lease, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kim = Person(ctx, "kim")
    run_id = kim.request("theirs").json()["id"]
    with ctx.db.write() as session:
        session.get_one(RunRow, run_id).unix_account = account
        session.get_one(UserRow, kim.id).unix_account = account
    ran: list[object] = []
    monkeypatch.setattr(LocalHost, "run", lambda *args, **_: ran.append(args))
    Submitter(ctx, "theirs", lease).advance(run_id)
    kim.set_account(None)
    run = row(ctx, run_id)
    assert (run.state, run.error_code, ran) == (RunState.FAILED, "invalid_request", [])


def queued(job: JobRow, number: int, user: str, **more: Any) -> QueueJob:
    return queue_job(number, **{"name": job.name, "user": user, "qos": "normal", "priority": 0} | more)


def test_a_stray_is_the_runs_only_when_it_is_its_persons(ctx: Context, lease: Lease) -> None:
    kim = Person(ctx, "kim")
    run_id = kim.request("theirs").json()["id"]
    job = jobs_of(ctx, run_id)["loader"]
    Submitter(ctx, "theirs", lease)._fail(row(ctx, run_id), SlurmRefused("no"))
    for stranger in ("broker", "park", "root"):
        adopt_strays(ctx, "theirs", lease, set(), [queued(job, 7, stranger)])
    assert jobs_of(ctx, run_id)["loader"].slurm_job_id is None
    adopt_strays(ctx, "theirs", lease, set(), [queued(job, 8, str(kim.account)), queued(job, 9, "park")])
    assert jobs_of(ctx, run_id)["loader"].slurm_job_id == 8


def test_a_job_is_known_by_its_name_or_by_owner_and_time_and_by_nothing_less(
    ctx: Context, lease: Lease
) -> None:
    kim = Person(ctx, "kim")
    run_id = kim.request("theirs").json()["id"]
    with ctx.db.write() as session:
        session.get_one(RunRow, run_id).phase = Phase.ACTIVE
        job = attempt_jobs(session, run_id, 1)[0]
        job.slurm_job_id, job.state, job.submitted_at = 7, JobState.PENDING, utcnow()
    job = jobs_of(ctx, run_id)[job.component]
    tracker, now, mine = Tracker(ctx, "theirs", lease), utcnow(), str(kim.account)
    tracker._people = tracker._accounts()

    def seen(**fields: Any) -> bool:
        snapshot = QueueSnapshot(now, (queued(job, 7, fields.pop("user", mine), **fields),))
        _, found = tracker._in_queue([job], snapshot)
        return bool(found)

    assert seen()
    assert seen(name="another", submit=now)
    assert not seen(name="another", submit=now, user="park")
    assert not seen(name="another", submit=now - timedelta(days=400))
    assert not seen(name="another")
    with ctx.db.write() as session:
        session.get_one(RunRow, run_id).phase = Phase.DONE


def test_everybodys_jobs_are_looked_at_where_runs_are_peoples_own(ctx: Context, lease: Lease) -> None:
    assert Tracker(ctx, "theirs", lease)._account() is None
    service = Tracker(ctx, "ours", lease)
    assert service._account() == "broker"
    kim = Person(ctx, "kim")
    run_id = kim.request("ours").json()["id"]
    with ctx.db.write() as session:  # asked for before the setting was changed
        session.get_one(RunRow, run_id).unix_account = kim.account
    service._people = service._accounts()
    assert service._account() is None


def test_ids_that_a_persons_script_gives_are_compared_with_slurm(
    ctx: Context, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script claims the job of somebody else: it is not stored, so it can't be released or cancelled."""
    kim = Person(ctx, "kim")
    run_id = kim.request("theirs").json()["id"]
    run, all_jobs = row(ctx, run_id), list(jobs_of(ctx, run_id).values())
    true = {job.name: [number] for number, job in enumerate(all_jobs, 100)}
    asked: list[object] = []

    def find(names: object, since: object, user: object) -> dict[str, list[int]]:
        asked.append(user)
        return true

    submitter = Submitter(ctx, "theirs", lease)
    monkeypatch.setattr(ctx.slurm("theirs"), "find_by_name", find)
    told = {job.component: number for number, job in enumerate(all_jobs, 100)}
    submitter._confirm(run, all_jobs, told)
    with pytest.raises(SlurmRefused, match=r"Job 777 is not"):
        submitter._confirm(run, all_jobs, told | {all_jobs[0].component: 777})
    assert asked == [kim.account, kim.account]


def test_the_hosts_of_a_cluster_share_its_connection(ctx: Context) -> None:
    assert ctx.host_for("theirs", None) is ctx.host("theirs")
    person = ctx.host_for("theirs", "kim")
    assert isinstance(person, PersonHost)
    assert ctx.host_for("theirs", "kim") is person
    assert ctx.host_for("theirs", "park") is not person
