"""The pipeline spec: what people write, as frozen models.

`parse` (in `broker.spec.parse`) is the way in from the outside: it finds every problem at once; these models
alone do not look at the graph.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from broker.spec.codes import Code
from broker.spec.fields import (
    Arguments,
    ComponentName,
    EnvVars,
    GitRef,
    GitUrl,
    GpuType,
    Identifier,
    ImageTag,
    Instant,
    Params,
    Reference,
    RegistryName,
    Title,
    Version,
    fault,
    not_empty,
    path_text,
)
from broker.spec.limits import MAX_COMPONENTS, MAX_CPUS, MAX_EDGES, MAX_GPUS, MAX_NODES
from broker.spec.quantities import Memory, Seconds
from broker.spec.text import shown

ComponentType = Literal["trainer", "data_loader", "preprocessor", "evaluator", "custom"]
WarningSignal = Literal["TERM", "USR1", "USR2"]

RESERVED_COMPONENTS: Final = frozenset({"control"})
"""Folders of a run directory that are the broker's own."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True)


class Image(_Model):
    """An image in a registry: address with name, and a tag or digest."""

    registry: RegistryName
    tag: ImageTag

    @property
    def reference(self) -> str:
        """`registry:tag` (or `registry@sha256:…`): the key of what the image was resolved to."""
        return f"{self.registry}{'@' if self.tag.startswith('sha256:') else ':'}{self.tag}"


class SifImage(_Model):
    """A `.sif` file that lies on the cluster already."""

    sif: Annotated[str, path_text(absolute=True, suffix=".sif")]

    @property
    def reference(self) -> str:
        """The path: the key of what the image was resolved to."""
        return self.sif


def _image_kind(value: Any) -> str:
    return (
        "<sif>" if isinstance(value, SifImage) or (isinstance(value, dict) and "sif" in value) else "<image>"
    )


AnyImage = Annotated[
    Annotated[Image, Tag("<image>")] | Annotated[SifImage, Tag("<sif>")], Discriminator(_image_kind)
]


class Resources(_Model):
    """What a component asks for, over all its nodes together (Slurm's own numbers are per node).

    `gpu_count`, `memory` and `cpus` must divide by `nodes`. `time` is in seconds, `memory` in MiB inside;
    None leaves the choice to the cluster profile (CPUs) or means one hour (time).
    """

    nodes: int = Field(1, ge=1, le=MAX_NODES)
    gpu_type: GpuType | None = None
    gpu_count: int = Field(0, ge=0, le=MAX_GPUS)
    memory: Memory
    cpus: int | None = Field(None, ge=1, le=MAX_CPUS)
    time: Seconds | None = None

    @field_validator("gpu_count", "memory", "cpus")
    @classmethod
    def _divides(cls, value: int | Memory | None, info: ValidationInfo) -> int | Memory | None:
        nodes = info.data.get("nodes", 1)
        amount = value.mib if isinstance(value, Memory) else value or 0
        if amount % nodes:
            raise fault(
                Code.NOT_DIVISIBLE,
                f"{info.field_name} is for all {nodes} nodes together and {value} does not divide "
                f"by {nodes}; use a multiple",
            )
        return value


class GitCode(_Model):
    """Code from a git repository, at what `ref` (branch, tag or commit) names when the run is requested."""

    source: Literal["git"]
    url: GitUrl
    ref: GitRef
    entry_script: Annotated[str, path_text(absolute=False)]


class UploadCode(_Model):
    """Code uploaded before as an archive."""

    source: Literal["upload"]
    upload_id: Identifier
    entry_script: Annotated[str, path_text(absolute=False)]


class PathCode(_Model):
    """Code in a folder on the cluster, below a root that the administrator allows."""

    source: Literal["path"]
    path: Annotated[str, path_text(absolute=True)]
    entry_script: Annotated[str, path_text(absolute=False)]


def _code_kind(value: Any) -> str | None:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    return f"<{source}>" if source in {"git", "upload", "path"} else None


AnyCode = Annotated[
    Annotated[GitCode, Tag("<git>")]
    | Annotated[UploadCode, Tag("<upload>")]
    | Annotated[PathCode, Tag("<path>")],
    Discriminator(
        _code_kind,
        custom_error_type=Code.BAD_VALUE,
        custom_error_message='code needs "source", one of "git", "upload", "path"',
    ),
]


class Component(_Model):
    """One step of a pipeline: an image that runs as its own container with its own resources.

    Without `command` and `code` the image's own entry point runs, with `--output_dir`, `--log_dir` and the
    params as arguments, then `args`. With `code`, `entry_script` runs the same way. With `command` exactly
    that runs; it gets the generated arguments only if there are params.
    `signal` is what warns the program before its time limit and at preemption: frameworks listen to
    different ones (Hugging Face TERM, Lightning USR1, submitit USR2).
    """

    order: int = Field(ge=0, le=1_000_000)
    name: ComponentName
    type: ComponentType
    image: AnyImage
    resources: Resources
    params: Params = {}
    command: Annotated[Arguments, AfterValidator(not_empty)] | None = None
    args: Arguments = ()
    code: AnyCode | None = None
    signal: WarningSignal | None = None

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED_COMPONENTS:
            raise fault(
                Code.RESERVED_NAME, f"{shown(name)} is a folder of the broker's own; choose another name"
            )
        return name

    @field_validator("code")
    @classmethod
    def _command_or_code(cls, code: Any, info: ValidationInfo) -> Any:
        if code is not None and info.data.get("command") is not None:
            raise fault(
                Code.CONFLICTING_FIELDS,
                "command and code exclude each other: code runs its entry_script; drop one",
            )
        return code


class Edge(_Model):
    """`target` starts when `source` has succeeded, and reads its outputs."""

    source: str = Field(alias="from")
    target: str = Field(alias="to")


class Storage(_Model):
    """Where results belong, logically: a prefix in the object store, never a path on a host."""

    type: Identifier
    path: Annotated[str, path_text(absolute=True)]


class PipelineSpec(_Model):
    """A whole pipeline: what a run executes."""

    pipeline_id: Identifier
    name: Title
    version: Version
    env_vars: EnvVars = {}
    components: Annotated[
        tuple[Component, ...], Field(strict=False, max_length=MAX_COMPONENTS), AfterValidator(not_empty)
    ]
    workflow: Annotated[tuple[Edge, ...], Field(strict=False, max_length=MAX_EDGES)] = ()
    storage: Storage | None = None
    created_at: Instant | None = None
    test_run_ref: Reference | None = None

    def component(self, name: str) -> Component:
        """Give the component of that name; `KeyError` if there is none."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)
