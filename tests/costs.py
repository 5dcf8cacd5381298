"""Two months of jobs, prices for them, and how a test enters prices and asks what the jobs cost."""

from __future__ import annotations

import csv
import io
import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

from tests.accounting import at, job
from tests.api_support import Api

OCTOBER = {"since": "2026-10-01", "until": "2026-11-01"}
DAY = 86_400
TYPES = {
    0: ({"gpu_type": ""},),
    1: ({"gpu_type": "a100"}, {"gpu_type": "v100"}),
    4: (
        {"gpu_type": "a100"},
        {"gpu_type": "v100", "gpu_types": "a100=1,v100=3"},
        {"gpu_type": "a100", "gpu_types": "a100=2,v100=2"},
    ),
}
"""By how many GPUs a job has."""
PRICES: tuple[dict[str, Any], ...] = (  # the narrower and the later first: what was charged stays
    {"resource": "core_hour", "amount": "0", "valid_from": "2026-10-20", "partition": "debug"},
    {"resource": "core_hour", "amount": "12.5", "valid_from": "2026-10-15"},
    {"resource": "core_hour", "amount": "10", "valid_from": "2026-09-01"},
    {"resource": "gpu_hour", "amount": "900", "valid_from": "2026-10-10", "qos": "idle"},
    {"resource": "gpu_hour", "amount": "1500.000001", "valid_from": "2026-10-01", "gpu_type": "a100"},
    {"resource": "gib_hour", "amount": "0.333333", "valid_from": "2026-10-03"},
)


def made_jobs() -> list[dict[str, Any]]:
    """Two months of two tenants: some over midnight, some of the broker's runs, some without a price, some
    with GPUs of two types.
    """
    chance, jobs = random.Random(11), []
    for number in range(1, 160):
        gpus = chance.choice((0, 0, 1, 4))
        tenant = chance.choice(("team-a", "team-b"))
        jobs.append(
            job(
                number,
                at("2026-09-20T00:00") + chance.randrange(50 * DAY),
                run_s=chance.randrange(1, 3 * DAY),
                tenant=tenant,
                user={"team-a": chance.choice(("ann", "bob")), "team-b": "eve"}[tenant],
                partition=chance.choice(("gpu", "debug")),
                qos=chance.choice(("normal", "idle")),
                cpus=chance.choice((1, 8, 48)),
                mem_mib=chance.choice((1000, 65_536)),
                gpu_count=gpus,
                **chance.choice(TYPES[gpus]),
                state=chance.choice(("COMPLETED", "COMPLETED", "FAILED", "NODE_FAIL", "PREEMPTED")),
                run_id=chance.choice((None, "run-1", "run-2", "run-3")),
            )
        )
    return jobs


def gpus_of(one: dict[str, Any]) -> dict[str, int]:
    """How many GPUs of each type a job has."""
    parts = (part.split("=") for part in one["gpu_types"].split(",") if part)
    return {name: int(count) for name, count in parts} or {one["gpu_type"]: one["gpu_count"]}


def enter(api: Api, *prices: dict[str, Any]) -> list[str]:
    """Enter prices as the administrator; gives their ids."""
    found = []
    for body in prices:
        answer = api.call("POST", "/prices", "root", json=body)
        assert answer.status_code == 201, answer.text
        found.append(answer.json()["id"])
    return found


def costs(api: Api, who: str = "root", **params: Any) -> dict[str, Any]:
    """What October costs, or the period in `params`."""
    answer = api.call("GET", "/costs", who, params=OCTOBER | params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def invoice(api: Api, who: str = "root", **params: Any) -> list[dict[str, str]]:
    """The lines of the same as an invoice, the total last."""
    answer = api.call("GET", "/costs", who, params=OCTOBER | {"format": "csv"} | params)
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))


def today() -> date:
    return datetime.now(UTC).date()


def price(**changes: Any) -> dict[str, Any]:
    """A price of a core's hour that holds in three days, with `changes`."""
    return {"resource": "core_hour", "amount": "7", "valid_from": f"{today() + timedelta(days=3)}"} | changes
