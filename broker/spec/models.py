"""The pipeline spec: what people write, as frozen models.

Every text with a grammar says in its error what is wrong and what to write. `parse` (in `broker.spec.parse`)
is the way in from the outside: it finds every problem at once; these models alone do not look at the graph.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from broker.spec.codes import Code
from broker.spec.limits import (
    MAX_ARGUMENTS,
    MAX_ARGUMENTS_BYTES,
    MAX_COMPONENTS,
    MAX_CPUS,
    MAX_EDGES,
    MAX_ENV_BYTES,
    MAX_ENV_VARS,
    MAX_GPUS,
    MAX_NAME_CHARS,
    MAX_NODES,
    MAX_PARAMS,
    MAX_PARAMS_BYTES,
    MAX_PATH_CHARS,
)
from broker.spec.quantities import Memory, Seconds
from broker.spec.text import shown

ComponentType = Literal["trainer", "data_loader", "preprocessor", "evaluator", "custom"]
WarningSignal = Literal["TERM", "USR1", "USR2"]

RESERVED_COMPONENTS: Final = frozenset({"control"})
"""Folders of a run directory that are the broker's own."""
GENERATED_PARAMS: Final = frozenset({"output_dir", "log_dir"})
"""Arguments that the batch script itself passes to the program (DD-11)."""

T = TypeVar("T")


def _fault(code: Code, detail: str) -> PydanticCustomError:
    return PydanticCustomError(code, "{detail}", {"detail": detail})


def _matching(pattern: str, code: Code, remedy: str) -> AfterValidator:
    """Accept text that `pattern` matches whole; else an error that shows the text and tells the remedy."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise _fault(code, f"{shown(text)} can't be used here; {remedy}")
        return text

    return AfterValidator(check)


def _one_line(text: str) -> str:
    """Accept a title in any script, without what breaks lines or turns their direction."""
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _BIDI_CONTROLS:
            raise _fault(
                Code.FORBIDDEN_CHARACTER,
                f"{shown(text)} holds the control character U+{ord(character):04X}; remove it",
            )
    if not text.strip():
        raise _fault(Code.TOO_SHORT, "the text is blank; write at least one letter")
    if len(text) > MAX_NAME_CHARS:
        raise _fault(Code.TOO_LONG, f"{shown(text)} is longer than {MAX_NAME_CHARS} characters; shorten it")
    return text


_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _path(*, absolute: bool, suffix: str = "") -> AfterValidator:
    """Accept a normalised POSIX path without control characters, `.` or `..`."""
    kind = "absolute" if absolute else "relative"
    remedy = f"write a{'n' if absolute else ''} {kind} path without . and .."
    if suffix:
        remedy += f" that ends in {suffix}"

    def check(text: str) -> str:
        parts = text[1:].split("/") if absolute else text.split("/")
        printable = all(unicodedata.category(character) != "Cc" for character in text)
        if (
            len(text) > MAX_PATH_CHARS
            or not printable
            or text.startswith("/") is not absolute
            or any(part in {"", ".", ".."} for part in parts)
            or parts[0].startswith("-")
            or not text.endswith(suffix)
        ):
            raise _fault(Code.BAD_PATH, f"{shown(text)} can't be used here; {remedy}")
        return text

    return AfterValidator(check)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise _fault(Code.FORBIDDEN_CHARACTER, f"{shown(text)} holds a NUL character; remove it")
    return text


def _env_value(value: Any) -> Any:
    if isinstance(value, str) and "\r" in value:  # Apptainer 1.4 drops it on the way into the container
        raise _fault(
            Code.FORBIDDEN_CHARACTER, f"{shown(value)} holds a carriage return; remove it or use params"
        )
    if isinstance(value, dict) and "secret_ref" in value:
        raise _fault(
            Code.SECRET_REF_UNSUPPORTED,
            "references to secrets are not accepted in env_vars; let the program read its secret from a file",
        )
    return value


def _total(measure: Callable[[T], int], limit: int, what: str) -> AfterValidator:
    """Limit the bytes of a whole collection."""

    def check(value: T) -> T:
        if (size := measure(value)) > limit:
            raise _fault(Code.TOO_LARGE, f"{what} take {size:,} bytes, {limit:,} are allowed; use a file")
        return value

    return AfterValidator(check)


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse an empty list (pydantic's `min_length` also complains where only the items are wrong)."""
    if not values:
        raise _fault(Code.TOO_SHORT, "the list is empty; write at least one item or leave the field out")
    return values


def _env_bytes(values: dict[str, str]) -> int:
    return sum(len(name) + len(value.encode("utf-8", "replace")) + 2 for name, value in values.items())


def _json_bytes(values: dict[str, JsonValue]) -> int:
    return len(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))


def _text_bytes(values: tuple[str, ...]) -> int:
    return sum(len(value.encode("utf-8", "replace")) + 1 for value in values)


def _param_name(name: str) -> str:
    if name in GENERATED_PARAMS:
        raise _fault(Code.RESERVED_NAME, f"--{name} is passed by the broker; name the param differently")
    return name


