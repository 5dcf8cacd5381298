"""Comparing tenants with Slurm, and bringing Slurm into line.

A change is intended in a committed row, made by one sacctmgr, and read back: what was read back is what the
row and the audit trail say. A change whose end nobody saw is recognised at the next look, because what there
is then is what was intended; the next sync tells the audit trail.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.audit import record
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease, acquire, release, renew
from broker.errors import BrokerError, Conflict, InvalidRequest, OutcomeUnknown, Problem, Unreachable
from broker.identity import Principal
from broker.identity.tables import TenantRow, UserRow
from broker.identity.tenants import DEFAULT_TENANT
from broker.quotas.service import slurm_limits
from broker.settings import ClusterSettings
from broker.spec import Thresholds
from broker.tenancy.objects import (
    Fields,
    Key,
    Person,
    Tenant,
    seen,
    wanted_accounts,
    wanted_people,
    wanted_qos,
)
from broker.tenancy.plan import ALL, Line, named, pending, plan
from broker.tenancy.schemas import Outcome, SyncView, line_view
from broker.tenancy.tables import ClusterObjectRow

_LEASE_S: Final = 600.0
"""After a process died in the middle nobody else begins before that: its last sacctmgr may still be going."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """A plan with what it was made from."""

    slurm_cluster: str
    lines: tuple[Line, ...]
    seen: Mapping[Key, Fields]


def sync_plan(ctx: Context, cluster: str) -> SyncView:
    """What `apply_sync` would do; changes nothing. Raises `Unreachable` when Slurm does not answer."""
    return _view(ctx, cluster, _compare(ctx, cluster), {})


def apply_sync(ctx: Context, principal: Principal, cluster: str, adopt: Collection[str] = ()) -> SyncView:
    """Make the changes, one after the other, and give what there is afterwards.

    A refused change stops none of the others: an Operator may change accounts but no QOS, and the answer has
    the command lines for somebody who may. One whose end nobody saw stops the rest: Slurm is not well. Raises
    `Conflict` while another one is at work, `InvalidRequest` for a name in `adopt` that the plan does not
    have, `Unreachable` when what was done can't be read back; that, too, is in the audit trail.
    """
    with _alone(ctx, cluster) as lease:
        compared = _compare(ctx, cluster, adopt)
        _check_adopted(compared.lines, adopt)
        _recognise(ctx, principal, cluster, compared.seen)
        tried: dict[Key, tuple[Outcome, str]] = {}
        try:
            for line in pending(compared.lines):
                _keep(ctx, cluster, lease)
                tried[line.key] = outcome, _ = _apply(ctx, cluster, line)
                if outcome == "unknown":
                    break
            after = _compare(ctx, cluster)
        except BrokerError:
            _settle(ctx, principal, cluster, compared, None, tried)
            raise
        results = _settle(ctx, principal, cluster, compared, after, tried)
    return _view(ctx, cluster, after, results)


@contextmanager
def _alone(ctx: Context, cluster: str) -> Iterator[Lease]:
    lease = acquire(ctx.db, f"sync:{cluster}", secrets.token_hex(8), _LEASE_S)
    if lease is None:
        raise _elsewhere(cluster)
    try:
        yield lease
    finally:
        release(ctx.db, lease)


def _keep(ctx: Context, cluster: str, lease: Lease) -> None:
    """A thousand people take longer than the lease: it is renewed before each change."""
    if not renew(ctx.db, lease, _LEASE_S):
        raise _elsewhere(cluster)


def _elsewhere(cluster: str) -> Conflict:
    return Conflict(f"Somebody else brings cluster {cluster} into line just now: look again in some minutes")


def _check_adopted(lines: Sequence[Line], adopt: Collection[str]) -> None:
    problems = [
        Problem(f"/adopt/{index}", "unknown_object", f"{name!r} is none of the plan's objects")
        for index, name in enumerate(adopt)
        if name != ALL and not any(named(line.key, [name]) for line in lines)
    ]
    if problems:
        raise InvalidRequest(problems[0].detail, problems=problems)


# ---- comparing ----------------------------------------------------------------------------------------


def _compare(ctx: Context, cluster: str, adopt: Collection[str] = ()) -> _Compared:
    slurm, settings = ctx.slurm(cluster), ctx.cluster(cluster)
    there, capabilities = seen(slurm.qos_limits(), slurm.memberships()), slurm.capabilities()
    with ctx.db.read() as session:
        ours = _known(session, cluster, there)
        wanted = _wanted(ctx, session, settings, capabilities.user, there)
    gone = [key for key in ours if key.kind == "user" and key in there and key not in wanted]
    wanted |= {key: {"MaxSubmitJobs": "0"} for key in gone}
    name = capabilities.config.cluster_name
    return _Compared(name, plan(wanted, there, ours, name, adopt), there)


def _wanted(
    ctx: Context, session: Session, cluster: ClusterSettings, service: str, there: Mapping[Key, Fields]
) -> dict[Key, Fields]:
    """What there should be. `service`: the service account's name."""
    rows = session.scalars(select(TenantRow).order_by(TenantRow.name)).all()
    accounts = {row.name: cluster.account if row.name == DEFAULT_TENANT else row.name for row in rows}
    tenants = [
        Tenant(account, row.fairshare, row.active, slurm_limits(session, ctx.settings.quotas, row.name))
        for row in rows
        if (account := accounts[row.name])
    ]
    if cluster.run_as == "user":
        users = session.scalars(select(UserRow).where(UserRow.unix_account.is_not(None)))
        open_tenants = {row.name for row in rows if row.active}
        people = [
            Person(account, user.unix_account, user.active and user.tenant in open_tenants)
            for user in users
            if (account := accounts.get(user.tenant)) and user.unix_account
        ]
        people += [Person(cluster.account, service)] if cluster.account else []
    else:
        people = [Person(tenant.account, service) for tenant in tenants]
    return {
        **wanted_qos(cluster, Thresholds.of(ctx.settings.approval)),
        **wanted_accounts(cluster, tenants, there),
        **wanted_people(people),
    }


