"""The templates: found beside the package, rendered strictly, quoted by one filter."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jinja2
from pydantic import JsonValue

TEMPLATES = Path(__file__).parent / "templates"
"""The folder `templates/` of the project: a link in a checkout, a copy in an installed package."""


def sh(value: object) -> str:
    r"""Quote a value for bash, whatever is in it (NUL can't be: no program could be given it).

    Text with a carriage return is written as $'…\r…': sbatch refuses a script that holds CR LF anywhere.
    """
    text = str(value)
    if "\r" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r")
    return f"$'{escaped}'"


def words(values: object) -> str:
    """Quote each of several values and put blanks between."""
    assert isinstance(values, (list, tuple))
    return " ".join(map(sh, values))


def as_argument(value: JsonValue) -> str:
    """Write a param as an argument: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else as_json(value)


def as_json(value: Any) -> str:
    """Write JSON that is one line and keeps every script readable."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  scripts, not HTML: `sh` is the escape
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # the default begins inside bash's ${#array[@]}
        comment_end_string="#>",
    )
    environment.filters |= {"sh": sh, "words": words, "json": as_json}
    return environment


_ENVIRONMENT = _environment()
_LOADED = {name: _ENVIRONMENT.get_template(name) for name in _ENVIRONMENT.list_templates(extensions=["j2"])}
"""Read once, at import: what follows is pure."""


def render(name: str, **values: Any) -> str:
    """Render a template; a variable that is not given is an error."""
    return _LOADED[name].render(**values)