ComponentName = Annotated[
    str,
    _matching(
        r"[a-z0-9][a-z0-9-]{0,62}",
        Code.BAD_NAME,
        "component names have 1 to 63 of a-z, 0-9 and -, and don't begin with -",
    ),
]
Identifier = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        Code.BAD_NAME,
        "write 1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
    ),
]
Version = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}",
        Code.BAD_NAME,
        'write 1 to 64 letters, digits, dots, dashes, pluses or underscores, for example "1.0.0"',
    ),
]
Reference = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", Code.BAD_NAME, "write the id of a run as the broker shows it"
    ),
]
Title = Annotated[str, AfterValidator(_one_line)]
EnvName = Annotated[
    str,
    _matching(
        r"[A-Za-z_][A-Za-z0-9_]{0,254}",
        Code.BAD_NAME,
        "names of variables have letters, digits and underscores and don't begin with a digit",
    ),
]
EnvValue = Annotated[str, BeforeValidator(_env_value), AfterValidator(_no_nul)]
ParamName = Annotated[
    str,
    _matching(
        r"[A-Za-z_][A-Za-z0-9_.-]{0,127}",
        Code.BAD_NAME,
        "names of params become arguments (--name value): letters, digits, _ . -, first a letter or _",
    ),
    AfterValidator(_param_name),
]
GpuType = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
        Code.BAD_NAME,
        'write the GPU type in letters, digits, _ . or -, for example "A100"',
    ),
]
RegistryName = Annotated[
    str,
    _matching(
        r"(?=.{1,255}$)(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
        r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*",
        Code.BAD_IMAGE,
        'write registry and name, no "docker://" and no tag, for example "registry.example.org/trainer"',
    ),
]
ImageTag = Annotated[
    str,
    _matching(
        r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|sha256:[0-9a-f]{64}",
        Code.BAD_IMAGE,
        'write a tag such as "1.0", or a digest "sha256:…"',
    ),
]
GitUrl = Annotated[
    str,
    _matching(
        r"(?=.{1,1024}$)(?:https://|ssh://(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?)"
        r"[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?/[A-Za-z0-9._~/%+-]+",
        Code.BAD_GIT_URL,
        'write "https://host/path" or "ssh://git@host/path", without a password',
    ),
]
GitRef = Annotated[
    str,
    _matching(
        r"(?!.*(?:\.\.|//|@\{))[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}",
        Code.BAD_NAME,
        "write a branch, a tag or a commit",
    ),
]
Argument = Annotated[str, AfterValidator(_no_nul)]
Arguments = Annotated[
    tuple[Argument, ...],
    Field(strict=False, max_length=MAX_ARGUMENTS),
    _total(_text_bytes, MAX_ARGUMENTS_BYTES, "the arguments"),
]


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

    sif: Annotated[str, _path(absolute=True, suffix=".sif")]

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
            raise _fault(
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
    entry_script: Annotated[str, _path(absolute=False)]


class UploadCode(_Model):
    """Code uploaded before as an archive."""

    source: Literal["upload"]
    upload_id: Identifier
    entry_script: Annotated[str, _path(absolute=False)]


class PathCode(_Model):
    """Code in a folder on the cluster, below a root that the administrator allows."""

    source: Literal["path"]
    path: Annotated[str, _path(absolute=True)]
    entry_script: Annotated[str, _path(absolute=False)]


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
    params: Annotated[
        dict[ParamName, JsonValue],
        Field(max_length=MAX_PARAMS),
        _total(_json_bytes, MAX_PARAMS_BYTES, "the params"),
    ] = {}
    command: Annotated[Arguments, AfterValidator(_not_empty)] | None = None
    args: Arguments = ()
    code: AnyCode | None = None
    signal: WarningSignal | None = None

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED_COMPONENTS:
            raise _fault(
                Code.RESERVED_NAME, f"{shown(name)} is a folder of the broker's own; choose another name"
            )
        return name

    @field_validator("code")
    @classmethod
    def _command_or_code(cls, code: Any, info: ValidationInfo) -> Any:
        if code is not None and info.data.get("command") is not None:
            raise _fault(
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
    path: Annotated[str, _path(absolute=True)]


def _instant(value: Any) -> Any:
    """Read ISO 8601 text strictly: models are strict about types, and JSON has no type for time."""
    if isinstance(value, datetime):
        return value
    try:
        instant = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        instant = None
    if instant is None or instant.tzinfo is None:
        raise _fault(
            Code.BAD_VALUE, f'{shown(value)} is no time with a zone; write it as "2026-02-09T09:00:00Z"'
        )
    return instant


class PipelineSpec(_Model):
    """A whole pipeline: what a run executes."""

    pipeline_id: Identifier
    name: Title
    version: Version
    env_vars: Annotated[
        dict[EnvName, EnvValue],
        Field(max_length=MAX_ENV_VARS),
        _total(_env_bytes, MAX_ENV_BYTES, "the environment variables"),
    ] = {}
    components: Annotated[
        tuple[Component, ...], Field(strict=False, max_length=MAX_COMPONENTS), AfterValidator(_not_empty)
    ]
    workflow: Annotated[tuple[Edge, ...], Field(strict=False, max_length=MAX_EDGES)] = ()
    storage: Storage | None = None
    created_at: Annotated[datetime, BeforeValidator(_instant)] | None = None
    test_run_ref: Reference | None = None

    def component(self, name: str) -> Component:
        """Give the component of that name; `KeyError` if there is none."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(name)
