"""What a figure and a report are. Pure; the reports there are stand in `definitions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from broker.accounting.histograms import Histogram

HOUR: Final = 3600
TEXTS: Final = ("text", "date", "time")
"""Units of figures that are no number: text, a day (`2026-11-30`), a moment (ISO 8601, UTC)."""
Value = float | str | None
INFINITE: Final = "Infinity"
"""An infinite number where only text can tell it (JSON, CSV): what Python, JavaScript and SQL read as one."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What was added up over jobs (or whatever a report is of): numbers and histograms by name.

    `texts`: what one line has and nobody can add up (a reason, a day); the total has none.
    """

    numbers: Mapping[str, float]
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.numbers.get(name) or 0.0


Compute = Callable[[Sums, Sums], Value]
"""A figure from a line's sums and those of the whole report."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. `unit`: `jobs`, `h`, `s`, `ratio`, `count`, …, or one of `TEXTS`.

    `numbers` and `histograms` are the sums it needs (`days` asks for no others); `covered` counts what has
    the data, `of` what should, both in `counted`: jobs, or hours that were watched. `quantile`: of a
    figure that is one of its histogram, which.
    """

    name: str
    unit: str
    title: str
    title_ko: str
    definition: str
    definition_ko: str
    compute: Compute
    numbers: tuple[str, ...] = ()
    histograms: tuple[str, ...] = ()
    covered: str | None = None
    of: str = "ended"
    counted: str = "jobs"
    quantile: float | None = None

    def coverage(self, sums: Sums) -> tuple[int, int] | None:
        """How much has the data, and how much should have it; None where all has."""
        return (round(sums[self.covered]), round(sums[self.of])) if self.covered else None


@dataclass(frozen=True, slots=True)
class Report:
    """A report: its measures, the first of which orders the lines and is drawn as a bar.

    `source`: where its lines come from, a name in `sources.SOURCES`. `dimensions`: what it can be split and
    filtered by (none: what the sums of the days have). `jobs`: its lines lead down to jobs. `now`: it tells
    how things stand, whatever the period. `public`: it is of the cluster, the same for everybody; else
    readers see their own part (`reports.Scope`).
    """

    name: str
    title: str
    title_ko: str
    by: tuple[str, ...]
    measures: tuple[Measure, ...]
    source: str = "days"
    dimensions: tuple[str, ...] = ()
    jobs: bool = True
    now: bool = False
    public: bool = False


def ratio(above: float, below: float) -> float | None:
    """A ratio; None of nothing."""
    return above / below if below else None


def text(name: str) -> Compute:
    """A figure that is a text of the line."""
    return lambda sums, _: sums.texts.get(name)
