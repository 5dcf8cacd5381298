"""The pipeline spec: reading, checking, comparing and changing it. Pure: no files, no clock, no network."""

from broker.spec.canonical import canonical, content_hash
from broker.spec.codes import Code
from broker.spec.models import (
    Component,
    Edge,
    GitCode,
    Image,
    PathCode,
    PipelineSpec,
    Resources,
    SifImage,
    Storage,
    UploadCode,
)
from broker.spec.overrides import (
    Overrides,
    ResourceChange,
    apply_overrides,
    default_resources,
    parse_overrides,
)
from broker.spec.parse import parse
from broker.spec.quantities import Memory, QuantityError, format_time, parse_time
from broker.spec.thresholds import Excess, Thresholds, needs_approval
from broker.spec.warnings import is_reserved, warnings

__all__ = [
    "Code",
    "Component",
    "Edge",
    "Excess",
    "GitCode",
    "Image",
    "Memory",
    "Overrides",
    "PathCode",
    "PipelineSpec",
    "QuantityError",
    "ResourceChange",
    "Resources",
    "SifImage",
    "Storage",
    "Thresholds",
    "UploadCode",
    "apply_overrides",
    "canonical",
    "content_hash",
    "default_resources",
    "format_time",
    "is_reserved",
    "needs_approval",
    "parse",
    "parse_overrides",
    "parse_time",
    "warnings",
]
