"""How long something takes, on a machine that others use as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def fastest(ask: Callable[[], Found]) -> tuple[float, Found]:
    """Seconds of the fastest of three by the clock, and the answer.

    What a database server does for it counts, which this process' own CPU time leaves out; other programs
    seldom hold up all three.
    """
    took = []
    for _ in range(3):
        began = time.perf_counter()
        found = ask()
        took.append(time.perf_counter() - began)
    return min(took), found
