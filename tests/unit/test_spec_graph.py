"""Questions asked of the workflow."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.spec import PipelineSpec, parse
from broker.spec.graph import check, descendants, parents, topological


def spec(orders: dict[str, int], edges: list[tuple[str, str]]) -> PipelineSpec:
    common = {"type": "custom", "image": {"registry": "r/x", "tag": "1"}, "resources": {"memory": "1GB"}}
    components: list[dict[str, Any]] = [
        {"order": order, "name": name, **common} for name, order in orders.items()
    ]
    workflow = [{"from": source, "to": target} for source, target in edges]
    return parse(
        {"pipeline_id": "p", "name": "p", "version": "1", "components": components, "workflow": workflow}
    )


def test_topological_order_is_stable_by_order_then_name() -> None:
    diamond = spec({"d": 9, "c": 2, "b": 2, "a": 1}, [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    assert topological(diamond) == ("a", "b", "c", "d")
    assert topological(spec({"b": 1, "a": 1, "c": 0}, [])) == ("c", "a", "b")
    assert topological(spec({"late": 1, "early": 2}, [("early", "late")])) == ("early", "late")


def test_parents_come_in_topological_order() -> None:
    diamond = spec({"d": 9, "c": 2, "b": 3, "a": 1}, [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    assert parents(diamond) == {"a": (), "c": ("a",), "b": ("a",), "d": ("c", "b")}
    assert list(parents(diamond)) == list(topological(diamond))


def test_descendants_are_everything_downstream() -> None:
    chain = spec({"a": 1, "b": 2, "c": 3, "d": 1}, [("a", "b"), ("b", "c")])
    assert descendants(chain, ["a"]) == {"b", "c"}
    assert descendants(chain, ["b", "d"]) == {"c"}
    assert descendants(chain, ["c"]) == set()


names = st.sampled_from("abcdef")


@given(st.lists(st.tuples(names, names), max_size=12, unique=True))
def test_a_graph_is_refused_exactly_when_it_has_no_order(edges: list[tuple[str, str]]) -> None:
    refused = bool(check("abcdef", edges))
    remaining, left = set("abcdef"), list(edges)
    while free := {n for n in remaining if all(target != n for _, target in left)}:
        remaining -= free
        left = [edge for edge in left if edge[0] not in free]
    assert refused == bool(remaining)


def test_a_thousand_parents_are_read_in_well_under_a_second() -> None:
    orders = {f"c{i}": 1 for i in range(1000)} | {"join": 2}
    started = time.process_time()
    joined = spec(orders, [(f"c{i}", "join") for i in range(1000)])
    assert len(parents(joined)["join"]) == 1000
    assert time.process_time() - started < 5
