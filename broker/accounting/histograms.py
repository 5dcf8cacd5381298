"""Log-bucket histograms: medians and percentiles of a year from a few numbers per day. Pure.

Bucket 0 holds what is shorter than a second; bucket k ≥ 1 holds [GAMMA^(k−1), GAMMA^k) seconds. A quantile is
the nearest rank's bucket, told as the bucket's geometric middle, so it is at most `ERROR` off the exact one
(the idea of DDSketch, Masson et al. 2019). Histograms add up: days to months, users to tenants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

PER_OCTAVE: Final = 8
GAMMA: Final = 2 ** (1 / PER_OCTAVE)
ERROR: Final = math.sqrt(GAMMA) - 1
"""Largest relative error of a quantile of a second or more: 4.4 %."""

Histogram = Mapping[str, int]
"""Counts by bucket; the bucket's number as text, for it is kept as JSON."""


def bucket(seconds: float) -> int:
    """The bucket of a duration; what is negative (clocks differ) counts as none at all.

    >>> bucket(0), bucket(1), bucket(2), bucket(3600)
    (0, 1, 9, 95)
    """
    return 0 if seconds < 1 else 1 + math.floor(math.log2(seconds) * PER_OCTAVE)


def middle(number: int) -> float:
    """The seconds that stand for a bucket."""
    return 0.0 if number <= 0 else GAMMA ** (number - 0.5)


def histogram(values: Iterable[float]) -> dict[str, int]:
    """The values' histogram."""
    return merged({str(bucket(value)): 1} for value in values)


def merged(parts: Iterable[Histogram]) -> dict[str, int]:
    """The sum of histograms."""
    total: dict[str, int] = {}
    for part in parts:
        for number, count in part.items():
            total[number] = total.get(number, 0) + count
    return total


def quantile(counts: Histogram, share: float) -> float | None:
    """The nearest-rank quantile in seconds, at most `ERROR` off; None of nothing.

    >>> quantile({"0": 1, "95": 3}, 0.25), quantile({}, 0.5)
    (0.0, None)
    """
    total = sum(counts.values())
    if not total:
        return None
    left = max(1, math.ceil(share * total))
    for number, count in sorted((int(number), count) for number, count in counts.items()):
        left -= count
        if left <= 0:
            return middle(number)
    raise AssertionError("unreachable")
