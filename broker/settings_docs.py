"""`python -m broker.settings_docs` writes `docs/settings.md` from the settings themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from broker.settings import CONFIG_FILE_VARIABLE, Settings

FILE: Final = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
_INTRODUCTION: Final = f"""\
# Settings

Written by `python -m broker.settings_docs` from `broker/settings/`; change them there.

Where a value comes from, first found wins: an environment variable; the TOML file named by
`{CONFIG_FILE_VARIABLE}` (default `broker.toml` in the working directory); the default below. Two underscores
go one level down: `BROKER_S3__BUCKET` is `bucket` in `[s3]`, `BROKER_CLUSTERS__MAIN__SSH_HOST` is `ssh_host`
in `[clusters.main]`. Lists and maps in a variable are JSON. Secrets are never values: a setting whose name
ends in `_file` names a file that only its owner may read (0600). `broker settings` shows what is in force,
`broker doctor` whether it works.

```toml
data_dir = "/var/lib/broker"

[clusters.main]
ssh_host = "login.example.org"
ssh_key_file = "/etc/broker/id_ed25519"
ssh_known_hosts = "/etc/broker/known_hosts"
base_path = "/cluster/ml-jobs"
image_dir = "/cluster/images"
account = "ml"
gpu_types = {{ A100 = "a100", V100 = "v100" }}
```
"""


def document() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *_sections()])


def _sections() -> Iterator[str]:
    top = {name: field for name, field in Settings.model_fields.items() if _section_of(field) is None}
    yield _section("General", "", top, "BROKER_")
    yield from _below(Settings, "")


def _below(model: type[BaseModel], path: str) -> Iterator[str]:
    """The sections inside a section, each followed by those inside it."""
    for name, field in model.model_fields.items():
        inner = _section_of(field)
        if inner is None:
            continue
        place = f"{path}{name}" + (".NAME" if get_origin(field.annotation) is dict else "")
        fields = {key: one for key, one in inner.model_fields.items() if _section_of(one) is None}
        prefix = f"BROKER_{place.upper().replace('.', '__')}__"
        yield _section(f"`[{place}]`", inspect.cleandoc(inner.__doc__ or ""), fields, prefix)
        yield from _below(inner, f"{place}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _section(title: str, about: str, fields: dict[str, FieldInfo], prefix: str) -> str:
    lines = [f"## {title}", ""]
    if about:
        lines += [about, ""]
    lines += ["| setting | type | default | what it is |", "|---|---|---|---|"]
    for name, field in fields.items():
        variable = f"`{prefix}{name.upper()}`"
        cells = (f"`{name}`<br>{variable}", _type(field), _default(field), _text(field.description or ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _type(field: FieldInfo) -> str:
    limits = []
    for item in field.metadata:
        for mark, name in (("≥ ", "ge"), ("> ", "gt"), ("≤ ", "le"), ("< ", "lt")):
            if (bound := getattr(item, name, None)) is not None:
                limits.append(f"{mark}{bound}")
        if pattern := getattr(item, "pattern", None):
            limits.append(f"`{_text(pattern)}`")
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in arguments if one is not type(None))
    if origin is dict:
        return "map"
    if origin in (tuple, list):
        return "list"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path"}
    return names.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _text(text: str) -> str:
    return text.replace("|", "\\|")


def setting_names() -> list[str]:
    """Every setting as the page names it (its test compares); a section by its name alone."""

    def names(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield name
            if inner := _section_of(field):
                yield from names(inner)

    return sorted(set(names(Settings)))


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
