"""From JSON to a spec, or to the list of everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from broker.errors import InvalidSpec, Problem
from broker.spec import document, graph
from broker.spec.codes import Code
from broker.spec.limits import MAX_COMPONENTS, MAX_EDGES, MAX_PROBLEMS
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
from broker.spec.text import pointer, printable, shown

M = TypeVar("M", bound=BaseModel)

_CODES = {
    "missing": Code.MISSING_FIELD,
    "extra_forbidden": Code.UNKNOWN_FIELD,
    "literal_error": Code.NOT_ALLOWED,
    "too_long": Code.TOO_LARGE,
    "too_short": Code.TOO_SHORT,
    "string_too_long": Code.TOO_LONG,
    "string_too_short": Code.TOO_SHORT,
    "string_unicode": Code.FORBIDDEN_CHARACTER,
    "greater_than_equal": Code.OUT_OF_RANGE,
    "less_than_equal": Code.OUT_OF_RANGE,
    "int_parsing_size": Code.OUT_OF_RANGE,
}

_NEEDED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "dict_type": "an object",
    "mapping_type": "an object",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "invalid-json-value": "a JSON value",
}

_BOUNDS = {
    "too_long": "must have {max_length} items at most",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}

_FIELDS: Mapping[str, Sequence[type[BaseModel]]] = {
    "components": (Component,),
    "image": (Image, SifImage),
    "resources": (Resources,),
    "code": (GitCode, UploadCode, PathCode),
    "workflow": (Edge,),
    "storage": (Storage,),
}
"""The models whose fields may stand below a key of the spec: to guess what an unknown field should be."""


def parse(data: bytes | str | Mapping[str, Any]) -> PipelineSpec:
    """Read a spec; raises `InvalidSpec` with every problem at once, each with its JSON pointer."""
    try:
        tree, problems = document.read(data)
    except document.UnreadableDocument as error:
        raise invalid([error.problem]) from None
    if not isinstance(tree, Mapping):
        raise invalid([Problem("", Code.WRONG_TYPE, f"a spec is a JSON object, not {shown(tree)}")])
    problems += graph.check(_names(tree), _edges(tree))
    spec, more = validated(PipelineSpec, tree)
    problems = _distinct([*problems, *more])
    if problems or spec is None:
        raise invalid(problems)
    return spec


def validated(
    model: type[M], tree: Any, fields: Mapping[str, Sequence[type[BaseModel]]] = _FIELDS
) -> tuple[M | None, list[Problem]]:
    """Validate a JSON tree against a model: the instance, or None and the problems."""
    try:
        return model.model_validate(tree, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, [
            _problem(item, model, tree, fields)
            for item in error.errors(include_url=False, include_context=True)[: MAX_PROBLEMS + 1]
        ]


def invalid(problems: Sequence[Problem]) -> InvalidSpec:
    """Make the error that carries `problems`; its sentence tells the first and how many there are."""
    first = problems[0]
    place = f"{first.pointer}: " if first.pointer else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if len(problems) > MAX_PROBLEMS:
        rest = f"more than {MAX_PROBLEMS} problems; mend these first"
        problems = [*problems[:MAX_PROBLEMS], Problem("", Code.TOO_MANY_PROBLEMS, rest)]
    return InvalidSpec(f"{place}{first.detail}{more}", problems=tuple(problems))


def _problem(
    error: ErrorDetails, model: type[BaseModel], tree: Any, fields: Mapping[str, Sequence[type[BaseModel]]]
) -> Problem:
    place = tuple(_place(error["loc"]))
    field = shown(str(place[-1])) if place else "the document"
    kind, given = error["type"], shown(error["input"])
    code = _CODES.get(kind, Code.BAD_VALUE)
    if "detail" in error.get("ctx", {}) or kind == Code.BAD_VALUE:  # raised by the models themselves
        code, detail = Code(kind), error["msg"]
    elif kind == "missing":
        detail = f"the field {field} is missing; add it"
    elif kind == "extra_forbidden":
        detail = (
            f"there is no field {field}{graph.did_you_mean(str(place[-1]), _siblings(place, model, fields))}"
        )
    elif kind in _NEEDED:
        code, detail = Code.WRONG_TYPE, f"{field} must be {_NEEDED[kind]}, not {given}"
    elif kind == "literal_error":
        detail = f"{field} can't be {given}; it is one of {error['ctx']['expected']}"
    elif code is Code.FORBIDDEN_CHARACTER:
        detail = f"{given} is not Unicode text; remove half surrogate pairs"
    elif kind in _BOUNDS:
        detail = f"{field} {_BOUNDS[kind].format(**error['ctx'])}, not {given}"
    else:
        detail = f"{field}: {printable(error['msg'])}; it is {given}"
    return Problem(pointer(place), code, detail)


def _place(loc: Iterable[str | int]) -> Iterator[str | int]:
    """Drop what pydantic adds to a place: the tags of unions and the mark of keys."""
    for part in loc:
        if not (isinstance(part, str) and (part == "[key]" or (part.startswith("<") and part.endswith(">")))):
            yield part


def _siblings(
    place: Sequence[str | int], model: type[BaseModel], fields: Mapping[str, Sequence[type[BaseModel]]]
) -> set[str]:
    """The names of fields that could have stood at `place`."""
    above = [part for part in place[:-1] if isinstance(part, str)]
    models = fields.get(above[-1], ()) if above else (model,)
    return {info.alias or name for candidate in models for name, info in candidate.model_fields.items()}


def _names(tree: Mapping[str, Any]) -> list[str | None]:
    return [_text(item, "name") for item in _items(tree, "components")[:MAX_COMPONENTS]]


def _edges(tree: Mapping[str, Any]) -> list[tuple[str | None, str | None]]:
    return [(_text(item, "from"), _text(item, "to")) for item in _items(tree, "workflow")[:MAX_EDGES]]


def _items(tree: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = tree.get(key)
    return value if isinstance(value, (list, tuple)) else ()


def _text(item: Any, key: str) -> str | None:
    value = item.get(key) if isinstance(item, Mapping) else None
    return value if isinstance(value, str) else None


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """Keep the first problem of each place: a flaw of the tree makes others that say the same again."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.pointer, problem)
    return sorted(first.values(), key=lambda problem: _natural(problem.pointer))


def _natural(place: str) -> list[tuple[int, int, str]]:
    """Sort pointers with their indices as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in place.split("/")]
