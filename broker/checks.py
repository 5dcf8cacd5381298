"""One finding of `broker doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do about it (empty where nothing is to be done)."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
