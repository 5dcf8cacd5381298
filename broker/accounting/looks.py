"""The worker's looks at what Slurm remembers beside jobs: node events, reservations, fair shares.

A look at events goes back a week behind the last one that succeeded: slurmdbd learns late of what happened
while it was away, and what changed (an event that ended, a reservation that was used) replaces itself by its
key. Nothing that a look lacks is deleted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy.orm import Session

from broker.accounting.archive import People, owners
from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow, AccountingShareRow
from broker.context import Context
from broker.db import Base, utcnow
from broker.db.leases import Lease
from broker.db.upsert import upsert_mappings
from broker.errors import BrokerError
from broker.slurm import Node, Share, SlurmClient, Tres
from broker.slurm.events import Lack, NodeEvent, ReservationRecord
from broker.slurm.nodelist import expand

log = structlog.get_logger("broker.accounting")

EVENTS, SHARES = "events", "shares"
BACK_S = 7 * 86_400
UNTYPED = "gpu"
"""The name of GPUs whose type nobody tells."""
Inventory = Mapping[str, Tres]
Row = dict[str, Any]


class Looker:
    """Keeps one cluster's node events and fair shares."""

    def __init__(
        self,
        ctx: Context,
        cluster: str,
        lease: Lease,
        *,
        slurm: SlurmClient | None = None,
        clock: Callable[[], datetime] = utcnow,
    ) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease
        self._given, self._clock = slurm, clock
        self._people = People(cluster, ctx.cluster(cluster).account)

    def tick(self) -> None:
        """Look at both; what goes wrong with one is written down, and the other has its turn all the same."""
        slurm = self._given or self._ctx.slurm(self._cluster)
        config = slurm.capabilities().config
        if not config.has_accounting:
            return
        troubles = [self._look(EVENTS, lambda since: self._events(slurm, config.cluster_name, since))]
        if config.priority_type == "priority/multifactor":
            troubles.append(self._look(SHARES, lambda since: self._shares(slurm)))
        if failed := [error for error in troubles if error is not None]:
            raise failed[0]

    def _look(
        self, what: str, ask: Callable[[int], list[tuple[type[Base], list[Row]]]]
    ) -> BrokerError | None:
        """Ask, and store the answer with how far it reaches, in one transaction."""
        now = int(self._clock().timestamp())
        first = now - self._ctx.settings.accounting.history_days * 86_400
        with self._ctx.db.read() as session:
            row = session.get(AccountingLookRow, (self._cluster, what))
            since, read_to = (row.since, row.read_to) if row is not None else (first, first)
        error: BrokerError | None = None
        found: list[tuple[type[Base], list[Row]]] = []
        try:
            found = ask(max(0, read_to if row is None else read_to - BACK_S))
            read_to = now
        except BrokerError as problem:
            error = problem
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            for table, rows in found:
                upsert_mappings(session, table, rows)
            look = {"since": since, "read_to": read_to, "trouble": error and error.detail}
            upsert_mappings(session, AccountingLookRow, [{"cluster": self._cluster, "what": what, **look}])
        return error

    def _events(self, slurm: SlurmClient, name: str, since: int) -> list[tuple[type[Base], list[Row]]]:
        now = int(self._clock().timestamp())
        events, bad = slurm.node_events(name, since)
        reservations, bad_too = slurm.reservations(name, since)
        for line in (*bad, *bad_too)[:1]:
            log.warning("accounting_events_not_understood", cluster=self._cluster, first=line[:300])
        inventory: Inventory = {}
        if reservations or any(event.tres.gpus and not event.tres.gpu_types for event in events):
            inventory = inventory_of(slurm.nodes())
        rows = [event_row(event, inventory) for event in events]
        rows += [reservation_row(one, inventory, now) for one in reservations if one.start_at <= now]
        common = {"cluster": self._cluster, "seen_at": now}
        return [(AccountingEventRow, [common | row for row in rows])]

    def _shares(self, slurm: SlurmClient) -> list[tuple[type[Base], list[Row]]]:
        taken_at = self._clock()
        shares = slurm.shares()
        with self._ctx.db.read() as session:
            rows = list(share_rows(session, self._people, shares, taken_at))
        return [(AccountingShareRow, rows)]


