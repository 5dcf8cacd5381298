"""What runs, but not quite as written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from broker.errors import Problem
from broker.spec.codes import Code
from broker.spec.models import PipelineSpec
from broker.spec.text import pointer

CONTRACT_VARIABLES: Final = (
    "ATTEMPT",
    "CHECKPOINT_DIR",
    "CODE_DIR",
    "COMPONENT",
    "INPUT_DIR",
    "JOB_ID",
    "LOG_DIR",
    "OUTPUT_DIR",
    "PARAMS_FILE",
    "PROGRESS_FILE",
    "RESUME",
    "RUN_ID",
)
"""What every container is told by the broker (docs: the contract with a component's container)."""

GPU_VARIABLES: Final = (
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
)
"""What says which GPUs a job may use: Slurm's to set."""

_RESERVED: Final = re.compile(
    rf"(?:SLURM|APPTAINER|SINGULARITY)\w*|HOME|{'|'.join((*CONTRACT_VARIABLES, *GPU_VARIABLES))}", re.ASCII
)


def is_reserved(variable: str) -> bool:
    """Tell whether Slurm, Apptainer or the broker sets this variable, so that a spec's value is dropped."""
    return _RESERVED.fullmatch(variable) is not None


def warnings(spec: PipelineSpec) -> list[Problem]:
    """List what the broker does differently from what the spec says."""
    return [*_variables(spec), *_gpu_types(spec), *_orders(spec)]


def _variables(spec: PipelineSpec) -> Iterator[Problem]:
    for name in spec.env_vars:
        if is_reserved(name):
            yield Problem(
                pointer(("env_vars", name)),
                Code.RESERVED_VARIABLE,
                f"{name} is set by Slurm or the broker for each job; the spec's value is not used",
            )


def _gpu_types(spec: PipelineSpec) -> Iterator[Problem]:
    for index, component in enumerate(spec.components):
        if component.resources.gpu_type and not component.resources.gpu_count:
            yield Problem(
                pointer(("components", index, "resources", "gpu_type")),
                Code.UNUSED_GPU_TYPE,
                f"{component.name} names {component.resources.gpu_type} but asks for no GPU; set gpu_count",
            )


def _orders(spec: PipelineSpec) -> Iterator[Problem]:
    orders = {component.name: component.order for component in spec.components}
    for index, edge in enumerate(spec.workflow):
        if orders[edge.source] > orders[edge.target]:
            yield Problem(
                pointer(("workflow", index)),
                Code.ORDER_CONTRADICTS_WORKFLOW,
                f"{edge.target} has a lower order than {edge.source}, which it waits for; the edge decides",
            )
