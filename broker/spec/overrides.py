"""Resources changed for one run, and the suggestion they begin with (WR-02)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from broker.errors import Problem
from broker.spec import document
from broker.spec.codes import Code
from broker.spec.fields import GpuType
from broker.spec.graph import did_you_mean
from broker.spec.limits import MAX_CPUS, MAX_GPUS
from broker.spec.models import Component, PipelineSpec, Resources
from broker.spec.parse import invalid, validated
from broker.spec.quantities import Memory, Seconds
from broker.spec.text import pointer, shown


class ResourceChange(BaseModel):
    """New resources; what is not set stays as the spec has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    gpu_type: GpuType | None = None
    gpu_count: int | None = Field(None, ge=0, le=MAX_GPUS)
    memory: Memory | None = None
    cpus: int | None = Field(None, ge=1, le=MAX_CPUS)
    time: Seconds | None = None

    def changes(self) -> dict[str, Any]:
        """Give the fields that are set, as a spec writes them."""
        return self.model_dump(mode="json", exclude_none=True)


class Overrides(BaseModel):
    """Changes for every component (`all`), then for single ones by name (`components`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    all: ResourceChange = ResourceChange()
    components: dict[str, ResourceChange] = {}


def parse_overrides(data: bytes | str | Mapping[str, Any]) -> Overrides:
    """Read overrides; raises `InvalidSpec` with every problem at once."""
    try:
        tree, problems = document.read(data)
    except document.UnreadableDocument as error:
        raise invalid([error.problem]) from None
    fields = {"all": (ResourceChange,), "components": (ResourceChange,)}
    overrides, more = validated(Overrides, tree, fields)
    if problems or overrides is None:
        raise invalid([*problems, *more])
    return overrides


def apply_overrides(spec: PipelineSpec, overrides: Overrides) -> PipelineSpec:
    """Give the spec with changed resources; raises `InvalidSpec`.

    Pointers begin at the overrides for names that don't exist, at the spec for resources that can't be.
    """
    names = {component.name for component in spec.components}
    problems = [
        Problem(
            pointer(("components", name)),
            Code.UNKNOWN_COMPONENT,
            f"no component is named {shown(name)}{did_you_mean(name, names)}",
        )
        for name in overrides.components
        if name not in names
    ]
    components: list[Component] = []
    for index, component in enumerate(spec.components):
        changes = overrides.all.changes()
        if component.name in overrides.components:
            changes |= overrides.components[component.name].changes()
        tree = component.resources.model_dump(mode="json") | changes
        resources, faults = validated(Resources, tree)
        where = pointer(("components", index, "resources"))
        problems += [Problem(where + fault.pointer, fault.code, fault.detail) for fault in faults]
        components.append(component.model_copy(update={"resources": resources}))
    if problems:
        raise invalid(problems)
    return spec.model_copy(update={"components": tuple(components)})


def default_resources(spec: PipelineSpec) -> Resources:
    """Suggest resources for a run: the largest of each over the components (GPU type: of the most GPUs)."""
    parts = [component.resources for component in spec.components]
    largest = max(parts, key=lambda part: (part.gpu_count, part.memory))
    return Resources.model_construct(
        nodes=max(part.nodes for part in parts),
        gpu_type=largest.gpu_type,
        gpu_count=largest.gpu_count,
        memory=max(part.memory for part in parts),
        cpus=max(part.cpus or 0 for part in parts) or None,
        time=max(part.time or 0 for part in parts) or None,
    )
