"""Which components need approval (AP-05): reaching a threshold is enough, amounts never add up."""

from __future__ import annotations

from typing import Any

import pytest

from broker.settings import ApprovalSettings
from broker.spec import Excess, Overrides, Thresholds, apply_overrides, needs_approval, parse
from tests.api_support import spec

DEFAULT = Thresholds.of(ApprovalSettings())


def with_resources(**resources: Any) -> dict[str, Any]:
    document = spec()
    document["components"][1]["resources"] = {"memory": "64GB"} | resources
    return document


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"gpu_count": 3, "memory": "127GB"}, []),
        ({"gpu_count": 4}, [Excess("trainer", "gpu_count", 4, 4)]),
        ({"memory": "128GB"}, [Excess("trainer", "memory_mib", 131072, 131072)]),
        ({"memory": "131071MB"}, []),
        (
            {"gpu_count": 8, "memory": "1TB", "nodes": 4},
            [Excess("trainer", "gpu_count", 8, 4), Excess("trainer", "memory_mib", 1 << 20, 131072)],
        ),
    ],
)
def test_a_component_that_reaches_a_threshold_needs_approval(
    resources: dict[str, Any], expected: list[Excess]
) -> None:
    assert list(needs_approval(parse(with_resources(**resources)), DEFAULT)) == expected


def test_amounts_of_different_components_never_add_up() -> None:
    document = with_resources(gpu_count=3, memory="100GB")
    document["components"][0]["resources"] = {"gpu_count": 3, "memory": "100GB"}
    assert needs_approval(parse(document), DEFAULT) == ()


def test_an_override_counts_like_the_spec() -> None:
    overrides = Overrides.model_validate({"components": {"trainer": {"gpu_count": 4}}})
    assert needs_approval(apply_overrides(parse(spec()), overrides), DEFAULT)


def test_thresholds_are_settings() -> None:
    strict = Thresholds.of(ApprovalSettings(gpu_count=1, memory_gib=4))
    assert [(over.component, over.resource) for over in needs_approval(parse(spec()), strict)] == [
        ("loader", "memory_mib"),
        ("trainer", "gpu_count"),
        ("trainer", "memory_mib"),
    ]
