"""Prices that were wrong, on a real database: who corrects them, what it changes, and that costs say so."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select

from broker.audit.tables import AuditRow
from broker.costs.tables import PriceRow
from broker.db import utcnow
from broker.settings import CostSettings
from tests.accounting import at, job, keep
from tests.api_support import Api, codes, spec
from tests.costs import PRICES, costs, enter, invoice, price, today

CORE = "core_hour"


@pytest.fixture
def api(no_prices: Api) -> Api:
    """In place of a database for each test: nothing here changes the jobs."""
    return no_prices


def correct(api: Api, wrong: str, amount: str | None, why: str = "a zero too many") -> str:
    answer = api.call("POST", f"/prices/{wrong}/corrections", "root", json={"amount": amount, "why": why})
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


def withdraw(api: Api, wrong: str, why: str = "of another cluster") -> None:
    answer = api.call("DELETE", f"/prices/{wrong}", "root", params={"why": why})
    assert answer.status_code == 204, answer.text


def listed(api: Api) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in api.call("GET", "/prices?all=true", "root").json()["items"]}


def audited(api: Api, object_id: str) -> list[AuditRow]:
    with api.ctx.db.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.object_id == object_id).order_by(AuditRow.id))
        return list(rows)


def told(api: Api, **params: Any) -> tuple[Any, ...]:
    """Every figure of a period, split in several ways, and the invoice; without currency and ids."""
    views = [
        costs(api, by=by, **params) for by in (["tenant", "user"], ["month", "gpu_type"], ["run", "qos"])
    ]
    lines = [line for line in invoice(api, **params) if line["status"] != "corrected"]
    skipped = ("price", "currency")
    return (
        [(view["lines"], view["total"]) for view in views],
        [{name: value for name, value in line.items() if name not in skipped} for line in lines],
    )


def test_a_corrected_price_holds_from_the_first_day_of_the_wrong_one_and_both_are_kept(api: Api) -> None:
    wrong, before = enter(
        api,
        {"resource": CORE, "amount": "125", "valid_from": "2026-10-15", "partition": "gpu"},
        {"resource": CORE, "amount": "10", "valid_from": "2026-09-01", "partition": "gpu"},
    )
    right = correct(api, wrong, "12.5", why="  한 자리 더 쳤음 ")
    shown = listed(api)
    kept, stands = shown[wrong], shown[right]
    assert (kept["state"], kept["withdrawn_by"], kept["withdrawn_why"], kept["corrected_by"]) == (
        *("withdrawn", "root", "한 자리 더 쳤음"),
        right,
    )
    assert kept["withdrawn_at"] == stands["created_at"]
    assert (stands["state"], stands["amount"], stands["corrects"]) == ("holds", "12.5", wrong)
    same = ("resource", "cluster", "partition", "qos", "gpu_type", "currency", "valid_from")
    assert [stands[name] for name in same] == [kept[name] for name in same]
    assert shown[before]["valid_until"] == "2026-10-15"
    held = {(line["price"], line["unit_price"]) for line in invoice(api) if line["status"] == "charged"}
    assert held == {(before, "10"), (right, "12.5")}


def test_a_correction_leaves_a_trace_of_both_prices_and_the_reason(api: Api) -> None:
    (wrong,) = enter(api, PRICES[2])
    right = correct(api, wrong, "9")
    entered, corrected = audited(api, wrong)
    assert [entered.action, corrected.action] == ["price.set", "price.correct"]
    assert corrected.before and corrected.after and corrected.note == "a zero too many"
    assert (corrected.before["amount"], corrected.after["amount"]) == ("10", "9")
    assert corrected.after["corrected_by"] == right
    (made,) = audited(api, right)
    assert made.action == "price.set" and made.after and made.after["corrects"] == wrong
    withdraw(api, right, why="never agreed")
    assert [(row.action, row.note) for row in audited(api, right)][1:] == [("price.withdraw", "never agreed")]


@pytest.mark.parametrize("seed", range(2))
def test_after_corrections_costs_are_those_of_a_list_in_which_only_the_right_prices_were_entered(
    api: Api, seed: int
) -> None:
    chance = random.Random(seed)
    right = dict(zip(enter(api, *PRICES), PRICES, strict=True))
    end = {"resource": CORE, "amount": None, "valid_from": f"{today()}", "partition": "debug"}
    right |= dict(zip(enter(api, end), [end], strict=True))
    for _ in range(8):
        wrong = chance.choice(sorted(right))
        amount = chance.choice(("0", "3", "11.000001", None))
        body: dict[str, Any] = {"amount": amount, "why": "again"}
        answer = api.call("POST", f"/prices/{wrong}/corrections", "root", json=body)
        if answer.status_code == 201:
            right[answer.json()["id"]] = right.pop(wrong) | {"amount": amount}
        else:
            assert codes(answer) <= {"same_amount", "no_price_to_end"}
        if len(right) > 4 and chance.random() < 0.4:
            gone = chance.choice(sorted(right))
            withdraw(api, gone)
            del right[gone]
    period = {"since": "2026-09-01", "until": f"{today() + timedelta(days=1)}"}
    corrected = told(api, **period)
    api.ctx.settings.__dict__["costs"] = CostSettings(currency="JPY")  # of no more digits than won
    with api.ctx.db.write() as session:
        for number, body in enumerate(right.values()):
            place = {part: body.get(part, "*") for part in ("cluster", "partition", "qos", "gpu_type")}
            session.add(
                PriceRow(
                    id=f"price-{number}",
                    resource=body["resource"],
                    amount=None if body["amount"] is None else Decimal(body["amount"]),
                    valid_from=date.fromisoformat(body["valid_from"]),
                    currency="JPY",
                    created_at=utcnow(),
                    created_by="root",
                    **place,
                )
            )
    assert told(api, **period) == corrected
    assert costs(api, **period)["corrections"] == [], "none in this currency"


def test_every_answer_about_days_of_a_wrong_price_says_what_it_was(api: Api) -> None:
    later, wrong = enter(api, PRICES[1], PRICES[2])
    assert costs(api)["corrections"] == []
    right = correct(api, wrong, "8", why="=SUM(A1)")
    (found,) = costs(api, by="run")["corrections"]
    assert datetime.now(UTC) - datetime.fromisoformat(found.pop("at")) < timedelta(minutes=5)
    assert found == {
        **{"price": wrong, "resource": CORE, "cluster": "*", "partition": "*", "qos": "*", "gpu_type": "*"},
        **{"held_from": "2026-09-01", "held_until": "2026-10-15", "was": "10", "now": "8"},
        **{"corrected_by": right, "by": "root", "why": "=SUM(A1)"},
    }
    *lines, total = invoice(api)
    (row,) = (line for line in lines if line["status"] == "corrected")
    assert (row["price"], row["unit_price"], row["replaces"], row["unit_price_before"]) == (
        right,
        "8",
        wrong,
        "10",
    )
    assert (row["since"], row["until"], row["amount"], row["hours"]) == ("2026-10-01", "2026-10-15", "", "")
    assert (row["corrected_by"], row["why"], row["resource"]) == ("root", "'=SUM(A1)", CORE)
    assert sum(Decimal(line["amount"] or 0) for line in lines) == Decimal(total["amount"])
    assert lines[-1] is row and all(not line["why"] for line in (*lines[:-1], total))
    again = correct(api, right, "7")
    assert [one["corrected_by"] for one in costs(api)["corrections"]] == [right, again]
    assert costs(api, since="2026-10-15")["corrections"] == [], "the wrong one held until then"
    assert correct(api, later, "12", why="as agreed") in {
        one["corrected_by"] for one in costs(api)["corrections"]
    }


def test_an_answer_about_one_place_names_the_corrections_of_that_place(api: Api) -> None:
    debug, a100 = enter(api, PRICES[0], PRICES[4])
    for one in (debug, a100):
        correct(api, one, "1")
    for where, found in (
        ({}, [debug, a100]),
        ({"partition": "gpu"}, [a100]),
        ({"gpu_type": "v100", "partition": "debug"}, [debug]),
        ({"gpu_type": "v100", "partition": "gpu"}, []),
        ({"cluster": "main", "user": "bob"}, [debug, a100]),
    ):
        for who in ("root", "ann"):
            assert [one["price"] for one in costs(api, who, **where)["corrections"]] == found
            assert [one["replaces"] for one in invoice(api, who, **where) if one["replaces"]] == found


def test_a_price_that_should_never_have_been_gives_way_to_that_of_before(api: Api) -> None:
    later, before = enter(api, PRICES[1], PRICES[2])
    answer = api.call("DELETE", f"/prices/{later}", "root")
    assert (answer.status_code, codes(answer)) == (422, {"why_required"})
    for why in ("", "  ", "a\nb", "x" * 501):
        answer = api.call("DELETE", f"/prices/{later}", "root", params={"why": why})
        (problem,) = answer.json()["errors"]
        assert (answer.status_code, problem["pointer"]) == (422, "?why"), answer.text
    withdraw(api, later)
    assert {line["price"] for line in invoice(api) if line["status"] == "charged"} == {before}
    (found,) = costs(api)["corrections"]
    assert (found["price"], found["was"], found["now"], found["corrected_by"]) == (later, "12.5", None, None)
    assert (found["held_from"], found["held_until"]) == ("2026-10-15", f"{today() + timedelta(days=1)}")
    withdraw(api, before)
    assert costs(api)["total"]["amount"] is None
    assert len(costs(api)["corrections"]) == 2
    (row,) = (line for line in invoice(api) if line["replaces"] == before)
    assert (row["status"], row["price"], row["unit_price"]) == ("corrected", "", "")


def test_a_price_that_had_not_begun_is_corrected_and_nobody_needs_to_be_told(api: Api) -> None:
    (wrong,) = enter(api, price())
    right = correct(api, wrong, "8")
    assert listed(api)[right]["state"] == "future" and listed(api)[wrong]["corrected_by"] == right
    assert costs(api, since="2026-10-01", until="2027-06-01")["corrections"] == []


def test_what_was_corrected_can_not_be_corrected_again_and_what_stands_there_is_named(api: Api) -> None:
    (first,) = enter(api, PRICES[2])
    second = correct(api, first, "9")
    third = correct(api, second, "8")
    body = {"amount": "7", "why": "again"}
    for gone in (first, second):
        for answer in (
            api.call("POST", f"/prices/{gone}/corrections", "root", json=body),
            api.call("DELETE", f"/prices/{gone}", "root", params={"why": "again"}),
        ):
            assert answer.status_code == 409
            assert f"{gone} was corrected already: {third} stands in its place" in answer.json()["detail"]
    withdraw(api, third)
    answer = api.call("POST", f"/prices/{first}/corrections", "root", json=body)
    assert (answer.status_code, f"{third}, which stood in its place" in answer.json()["detail"]) == (
        409,
        True,
    )
    assert len(listed(api)) == 3 and len(audited(api, first)) == 2
    (anew,) = enter(api, PRICES[2])
    assert listed(api)[anew]["state"] == "holds"


def test_what_is_wrong_with_a_correction_is_named_and_changes_nothing(api: Api) -> None:
    (wrong,) = enter(api, PRICES[2])
    for body, pointer, code in (
        ({"amount": "10.00", "why": "x"}, "/amount", "same_amount"),
        ({"amount": None, "why": "x"}, "/amount", "no_price_to_end"),
        ({"amount": 1.5, "why": "x"}, "/amount", "inexact_amount"),
        ({"amount": "-1", "why": "x"}, "/amount", None),
        ({"why": "x"}, "/amount", None),
        ({"amount": "1"}, "/why", None),
        ({"amount": "1", "why": "   "}, "/why", None),
        ({"amount": "1", "why": "a\u202eb"}, "/why", "control_character"),
        ({"amount": "1", "why": "x" * 501}, "/why", None),
        ({"amount": "1", "why": "x", "valid_from": "2026-10-01"}, "/valid_from", None),
    ):
        answer = api.call("POST", f"/prices/{wrong}/corrections", "root", json=body)
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["errors"]
        assert problem["pointer"] == pointer and code in (None, problem["code"])
    good = {"amount": "1", "why": "x"}
    assert api.call("POST", "/prices/price-0/corrections", "root", json=good).status_code == 404
    for who in ("boss", "eye", "ann"):
        for answer in (
            api.call("POST", f"/prices/{wrong}/corrections", who, json=good),
            api.call("DELETE", f"/prices/{wrong}", who, params={"why": "x"}),
        ):
            assert answer.status_code == 403
    (kept,) = listed(api).values()
    assert (kept["state"], len(audited(api, wrong))) == ("holds", 1)


def test_a_place_that_should_have_had_no_price_any_more_is_given_none(api: Api) -> None:
    later, before, wide = enter(
        api,
        {"resource": CORE, "amount": "99", "valid_from": "2026-10-15", "partition": "gpu"},
        {"resource": CORE, "amount": "7", "valid_from": "2026-09-01", "partition": "gpu"},
        {"resource": CORE, "amount": "5", "valid_from": "2026-09-01"},
    )
    ended = correct(api, later, None, why="gpu costs what all cores do")
    lines = [line for line in invoice(api, partition="gpu") if line["status"] == "charged"]
    until = {line["price"]: line["until"] for line in lines}
    assert until == {before: "2026-10-15", wide: "2026-11-01"}
    (found,) = costs(api)["corrections"]
    assert (found["was"], found["now"], found["corrected_by"]) == ("99", None, ended)
    assert correct(api, ended, "6", why="it had one") in {
        line["price"] for line in invoice(api, partition="gpu") if line["status"] == "charged"
    }


def test_a_run_tells_of_the_corrections_of_what_it_used(api: Api) -> None:
    made = api.call("POST", "/pipelines", "ann", json=spec()).json()["pipeline"]["id"]
    run = api.call("POST", "/runs", "ann", json={"pipeline": made}).json()["id"]
    with api.ctx.db.write() as session:  # in a month that no other test looks at
        keep(session, job(901, at("2026-08-16T20:00"), run_id=run, partition="gpu", mem_mib=0))
    days = {0: "2026-08-01", 5: "2026-08-03", 1: "2026-08-15", 2: "2026-07-01"}  # of PRICES
    debug, memory, later, before = enter(
        api, *(PRICES[number] | {"valid_from": day} for number, day in days.items())
    )
    for one in (before, debug, memory):
        correct(api, one, "1")
    found = api.call("GET", f"/runs/{run}/cost", "ann").json()
    assert found["corrections"] == [], "of other days, of another partition, of what it had none of"
    right = correct(api, later, "13")
    found = api.call("GET", f"/runs/{run}/cost", "ann").json()
    assert [(one["price"], one["corrected_by"]) for one in found["corrections"]] == [(later, right)]
    assert found["total"]["amount"] == f"{4 * 13}", "of four cores"


def test_a_run_with_gpus_tells_of_the_corrections_of_its_types_alone(api: Api) -> None:
    made = api.call("POST", "/pipelines", "ann", json=spec(version="2.0.0")).json()["pipeline"]["id"]
    run = api.call("POST", "/runs", "ann", json={"pipeline": made}).json()["id"]
    gpus: dict[str, Any] = {"gpu_count": 3, "gpu_type": "v100", "gpu_types": "a100=1,v100=2"}
    with api.ctx.db.write() as session:  # over midnight, in a month that no other test looks at
        keep(session, job(902, at("2026-08-20T23:00"), run_s=7200, run_id=run, **gpus))
    day: dict[str, Any] = {"resource": "gpu_hour", "amount": "9"}
    others = (day | {"gpu_type": "h100", "valid_from": "2026-08-01"}, price(resource="gpu_hour", amount="9"))
    next_, v100 = enter(
        api,
        day | {"gpu_type": "a100", "valid_from": "2026-08-21"},
        day | {"gpu_type": "v100", "valid_from": "2026-08-01"},
    )
    for one in (*enter(api, *others), next_, v100):
        correct(api, one, "8")
    found = api.call("GET", f"/runs/{run}/cost", "ann").json()
    assert [one["price"] for one in found["corrections"]] == [next_, v100]
    assert found["total"]["amount"] == f"{1 * 8 + 2 * 2 * 8}"


def test_a_wrong_day_is_mended_by_withdrawing_what_was_charged_and_entering_it_anew(api: Api) -> None:
    later, before = enter(api, PRICES[1], PRICES[2])
    right = PRICES[1] | {"valid_from": "2026-10-05"}
    answer = api.call("POST", "/prices", "root", json=right)
    assert (answer.status_code, "or correct that price" in answer.json()["detail"]) == (409, True)
    for one in (later, before):
        withdraw(api, one, why="from the 5th on")
    new, old = enter(api, right, PRICES[2])
    cores = [line for line in invoice(api, user="bob") if line["resource"] == CORE]
    assert {
        (line["price"], line["since"], line["until"]) for line in cores if line["status"] == "charged"
    } == {
        (old, "2026-10-01", "2026-10-05"),
        (new, "2026-10-05", "2026-11-01"),
    }
    assert {line["replaces"] for line in cores if line["status"] == "corrected"} == {later, before}
