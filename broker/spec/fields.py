"""The texts of a spec that have a grammar, as pydantic types; each error says what to write instead."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from broker.spec.codes import Code
from broker.spec.limits import (
    MAX_ARGUMENTS,
    MAX_ARGUMENTS_BYTES,
    MAX_ENV_BYTES,
    MAX_ENV_VARS,
    MAX_NAME_CHARS,
    MAX_PARAMS,
    MAX_PARAMS_BYTES,
    MAX_PATH_CHARS,
)
from broker.spec.text import shown

GENERATED_PARAMS: Final = frozenset({"output_dir", "log_dir"})
"""Arguments that the batch script itself passes to the program (DD-11)."""

T = TypeVar("T")


def fault(code: Code, detail: str) -> PydanticCustomError:
    """Make the error that `parse` turns into a problem with this code and sentence."""
    return PydanticCustomError(code, "{detail}", {"detail": detail})


def _matching(pattern: str, code: Code, remedy: str) -> AfterValidator:
    """Accept text that `pattern` matches whole; else an error that shows the text and tells the remedy."""
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise fault(code, f"{shown(text)} can't be used here; {remedy}")
        return text

    return AfterValidator(check)


def _one_line(text: str) -> str:
    """Accept a title in any script, without what breaks lines or turns their direction."""
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in _BIDI_CONTROLS:
            raise fault(
                Code.FORBIDDEN_CHARACTER,
                f"{shown(text)} holds the control character U+{ord(character):04X}; remove it",
            )
    if not text.strip():
        raise fault(Code.TOO_SHORT, "the text is blank; write at least one letter")
    if len(text) > MAX_NAME_CHARS:
        raise fault(Code.TOO_LONG, f"{shown(text)} is longer than {MAX_NAME_CHARS} characters; shorten it")
    return text


_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def path_text(*, absolute: bool, suffix: str = "") -> AfterValidator:
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
            raise fault(Code.BAD_PATH, f"{shown(text)} can't be used here; {remedy}")
        return text

    return AfterValidator(check)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise fault(Code.FORBIDDEN_CHARACTER, f"{shown(text)} holds a NUL character; remove it")
    return text


def _env_value(value: Any) -> Any:
    if isinstance(value, str) and "\r" in value:  # Apptainer 1.4 drops it on the way into the container
        raise fault(
            Code.FORBIDDEN_CHARACTER, f"{shown(value)} holds a carriage return; remove it or use params"
        )
    if isinstance(value, dict) and "secret_ref" in value:
        raise fault(
            Code.SECRET_REF_UNSUPPORTED,
            "references to secrets are not accepted in env_vars; let the program read its secret from a file",
        )
    return value


def _total_bytes(measure: Callable[[T], int], limit: int, what: str) -> AfterValidator:
    """Limit the bytes of a whole collection."""

    def check(value: T) -> T:
        if (size := measure(value)) > limit:
            raise fault(Code.TOO_LARGE, f"{what} take {size:,} bytes, {limit:,} are allowed; use a file")
        return value

    return AfterValidator(check)


def not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse an empty list (pydantic's `min_length` also complains where only the items are wrong)."""
    if not values:
        raise fault(Code.TOO_SHORT, "the list is empty; write at least one item or leave the field out")
    return values


def _env_bytes(values: dict[str, str]) -> int:
    return sum(len(name) + len(value.encode("utf-8", "replace")) + 2 for name, value in values.items())


def _json_bytes(values: dict[str, JsonValue]) -> int:
    return len(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))


def _text_bytes(values: tuple[str, ...]) -> int:
    return sum(len(value.encode("utf-8", "replace")) + 1 for value in values)


def _param_name(name: str) -> str:
    if name in GENERATED_PARAMS:
        raise fault(Code.RESERVED_NAME, f"--{name} is passed by the broker; name the param differently")
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
    _total_bytes(_text_bytes, MAX_ARGUMENTS_BYTES, "the arguments"),
]


def _instant(value: Any) -> Any:
    """Read ISO 8601 text strictly: models are strict about types, and JSON has no type for time."""
    if isinstance(value, datetime):
        return value
    try:
        instant = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        instant = None
    if instant is None or instant.tzinfo is None:
        raise fault(
            Code.BAD_VALUE, f'{shown(value)} is no time with a zone; write it as "2026-02-09T09:00:00Z"'
        )
    return instant


Instant = Annotated[datetime, BeforeValidator(_instant)]

EnvVars = Annotated[
    dict[EnvName, EnvValue],
    Field(max_length=MAX_ENV_VARS),
    _total_bytes(_env_bytes, MAX_ENV_BYTES, "the environment variables"),
]
Params = Annotated[
    dict[ParamName, JsonValue],
    Field(max_length=MAX_PARAMS),
    _total_bytes(_json_bytes, MAX_PARAMS_BYTES, "the params"),
]
