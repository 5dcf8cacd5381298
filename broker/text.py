"""Text that people send: what every request model refuses before any table or script sees it.

PostgreSQL can't store NUL, nothing can encode a lone surrogate as UTF-8, and a control character in a name
breaks every list it is printed in. `RequestModel` refuses the first two anywhere in a body, whatever its
fields are; `Name` and `Line` refuse control characters in single fields.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

UNSTORABLE = "unstorable_text"
CONTROL = "control_character"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MAX_DEPTH = 64


def unstorable(value: Any, pointer: str = "", depth: int = 0) -> Iterator[str]:
    """JSON pointers of every text in `value` (keys included) that has a NUL or a lone surrogate."""
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            yield pointer
    elif depth > _MAX_DEPTH:
        yield pointer
    elif isinstance(value, dict):
        for key, item in value.items():
            place = f"{pointer}/{escape_pointer(str(key))}"
            if _UNSTORABLE.search(str(key)):
                yield place
            yield from unstorable(item, place, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from unstorable(item, f"{pointer}/{index}", depth + 1)


def escape_pointer(part: str) -> str:
    """One part of a JSON pointer (RFC 6901); what can't be printed is written as an escape."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in part[:128])
    return printable.replace("~", "~0").replace("/", "~1")


class RequestModel(BaseModel):
    """Base of every request body: unknown fields and unstorable text are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        if pointers := list(unstorable(data)):
            raise PydanticCustomError(
                UNSTORABLE,
                "Text with a NUL character or half a surrogate pair, or nested too deeply, can't be stored",
                {"pointers": pointers[:100]},
            )
        return data


def one_line(text: str) -> str:
    """`text` unless it has a control or format character (newline, escape, bidirectional override, …)."""
    for position, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
            raise PydanticCustomError(
                CONTROL,
                "{character} at position {position} does not print: write plain text on one line",
                {"character": f"U+{ord(character):04X}", "position": position},
            )
    return text


Line = Annotated[str, StringConstraints(max_length=128), AfterValidator(one_line)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, strip_whitespace=True), AfterValidator(one_line)
]
