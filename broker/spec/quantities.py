"""Quantities people write as text: memory ("128GB") and spans of time ("24h", "1-12:00:00").

GB means GiB, as everywhere in Slurm (sbatch(1), `--mem`: suffixes are powers of 1024).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from broker.spec.codes import Code
from broker.spec.limits import MAX_MEMORY_MIB, MAX_TIME_S
from broker.spec.text import shown

_MIB_PER_UNIT = {"M": 1, "G": 1 << 10, "T": 1 << 20, "P": 1 << 30}
_MEMORY = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s?([MGTP])(?:i?B)?", re.IGNORECASE | re.ASCII)
_MEMORY_REMEDY = 'write a number and MB, GB or TB, for example "128GB"'

_TIME_UNITS = re.compile(
    r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,10})s)?", re.IGNORECASE | re.ASCII
)
_TIME_CLOCK = re.compile(r"(\d{1,6}):([0-5]\d):([0-5]\d)", re.ASCII)
_TIME_DAYS = re.compile(r"(\d{1,6})-(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?", re.ASCII)
_TIME_REMEDY = 'write for example "24h", "90m", "1d12h", "36:00:00" or "1-12:00:00"'


class QuantityError(ValueError):
    """The text is no such quantity; the message names it and says what to write instead."""


@dataclass(frozen=True, order=True, slots=True)
class Memory:
    """An amount of memory: whole MiB, at least one. Compares by size; `str()` gives back "128GB"."""

    mib: int

    def __str__(self) -> str:
        for unit in "TG":
            if self.mib % _MIB_PER_UNIT[unit] == 0:
                return f"{self.mib // _MIB_PER_UNIT[unit]}{unit}B"
        return f"{self.mib}MB"

    @classmethod
    def parse(cls, text: str) -> Memory:
        """Read "128GB", "64 GiB", "1.5TB", "512M"; raises `QuantityError`."""
        match = _MEMORY.fullmatch(text.strip(" "))
        if not match:
            raise QuantityError(f"{shown(text)} is no amount of memory; {_MEMORY_REMEDY}")
        mib = Decimal(match[1]) * _MIB_PER_UNIT[match[2].upper()]
        if mib != int(mib) or mib < 1:
            raise QuantityError(f"{shown(text)} is not a whole number of MB, at least 1; {_MEMORY_REMEDY}")
        if mib > MAX_MEMORY_MIB:
            raise QuantityError(f"{shown(text)} is more than {Memory(MAX_MEMORY_MIB)}; {_MEMORY_REMEDY}")
        return cls(int(mib))

    @classmethod
    def _validate(cls, value: Any) -> Memory:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            sentence = f"{shown(value)} is not a text with a unit; {_MEMORY_REMEDY}"
            raise PydanticCustomError(Code.BAD_MEMORY, "{detail}", {"detail": sentence})
        try:
            return cls.parse(value)
        except QuantityError as error:
            raise PydanticCustomError(Code.BAD_MEMORY, "{detail}", {"detail": str(error)}) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {
            "type": "string",
            "description": "Amount of memory; GB is GiB",
            "examples": ["128GB", "512MB"],
        }


def parse_time(text: str) -> int:
    """Read a span of time into seconds; raises `QuantityError`.

    Accepted: units ("24h", "90m", "1d12h30m"), a clock ("36:00:00") and Slurm's days ("1-12", "1-12:00:00").
    Not accepted: "90" and "90:00", which Slurm takes for minutes and people for other things.
    """
    plain = text.strip(" ")
    if plain and (match := _TIME_UNITS.fullmatch(plain)):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    elif match := _TIME_CLOCK.fullmatch(plain):
        days, (hours, minutes, seconds) = 0, map(int, match.groups())
    elif match := _TIME_DAYS.fullmatch(plain):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    else:
        raise QuantityError(f"{shown(text)} is no span of time; {_TIME_REMEDY}")
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not 0 < total <= MAX_TIME_S:
        raise QuantityError(
            f"{shown(text)} is not between 1 second and {MAX_TIME_S // 86_400} days; {_TIME_REMEDY}"
        )
    return total


def format_time(seconds: int) -> str:
    """Write seconds as Slurm's `days-hours:minutes:seconds`, which `parse_time` reads back."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day}-{hour:02d}:{minute:02d}:{second:02d}"


def _validate_time(value: Any) -> int:
    if not isinstance(value, str):
        sentence = f"{shown(value)} has no unit; {_TIME_REMEDY}"
        raise PydanticCustomError(Code.BAD_TIME, "{detail}", {"detail": sentence})
    try:
        return parse_time(value)
    except QuantityError as error:
        raise PydanticCustomError(Code.BAD_TIME, "{detail}", {"detail": str(error)}) from None


Seconds = Annotated[
    int,
    BeforeValidator(_validate_time),
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema(
        {"type": "string", "description": "Span of time", "examples": ["24h", "90m", "1-12:00:00"]}
    ),
]
"""A span of time: text with a unit outside, whole seconds inside."""