# ---- rows -------------------------------------------------------------------------------------------


def inventory_of(nodes: Sequence[Node]) -> Inventory:
    """What each node has, by name."""
    return {node.name: node.total for node in nodes}


def event_row(event: NodeEvent, inventory: Inventory) -> Row:
    """An event as it is kept. Where its TRES name no GPU types, the nodes' of today do, if they fit."""
    types = dict(event.tres.gpu_types)
    if event.tres.gpus and not types:
        nodes = [inventory[event.node]] if event.node in inventory else list(inventory.values())
        types = _types(event.tres.gpus, nodes)
    return {
        "name": event.node,
        "start_at": event.start_at,
        "end_at": event.end_at,
        "lack": str(event.lack),
        "state": event.state,
        "who": event.user,
        "reason": event.reason,
        "parts": [[event.node, event.tres.cpus, types]],
        "unused": 1.0,
    }


def reservation_row(one: ReservationRecord, inventory: Inventory, now: int) -> Row:
    """A reservation as it is kept. Its TRES have no GPUs (up to 26.05): what its nodes have is what it took;
    of a part of a node only the cores are known. Maintenance takes all of its time, whatever UnusedWall says
    (0 until slurmdbd's next hour); of another one that goes on, UnusedWall is of the time up to `now`.
    """
    nodes = {name: inventory[name] for name in expand(one.nodes) if name in inventory}
    parts: list[list[Any]] = [[name, node.cpus, _types(node.gpus, [node])] for name, node in nodes.items()]
    if 0 < one.tres.cpus < sum(node.cpus for node in nodes.values()):
        parts = [[one.nodes, one.tres.cpus, {}]]
    length = min(one.end_at or now, now) - one.start_at
    counts = one.lack == Lack.RESERVED and length > 0
    return {
        "name": f"reservation {one.number}",
        "start_at": one.start_at,
        "end_at": one.end_at,
        "lack": str(one.lack),
        "state": one.name,
        "who": "",
        "reason": ",".join(sorted(one.flags)),
        "parts": parts,
        "unused": min(1.0, max(0.0, one.unused_s / length)) if counts else 1.0,
    }


def _types(gpus: int, nodes: Sequence[Tres]) -> dict[str, int]:
    """GPUs by type, as these nodes have them; of an unknown type where the number is another one."""
    found: dict[str, int] = {}
    for node in nodes:
        for name, count in node.gpu_types.items():
            found[name] = found.get(name, 0) + count
    return found if sum(found.values()) == gpus else {UNTYPED: gpus} if gpus else {}


class _Association(NamedTuple):
    """An association as the owner of no job in particular (`archive.Owned`)."""

    account: str
    unix_user: str
    job_id: int = 0
    array_id: int | None = None
    name: str = ""


def share_rows(
    session: Session, people: People, shares: Sequence[Share], taken_at: datetime
) -> Iterator[Row]:
    """The associations as they are kept; the root of the tree has no share of anything."""
    below = [share for share in shares if share.account != "root"]
    associations = [_Association(share.account, share.user) for share in below]
    owner_of = owners(session, people, associations)
    for share, owner in zip(below, map(owner_of, associations), strict=True):
        yield {
            "cluster": people.cluster,
            "day": taken_at.astimezone(UTC).date(),
            "account": share.account,
            "unix_user": share.user,
            "partition": share.partition,
            "tenant": owner.tenant,
            "user": owner.user if share.user else "",
            "raw_shares": share.raw_shares,
            "norm_shares": _known(share.norm_shares),
            "raw_usage": share.raw_usage,
            "effective_usage": _known(share.effective_usage),
            "fair_share": _known(share.fair_share),
            "level_fs": _known(share.level_fs),
            "taken_at": int(taken_at.timestamp()),
        }


def _known(value: float | None) -> float | None:
    """A number, also an infinite one; None of what is none (`nan`)."""
    return None if value is None or math.isnan(value) else value
