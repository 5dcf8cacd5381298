"""What the broker writes down of a sync that does not come to its end.

Slurm's accounts are kept in memory here: a slurmdbd that goes away between two commands can't be had at will.
tests/cluster/test_tenancy.py asks a real one for everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import select

from broker.audit.tables import AuditRow
from broker.context import Context
from broker.db.leases import LeaseRow, database_time
from broker.errors import Conflict, OutcomeUnknown, Unreachable
from broker.hosts import Completed, Host
from broker.identity import SYSTEM
from broker.identity.schemas import TenantCreate
from broker.identity.tables import TenantRow
from broker.identity.tenants import create_tenant
from broker.slurm import Capabilities, Config, SlurmClient, Version
from broker.slurm.accounts import Membership, QosLimits
from broker.slurm.cluster import ReadConfig
from broker.tenancy.service import apply_sync, sync_plan
from tests.api_support import context


class Slurm(SlurmClient):
    """Accounts and the people in them, as sacctmgr would set and show them."""

    def __init__(self) -> None:
        super().__init__(cast(Host, None))
        self.there: dict[tuple[str, str], Membership] = {}
        self.done: list[str] = []
        self.fails: dict[int, Exception | None] = {}
        """What the change of this number (from 0) ends with when it is made; None: slurmdbd is gone then."""
        self.gone = False

    def capabilities(self) -> Capabilities:
        config: Config = ReadConfig().parse(Completed(0, b"ClusterName = dev\n", b""))
        return Capabilities(Version(24, 11, 5), config, (), "broker")

    def qos_limits(self) -> tuple[QosLimits, ...]:
        return ()

    def memberships(self) -> tuple[Membership, ...]:
        if self.gone:
            raise Unreachable("slurmdbd does not answer")
        return tuple(self.there.values())

    def manage(self, words: Sequence[str]) -> str:
        values = dict(word.split("=", 1) for word in words if "=" in word)
        if words[:2] == ("add", "user"):
            key = (values["Account"], words[2])
        else:
            key = (values["Name"] if words[0] == "modify" else words[2], "")
        new = Membership(key[0], key[1], "", "root", "1", frozenset(), "", "", "", None, None)
        old = self.there.get(key, new)
        shares, running = values.get("Fairshare", old.shares), values.get("GrpTRESRunMins", old.group_running)
        self.there[key] = replace(old, shares=shares, group_running=running)
        self.done.append(" ".join(words))
        number = len(self.done) - 1
        if number in self.fails:
            error = self.fails.pop(number)
            self.gone = error is None
            if error is not None:
                raise error
        return "Done."


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    clusters = {"main": {"transport": "local", "priority_classes": False, "account": None}}
    with context(tmp_path, clusters=clusters) as made:
        with made.db.write() as session:
            for name in ("team-a", "team-b"):
                create_tenant(session, SYSTEM, TenantCreate(name=name))
        yield made


@pytest.fixture
def slurm(ctx: Context) -> Slurm:
    ctx._slurm["main"] = found = Slurm()
    return found


def trail(ctx: Context) -> list[tuple[str, str]]:
    """What the audit trail has of the cluster, sorted: object, and the first word of what came of it."""
    query = select(AuditRow).where(AuditRow.action.startswith("cluster."))
    with ctx.db.read() as session:
        rows = session.scalars(query).all()
        return sorted(((row.after or {})["object"], str(row.note).partition(":")[0]) for row in rows)


ALL = ["account team-a", "account team-b", "user team-a/broker", "user team-b/broker"]


def test_a_whole_sync_is_done_once(ctx: Context, slurm: Slurm) -> None:
    assert apply_sync(ctx, SYSTEM, "main").to_do == 0
    assert trail(ctx) == [(name, "done") for name in ALL]
    apply_sync(ctx, SYSTEM, "main")
    assert len(slurm.done) == len(trail(ctx)) == 4


def test_what_was_done_before_slurm_went_away_is_in_the_audit_trail(ctx: Context, slurm: Slurm) -> None:
    slurm.fails[3] = None
    with pytest.raises(Unreachable):
        apply_sync(ctx, SYSTEM, "main")
    assert trail(ctx) == [(name, "unknown") for name in ALL]
    slurm.gone = False
    assert {line.action for line in sync_plan(ctx, "main").lines} == {"same"}
    apply_sync(ctx, SYSTEM, "main")
    assert trail(ctx) == [(name, came) for name in ALL for came in ("done", "unknown")], "not found made"
    assert len(slurm.done) == 4


def test_a_change_before_a_crash_is_told_at_the_next_sync_though_another_one_follows_it(
    ctx: Context, slurm: Slurm
) -> None:
    slurm.fails[0] = SystemError("the broker was killed")
    with pytest.raises(SystemError):
        apply_sync(ctx, SYSTEM, "main")
    assert trail(ctx) == []
    with ctx.db.write() as session:
        session.get_one(TenantRow, "team-a").fairshare = 7
    apply_sync(ctx, SYSTEM, "main")
    assert trail(ctx)[:2] == [("account team-a", "done"), ("account team-a", "done")]
    assert slurm.there["team-a", ""].shares == "7"


def test_a_change_that_a_crash_came_before_is_not_found_made(
    ctx: Context, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Slurm.manage

    def dies(self: Slurm, words: Sequence[str]) -> str:
        if words[:2] == ("add", "user"):
            raise SystemError("the broker was killed")
        return real(self, words)

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(Slurm, "manage", dies)
        apply_sync(ctx, SYSTEM, "main")
    assert [line.action for line in sync_plan(ctx, "main").lines] == ["same", "same", "create", "create"]
    apply_sync(ctx, SYSTEM, "main")
    assert trail(ctx) == [(name, "done") for name in ALL]


def test_nothing_more_is_tried_after_a_change_whose_end_nobody_saw(ctx: Context, slurm: Slurm) -> None:
    slurm.fails[1] = OutcomeUnknown("the connection broke")
    view = apply_sync(ctx, SYSTEM, "main")
    assert (len(slurm.done), view.to_do) == (2, 2)
    assert trail(ctx) == [("account team-a", "done"), ("account team-b", "done")]


def test_a_long_sync_keeps_its_lease_and_stops_when_it_has_lost_it(
    ctx: Context, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Slurm.manage

    def taken_over(self: Slurm, words: Sequence[str]) -> str:
        with ctx.db.write() as session:
            lease = session.get_one(LeaseRow, "sync:main")
            assert (lease.expires_at - database_time(session)).total_seconds() > 590
            lease.expires_at = database_time(session)
            if len(self.done) == 1:
                lease.token += 1
        return real(self, words)

    monkeypatch.setattr(Slurm, "manage", taken_over)
    with pytest.raises(Conflict):
        apply_sync(ctx, SYSTEM, "main")
    assert len(slurm.done) == 2
    assert trail(ctx) == [(name, "unknown") for name in ALL[:2]]
