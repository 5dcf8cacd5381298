"""How far a program has come, from what it says: its `PROGRESS_FILE`, or patterns in its log. Pure.

A program that reports nothing has no progress, not 0 %. What it says is data: numbers are checked, texts are
not kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, Field

from broker.text import unstorable

FILE_LIMIT = 64 * 1024
"""Bytes of `PROGRESS_FILE` that are looked at; a longer one is no report."""
VALUES = 20
"""Figures beside step and total that are kept (loss, accuracy, …)."""
MOST = 1e15
"""Above this a count is no count."""

Unit = Literal["step", "epoch", "percent"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a program said last. `epoch`: (current, all), where its log told both epochs and steps."""

    step: float
    total: float
    unit: Unit
    fraction: float
    values: dict[str, float] = field(default_factory=dict)
    epoch: tuple[int, int] | None = None


class Progress(BaseModel):
    """How far one start of a component has come. `expected_end` is null until two reports show a speed."""

    step: float
    total: float
    unit: Unit
    fraction: float = Field(ge=0, le=1, description="0 to 1; within one start it never goes back")
    source: Literal["file", "log"] = Field(description="`PROGRESS_FILE`, or patterns in the log")
    values: dict[str, float] = Field(description="Figures that were reported beside it: loss, accuracy, …")
    at: datetime = Field(description="When the broker saw it come this far")
    since: datetime = Field(description="First report of this start …")
    since_fraction: float = Field(description="… and how far it was then: what a checkpoint had saved")
    expected_end: datetime | None
    restart: int
    epoch: tuple[int, int] | None = None


def read_file(data: bytes) -> Report | None:
    """`{"step": 3, "total": 30, "loss": …}`; None when it is something else.

    >>> read_file(b'{"step": 3, "total": 30, "loss": 0.5}').fraction
    0.1
    """
    if len(data) > FILE_LIMIT:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    step, total = _number(value.pop("step", None)), _number(value.pop("total", None))
    if step is None or total is None or total <= 0 or step < 0:
        return None
    figures = {
        name: number
        for name, item in value.items()
        if len(name) <= 64 and next(unstorable(name), None) is None and (number := _number(item)) is not None
    }
    kept = dict(list(figures.items())[:VALUES])
    return Report(step, total, "step", min(1.0, step / total), kept)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MOST else None  # neither NaN nor infinite


# Every repetition has a bound: of 64 KiB of blanks, two open ones side by side make half a minute.
_COUNT = r"[\s:=#]{0,20}[\[(]?\s{0,20}(\d{1,12})\s{0,20}(?:/|\bof\b)\s{0,20}(\d{1,12})"
_EPOCH = re.compile(rf"\bepochs?\b{_COUNT}", re.IGNORECASE)
_STEP = re.compile(
    rf"\b(?:global[ _])?(?:steps?|iter(?:ation)?s?|batch(?:es)?){_COUNT}"  # step 3/30, Iteration: [3/30]
    r"|\d{1,3}%\|[^|\r\n]{0,200}\|\s{0,20}(\d{1,12})/(\d{1,12})\s{0,20}\["  # tqdm: 45%|###  | 450/1000 [0:10
    r"|^[ \t]{0,80}(\d{1,12})/(\d{1,12})\s{0,20}(?:\[|━)",  # Keras: 12/938 [====> …
    re.IGNORECASE | re.MULTILINE,
)
_PERCENT = re.compile(
    r"\b(?:progress|completed?|done)\b[\s:=]{0,20}(\d{1,3}(?:\.\d{1,6})?)\s{0,20}%", re.IGNORECASE
)


def read_log(text: str, epoch: tuple[int, int] | None = None) -> Report | None:
    """The last report in a piece of log; None when there is none.

    Understood: `epoch 3/30`, `step 120 of 1000` (also iteration, batch), the bars of tqdm and Keras,
    `progress: 45%`. Steps that follow an epoch count within it, up to the epoch before it was begun; `epoch`
    is the one that was known, since its line may lie before this piece.

    >>> read_log("Epoch 2/4\\n 50%|##   | 5/10 [00:01<00:01]").fraction
    0.375
    """
    text = text.replace("\r", "\n")
    begun = 0
    for found in _EPOCH.finditer(text):
        if (pair := _pair(found)) is not None:
            epoch, begun = pair, found.end()
    steps = [pair for found in _STEP.finditer(text, begun) if (pair := _pair(found)) is not None]
    if epoch is not None and steps:
        (done, of), (now, of_steps) = epoch, steps[-1]
        return Report(done, of, "epoch", min(1.0, (max(0, done - 1) + now / of_steps) / of), epoch=epoch)
    if epoch is not None and begun:
        return Report(*epoch, "epoch", epoch[0] / epoch[1], epoch=epoch)
    if steps:
        return Report(*steps[-1], "step", steps[-1][0] / steps[-1][1])
    percents = [value for found in _PERCENT.finditer(text) if (value := float(found[1])) <= 100]
    return Report(percents[-1], 100, "percent", percents[-1] / 100) if percents else None


def _pair(found: re.Match[str]) -> tuple[int, int] | None:
    """(step, total) of a match, unless they are no progress: 7/0, a date's 31/12."""
    step, total = (int(number) for number in found.groups() if number is not None)
    return (step, total) if 0 <= step <= total and total > 0 else None


def advance(
    before: Progress | None, report: Report, source: Literal["file", "log"], now: datetime, restart: int
) -> Progress:
    """The progress after a report. Another start begins anew; within one nothing goes back.

    (A bar for the validation after each epoch would.) The expected end follows from the mean speed since the
    first report of this start, so what a checkpoint had saved counts for nothing.
    """
    if before is None or before.restart != restart:
        before = None
    since, since_fraction = (before.since, before.since_fraction) if before else (now, report.fraction)
    if before is not None and report.fraction < before.fraction:
        return before.model_copy(update={"values": report.values or before.values})
    moved = before is None or report.fraction > before.fraction
    at = now if before is None or moved else before.at
    return Progress(
        step=report.step,
        total=report.total,
        unit=report.unit,
        fraction=report.fraction,
        source=source,
        values=report.values,
        at=at,
        since=since,
        since_fraction=since_fraction,
        expected_end=expected_end(since, since_fraction, at, report.fraction),
        restart=restart,
        epoch=report.epoch,
    )


def expected_end(since: datetime, since_fraction: float, at: datetime, fraction: float) -> datetime | None:
    """When it will be done at the speed between two moments; None when it has not moved.

    Also None where that is further off than a hundred years.
    """
    done, took = fraction - since_fraction, (at - since).total_seconds()
    if done <= 0 or took <= 0:
        return None
    left = (1 - fraction) / done * took
    return at + timedelta(seconds=left) if left < 100 * 365 * 86400 else None
