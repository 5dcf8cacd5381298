"""From bytes to a plain JSON tree, refusing what JSON parsers usually let pass.

Refused: duplicate keys, NaN, numbers that no program reads back, nesting bombs, NUL, half surrogate pairs
and overlong texts. Where it can, it goes on and reports everything at once.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from broker.errors import Problem
from broker.spec.codes import Code
from broker.spec.limits import MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_PROBLEMS, MAX_TEXT_BYTES
from broker.spec.text import pointer, shown

_INT_LIMIT = 1 << 63
_INT_DIGITS = 20  # more can't fit 64 bits, and Python's int() is quadratic in digits


class UnreadableDocument(Exception):
    """Nothing in the document can be looked at; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    duplicates: tuple[str, ...] = ()


def read(data: bytes | str | Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """Give the JSON tree of `data` and what is wrong with it as a tree; raises `UnreadableDocument`."""
    tree = _parsed(data) if isinstance(data, (bytes, str)) else data
    flaws = list(islice(_flaws(tree, ()), MAX_PROBLEMS))
    for flaw in flaws:
        if flaw.code == Code.TOO_DEEP:
            raise UnreadableDocument(flaw)
    return tree, flaws


def _parsed(data: bytes | str) -> Any:
    size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "surrogatepass"))
    if size > MAX_DOCUMENT_BYTES:
        raise _unreadable(
            Code.TOO_LARGE,
            f"the document has {size:,} bytes, {MAX_DOCUMENT_BYTES:,} are allowed; keep data out of it",
        )
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise _unreadable(Code.NOT_UTF8, f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _unreadable(Code.NOT_JSON, f"not JSON at {place}: {error.msg}; mend the text there") from None
    except RecursionError:
        raise _unreadable(Code.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels; write it flatter") from None


def _unreadable(code: Code, detail: str) -> UnreadableDocument:
    return UnreadableDocument(Problem("", code, detail))


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) != len(pairs):
        result.duplicates = tuple(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return result


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _INT_DIGITS else math.inf


def _flaws(value: Any, path: tuple[str | int, ...]) -> Iterator[Problem]:
    """Walk the tree; every flaw with its pointer."""
    if isinstance(value, str):
        yield from _text_flaws(value, path)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, (int, float)):
        yield from _number_flaws(value, path)
    elif len(path) > MAX_DEPTH:
        yield Problem(
            pointer(path[:MAX_DEPTH]),
            Code.TOO_DEEP,
            f"nested deeper than {MAX_DEPTH} levels; write it flatter",
        )
    elif isinstance(value, Mapping):
        for key in getattr(value, "duplicates", ()):
            yield Problem(
                pointer((*path, key)),
                Code.DUPLICATE_KEY,
                f"the key {shown(key)} stands here twice; remove one",
            )
        for key, item in value.items():
            if not isinstance(key, str):
                yield Problem(
                    pointer(path), Code.WRONG_TYPE, f"the key {shown(key)} is not text; JSON keys are text"
                )
                continue
            yield from _text_flaws(key, (*path, key))
            yield from _flaws(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flaws(item, (*path, index))
    else:
        yield Problem(
            pointer(path),
            Code.WRONG_TYPE,
            f"{type(value).__name__} is not JSON; use text, numbers, lists, objects",
        )


def _text_flaws(text: str, path: tuple[str | int, ...]) -> Iterator[Problem]:
    if "\0" in text:
        yield Problem(
            pointer(path), Code.FORBIDDEN_CHARACTER, f"{shown(text)} holds a NUL character; remove it"
        )
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        yield Problem(
            pointer(path),
            Code.FORBIDDEN_CHARACTER,
            f"{shown(text)} holds half of a surrogate pair, which is no character; remove it",
        )
        return
    if size > MAX_TEXT_BYTES:
        yield Problem(
            pointer(path),
            Code.TOO_LONG,
            f"{shown(text)} has {size:,} bytes, {MAX_TEXT_BYTES:,} are allowed; put it into a file",
        )


def _number_flaws(number: int | float, path: tuple[str | int, ...]) -> Iterator[Problem]:
    if isinstance(number, float) and math.isnan(number):
        yield Problem(pointer(path), Code.NOT_A_NUMBER, "NaN is no JSON number; use null or a text")
    elif math.isinf(number) or (isinstance(number, int) and not -_INT_LIMIT <= number < _INT_LIMIT):
        yield Problem(
            pointer(path), Code.OUT_OF_RANGE, "the number does not fit 64 bits; use a smaller one or a text"
        )
