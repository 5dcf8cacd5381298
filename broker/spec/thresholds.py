"""Which components are so large that a person decides about them (AP-05)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from broker.spec.models import PipelineSpec

if TYPE_CHECKING:
    from broker.settings import ApprovalSettings


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From these amounts on, over all nodes of one component, a run waits for approval."""

    gpu_count: int
    memory_mib: int

    @classmethod
    def of(cls, settings: ApprovalSettings) -> Thresholds:
        """As they are configured."""
        return cls(gpu_count=settings.gpu_count, memory_mib=settings.memory_gib << 10)


@dataclass(frozen=True, slots=True)
class Excess:
    """A component that reaches a threshold. Amounts are GPUs, or MiB of memory."""

    component: str
    resource: Literal["gpu_count", "memory_mib"]
    requested: int
    threshold: int


def needs_approval(spec: PipelineSpec, thresholds: Thresholds) -> tuple[Excess, ...]:
    """Every component that reaches a threshold, in the spec's order; empty: the run may start at once.

    Reaching is enough (GPU ≥ 4), amounts of different components never add up, and an override counts
    like the spec: give the spec that will run.
    """
    found: list[Excess] = []
    for component in spec.components:
        resources = component.resources
        if resources.gpu_count >= thresholds.gpu_count:
            found.append(Excess(component.name, "gpu_count", resources.gpu_count, thresholds.gpu_count))
        if resources.memory.mib >= thresholds.memory_mib:
            found.append(Excess(component.name, "memory_mib", resources.memory.mib, thresholds.memory_mib))
    return tuple(found)
