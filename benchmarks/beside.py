"""What a cluster has beside its jobs, made from a seed: what the reports that are not of jobs' sums are of.

Three years of node events and reservations, a year of fair shares and of the quotas' charges, a queue as long
as Slurm lets it become (`MaxJobCount`), and prices that change with every quarter. Events, jobs that wait and
shares become rows by the product's own functions. Clusters, people and nodes are those of `workload`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import String, cast, insert, literal, update
from sqlalchemy.orm import Session

from benchmarks.workload import BEGIN, GPU_TYPES, PARTITIONS, TENANTS, USERS
from broker.accounting import archive, packed
from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow, AccountingShareRow
from broker.accounting.looks import EVENTS, SHARES, event_row, reservation_row
from broker.accounting.tables import AccountingJobRow
from broker.accounting.waiting import Pending
from broker.accounting.waiting_tables import AccountingQueueRow
from broker.costs.pricing import ANY, Place, Resource
from broker.costs.tables import PriceRow
from broker.db import Database, utcnow
from broker.db.locks import exclusive
from broker.db.upsert import upsert_mappings
from broker.identity.tables import TenantRow
from broker.quotas.service import Resource as Counted
from broker.quotas.tables import ChargeRow, UseRow
from broker.slurm import Tres
from broker.slurm.events import Lack, NodeEvent, ReservationRecord
from tests.accounting_support import DAY, NOON, answer, job

YEARS, NODES_OF_A_TYPE = 3, 60
EVENTS_A_YEAR = 44_000
WAITING, CHARGES, QUARTERS = 10_000, 200_000, 12
CURRENCY = "KRW"
HAS = {**{name: Tres(cpus=128, gpus=8, gpu_types={name: 8}) for name in GPU_TYPES}, "cpu": Tres(cpus=192)}
"""What a node of each type has."""
REASONS = ("Not responding", "Kill task failed", "fan %d", "DIMM %d", "ticket #%d", "GPU %d fell off", "")
_Row = dict[str, Any]


def fill(db: Database, people: archive.People, seed: int = 1) -> None:
    """Everything beside the jobs, where it is not there yet."""
    chance = random.Random(seed)
    with db.read() as session:
        if session.get(AccountingLookRow, (people.cluster, EVENTS)) is not None:
            return
    with db.write() as session:
        _fill(session, people, chance)
    with db.write() as session:
        exclusive(session, f"accounting {people.cluster}")
        while packed.pack(session, people.cluster, 1000):
            pass


def _fill(session: Session, people: archive.People, chance: random.Random) -> None:
    upsert_mappings(session, AccountingEventRow, list(_events(chance, people.cluster)))
    upsert_mappings(session, AccountingShareRow, list(_shares(chance, people.cluster)))
    first = NOON - YEARS * 365 * DAY
    for what in (EVENTS, SHARES):
        look = {"cluster": people.cluster, "what": what, "since": first, "read_to": NOON, "trouble": None}
        upsert_mappings(session, AccountingLookRow, [look])
    for table, rows in (
        (TenantRow, list(_tenants())),
        (ChargeRow, list(_charges(chance, people.cluster))),
        (UseRow, list(_counted(chance))),
        (PriceRow, list(_prices(chance))),
    ):
        session.execute(insert(table), rows)
    row = AccountingJobRow  # every tenth job is the broker's own; runs have four
    run = literal("run-").concat(cast(row.job_id // 40, String))
    session.execute(update(row).where(row.cluster == people.cluster, row.job_id % 10 == 0).values(run_id=run))
    _queue(session, people, chance)


# ---- nodes ------------------------------------------------------------------------------------------


def _events(chance: random.Random, cluster: str) -> Iterator[_Row]:
    """Registrations each quarter, maintenance of a type each month, courses, and what happened to nodes."""
    nodes = {f"{name}-{n}": has for name, has in HAS.items() for n in range(1, NODES_OF_A_TYPE + 1)}
    first, common = NOON - YEARS * 365 * DAY, {"cluster": cluster, "seen_at": NOON}
    for quarter in range(YEARS * 4):
        begin, end = first + quarter * 91 * DAY, first + (quarter + 1) * 91 * DAY
        more = dict.fromkeys(GPU_TYPES, (NODES_OF_A_TYPE - 11 + quarter) * 8)
        had = Tres(cpus=40_000 + 100 * quarter, gpus=sum(more.values()), gpu_types=more)
        last = quarter == YEARS * 4 - 1
        yield common | event_row(
            NodeEvent("", begin, None if last else end, Lack.CAPACITY, "", had, "", ""), {}
        )
    for number in range(YEARS * 24):
        begin, of_type = first + number * 15 * DAY, tuple(HAS)[number % len(HAS)]
        inventory = {name: has for name, has in nodes.items() if name.startswith(of_type)}
        flags = frozenset({"MAINT"} if number % 2 else ())
        one = ReservationRecord(
            *(number, f"plan-{number}", begin, begin + 10 * 3600, ",".join(inventory), flags, Tres(), 9e3)
        )
        yield common | reservation_row(one, inventory, NOON)
    for _ in range(YEARS * EVENTS_A_YEAR):
        name, start = chance.choice(list(nodes)), first + chance.randrange(YEARS * 365 * DAY)
        end = start + 60 + int(chance.lognormvariate(0, 1.5) * 5000)
        lack = chance.choice((Lack.DOWN, Lack.DRAINED))
        word, reason = chance.choice(("DOWN*", "DRAIN", "FAIL")), chance.choice(REASONS)
        reason = reason % chance.randrange(40) if "%d" in reason else reason
        gone = NodeEvent(name, start, end if end < NOON else None, lack, word, nodes[name], "root", reason)
        yield common | event_row(gone, {})


# ---- shares, quotas, prices -------------------------------------------------------------------------


def _shares(chance: random.Random, cluster: str) -> Iterator[_Row]:
    """Every day each account's and each person's in two accounts."""
    for day in range(365):
        taken = BEGIN + day * DAY
        for account, user in [
            *((n, None) for n in range(TENANTS)),
            *(((n + more) % TENANTS, n) for n in range(USERS) for more in (0, 1)),
        ]:
            yield {
                "cluster": cluster,
                "day": datetime.fromtimestamp(taken, UTC).date(),
                "account": f"team-{account:02}",
                "unix_user": "" if user is None else f"user{user:03}",
                "partition": "",
                "tenant": f"team-{account:02}",
                "user": "" if user is None else f"{cluster}:user{user:03}",
                "raw_shares": "1",
                "norm_shares": 0.05,
                "raw_usage": chance.randrange(10**9),
                "effective_usage": chance.random(),
                "fair_share": None if user is None else chance.random(),
                "level_fs": chance.random() * 3,
                "taken_at": taken,
            }


def _tenants() -> Iterator[_Row]:
    for n in range(TENANTS):
        name, now = f"team-{n:02}", utcnow()
        times = {"created_at": now, "updated_at": now, "row_version": 1}
        yield {"name": name, "display_name": name, "fairshare": 1, "active": True} | times


def _charges(chance: random.Random, cluster: str) -> Iterator[_Row]:
    """A year of the ledger up to now: the report tells how things stand."""
    now = utcnow()
    for number in range(CHARGES):
        ended = now - timedelta(days=365) * (1 - number / CHARGES)
        elapsed, gpus = chance.randrange(60, 86_400), chance.choice((1, 2, 4, 8))
        yield {
            "cluster": cluster,
            "slurm_job_id": number,
            "submitted_at": ended - timedelta(seconds=elapsed + 60),
            "month": f"{ended:%Y-%m}",
            "tenant": f"team-{number % TENANTS:02}",
            "user_id": f"user-{number % USERS}",
            "run_id": f"run-{number}",
            "job_id": f"job-{number}",
            "gpus": gpus,
            "elapsed_s": elapsed,
            "gpu_seconds": elapsed * gpus,
            "started_at": ended - timedelta(seconds=elapsed),
            "ended_at": ended,
            "source": "accounting",
            "charged_at": ended,
        }


def _counted(chance: random.Random) -> Iterator[_Row]:
    today = utcnow().date()
    for n in range(TENANTS):
        common = {"tenant": f"team-{n:02}"}
        days = [today - timedelta(days=back) for back in range(365)]
        for day in days:
            counted = {"resource": Counted.API_CALLS.value, "amount": chance.randrange(9999)}
            yield common | counted | {"period": f"{day}"}
        for month in sorted({f"{day:%Y-%m}" for day in days}):
            counted = {"resource": Counted.UPLOAD.value, "amount": chance.randrange(1 << 40)}
            yield common | counted | {"period": month}


def _prices(chance: random.Random) -> Iterator[_Row]:
    """Of cores, memory and GPUs everywhere, of each GPU type, of some partitions and a QOS, each quarter."""
    places = [(Resource.CORE, Place()), (Resource.MEMORY, Place()), (Resource.GPU, Place())]
    places += [(Resource.GPU, Place(gpu_type=name)) for name in GPU_TYPES]
    places += [(Resource.CORE, Place(partition=name)) for name in PARTITIONS[5:9]]
    places += [(Resource.CORE, Place("main", qos="urgent")), (Resource.GPU, Place("main", ANY, "urgent"))]
    last = datetime.fromtimestamp(NOON, UTC).date()
    for number, (resource, place) in enumerate(places):
        for quarter in range(QUARTERS):
            begin: date = last - timedelta(days=91 * (QUARTERS - quarter))
            yield {
                "id": f"price-{number}-{quarter}",
                "resource": resource.value,
                **place._asdict(),
                "amount": Decimal(chance.randrange(10**6)) / 1000,
                "currency": CURRENCY,
                "valid_from": begin,
                "created_at": utcnow(),
                "created_by": "root",
                "withdrawn_at": None,
                "withdrawn_by": None,
            }


# ---- the queue --------------------------------------------------------------------------------------


def _queue(session: Session, people: archive.People, chance: random.Random) -> None:
    """Jobs that wait, in the last look at the queue and in the warehouse."""
    reasons = ("Priority", "Resources", "Dependency", "QOSGrpGRES", "JobHeldUser", "AssocGrpMemLimit")
    waiting, rows = [], []
    for n in range(WAITING):
        number, submit = 2**40 + n, NOON - chance.randrange(30 * DAY)
        tenant, user, partition = f"team-{n % TENANTS:02}", f"user{n % USERS:03}", chance.choice(PARTITIONS)
        gpus, reason = chance.choice((0, 1, 2, 8)), chance.choice(reasons)
        of_type = chance.choice(GPU_TYPES) if gpus else ""
        waiting.append(
            Pending(
                number, f"{number}", f"job-{n}", 1, tenant, f"{people.cluster}:{user}", None, partition,
                "normal", reason, False, submit, None, 3600, 8, 1, gpus, of_type, 8192,
            )
        )  # fmt: skip
        asked: dict[str, Any] = {"User": user, "Account": tenant, "Partition": partition, "Reason": reason}
        rows.append(
            job(number, submit=submit, run=None, State="PENDING", Start="Unknown", AllocTRES="", **asked)
        )
    for first in range(0, len(rows), 1000):
        archive.store(session, people, answer(*rows[first : first + 1000]).jobs)
    look = {"cluster": people.cluster, "taken_at": NOON, "jobs": [asdict(one) for one in waiting]}
    upsert_mappings(session, AccountingQueueRow, [look])
