"""What use costs, on a real database: figures against the jobs one by one, invoices, who sees what."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from sqlalchemy import select

from broker.costs.pricing import PER_HOUR, Place, Resource
from broker.costs.service import book_of
from broker.db import utcnow
from broker.runs.tables import JobRow, RunRow
from broker.settings import CostSettings
from tests.accounting import at, job, keep
from tests.api_support import Api, codes, spec
from tests.costs import DAY, OCTOBER, PRICES, costs, enter, gpus_of, invoice, made_jobs, price, today


def one_by_one(
    api: Api, by: tuple[str, ...], since: str = "2026-10-01", until: str = "2026-11-01", **wanted: Any
) -> tuple[dict[tuple[str, ...], Fraction], dict[tuple[str, ...], Fraction]]:
    """Costs and hours without a price by line: each second of each job, at the price of its day."""
    with api.ctx.db.read() as session:
        book = book_of(session, "KRW")
    paid: dict[tuple[str, ...], Fraction] = {}
    left: dict[tuple[str, ...], Fraction] = {}
    for one in made_jobs():
        if "run_id" in by and not one["run_id"]:
            continue
        had = [
            (Resource.CORE, one["gpu_type"], one["cpus"]),
            (Resource.MEMORY, one["gpu_type"], one["mem_mib"]),
        ]
        had += [(Resource.GPU, kind, count) for kind, count in gpus_of(one).items()]
        for begin in range(at(f"{since}T00:00"), at(f"{until}T00:00"), DAY):
            seconds = min(one["end_at"], begin + DAY) - max(one["start_at"], begin)
            for resource, kind, count in had:
                facts = one | {"gpu_type": kind}
                if any(facts[name] != value for name, value in wanted.items()):
                    continue
                key = tuple(facts[name] for name in by)
                if seconds > 0 and count:
                    hours = Fraction(seconds * count, PER_HOUR[resource])
                    place = Place("main", one["partition"], one["qos"], kind)
                    price = book.holding(resource, place, datetime.fromtimestamp(begin, UTC).date())
                    if price is None or price.amount is None:
                        left[key] = left.get(key, Fraction()) + hours
                    else:
                        paid[key] = paid.get(key, Fraction()) + hours * Fraction(price.amount)
    return paid, left


def test_costs_are_what_the_jobs_say_one_by_one(api: Api) -> None:
    enter(api, *PRICES)
    for by in (("tenant",), ("user", "partition"), ("qos", "gpu_type"), ("run",), ("run", "gpu_type")):
        view = costs(api, by=by)
        paid, left = one_by_one(api, tuple("run_id" if name == "run" else name for name in by))
        told = {tuple(line["key"].values()): line for line in view["lines"]}
        assert {key: line["amount"] for key, line in told.items() if line["amount"] is not None} == {
            key: str(round(amount)) for key, amount in paid.items()
        }
        assert {key: sum(line["unpriced"].values()) for key, line in told.items() if line["unpriced"]} == {
            key: pytest.approx(float(hours), abs=1e-3) for key, hours in left.items()
        }
        whole = sum(paid.values())
        assert view["total"]["amount"] == str(round(whole)), "the same however it is split"
        assert Decimal(view["rounding"]) == round(whole) - sum(map(round, paid.values()))
        few = costs(api, by=by, limit=1)
        assert (few["total"], few["rounding"]) == (view["total"], view["rounding"])


def test_months_and_days_add_up_to_the_period(api: Api) -> None:
    enter(api, *PRICES)
    for time in ("month", "week", "day"):
        view = costs(api, by=[time, "user"], since="2026-09-01", until="2026-12-01")
        paid, _ = one_by_one(api, (), since="2026-09-01", until="2026-12-01")
        assert view["total"]["amount"] == str(round(paid[()]))
        assert Fraction(view["rounding"]) == round(paid[()]) - sum(
            Fraction(line["amount"] or 0) for line in view["lines"]
        )
        keys = [tuple(line["key"].values()) for line in view["lines"]]
        assert keys == sorted(keys)


def test_an_invoice_has_each_resource_at_each_price_and_its_lines_add_up(api: Api) -> None:
    first = enter(api, *PRICES)
    *lines, total = invoice(api)
    assert sum(Decimal(line["amount"] or 0) for line in lines) == Decimal(total["amount"])
    assert total["tenant"] == "total" and {line["currency"] for line in lines} == {"KRW"}
    exact, _ = one_by_one(api, ())
    assert abs(Fraction(total["amount"]) - exact[()]) <= Fraction(len(lines), 2)
    cores = [line for line in lines if line["resource"] == "core_hour" and line["user"] == "bob"]
    held = {(line["price"], line["since"], line["until"], line["unit_price"]) for line in cores}
    assert held == {
        (first[2], "2026-10-01", "2026-10-15", "10"),
        (first[1], "2026-10-15", "2026-11-01", "12.5"),
        (first[0], "2026-10-20", "2026-11-01", "0"),
    }
    for line in lines:
        if line["status"] == "charged":
            amount = Decimal(line["hours"]) * Decimal(line["unit_price"])
            assert abs(amount - Decimal(line["amount"])) < 1, line
    loose = [line for line in lines if line["status"] == "unpriced"]
    assert {line["gpu_type"] for line in loose if line["resource"] == "gpu_hour"} >= {"v100"}
    assert {(line["unit_price"], line["amount"]) for line in loose} == {("", "")}


def test_an_invoice_can_leave_out_the_mark_and_holds_no_formula(api: Api) -> None:
    enter(api, *PRICES)
    with api.ctx.db.write() as session:
        keep(session, job(900, at("2026-10-20T00:00"), user="=1+1"))
    assert "'=1+1" in {line["user"] for line in invoice(api)}
    for mark in (True, False):
        answer = api.call("GET", "/costs", "root", params=OCTOBER | {"format": "csv", "bom": mark})
        assert answer.content.startswith(b"\xef\xbb\xbf") is mark
    assert answer.headers["content-disposition"] == 'attachment; filename="invoice-2026-10-01-2026-11-01.csv"'


def test_without_any_price_everything_is_hours_and_nothing_an_amount(api: Api) -> None:
    total = costs(api)["total"]
    assert total["amount"] is None and total["hours"] == {}
    assert set(total["unpriced"]) == {"core_hour", "gpu_hour", "gib_hour"}
    assert {line["status"] for line in invoice(api)[:-1]} == {"unpriced"}


def test_everybody_sees_the_costs_that_the_role_allows(api: Api) -> None:
    enter(api, *PRICES)
    everybody, team = {"ann", "bob", "eve"}, {"ann", "bob"}
    for who, users in (("root", everybody), ("boss", team), ("eye", team), ("ann", {"ann"})):
        for params in ({}, {"tenant": "team-b"}, {"user": "eve"}):
            for found in (
                costs(api, who, by="user", **params),
                costs(api, who, by=["run", "user"], **params),
            ):
                assert {line["key"]["user"] for line in found["lines"]} <= users
            assert {line["user"] for line in invoice(api, who, **params)[:-1]} <= users
        assert {line["key"]["user"] for line in costs(api, who, by="user")["lines"]} == users
        denied = api.call("POST", "/prices", who, json=PRICES[0]).status_code
        assert denied == (409 if who == "root" else 403)


def test_filters_narrow_costs_by_day_and_by_run(api: Api) -> None:
    enter(api, *PRICES)
    for by in (("tenant",), ("run",)):
        paid, _ = one_by_one(
            api, tuple("run_id" if name == "run" else name for name in by), user="bob", state="FAILED"
        )
        view = costs(api, by=by, user="bob", outcome="FAILED")
        told = {tuple(line["key"].values()): line["amount"] for line in view["lines"]}
        assert told == {key: str(round(amount)) for key, amount in paid.items()} and told


def test_many_small_amounts_are_as_much_as_their_sum_however_they_are_split(api: Api) -> None:
    enter(api, price(amount="0.4", valid_from="2026-01-01"))
    with api.ctx.db.write() as session:
        for number in range(10):
            few: dict[str, Any] = {"user": "kim", "run_id": f"run-{20 + number}", "cpus": 1}
            keep(session, job(950 + number, at("2026-10-05T01:00"), **few))
    by_run = costs(api, by="run", user="kim")
    assert {line["amount"] for line in by_run["lines"]} == {"0"} and len(by_run["lines"]) == 10
    assert (by_run["total"]["amount"], by_run["rounding"]) == ("4", "4")
    whole = costs(api, by="user", user="kim")
    assert (whole["total"]["amount"], whole["rounding"]) == ("4", "0")


def test_gpus_of_a_type_cost_what_that_type_costs_whatever_else_their_jobs_had(api: Api) -> None:
    enter(api, *PRICES)
    for by in (("tenant",), ("run",)):
        paid, _ = one_by_one(api, tuple("run_id" if name == "run" else name for name in by), gpu_type="a100")
        found = costs(api, by=by, gpu_type="a100")["lines"]
        assert {tuple(line["key"].values()): line["amount"] for line in found if line["amount"]} == {
            key: str(round(amount)) for key, amount in paid.items()
        }
    with api.ctx.db.write() as session:
        two: dict[str, Any] = {
            "gpu_count": 3,
            "gpu_type": "v100",
            "gpu_types": "a100=1,v100=2",
            "user": "kim",
        }
        keep(session, job(901, at("2026-10-02T03:00"), run_id="run-9", **two))
    (line,) = costs(api, by="run", user="kim")["lines"]
    assert (line["hours"]["gpu_hour"], line["unpriced"]["gpu_hour"]) == (1.0, 2.0), "v100 has no price"


def test_time_that_a_job_was_suspended_costs_nothing_by_run_as_by_day(api: Api) -> None:
    enter(api, PRICES[2])
    with api.ctx.db.write() as session:  # seen two hours after the start, of which it stood still for one
        still: dict[str, Any] = {"end_at": None, "elapsed_s": 3600, "state": "RUNNING", "cpus": 2}
        for number, run_id, begun in ((901, "run-8", "2026-10-02T03:00"), (902, "run-9", "2026-10-02T23:00")):
            keep(session, job(number, at(begun), run_s=7200, user="kim", run_id=run_id, **still))
    lines = costs(api, by="run", user="kim")["lines"]
    assert {line["key"]["run"]: line["amount"] for line in lines} == {"run-8": "20", "run-9": "20"}
    assert costs(api, by="user", user="kim")["total"]["amount"] == "40"


def test_a_run_costs_what_all_its_attempts_do(api: Api) -> None:
    made = api.call("POST", "/pipelines", "ann", json=spec()).json()["pipeline"]["id"]
    run = api.call("POST", "/runs", "ann", json={"pipeline": made}).json()["id"]
    nothing = api.call("GET", f"/runs/{run}/cost", "ann").json()
    assert (nothing["jobs"], nothing["total"]["amount"], nothing["complete"]) == ([], None, False)
    assert nothing["rounding"] is None
    enter(api, *PRICES)
    with api.ctx.db.write() as session:
        rows = session.scalars(select(JobRow).where(JobRow.run_id == run).order_by(JobRow.position)).all()
        loader, trainer = (row.name for row in rows)
        for row in rows:
            row.submitted_at = utcnow()
        own: dict[str, Any] = {"run_id": run, "cpus": 10, "mem_mib": 0}
        over = at("2026-10-14T23:00")  # the price of a core changes at midnight
        keep(
            session,
            job(901, at("2026-10-14T20:00"), name=loader, **own),
            job(902, over, run_s=7200, name=trainer, state="NODE_FAIL", **own),
        )
        keep(session, job(903, over, run_s=7200, name=trainer, **own | {"gpu_count": 1, "gpu_type": "v100"}))
    found = api.call("GET", f"/runs/{run}/cost", "ann").json()
    told = [
        (one["key"]["component"], one["key"]["state"], one["amount"], one["faults"]) for one in found["jobs"]
    ]
    assert sorted(told) == [
        ("loader", "COMPLETED", "100", None),
        ("trainer", "COMPLETED", "225", None),
        ("trainer", "NODE_FAIL", "225", "225"),
    ]
    assert (found["total"]["amount"], found["total"]["unpriced"]) == ("550", {"gpu_hour": 2.0})
    assert found["rounding"] == "0"
    assert found["complete"] is False, "the run has not ended"
    lines = costs(api, "ann", by="run", since="2026-10-14", until="2026-10-16")["lines"]
    assert {line["key"]["run"]: line["amount"] for line in lines}[run] == "550"
    with api.ctx.db.write() as session:
        session.get_one(RunRow, run).state = "succeeded"
    assert api.call("GET", f"/runs/{run}/cost", "ann").json()["complete"] is True
    assert api.call("GET", f"/runs/{run}/cost", "bob").status_code == 404


def test_what_a_run_may_cost_is_told_before_it_is_asked_for(api: Api) -> None:
    enter(api, price(amount="10", valid_from=f"{today()}"))
    enter(api, price(resource="gpu_hour", amount="500", gpu_type="a100", valid_from=f"{today()}"))
    enter(api, price(resource="gib_hour", amount="0.5", valid_from=f"{today()}", cluster="main"))
    api.call("POST", "/pipelines", "ann", json=spec())
    path = "/pipelines/digits/versions/latest/compile"
    told = api.call("POST", path, "ann", json={}).json()["estimate"]
    # loader: 1 h of 2 cores and 4 GiB; trainer: 2 h of 1 core, 2 GPUs and 64 GiB (the spec's GB are GiB)
    assert told["hours"] == {"core_hour": 4.0, "gpu_hour": 4.0, "gib_hour": 132.0}
    assert (told["amount"], told["unpriced"]) == ("2106", {})
    enter(api, price(resource="billing_hour", valid_from=f"{today()}"))
    assert api.call("POST", path, "ann", json={}).json()["estimate"]["amount"] is None


def test_what_can_not_be_asked_is_named(api: Api) -> None:
    for query, code in (
        ("by=colour", "unknown_dimension"),
        ("by=run&by=month", "unknown_dimension"),
        ("outcome=lost", "unknown_outcome"),
        ("format=csv&by=user", "invoice_by"),
        ("since=2026-11-02&until=2026-11-01", "invalid_period"),
    ):
        answer = api.call("GET", f"/costs?{query}", "root")
        assert (answer.status_code, codes(answer)) == (422, {code})


def test_ends_that_are_exempt_are_shown_beside_what_is_to_be_paid(api: Api) -> None:
    enter(api, *PRICES)
    all_, exact = costs(api)["total"], {}
    for state in ("NODE_FAIL", "PREEMPTED"):
        exact[state] = one_by_one(api, (), state=state)[0][()]
    assert Fraction(all_["faults"]) == pytest.approx(sum(exact.values()), abs=2) and all_["exempt"] is None
    api.ctx.settings.__dict__["costs"] = CostSettings(exempt_outcomes=("NODE_FAIL",))
    less = costs(api)["total"]
    assert Fraction(less["exempt"]) == pytest.approx(exact["NODE_FAIL"], abs=2)
    assert Fraction(less["faults"]) == pytest.approx(exact["PREEMPTED"], abs=2)
    assert Decimal(less["amount"]) + Decimal(less["exempt"]) == pytest.approx(Decimal(all_["amount"]), abs=4)
    lines = invoice(api)
    assert {line["amount"] for line in lines if line["status"] == "exempt"} == {""}
    assert Decimal(lines[-1]["amount"]) == pytest.approx(Decimal(less["amount"]), abs=len(lines))
