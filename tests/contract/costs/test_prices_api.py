"""Prices on a real database: how they are kept, give way to one another, and leave alone what was charged."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select

from broker.audit.tables import AuditRow
from broker.settings import CostSettings
from tests.api_support import Api, codes
from tests.costs import PRICES, costs, enter, invoice, price, today


def test_a_price_is_kept_digit_by_digit_and_leaves_a_trace(api: Api) -> None:
    (made,) = enter(api, price(amount="123456789012.345678", partition="gpu"))
    answer = api.call("POST", "/prices", "root", json=price(amount="1e3", valid_from="2999-01-01"))
    assert answer.json()["amount"] == "1000"
    _, shown = api.call("GET", "/prices", "ann").json()["items"]
    assert (shown["amount"], shown["currency"], shown["state"]) == ("123456789012.345678", "KRW", "future")
    with api.ctx.db.read() as session:
        (row,) = session.scalars(select(AuditRow).where(AuditRow.object_id == made))
        assert (row.action, row.actor_name) == ("price.set", "root")
        assert row.after and row.after["amount"] == "123456789012.345678"


def test_a_price_gives_way_to_the_next_and_can_be_withdrawn_until_it_holds(api: Api) -> None:
    later = price(valid_from=f"{today() + timedelta(days=9)}", amount="8")
    first, second = enter(api, price(valid_from=f"{today()}"), later)
    shown = {one["id"]: one for one in api.call("GET", "/prices", "root").json()["items"]}
    assert (shown[first]["state"], shown[first]["valid_until"]) == ("holds", later["valid_from"])
    answer = api.call("DELETE", f"/prices/{first}", "root")
    assert (answer.status_code, codes(answer), "holds since" in answer.text) == (422, {"why_required"}, True)
    assert api.call("DELETE", f"/prices/{second}", "root").status_code == 204
    assert "withdrawn already" in api.call("DELETE", f"/prices/{second}", "root").text
    assert [one["id"] for one in api.call("GET", "/prices", "root").json()["items"]] == [first]
    every = {one["id"]: one for one in api.call("GET", "/prices?all=true", "root").json()["items"]}
    assert every[second]["state"] == "withdrawn" and every[second]["withdrawn_by"] == "root"
    assert every[first]["valid_until"] is None
    (again,) = enter(api, later)
    assert again != second
    with api.ctx.db.read() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.object_id == second).order_by(AuditRow.id))
        assert [row.action for row in rows] == ["price.set", "price.withdraw"]


def test_what_was_charged_stays(api: Api) -> None:
    enter(api, *PRICES)

    def charged() -> Any:
        lines = [line for line in invoice(api) if line["status"] != "unpriced"]
        return costs(api, by=["tenant", "partition", "qos", "gpu_type"]), lines

    before = charged()
    for late in (
        {"resource": "core_hour", "amount": "1", "valid_from": "2026-10-05"},
        {"resource": "core_hour", "amount": "1", "valid_from": "2026-10-05", "cluster": "main"},
        {"resource": "core_hour", "amount": None, "valid_from": "2026-10-16"},
    ):
        answer = api.call("POST", "/prices", "root", json=late)
        assert answer.status_code == 409, answer.text
        assert "stays so" in answer.json()["detail"]
    enter(api, price(), price(cluster="main"))
    assert charged() == before
    (new,) = enter(
        api, {"resource": "gpu_hour", "amount": "5", "valid_from": "2026-10-01", "gpu_type": "v100"}
    )
    assert {line["price"] for line in invoice(api) if line["gpu_type"] == "v100"} == {new}


def test_two_prices_for_one_place_from_one_day_are_refused(api: Api) -> None:
    enter(api, price())
    answer = api.call("POST", "/prices", "root", json=price(amount="9"))
    assert (answer.status_code, "holds there" in answer.json()["detail"]) == (409, True)
    assert "or withdraw that one first" in answer.json()["detail"]
    enter(api, price(valid_from=f"{today()}"))
    late = api.call("POST", "/prices", "root", json=price(valid_from=f"{today()}", amount="9"))
    assert (late.status_code, "withdraw that" in late.json()["detail"]) == (409, False), "it holds already"
    assert "name another day, or correct it" in late.json()["detail"]
    assert len(api.call("GET", "/prices", "root").json()["items"]) == 2


def test_what_is_wrong_with_a_price_is_named(api: Api) -> None:
    for change, code in (
        ({"amount": 0.1}, "inexact_amount"),
        ({"amount": "-1"}, None),
        ({"amount": "NaN"}, None),
        ({"amount": "1e400"}, None),
        ({"amount": "0.0000001"}, None),
        ({"resource": "beer"}, None),
        ({"gpu_type": "a100"}, "price_without_gpu"),
        ({"amount": None}, "no_price_to_end"),
        ({"cluster": ""}, None),
        ({"cluster": "nowhere"}, "unknown_cluster"),
        ({"partition": "a\nb"}, None),
        ({"valid_from": "1066-10-14"}, None),
    ):
        answer = api.call("POST", "/prices", "root", json=price(**change))
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["errors"]
        assert problem["pointer"] == f"/{next(iter(change))}"
        assert code is None or problem["code"] == code
    assert api.call("DELETE", "/prices/price-0", "root").status_code == 404


def test_prices_of_another_currency_do_not_hold(api: Api) -> None:
    enter(api, *PRICES)
    api.ctx.settings.__dict__["costs"] = CostSettings(currency="USD")
    assert costs(api)["total"]["amount"] is None
    assert api.call("GET", "/prices", "root").json() == {"currency": "USD", "items": []}
    listed = api.call("GET", "/prices?all=true", "root").json()["items"]
    assert {one["currency"] for one in listed} == {"KRW"} and len(listed) == len(PRICES)