def _known(session: Session, cluster: str, there: Mapping[Key, Fields]) -> dict[Key, Fields]:
    """What the broker set last; a change whose end was not seen counts as made if it is there."""
    found: dict[Key, Fields] = {}
    for row in session.scalars(select(ClusterObjectRow).where(ClusterObjectRow.cluster == cluster)):
        if (fields := _made(row, there) or row.applied) is not None:
            found[_key(row)] = fields
    return found


def _made(row: ClusterObjectRow, there: Mapping[Key, Fields]) -> dict[str, str] | None:
    """What was intended by a change whose end was not seen, if that is what there is."""
    now = _among(there.get(_key(row)), row.intended or {})
    return row.intended if now == row.intended else None


def _key(row: ClusterObjectRow) -> Key:
    return Key(row.kind, row.name)  # type: ignore[arg-type]  # only `Kind`s are stored


# ---- changing -----------------------------------------------------------------------------------------


def _recognise(ctx: Context, principal: Principal, cluster: str, there: Mapping[Key, Fields]) -> None:
    """Tell the audit trail of an earlier sync's changes whose end nobody saw, and which are found made."""
    with ctx.db.write() as session:
        for row in session.scalars(select(ClusterObjectRow).where(ClusterObjectRow.cluster == cluster)):
            if made := _made(row, there):
                note = "done: an earlier sync meant to, and nobody saw its end"
                _audit(session, principal, cluster, _key(row), row.applied, made, note)
                row.applied, row.intended = made, None


def _apply(ctx: Context, cluster: str, line: Line) -> tuple[Outcome, str]:
    """One change: its intent is committed before sacctmgr is called."""
    with ctx.db.write() as session:
        row = _row(session, cluster, line.key)
        row.intended, row.changed_at = dict(line.wanted), utcnow()
    try:
        return "done", ctx.slurm(cluster).manage(line.words)
    except (OutcomeUnknown, Unreachable) as error:
        return "unknown", error.detail
    except BrokerError as error:
        return "refused", error.detail


def _row(session: Session, cluster: str, key: Key) -> ClusterObjectRow:
    row = session.get(ClusterObjectRow, (cluster, key.kind, key.name))
    if row is None:
        row = ClusterObjectRow(cluster=cluster, kind=key.kind, name=key.name, changed_at=utcnow())
        session.add(row)
    return row


def _settle(
    ctx: Context,
    principal: Principal,
    cluster: str,
    before: _Compared,
    after: _Compared | None,
    tried: Mapping[Key, tuple[Outcome, str]],
) -> dict[Key, tuple[Outcome, str]]:
    """Write down what was read back (`after` None: nothing), with an audit row for each change tried.

    What is as wanted already is the broker's from now on: whoever changes it later changes it by hand.
    """
    settled: dict[Key, tuple[Outcome, str]] = {}
    with ctx.db.write() as session:
        for line in before.lines:
            now = None if after is None else _among(after.seen.get(line.key), line.wanted)
            as_wanted = now == dict(line.wanted)
            if line.key not in tried and (not as_wanted or line.action == "extra"):
                continue
            row = _row(session, cluster, line.key)
            if line.key in tried:
                outcome, answer = tried[line.key]
                if after is None:
                    outcome, answer = "unknown", f"{answer} (not read back)"
                elif as_wanted or outcome == "done":
                    outcome = "done" if as_wanted else "refused"
                settled[line.key] = outcome, answer
                row.changed_at = utcnow()
                _audit(session, principal, cluster, line.key, line.now, now, f"{outcome}: {answer}")
            row.applied = now if as_wanted else row.applied
            row.intended = row.intended if settled.get(line.key, ("",))[0] == "unknown" else None
    return settled


def _audit(
    session: Session,
    principal: Principal,
    cluster: str,
    key: Key,
    before: Fields | None,
    now: Fields | None,
    note: str,
) -> None:
    action = f"cluster.{key.kind}.{'create' if before is None else 'change'}"
    then: dict[str, Any] | None = None if before is None else dict(before)
    record(session, principal, action, "cluster", cluster, then, {"object": str(key), **(now or {})}, note)


def _among(now: Fields | None, wanted: Fields) -> dict[str, str] | None:
    return None if now is None else {name: now.get(name, "") for name in wanted}


def _view(
    ctx: Context, cluster: str, compared: _Compared, results: Mapping[Key, tuple[Outcome, str]]
) -> SyncView:
    return SyncView(
        cluster=cluster,
        slurm_cluster=compared.slurm_cluster,
        run_as=ctx.cluster(cluster).run_as,
        to_do=len(pending(compared.lines)),
        by_hand=sum(line.action.needs_word for line in compared.lines),
        lines=[line_view(line, *results.get(line.key, (None, ""))) for line in compared.lines],
    )
